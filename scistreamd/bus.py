"""Our connection to the message bus, by dbus-next.

Every call that comes in runs as a task of its own with its sender in the
`Call`, so concurrent calls cannot mix them up. None of dbus-next's service
side is used: it hides the sender, sends tracebacks to callers, and has no
names for arguments. A connection that is lost is made anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import pwd
from collections import Counter
from pathlib import Path
from typing import Any

from dbus_next import AuthError, DBusError, Message, MessageFlag, MessageType, NameFlag, RequestNameReply

from scistreamd import names
from scistreamd.bus_messages import Answers, Call, CallError, Reply, Signal, User
from scistreamd.bus_wire import (
    LONGEST_MESSAGE,
    Connection,
    call_of,
    close_socket,
    end_of,
    from_wire,
    hang_up,
    reply_to,
    send,
    to_wire,
    too_long,
)
from scistreamd.errors import Code, ScistreamError
from scistreamd.model import shown

_DAEMON = "org.freedesktop.DBus"
_DAEMON_PATH = "/org/freedesktop/DBus"
_CONNECT_SECONDS = 10
_RELEASE_SECONDS = 2
_CALLS_PER_SENDER = 64  # at once; the bus limits only those that wait for a reply
_RETRY = (0.1, 0.5, 2.0, 5.0)  # seconds between attempts; the last one again and again
_PEER = ("Ping", "GetMachineId")
_MACHINE_ID = (Path("/etc/machine-id"), Path("/var/lib/dbus/machine-id"))  # D-Bus specification, "UUIDs"
_NO_SENDER = ("org.freedesktop.DBus.Error.NameHasNoOwner", "org.freedesktop.DBus.Error.ServiceUnknown")

_log = logging.getLogger("scistreamd.bus")


class Bus:
    """Our name on the bus: calls come in, signals go out."""

    def __init__(self, address: str | None = None) -> None:
        """``address``: of the bus (D-Bus specification, "Server addresses"); None is the system bus."""
        self._address = address
        self._answer: Answers | None = None
        self._connection: Connection | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._of_sender: Counter[str] = Counter()
        self._watched: dict[str, set[asyncio.Future[None]]] = {}

    async def serve(self, answer: Answers) -> None:
        """Own our name and answer calls until `close`, also across restarts of the bus.

        Raises ScistreamError(UNAVAILABLE) where there is no bus,
        FAILED_PRECONDITION where it does not let us have the name.
        """
        self._answer = answer
        await self._connect()
        self._keeper = asyncio.create_task(self._keep())

    async def close(self, grace: float = 0) -> None:
        """Give up the name; calls that are under way get ``grace`` seconds to finish."""
        self._answer = None
        if self._keeper:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
            self._keeper = None
        if self._tasks and grace:
            await asyncio.wait(self._tasks, timeout=grace)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._connection and self._connection.connected:
            # Its answer comes when all that was sent before has reached the bus.
            with contextlib.suppress(DBusError, OSError, EOFError, asyncio.TimeoutError):
                await asyncio.wait_for(self._connection.release_name(names.SERVICE), _RELEASE_SECONDS)
        connection, self._connection = self._connection, None
        if connection:
            await hang_up(connection)

    def emit(self, signal: Signal) -> None:
        """Send it to all who listen; lost while there is no connection, for they see our name go and come."""
        try:
            body = to_wire(signal.body)
            message = Message.new_signal(signal.path, signal.interface, signal.member, signal.signature, body)
            send(self._connection, message)
        except Exception:  # the manager tells in the middle of its steps, which a fault here must not upset
            _log.exception("cannot tell of %s", signal.member)

    async def user_of(self, sender: str) -> User:
        """Whose connection it is; ScistreamError(CANCELLED) where it has gone."""
        try:
            [number] = await self.call(_DAEMON, _DAEMON_PATH, _DAEMON, "GetConnectionUnixUser", ("s", sender))
        except CallError as problem:
            if problem.name in _NO_SENDER:
                raise ScistreamError(Code.CANCELLED, "the caller has left the bus") from None
            raise
        # Name services may ask the network (LDAP), and then they take their time.
        return User(number, await asyncio.to_thread(_user_name, number))

    async def gone(self, sender: str) -> None:
        """Return when this connection has left the bus."""
        left = asyncio.get_running_loop().create_future()
        self._watched.setdefault(sender, set()).add(left)
        rule = f"type='signal',sender='{_DAEMON}',interface='{_DAEMON}',member='NameOwnerChanged',arg0='{sender}'"
        try:
            await self.call(_DAEMON, _DAEMON_PATH, _DAEMON, "AddMatch", ("s", rule))
            try:
                [here] = await self.call(_DAEMON, _DAEMON_PATH, _DAEMON, "NameHasOwner", ("s", sender))
                if here:
                    await left
            finally:
                self._forget(rule)
        finally:
            self._watched[sender].discard(left)
            if not self._watched[sender]:
                del self._watched[sender]

    async def call(
        self, service: str, path: str, interface: str, member: str, *typed_arguments: tuple[str, Any]
    ) -> list[Any]:
        """Call a method of another service, each argument with its signature, and return what it gives.

        Raises CallError with its error, or ScistreamError(UNAVAILABLE) where
        the connection is lost.
        """
        connection = self._connection
        if connection is None or not connection.connected:
            raise _lost()
        signature = "".join(each for each, _ in typed_arguments)
        body = [to_wire(value) for _, value in typed_arguments]
        message = Message(service, path, interface, member, signature=signature, body=body)
        try:
            reply = await connection.call(message)
        except (OSError, EOFError):
            raise _lost() from None
        if reply is None:
            raise _lost()
        if reply.message_type is MessageType.ERROR:
            text = reply.body[0] if reply.signature.startswith("s") else "no reason given"
            raise CallError(reply.error_name or "", text)
        return [from_wire(value) for value in reply.body]

    # The connection

    async def _connect(self) -> None:
        made: Connection | None = None
        try:
            made = Connection(self._address)
            await asyncio.wait_for(made.connect(), _CONNECT_SECONDS)
            self._connection = made
            made.add_message_handler(self._on_message)
            reply = await made.request_name(names.SERVICE, NameFlag.DO_NOT_QUEUE)
        except BaseException as problem:
            self._connection = None
            if made:
                await hang_up(made)
            if isinstance(problem, DBusError):
                raise _no_name(f"the bus does not let us have it: {problem.text}") from problem
            if isinstance(problem, OSError | EOFError | AuthError | asyncio.TimeoutError):
                where = self._address or "the system bus"
                raise ScistreamError(
                    Code.UNAVAILABLE, f"D-Bus: no connection to {where}: {problem}", "start dbus.service"
                ) from problem
            raise
        if reply not in (RequestNameReply.PRIMARY_OWNER, RequestNameReply.ALREADY_OWNER):
            self._connection = None
            await hang_up(made)
            raise _no_name("another scistreamd has it")

    async def _keep(self) -> None:
        while True:
            connection = self._connection
            if connection is None:
                return
            reason = await end_of(connection)
            close_socket(connection)
            _log.warning("the connection to D-Bus is lost (%s); connecting again", reason)
            attempt = 0
            while True:
                await asyncio.sleep(_RETRY[min(attempt, len(_RETRY) - 1)])
                try:
                    await self._connect()
                except ScistreamError as problem:
                    _log.log(logging.DEBUG if attempt else logging.WARNING, "%s", problem)
                    attempt += 1
                except Exception:
                    _log.exception("cannot connect to D-Bus")
                    attempt += 1
                else:
                    _log.info("connected to D-Bus again")
                    break

    # What comes in

    def _on_message(self, message: Message) -> bool:
        """dbus-next's hook for every message; True keeps its own handling, and its tracebacks, away."""
        if message.message_type is MessageType.SIGNAL:
            self._notice(message)
            return False
        if message.message_type is not MessageType.METHOD_CALL:
            return False
        connection = self._connection
        if connection is None:
            return True
        call = call_of(message)
        if problem := self._excess(message, call):
            reply_to(connection, message, CallError(names.LIMITS_EXCEEDED, problem))
            return True
        self._of_sender[call.sender] += 1
        task = asyncio.create_task(self._handle(connection, message, call))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return True

    def _excess(self, message: Message, call: Call) -> str:
        """What of it is more than one caller may ask for, or an empty string."""
        if too_long(message):
            return f"the message is longer than {LONGEST_MESSAGE} bytes"
        if self._of_sender[call.sender] >= _CALLS_PER_SENDER:
            return f"{_CALLS_PER_SENDER} of your calls are under way"
        return ""

    async def _handle(self, connection: Connection, message: Message, call: Call) -> None:
        try:
            reply_to(connection, message, await self._outcome(call))
        except Exception:
            _log.exception("cannot answer %s of %s", call.member, call.path)
            reply_to(connection, message, CallError(names.error_name(Code.INTERNAL), "internal error"))
        finally:
            self._of_sender[call.sender] -= 1
            if not self._of_sender[call.sender]:
                del self._of_sender[call.sender]

    async def _outcome(self, call: Call) -> Reply | CallError:
        if self._answer is None:
            return CallError(names.error_name(Code.UNAVAILABLE), "scistreamd is stopping")
        try:
            if call.interface == names.PEER or (not call.interface and call.member in _PEER):
                return _peer(call)
            return await self._answer(call)
        except CallError as error:
            return error

    def _notice(self, message: Message) -> None:
        if message.sender == _DAEMON and message.member == "NameOwnerChanged":
            name, _, owner = message.body
            for left in self._watched.get(name, ()) if not owner else ():
                if not left.done():
                    left.set_result(None)

    def _forget(self, rule: str) -> None:
        message = Message(
            _DAEMON, _DAEMON_PATH, _DAEMON, "RemoveMatch",
            flags=MessageFlag.NO_REPLY_EXPECTED, signature="s", body=[rule],
        )  # fmt: skip
        send(self._connection, message)


