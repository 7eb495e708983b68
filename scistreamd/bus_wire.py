"""Between dbus-next 0.2.3 and plain data: messages, values, and the ends of connections."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from dbus_next import BusType, Message, MessageFlag, SignatureType, Variant
from dbus_next._private.unmarshaller import Unmarshaller
from dbus_next.aio import MessageBus

from scistreamd.bus_messages import Call, CallError, Reply, Typed

LONGEST_MESSAGE = 512 * 1024  # bytes; a thousand targets with the longest names are half of it


class _Reader(Unmarshaller):
    """dbus-next's reader, which leaves the body of a long message unread: its arguments are None then.

    The bus lets every user send 32 MiB, and Python takes seconds to unpack
    that, in which nobody else would be served. Remove it with dbus-next.
    """

    longest: int | None = LONGEST_MESSAGE
    _depth = 0
    _arguments = 0

    def unmarshall(self) -> Message | None:
        """The next message, or None while it is not complete."""
        self._arguments = 0
        message: Message | None = super().unmarshall()  # type: ignore[no-untyped-call]  # dbus-next has it untyped
        return message

    def read_argument(self, type_: SignatureType) -> Any:
        """One value; the first one of all is the header's array of fields."""
        if self._depth == 0:
            self._arguments += 1
            if self._arguments > 1 and self.longest is not None and len(self.buf) > self.longest:
                return None
        self._depth += 1
        try:
            return super().read_argument(type_)  # type: ignore[no-untyped-call]  # as above
        finally:
            self._depth -= 1


class _PatientSocket:
    """The socket as dbus-next's writer sees it: a full one takes 0 bytes, where the writer waits until it is writable.

    With BlockingIOError the writer gives the whole connection up, after a burst
    of signals or a long reply. Remove it with dbus-next.
    """

    def __init__(self, inner: socket.socket) -> None:
        self._inner = inner

    def send(self, data: memoryview) -> int:
        """As `socket.socket.send`."""
        try:
            return self._inner.send(data)
        except BlockingIOError:
            return 0


class Connection(MessageBus):
    """dbus-next's connection without three faults of it: long messages stall it, a full socket or no bus break it."""

    def __init__(self, address: str | None, *, longest: int | None = LONGEST_MESSAGE) -> None:
        """``address`` None: the system bus. OSError where it is not there, ValueError where it is no address.

        ``longest``: bytes of the longest message that is read whole, None: any.
        """
        self._longest = longest
        try:
            super().__init__(address, BusType.SYSTEM)
        except OSError:
            self._stream.close()
            self._sock.close()
            raise
        self._writer.sock = _PatientSocket(self._sock)

    def _create_unmarshaller(self) -> Unmarshaller:
        reader = _Reader(self._stream)  # type: ignore[no-untyped-call]  # as above
        reader.longest = self._longest
        return reader


def call_of(message: Message) -> Call:
    """A method call that came in."""
    return Call(
        message.sender or "",
        message.path or "",
        message.interface or "",
        message.member or "",
        message.signature,
        [from_wire(value) for value in message.body],
        bool(message.flags & MessageFlag.ALLOW_INTERACTIVE_AUTHORIZATION),
    )


def too_long(message: Message) -> bool:
    """Whether the message was too long to be read."""
    return None in message.body


def reply_to(connection: MessageBus, message: Message, outcome: Reply | CallError) -> None:
    """Answer a method call, unless its caller wants no answer; ValueError where the types do not fit."""
    if message.flags & MessageFlag.NO_REPLY_EXPECTED:
        return
    if isinstance(outcome, CallError):
        send(connection, Message.new_error(message, outcome.name, _clean(outcome.text)))
    else:
        send(connection, Message.new_method_return(message, outcome.signature, to_wire(outcome.body)))


def send(connection: MessageBus | None, message: Message) -> None:
    """Send it, or lose it where there is no connection."""
    if connection is not None and connection.connected:
        # dbus-next gives a future; one that fails is a connection that is lost, which `Bus` sees.
        connection.send(message).add_done_callback(lambda sent: sent.cancelled() or sent.exception())


async def hang_up(connection: MessageBus) -> None:
    """Close the connection, whatever state it is in."""
    if connection.connected:
        connection.disconnect()
        await end_of(connection)
    close_socket(connection)


async def end_of(connection: MessageBus) -> str:
    """Wait for the connection's end and say why it came; several may wait."""
    ended = connection._disconnect_future  # wait_for_disconnect() is cancelled for all when it is for one
    await asyncio.wait([ended])
    problem = ended.exception()
    return f"{type(problem).__name__} {problem}".strip() if problem else "closed"


def close_socket(connection: MessageBus) -> None:
    """dbus-next 0.2.3 leaves its socket to the garbage collector."""
    loop = asyncio.get_running_loop()
    loop.remove_reader(connection._fd)
    loop.remove_writer(connection._fd)
    connection._stream.close()
    connection._sock.close()


def to_wire(value: Any) -> Any:
    """Plain data as dbus-next takes it."""
    if isinstance(value, str):
        return _clean(value)
    if isinstance(value, Typed):
        return Variant(value.signature, to_wire(value.value))
    if isinstance(value, dict):
        return {key: to_wire(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [to_wire(each) for each in value]
    return value


def from_wire(value: Any) -> Any:
    """What dbus-next gives, as plain data."""
    if isinstance(value, Variant):
        return Typed(value.signature, from_wire(value.value))
    if isinstance(value, dict):
        return {key: from_wire(each) for key, each in value.items()}
    if isinstance(value, list):
        return [from_wire(each) for each in value]
    return value


def _clean(text: str) -> str:
    """Text that the bus takes: it hangs up on whoever sends a NUL or half a surrogate pair."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode("utf-8")
