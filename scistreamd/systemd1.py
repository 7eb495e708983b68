"""The one door to systemd: org.freedesktop.systemd1(5) on the system bus, by dbus-next.

Calls wait for the jobs that they make. A connection that is lost is made
again, and everything that is watched is looked at anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from dbus_next import Message, MessageType

from scistreamd.bus_wire import Connection, end_of
from scistreamd.errors import Code, ScistreamError
from scistreamd.systemd_wire import (
    CALL_SECONDS,
    DBUS,
    MANAGER,
    NAME,
    PROPERTIES,
    Disconnected,
    JobError,
    Method,
    UnitError,
    ask,
    disconnect,
    manager,
    unit_path,
    variants,
)
from scistreamd.units import Unit

_UNIT = f"{NAME}.Unit"
_NO_SUCH_UNIT = f"{NAME}.NoSuchUnit"

_MATCHES = (
    f"type='signal',sender='{NAME}',interface='{MANAGER}',member='JobRemoved'",
    f"type='signal',sender='{NAME}',interface='{MANAGER}',member='UnitRemoved'",
    # One rule for all units: dbus-daemon allows a connection 512 rules, and a tunnel would need two. That of the
    # Service interface would bring NRestarts, and dozens of other values with it, each time that a unit changes.
    f"type='signal',sender='{NAME}',interface='{PROPERTIES}',arg0='{_UNIT}'",
)
_RECONNECT_SECONDS = 0.2
# The system bus refuses the 129th call of a connection that waits for its reply (max_replies_per_connection).
_CALLS_AT_ONCE = 64

_log = logging.getLogger("scistreamd.systemd1")

See = Callable[[str, Any], None]


@dataclass(frozen=True)
class UnitState:
    """``ActiveState`` and ``SubState`` of a loaded unit."""

    active: str
    sub: str


class Systemd1:
    """A connection to systemd, PID 1 of this host. Made in a running event loop, opened by `open`."""

    def __init__(self) -> None:
        self._bus: Connection | None = None
        self._up = asyncio.Event()
        self._calling = asyncio.Semaphore(_CALLS_AT_ONCE)
        self._doubt = asyncio.Event()
        self._keepers: list[asyncio.Task[None]] = []
        self._queues: set[asyncio.Queue[tuple[str, str] | None]] = set()
        self._watched: dict[str, tuple[str, See]] = {}
        self._removals: set[asyncio.Event] = set()

    async def open(self) -> None:
        """Connect and stay connected; FAILED_PRECONDITION where there is no system bus or no systemd on it."""
        try:
            bus = await self._connect()
        except (OSError, UnitError) as problem:
            raise ScistreamError(
                Code.FAILED_PRECONDITION,
                f"systemd cannot be reached over the system bus: {problem}",
                "without systemd, use the Subprocess types of data servers, or s2cs",
            ) from problem
        self._keepers = [
            asyncio.create_task(self._keep(bus), name="systemd1 connection"),
            asyncio.create_task(self._settle_doubts(), name="systemd1 doubts"),
        ]

    async def close(self) -> None:
        """End the connection; what was watched is told nothing more."""
        self._watched.clear()
        for keeper in self._keepers:
            keeper.cancel()
        if self._keepers:
            await asyncio.wait(self._keepers)
        if self._bus:  # the tasks had not begun
            self._lost(self._bus)

    # Units

    async def start_transient(self, units: Sequence[Unit]) -> None:
        """Make all units and start the first one; UnitError or JobError where that cannot be."""
        first, *others = units
        auxiliary = [[unit.name, variants(unit.properties)] for unit in others]
        body = [first.name, "fail", variants(first.properties), auxiliary]
        await self._job("StartTransientUnit", "ssa(sv)a(sa(sv))", body)

    async def restart(self, unit: str) -> None:
        """Start the unit, or stop and start it; JobError where it does not start."""
        await self._job("RestartUnit", "ss", [unit, "replace"])

    async def stop(self, unit: str) -> None:
        """Stop the unit; one that is not there is stopped. JobError where it does not stop."""
        while True:
            try:
                await self._job("StopUnit", "ss", [unit, "replace"])
            except Disconnected:
                await asyncio.sleep(_RECONNECT_SECONDS)  # then once more: to stop what is stopped does no harm
            except JobError as problem:
                if problem.result != "canceled":
                    raise  # else another job took its place, such as the end that a stopped tunnel sets off
            except UnitError as problem:
                if problem.name != _NO_SUCH_UNIT:
                    raise
                return
            else:
                return

    async def kill_main(self, unit: str, number: int) -> None:
        """Send a signal to the unit's main process; UnitError where it has none."""
        await self._call(manager("KillUnit", "ssi"), [unit, "main", number])

    async def loaded(self, *patterns: str) -> dict[str, UnitState]:
        """The units in memory whose names match one of the glob patterns."""
        reply = await self._call(manager("ListUnitsByPatterns", "asas"), [[], list(patterns)])
        return {name: UnitState(active, sub) for name, _, _, active, sub, *_ in reply[0]}

    async def get(self, unit: str, interface: str, name: str) -> Any:
        """A property of a unit: ``interface`` is Unit, or the kind's: Service, Socket, Timer."""
        method = Method(unit_path(unit), PROPERTIES, "Get", "ss")
        [variant] = await self._call(method, [f"{NAME}.{interface}", name])
        return variant.value

    async def gone(self, *patterns: str) -> None:
        """Return when no unit that matches is in memory any more: only then may its name be used again."""
        removed = asyncio.Event()
        self._removals.add(removed)
        try:
            while await self.loaded(*patterns):
                await removed.wait()
                removed.clear()
        finally:
            self._removals.discard(removed)

    def watch(self, unit: str, see: See) -> None:
        """Call ``see(property, value)`` as ActiveState and SubState change, until `unwatch`.

        A unit that is removed is told of as inactive. What changed while the
        bus was away is told when it is back; the same value may come twice.
        """
        self._watched[unit_path(unit)] = (unit, see)

    def unwatch(self, unit: str) -> None:
        """Tell of this unit no more."""
        self._watched.pop(unit_path(unit), None)

    async def look_again(self) -> None:
        """Tell of all that is watched as it is now."""
        await self._look_again()

    # The connection

    async def _connect(self) -> Connection:
        bus = Connection(None, longest=None)  # the list of a thousand units is long, and PID 1 is trusted
        try:
            await bus.connect()
            bus.add_message_handler(self._heard)
            for rule in _MATCHES:
                await ask(bus, DBUS, Method("/org/freedesktop/DBus", DBUS, "AddMatch", "s"), [rule])
            await ask(bus, NAME, manager("Subscribe", ""), [])
        except BaseException:
            disconnect(bus)
            raise
        self._bus = bus
        self._up.set()
        return bus

    async def _keep(self, bus: Connection) -> None:
        while True:
            try:
                reason = await end_of(bus)
            finally:
                self._lost(bus)
            _log.warning("the connection to the system bus was lost (%s); making it again", reason)
            bus = await self._reconnect()
            await self._look_again()

    async def _settle_doubts(self) -> None:
        while True:
            await self._doubt.wait()
            self._doubt.clear()
            await self._look_again()

    def _lost(self, bus: Connection) -> None:
        self._bus = None
        self._up.clear()
        disconnect(bus)
        for queue in self._queues:
            queue.put_nowait(None)

    async def _reconnect(self) -> Connection:
        while True:
            try:
                return await self._connect()
            except (OSError, EOFError, UnitError, ScistreamError) as problem:
                _log.debug("the system bus is not back: %s", problem)
                await asyncio.sleep(_RECONNECT_SECONDS)

    async def _look_again(self) -> None:
        """Tell of what changed while nobody told us."""
        try:
            states = await self.loaded(*(unit for unit, _ in self._watched.values())) if self._watched else {}
            for unit, see in list(self._watched.values()):
                see("ActiveState", states[unit].active if unit in states else "inactive")
                if unit in states:
                    see("SubState", states[unit].sub)
        except (UnitError, Disconnected) as problem:
            _log.info("the tunnels' units cannot be looked at just now: %s", problem)
            asyncio.get_running_loop().call_later(_RECONNECT_SECONDS, self._doubt.set)
        for removed in self._removals:
            removed.set()

    def _heard(self, message: Message) -> None:
        if message.message_type is not MessageType.SIGNAL:
            return
        if message.member == "PropertiesChanged" and message.path in self._watched:
            _, see = self._watched[message.path]
            for name, variant in message.body[1].items():
                if name in ("ActiveState", "SubState"):
                    see(name, variant.value)
        elif message.member == "JobRemoved":
            _, path, _, result = message.body
            for queue in self._queues:
                queue.put_nowait((path, result))
        elif message.member == "UnitRemoved":
            _, path = message.body
            if path in self._watched:
                self._doubt.set()  # a reload of systemd removes all units and makes them anew
            for removed in self._removals:
                removed.set()

    # Calls

    async def _job(self, member: str, signature: str, body: list[Any]) -> None:
        """Make a call that answers with a job, and wait for the job's end."""
        with self._job_ends() as ends:
            [job] = await self._call(manager(member, signature), body)
            while end := await ends.get():
                path, result = end
                if path == job:
                    if result != "done":
                        raise JobError(body[0], result)
                    return
        raise Disconnected

    @contextlib.contextmanager
    def _job_ends(self) -> Iterator[asyncio.Queue[tuple[str, str] | None]]:
        """From before the call on: the job may have ended when its answer is looked at."""
        queue: asyncio.Queue[tuple[str, str] | None] = asyncio.Queue()
        self._queues.add(queue)
        try:
            yield queue
        finally:
            self._queues.discard(queue)

    async def _call(self, method: Method, body: list[Any]) -> list[Any]:
        async with self._calling:
            try:
                await asyncio.wait_for(self._up.wait(), CALL_SECONDS)
            except asyncio.TimeoutError:
                raise Disconnected from None
            assert self._bus  # noqa: S101  it is up
            return await ask(self._bus, NAME, method, body)