def _peer(call: Call) -> Reply:
    """org.freedesktop.DBus.Peer, which every path answers."""
    if call.member not in _PEER:
        raise CallError(names.UNKNOWN_METHOD, f"{names.PEER} has no method {shown(call.member)}")
    if call.signature:
        raise CallError(names.INVALID_ARGS, f"{names.PEER}.{call.member} takes (), not ({call.signature})")
    return Reply() if call.member == "Ping" else Reply("s", (_machine_id(),))


def _machine_id() -> str:
    """The host's, machine-id(5): the driver of the system's bus tells it to nobody."""
    for path in _MACHINE_ID:
        with contextlib.suppress(OSError):
            return path.read_text("ascii", "replace").strip()
    raise CallError(names.FAILED, "this host has no machine id (systemd-machine-id-setup makes one)")


def _user_name(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"uid {number}"


def _lost() -> ScistreamError:
    return ScistreamError(Code.UNAVAILABLE, "D-Bus: the connection to the bus is lost", "try again")


def _no_name(problem: str) -> ScistreamError:
    return ScistreamError(
        Code.FAILED_PRECONDITION,
        f"D-Bus: {names.SERVICE}: {problem}",
        f"the policy is {names.SERVICE}.conf in /usr/share/dbus-1/system.d; `busctl status {names.SERVICE}` shows who",
    )
