"""The systemd launcher: tunnels as transient units, which outlive the daemon.

`units` says what they are, `systemd1` makes them. A tunnel's files are in a
directory of its own below the daemon's: ``config`` (seen by the data server),
``secrets`` (PID 1 gives what is in it to the data server's user at each start)
and ``scratch`` (made by PID 1 at each start, for that user).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from pathlib import Path, PurePosixPath

from scistreamd import programs, sockets, units
from scistreamd.errors import Code, ScistreamError
from scistreamd.interfaces import DataServer, EndedMeanwhile, PortsBusy, Told
from scistreamd.places import write_file
from scistreamd.plans import Bind, Places, Program
from scistreamd.systemd1 import Systemd1, UnitState
from scistreamd.systemd_held import SystemdHeld
from scistreamd.systemd_wire import JobError, UnitError
from scistreamd.unit_properties import Limits

_UNIT_EXISTS = "org.freedesktop.systemd1.UnitExists"
_GONE_SECONDS = 10

_log = logging.getLogger("scistreamd.systemd")


class SystemdLauncher:
    """Holds listeners in socket units and runs data servers as service units."""

    def __init__(
        self,
        systemd: Systemd1,
        runtime: Path,
        *,
        start_seconds: float = 20,
        keepalive_idle: int = 60,
        reserved_seconds: float = 600,
        limits: Limits | None = None,
        closing: bool = False,
    ) -> None:
        """``runtime``: a directory of the daemon's own below /run that it leaves behind when it ends.

        ``start_seconds``: how long a data server may take until it says that it
        accepts. ``reserved_seconds``: for how long listeners are held at most
        until `serve`; longer than the manager waits, for this is for the case
        that no daemon runs. ``closing``: whether tunnels can have scripts that
        run at their ends (`units.closing`).
        """
        self.systemd = systemd
        self.runtime = runtime
        self.start_seconds = start_seconds
        self._keepalive_idle = keepalive_idle
        self.reserved_seconds = reserved_seconds
        self._limits = limits or Limits()
        self._closing = closing
        self._found: dict[str, dict[str, UnitState]] | None = None
        # Many starts at the same time finish no sooner, and the last of them would run into its time limit.
        self.starting = asyncio.Semaphore(4 * (os.cpu_count() or 1))

    @property
    def outlives(self) -> bool:
        """True: units run on without the daemon."""
        return True

    @property
    def filters_sources(self) -> bool:
        """False: a socket unit takes everyone."""
        return False

    def missing(self, server: DataServer) -> str:
        """Why this data server cannot run here, or an empty string."""
        return programs.missing(server)

    def lacking(self, server: DataServer) -> str:
        """What is wrong with this data server here, or an empty string."""
        return programs.lacking(server)

    def places(self, tunnel_id: str) -> Places:
        """Where the files of a tunnel are, for us and for its data server alike."""
        root = PurePosixPath(self.runtime / tunnel_id)
        return Places(root / "config", root / "secrets", root / "scratch")

    async def hold(self, tunnel_id: str, binds: Sequence[Bind], told: Told) -> SystemdHeld:
        """See `interfaces.Launcher.hold`; ALREADY_EXISTS where a unit of this tunnel runs."""
        with self.keep(binds) as kept:
            self.make_directories(tunnel_id)
            try:
                await self.start_units(tunnel_id, binds, kept)
            except BaseException as problem:
                if not (isinstance(problem, ScistreamError) and problem.code is Code.ALREADY_EXISTS):
                    await asyncio.shield(self._clear(tunnel_id))  # also what was made while its caller went away
                raise
        return SystemdHeld(self, tunnel_id, binds, told, self.reserved_seconds)

    async def _clear(self, tunnel_id: str) -> None:
        await self.stop_units(tunnel_id)
        self.remove_files(tunnel_id)

    @contextlib.asynccontextmanager
    async def survey(self) -> AsyncIterator[None]:
        """See `interfaces.Launcher.survey`: a look at each tunnel alone is a walk of systemd through all units."""
        found: dict[str, dict[str, UnitState]] = {}
        for unit, state in (await self.systemd.loaded(units.PATTERN)).items():
            if tunnel_id := units.belongs_to(unit):
                found.setdefault(tunnel_id, {})[unit] = state
        self._found = found
        try:
            yield
        finally:
            self._found = None
        await self.systemd.look_again()

    async def _states(self, tunnel_id: str) -> Mapping[str, UnitState]:
        """The units of a tunnel that are there."""
        if self._found is not None:
            return self._found.get(tunnel_id, {})
        return await self.systemd.loaded(*units.Names(tunnel_id).every)

    async def adopt(
        self, tunnel_id: str, binds: Sequence[Bind], program: Program | None, told: Told
    ) -> SystemdHeld | None:
        """See `interfaces.Launcher.adopt`; a tunnel whose socket is gone is cleared away.

        Its files are on tmpfs: where they are, this is still the boot in which it ran.
        """
        names = units.Names(tunnel_id)
        states = await self._states(tunnel_id)
        if names.socket not in states or states[names.socket].active != "active":
            ran = (self.runtime / tunnel_id).exists()
            await self._clear(tunnel_id)
            if ran:
                raise EndedMeanwhile
            return None
        self.make_directories(tunnel_id)
        held = SystemdHeld(self, tunnel_id, binds, told)
        await held.take_over(program, _running_timers(states))
        return held

    async def clear(self, tunnel_id: str) -> None:
        """See `interfaces.Launcher.clear`."""
        await self._clear(tunnel_id)

    async def strangers(self, known: Collection[str]) -> list[str]:
        """Transient units in our slice that are named like a tunnel's and are of none of the ``known`` ids."""
        loaded = await self.systemd.loaded("scistream-*.socket", "scistream-*.service")
        named = [unit for unit in sorted(loaded) if (of := units.tunnel_of(unit)) and of not in known]
        return [unit for unit in named if await self._is_ours(unit)]

    async def _is_ours(self, unit: str) -> bool:
        try:
            transient = bool(await self.systemd.get(unit, "Unit", "Transient"))
            kind = unit.rpartition(".")[2].capitalize()
            return transient and await self.systemd.get(unit, kind, "Slice") == units.SLICE
        except UnitError:
            return False  # it has gone meanwhile

    # Steps that the held tunnels share

    def make_directories(self, tunnel_id: str) -> None:
        """Make the directories of a tunnel as far as they are missing.

        The tunnel's own keeps everybody but root out, and that of the keys
        does so once more. Its data server sees what is in them by mounts; the
        configuration, which is no secret, it reads as anybody could who got there.
        """
        root = self.runtime / tunnel_id
        for path, mode in ((root, 0o700), (root / "secrets", 0o700), (root / "config", 0o755)):
            with contextlib.suppress(FileExistsError):  # its mode stays: see `SystemdHeld.serve`
                path.mkdir(mode=mode)
                path.chmod(mode)  # whatever the umask
        if not (root / "config" / units.SCRIPT).exists():
            write_file(root / "config" / units.SCRIPT, units.WAITING.encode(), 0o644, None)

    def remove_files(self, tunnel_id: str) -> None:
        """Remove all files of a tunnel, its keys among them."""
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self.runtime / tunnel_id)

    def keep(self, binds: Sequence[Bind]) -> sockets.Keep:
        """Keep the listeners in this process; raises as `hold` does."""
        return sockets.Keep(binds, self._keepalive_idle)

    async def start_units(self, tunnel_id: str, binds: Sequence[Bind], kept: sockets.Keep) -> None:
        """Make a tunnel's units and start its socket; raises as `hold` does. ``kept`` gives way to them."""
        made = units.tunnel_units(
            tunnel_id,
            binds,
            self.places(tunnel_id),
            PurePosixPath(self.runtime),
            keepalive_idle=self._keepalive_idle,
            reserved_seconds=self.reserved_seconds,
            limits=self._limits,
            closes=self._closing,
        )
        kept.step_aside()
        try:
            await self.systemd.start_transient(made)
        except JobError as problem:
            kept.close()
            self.keep(binds).close()  # says which port another program has taken meanwhile
            raise ScistreamError(
                Code.FAILED_PRECONDITION,
                f"systemd could not start {problem}",
                f"`journalctl -u {units.Names(tunnel_id).socket}` says why",
            ) from problem
        except UnitError as problem:
            raise self._refused(tunnel_id, problem) from problem

    async def change_listeners(self, tunnel_id: str, before: Sequence[Bind], after: Sequence[Bind]) -> None:
        """Have a tunnel's socket unit listen on ``after``: it is made anew, for it cannot change.

        This process keeps the ports meanwhile. Raises PortsBusy where one is not to be had, and they are
        ``before`` again; after all else that it raises they are none.
        """
        with self.keep([bind for bind in after if bind not in before]) as kept:
            await self.systemd.stop(units.Names(tunnel_id).socket)
            try:
                kept.add(before)
                await self.stop_units(tunnel_id)
                await self.start_units(tunnel_id, after, kept)
            except BaseException:
                kept.close()
                await self._listen_again(tunnel_id, before)
                raise

    async def _listen_again(self, tunnel_id: str, binds: Sequence[Bind]) -> None:
        await self.stop_units(tunnel_id)
        try:
            with self.keep(binds) as kept:
                await self.start_units(tunnel_id, binds, kept)
        except PortsBusy as problem:
            raise ScistreamError(
                Code.RESOURCE_EXHAUSTED,
                f"another program took a port while the tunnel's listeners were changed: {problem.reason}",
                "ask again",
            ) from problem

    def _refused(self, tunnel_id: str, problem: UnitError) -> ScistreamError:
        if problem.name == _UNIT_EXISTS:
            socket = units.Names(tunnel_id).socket
            return ScistreamError(
                Code.ALREADY_EXISTS,
                f"uid: units of tunnel {tunnel_id} exist on this host, and scistreamd does not know them",
                f"`systemctl status {socket}` shows what they are, `systemctl stop {socket}` ends them",
            )
        return ScistreamError(Code.FAILED_PRECONDITION, f"systemd refused the tunnel's units: {problem}")

    async def stop_units(self, tunnel_id: str) -> None:
        """Stop all units of a tunnel; return when their names and ports are free."""
        names = units.Names(tunnel_id)
        # Its timers are bound to the socket.
        await self.systemd.stop(names.socket)
        await self.systemd.stop(names.service)
        try:
            await asyncio.wait_for(self.systemd.gone(*names.every), _GONE_SECONDS)
        except asyncio.TimeoutError:
            left = ", ".join(await self.systemd.loaded(*names.every))
            raise ScistreamError(Code.INTERNAL, f"stopped, but still in systemd's memory: {left}") from None


def _running_timers(states: Mapping[str, UnitState]) -> list[str]:
    return [unit for unit, state in states.items() if unit.endswith(".timer") and state.active == "active"]
