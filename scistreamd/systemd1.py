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

from dbus_next import BusType, Message, MessageType, Variant
from dbus_next.aio import MessageBus

from scistreamd.errors import Code, ScistreamError
from scistreamd.units import Property, Unit

_NAME = "org.freedesktop.systemd1"
_ROOT = "/org/freedesktop/systemd1"
_MANAGER = f"{_NAME}.Manager"
_UNIT = f"{_NAME}.Unit"
_SERVICE = f"{_NAME}.Service"
_DBUS = "org.freedesktop.DBus"
_PROPERTIES = "org.freedesktop.DBus.Properties"
_NO_SUCH_UNIT = f"{_NAME}.NoSuchUnit"
_DENIED = ("org.freedesktop.DBus.Error.AccessDenied", "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired")

_MATCHES = (
    f"type='signal',sender='{_NAME}',interface='{_MANAGER}',member='JobRemoved'",
    f"type='signal',sender='{_NAME}',interface='{_MANAGER}',member='UnitRemoved'",
    # One rule for all units: dbus-daemon allows a connection 512 rules, and a tunnel would need two.
    f"type='signal',sender='{_NAME}',interface='{_PROPERTIES}',arg0='{_UNIT}'",
    f"type='signal',sender='{_NAME}',interface='{_PROPERTIES}',arg0='{_SERVICE}'",
)
_CALL_SECONDS = 30
_RECONNECT_SECONDS = 0.2

_log = logging.getLogger("scistreamd.systemd1")

See = Callable[[str, Any], None]


class UnitError(Exception):
    """systemd refused a call; ``name`` is the D-Bus error."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


class JobError(Exception):
    """A job did not end as ``done``; ``result`` as in JobRemoved: failed, canceled, dependency, timeout, ..."""

    def __init__(self, unit: str, result: str) -> None:
        super().__init__(f"{unit}: the job's result is {result}")
        self.result = result


class Disconnected(ScistreamError):
    """The bus went away during a call, of which nothing is known then."""

    def __init__(self) -> None:
        super().__init__(Code.UNAVAILABLE, "the connection to the system bus was lost", "try again")


@dataclass(frozen=True)
class UnitState:
    """``ActiveState`` and ``SubState`` of a loaded unit."""

    active: str
    sub: str


@dataclass(frozen=True)
class _Method:
    """A method of an object, and the D-Bus signature of its arguments."""

    path: str
    interface: str
    member: str
    signature: str


class Systemd1:
    """A connection to systemd, PID 1 of this host. Made in a running event loop, opened by `open`."""

    def __init__(self) -> None:
        self._bus: MessageBus | None = None
        self._up = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
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
        self._keeper = asyncio.create_task(self._keep(bus), name="systemd1 connection")

    async def close(self) -> None:
        """End the connection; what was watched is told nothing more."""
        self._watched.clear()
        if self._keeper:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])
        if self._bus:  # the task had not begun
            self._lost(self._bus)

    # Units

    async def start_transient(self, units: Sequence[Unit]) -> None:
        """Make all units and start the first one; UnitError or JobError where that cannot be."""
        first, *others = units
        auxiliary = [[unit.name, _variants(unit.properties)] for unit in others]
        body = [first.name, "fail", _variants(first.properties), auxiliary]
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
                await self._up.wait()  # once more: to stop what is stopped does no harm
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
        await self._call(_manager("KillUnit", "ssi"), [unit, "main", number])

    async def loaded(self, *patterns: str) -> dict[str, UnitState]:
        """The units in memory whose names match one of the glob patterns."""
        reply = await self._call(_manager("ListUnitsByPatterns", "asas"), [[], list(patterns)])
        return {name: UnitState(active, sub) for name, _, _, active, sub, *_ in reply[0]}

    async def get(self, unit: str, name: str) -> Any:
        """A property of a unit; those of the unit's kind and those that all units have."""
        kind = f"{_NAME}.{unit.rpartition('.')[2].capitalize()}"
        for interface in (_UNIT, kind):
            try:
                reply = await self._call(_Method(_path(unit), _PROPERTIES, "Get", "ss"), [interface, name])
            except UnitError as problem:
                if interface == kind or problem.name != "org.freedesktop.DBus.Error.UnknownProperty":
                    raise
            else:
                return reply[0].value
        raise AssertionError("the loop returns or raises")

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
        """Call ``see(property, value)`` as ActiveState, SubState and NRestarts change, until `unwatch`.

        A unit that is removed is told of as inactive. What changed while the
        bus was away is told when it is back; the same value may come twice.
        """
        self._watched[_path(unit)] = (unit, see)

    def unwatch(self, unit: str) -> None:
        """Tell of this unit no more."""
        self._watched.pop(_path(unit), None)

    # The connection

    async def _connect(self) -> MessageBus:
        bus = MessageBus(bus_type=BusType.SYSTEM)
        try:
            await bus.connect()
            bus.add_message_handler(self._heard)
            for rule in _MATCHES:
                await _ask(bus, _DBUS, _Method("/org/freedesktop/DBus", _DBUS, "AddMatch", "s"), [rule])
            await _ask(bus, _NAME, _manager("Subscribe", ""), [])
        except BaseException:
            _disconnect(bus)
            raise
        self._bus = bus
        self._up.set()
        return bus

    async def _keep(self, bus: MessageBus) -> None:
        while True:
            try:
                with contextlib.suppress(OSError, EOFError):
                    await bus.wait_for_disconnect()
            finally:
                self._lost(bus)
            _log.warning("the connection to the system bus was lost; making it again")
            bus = await self._reconnect()
            await self._look_again()

    def _lost(self, bus: MessageBus) -> None:
        self._bus = None
        self._up.clear()
        _disconnect(bus)
        for queue in self._queues:
            queue.put_nowait(None)

    async def _reconnect(self) -> MessageBus:
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
                if unit in states and unit.endswith(".service"):
                    see("NRestarts", await self.get(unit, "NRestarts"))
        except (UnitError, Disconnected) as problem:
            _log.warning("the tunnels' units could not be looked at: %s", problem)
        for removed in self._removals:
            removed.set()

    def _heard(self, message: Message) -> None:
        if message.message_type is not MessageType.SIGNAL:
            return
        if message.member == "PropertiesChanged" and message.path in self._watched:
            _, see = self._watched[message.path]
            for name, variant in message.body[1].items():
                if name in ("ActiveState", "SubState", "NRestarts"):
                    see(name, variant.value)
        elif message.member == "JobRemoved":
            _, path, _, result = message.body
            for queue in self._queues:
                queue.put_nowait((path, result))
        elif message.member == "UnitRemoved":
            _, path = message.body
            if path in self._watched:
                self._watched[path][1]("ActiveState", "inactive")
            for removed in self._removals:
                removed.set()

    # Calls

    async def _job(self, member: str, signature: str, body: list[Any]) -> None:
        """Make a call that answers with a job, and wait for the job's end."""
        with self._job_ends() as ends:
            [job] = await self._call(_manager(member, signature), body)
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

    async def _call(self, method: _Method, body: list[Any]) -> list[Any]:
        try:
            await asyncio.wait_for(self._up.wait(), _CALL_SECONDS)
        except asyncio.TimeoutError:
            raise Disconnected from None
        assert self._bus  # noqa: S101  it is up
        return await _ask(self._bus, _NAME, method, body)


