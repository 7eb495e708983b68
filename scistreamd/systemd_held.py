"""One tunnel whose listeners and data server are units of systemd."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import stat
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scistreamd import programs, units
from scistreamd.errors import Code, ScistreamError
from scistreamd.interfaces import PortsBusy, Told
from scistreamd.journal import Journal
from scistreamd.places import write_file
from scistreamd.plans import Bind, Places, Program, SocketSays
from scistreamd.readiness import Words
from scistreamd.service_watch import STEADY_SECONDS, ServiceWatch
from scistreamd.systemd_wire import Disconnected, JobError, UnitError

if TYPE_CHECKING:
    from scistreamd.systemd_launcher import SystemdLauncher

_POLL = 0.01
_RESTARTS_IN_A_ROW = 5
_TIMER_SLACK = 1.0
_NO_UID = 2**32 - 1  # UID_INVALID of systemd

_log = logging.getLogger("scistreamd.systemd")


class SystemdHeld:
    """One tunnel's units and files. `interfaces.Held`."""

    def __init__(
        self, launcher: SystemdLauncher, tunnel_id: str, binds: Sequence[Bind], told: Told, seconds: float | None = None
    ) -> None:
        """Made by `SystemdLauncher` when the socket unit listens; it ends ``seconds`` from now."""
        self._launcher = launcher
        self._systemd = launcher.systemd
        self._id = tunnel_id
        self._names = units.Names(tunnel_id)
        self._binds = tuple(binds)
        self._told = told
        self._program: Program | None = None
        self._timer = 0
        self._ends_at = None if seconds is None else asyncio.get_running_loop().time() + seconds
        self._changing = asyncio.Lock()
        self._closing: asyncio.Future[None] | None = None
        self._ended = False
        self._failed = False
        self._service = ServiceWatch(
            lambda: self._spawn(self._count_restarts()), lambda: self._spawn(self._end_if_stopped())
        )
        self._tasks: set[asyncio.Task[None]] = set()
        self._watch()

    @property
    def places(self) -> Places:
        """Where the tunnel's files are for its data server."""
        return self._launcher.places(self._id)

    @property
    def unit(self) -> str:
        """The service that runs the data server."""
        return self._names.service

    async def user(self) -> int | None:
        """See `interfaces.Held.user`: the dynamic user of the service."""
        if self._program is None:
            return None
        try:
            found = await self._systemd.get(self._names.service, "Service", "UID")
        except UnitError:
            return None  # it has just ended
        return None if found == _NO_UID else int(found)

    async def take_over(self, program: Program | None, timers: Sequence[str]) -> None:
        """Go on where the daemon before left off: what it served, and the timers that run on it."""
        self._program = program
        numbers = sorted(units.timer_number(timer) for timer in timers)
        self._timer = numbers[-1] if numbers else 0
        # Those that have been replaced; and the first one, which is for listeners that nobody serves on.
        for number in numbers[:-1] if self._timer or not program else numbers:
            await self._systemd.stop(self._names.timer(number))
        if numbers and (self._timer or not program):
            with contextlib.suppress(UnitError):  # it has just ended
                timer = self._names.timer(self._timer)
                self._ends_at = await self._systemd.get(timer, "Timer", "NextElapseUSecMonotonic") / 1e6

    async def rebind(self, binds: Sequence[Bind]) -> None:
        """See `interfaces.Held.rebind`; where the listeners are lost by it, the tunnel has ended."""
        async with self._changing:
            self._check_open()
            self._unwatch()
            try:
                await self._launcher.change_listeners(self._id, self._binds, binds)
                self._binds = tuple(binds)
            except PortsBusy:
                raise
            except BaseException as problem:
                self._ended = True
                self._told.ended(f"its listeners were lost: {problem}")
                raise
            finally:
                self._ends_at = asyncio.get_running_loop().time() + self._launcher.reserved_seconds
                self._watch()

    async def serve(self, program: Program, secrets: Mapping[str, bytes]) -> None:
        """See `interfaces.Held.serve`."""
        self._check_open()
        if not (self._program and await self._is_running() and await self._retarget(program, self._program)):
            async with self._launcher.starting:
                self._check_open()
                self._write_keys(secrets)
                await self._start(program)
        self._program = program
        if self._timer == 0:
            self._ends_at = None
            await self._systemd.stop(self._names.timer())

    async def _is_running(self) -> bool:
        states = await self._systemd.loaded(self._names.service)
        return self._names.service in states and states[self._names.service].sub == "running"

    async def _start(self, program: Program) -> None:
        """Have the service run it; when that fails it runs what it ran before, or waits as before."""
        journal = Journal(self._names.service)
        try:
            with Words(journal, program) as words:
                self._write(program)
                self._service.fresh()
                await self._systemd.restart(self._names.service)
                self._service.down.clear()
                await self._ready(journal, words)
        except BaseException as problem:
            await self._restart_with(self._program)
            if isinstance(problem, JobError):
                raise await self._refused(journal, f"could not be started ({problem.result})") from problem
            raise
        finally:
            await journal.close()

    async def _retarget(self, program: Program, before: Program) -> bool:
        """Have the running data server take another configuration; False where it ended meanwhile."""
        self._service.down.clear()
        journal = Journal(self._names.service)
        try:
            if isinstance(before.ready, SocketSays):
                # One that was just started again does not take signals yet, or dies of them.
                with Words(journal, before) as words:
                    await self._ready(journal, words)
            with Words(journal, program, before) as words:
                self._write(program)
                await self._systemd.kill_main(self._names.service, program.reload_signal)
                await self._ready(journal, words)
        except BaseException as problem:
            # What runs on is the configuration before: a restart must find that one.
            self._write(before)
            down = self._service.down.is_set() and isinstance(problem, ScistreamError)
            if (down or isinstance(problem, UnitError)) and not self._ended:
                return False
            raise
        finally:
            await journal.close()
        return True

    async def _ready(self, journal: Journal, words: Words) -> None:
        """Return when the data server says that it accepts, by the configuration that ``words`` is about."""
        seconds = self._launcher.start_seconds
        deadline = asyncio.get_running_loop().time() + seconds
        while not await words.say_ready():
            self._check_open()
            journal.check()
            if self._service.down.is_set():
                raise await self._refused(journal, f"ended at start{await _how(journal)}")
            if words.say_rejected:
                raise await self._refused(journal, "did not take its new configuration")
            if asyncio.get_running_loop().time() > deadline:
                raise await self._refused(journal, f"was not ready within {seconds:g} s")
            await asyncio.sleep(_POLL)

    def _write_keys(self, secrets: Mapping[str, bytes]) -> None:
        """For root alone: at each start PID 1 gives them to the data server's user.

        Units that a scistreamd before this one made, in a directory that others enter, do not: theirs are readable.
        """
        directory = Path(self.places.secrets)
        mode = 0o644 if directory.stat().st_mode & stat.S_IXOTH else 0o600
        for name, content in secrets.items():
            write_file(directory / name, content, mode, None)

    def _write(self, program: Program) -> None:
        for name, text in program.config.items():
            write_file(Path(self.places.config) / name, text.encode(), 0o644, None)
        library = programs.library(program.library)
        self._write_script(units.script(program, str(library or "")))

    def _write_script(self, text: str) -> None:
        write_file(Path(self.places.config) / units.SCRIPT, text.encode(), 0o644, None)

    async def _restart_with(self, program: Program | None) -> None:
        """Have the service run this, or wait: its port stays held."""
        if program:
            self._write(program)
        else:
            self._write_script(units.WAITING)
        if not (self._closing or self._ended):
            with contextlib.suppress(JobError, UnitError):  # somebody stopped it, which ends the tunnel
                await self._systemd.restart(self._names.service)

    async def limit(self, seconds: float) -> None:
        """See `interfaces.Held.limit`. A timer cannot be changed: a further one takes its place."""
        self._check_open()
        before, ends_at = self._timer, None
        if seconds > 0:
            await self._systemd.start_transient(units.end_units(self._id, before + 1, seconds))
            self._timer = before + 1
            ends_at = asyncio.get_running_loop().time() + seconds
        self._ends_at = ends_at
        await self._systemd.stop(self._names.timer(before))

    async def drain(self, seconds: float) -> None:
        """See `interfaces.Held.drain`."""
        if self._program and not (self._closing or self._ended or self._failed):
            await self._drain(self._program, seconds)

    async def close(self) -> None:
        """See `interfaces.Held.close`."""
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        async with self._changing:
            self._unwatch()
            for task in self._tasks:
                task.cancel()
            if self._tasks:
                await asyncio.wait(self._tasks)
            try:
                await self._launcher.stop_units(self._id)
            finally:
                self._launcher.remove_files(self._id)

    async def _drain(self, program: Program, seconds: float) -> None:
        """Let running streams end by themselves for so long.

        The socket unit keeps listening meanwhile; that nobody new gets there is for the kernel's network to see to.
        """
        if program.drain_signal is not None:
            # systemd starts it again when it has ended: to wait.
            self._write_script(units.WAITING)
            self._service.down.clear()
            with contextlib.suppress(UnitError, Disconnected):  # it has ended
                await self._systemd.kill_main(self._names.service, program.drain_signal)
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._service.down.wait(), seconds)

    # What systemd tells

    def _watch(self) -> None:
        self._systemd.watch(self._names.socket, self._see_socket)
        self._systemd.watch(self._names.service, self._service.see)

    def _unwatch(self) -> None:
        self._systemd.unwatch(self._names.socket)
        self._systemd.unwatch(self._names.service)

    def _see_socket(self, name: str, value: Any) -> None:
        if name != "ActiveState" or value not in ("deactivating", "inactive", "failed") or self._ended:
            return
        self._ended = True
        self._service.down.set()
        if not self._closing:
            self._told.ended(self._why_ended())

    def _why_ended(self) -> str:
        if self._ends_at is not None and asyncio.get_running_loop().time() > self._ends_at - _TIMER_SLACK:
            return "its time is over"
        return (
            f"{self._names.socket} or {self._names.service} was stopped on this host, not by scistreamd"
            f" (`journalctl -u 'scistream-{self._id}*'` shows when)"
        )

    async def _end_if_stopped(self) -> None:
        """A service that was stopped by hand, and failed at that, does not end its socket by itself."""
        try:
            job, _ = await self._systemd.get(self._names.service, "Unit", "Job")
            state = await self._systemd.get(self._names.service, "Unit", "ActiveState")
        except (UnitError, Disconnected):
            return  # it is told anew when the bus is back
        if not job and state in ("failed", "inactive") and not self._closing:
            await self._systemd.stop(self._names.socket)

    async def _count_restarts(self) -> None:
        try:
            times = self._service.count(await self._systemd.get(self._names.service, "Service", "NRestarts"))
        except (UnitError, Disconnected):
            return  # it has ended, which the socket tells; or the next restart tells more
        if not times or not self._program or self._closing:
            return
        _log.error("data server ended; systemd started it again", extra={"tunnel": self._id})
        if times > _RESTARTS_IN_A_ROW and not self._failed:
            self._failed = True
            await self._give_up(times)

    async def _give_up(self, times: int) -> None:
        """A crash loop: end it, and keep the port until the tunnel is released."""
        journal = Journal(self._names.service, STEADY_SECONDS)
        problem = await self._refused(journal, f"ended {times} times in a row{await _how(journal)}")
        await self._restart_with(None)
        if not (self._closing or self._ended):
            self._told.failed(problem.message)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work, name=f"tunnel {self._id}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _check_open(self) -> None:
        if self._closing or self._ended:
            raise ScistreamError(Code.CANCELLED, "the tunnel was released meanwhile")

    @staticmethod
    async def _refused(journal: Journal, what: str) -> ScistreamError:
        """``what`` happened, with the last words of the data server."""
        words = " | ".join(dict.fromkeys(await journal.last())) or "it said nothing"
        return ScistreamError(Code.FAILED_PRECONDITION, f"data server {what}: {words}")


async def _how(journal: Journal) -> str:
    how = await journal.exit()
    return f" ({how})" if how else ""
