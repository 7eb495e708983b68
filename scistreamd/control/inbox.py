"""What one stream has received: whole messages or the reason why not.

grpclib's own buffer reads any announced length, waits without end, takes an
empty DATA frame for the end and a cut message for a bug of ours. This one
takes its place (`Stream.buffer`) and is read by `grpclib.stream.recv_message`,
by turns: five bytes of prefix, then the message (gRPC over HTTP/2, "Requests").
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from grpclib.const import Status
from grpclib.exceptions import GRPCError
from grpclib.protocol import Buffer

from scistreamd.control.limits import Limits

PREFIX_BYTES = 5


class Pending:
    """The bytes that incomplete messages of one connection may hold together."""

    def __init__(self, limit: int) -> None:
        self._left = limit

    def take(self, size: int) -> None:
        """Reserve ``size`` bytes or raise RESOURCE_EXHAUSTED."""
        if size > self._left:
            raise GRPCError(Status.RESOURCE_EXHAUSTED, "too many incomplete messages on this connection")
        self._left -= size

    def give_back(self, size: int) -> None:
        """Return what `take` reserved."""
        self._left += size


class Inbox(Buffer):
    """The receive buffer of one stream; raises GRPCError where the peer breaks a rule.

    ``acknowledge`` reopens the flow-control window by so many bytes,
    ``encoding`` is the caller's ``grpc-encoding``, ``required`` says that the
    call must bring a message, ``completed`` is called after each message.
    """

    def __init__(
        self,
        acknowledge: Callable[[int], None],
        *,
        limits: Limits,
        pending: Pending,
        encoding: str,
        required: bool,
        completed: Callable[[], None],
    ) -> None:
        self._acknowledge = acknowledge
        self._limits = limits
        self._pending = pending
        self._encoding = encoding
        self._required = required
        self._completed = completed
        self._data = bytearray()
        self._owed = 0
        self._ended = False
        self._overdue = False
        self._arrived = asyncio.Event()
        self._body_next = False

    def add(self, data: bytes, ack_size: int) -> None:
        """Take one DATA frame; ``ack_size`` is what it used of the window, padding included."""
        self._data += data
        self._owed += ack_size
        self._arrived.set()

    def eof(self) -> None:
        """The caller sends no more."""
        self._ended = True
        self._arrived.set()

    def unacked_size(self) -> int:
        """The window that unread data still takes, once."""
        owed, self._owed = self._owed, 0
        return owed

    async def read(self, size: int) -> bytes:
        """A prefix or a message, by turns; an empty prefix: there is no further message."""
        self._body_next = not self._body_next
        if self._body_next:
            return await self._prefix()
        return await self._message(size)

    async def _prefix(self) -> bytes:
        await self._fill(PREFIX_BYTES, self._limits.message_seconds if self._required else self._limits.idle_seconds)
        if not self._data and not self._required:
            return b""
        if len(self._data) < PREFIX_BYTES:
            raise GRPCError(Status.INVALID_ARGUMENT, "the call brought no complete request message")
        prefix = self._take(PREFIX_BYTES)
        self._judge(prefix[0], int.from_bytes(prefix[1:], "big"))
        return prefix

    def _judge(self, flag: int, length: int) -> None:
        if flag == 1 and self._encoding != "identity":
            raise GRPCError(Status.UNIMPLEMENTED, "compressed messages are not taken (send them as identity)")
        if flag:
            raise GRPCError(Status.INTERNAL, "the message is marked as compressed, but no grpc-encoding was given")
        if length > self._limits.message_bytes:
            limit = self._limits.message_bytes
            raise GRPCError(Status.RESOURCE_EXHAUSTED, f"a message of {length} bytes (at most {limit} are taken)")

    async def _message(self, size: int) -> bytes:
        self._pending.take(size)
        try:
            await self._fill(size, self._limits.message_seconds)
        finally:
            self._pending.give_back(size)
        if len(self._data) < size:
            raise GRPCError(Status.INVALID_ARGUMENT, f"the message ended before its {size} bytes")
        self._required = False
        self._completed()
        return self._take(size)

    async def _fill(self, size: int, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        self._overdue = False
        timer = loop.call_later(seconds, self._give_up)
        try:
            while len(self._data) < size and not self._ended:
                if self._overdue:
                    raise GRPCError(Status.DEADLINE_EXCEEDED, f"the request message was not complete after {seconds} s")
                self._acknowledge(self.unacked_size())
                self._arrived.clear()
                await self._arrived.wait()
        finally:
            timer.cancel()

    def _give_up(self) -> None:
        self._overdue = True
        self._arrived.set()

    def _take(self, size: int) -> bytes:
        taken = bytes(self._data[:size])
        del self._data[:size]
        self._acknowledge(self.unacked_size())
        return taken