async def _ask(bus: MessageBus, name: str, method: _Method, body: list[Any]) -> list[Any]:
    """One method call; raises Disconnected, PERMISSION_DENIED or UnitError."""
    message = Message(
        destination=name,
        path=method.path,
        interface=method.interface,
        member=method.member,
        signature=method.signature,
        body=body,
    )
    try:
        reply = await asyncio.wait_for(bus.call(message), _CALL_SECONDS)
    except (OSError, EOFError, asyncio.TimeoutError) as problem:
        raise Disconnected from problem
    if reply is None:
        raise Disconnected
    if reply.message_type is MessageType.ERROR:
        text = str(reply.body[0]) if reply.body else ""
        if reply.error_name in _DENIED:
            raise ScistreamError(
                Code.PERMISSION_DENIED, f"systemd refuses to start and stop units for this user: {text}", "run as root"
            )
        raise UnitError(str(reply.error_name), text)
    return list(reply.body)


def _manager(member: str, signature: str) -> _Method:
    return _Method(_ROOT, _MANAGER, member, signature)


def _disconnect(bus: MessageBus) -> None:
    """End the connection; dbus-next 0.2.3 ends it without closing its socket."""
    with contextlib.suppress(OSError):
        bus.disconnect()
    bus._finalize(None)
    bus._sock.close()


def _variants(properties: Sequence[Property]) -> list[list[Any]]:
    return [[each.name, Variant(each.signature, each.value)] for each in properties]


def _path(unit: str) -> str:
    """The object of a unit: sd_bus_path_encode(3) of its name."""
    escaped = "".join(
        char if char.isascii() and char.isalnum() and not (index == 0 and char.isdigit()) else f"_{ord(char):02x}"
        for index, char in enumerate(unit)
    )
    return f"{_ROOT}/unit/{escaped}"
