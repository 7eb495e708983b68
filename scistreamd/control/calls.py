"""The gRPC calls of one connection: each stream becomes a task with a caller.

grpclib's `request_handler` does the protocol of a call; here is what it
leaves open: header values that would break it, a deadline that passes before
it starts, tasks cancelled before their first step.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, TypeVar

from google.protobuf.message import DecodeError
from grpclib.const import Handler, Status
from grpclib.encoding.proto import ProtoCodec
from grpclib.exceptions import GRPCError
from grpclib.metadata import decode_timeout, encode_grpc_message
from grpclib.protocol import AbstractHandler, Stream
from grpclib.server import Server, request_handler

from scistreamd.control.inbox import Inbox, Pending
from scistreamd.control.limits import Limits
from scistreamd.model import Caller

# Set in the task of each call, so that handlers that run at once do not mix up their callers.
CALLER: ContextVar[Caller] = ContextVar("caller")
# The client certificate of the connection, DER, verified; empty where there is none.
CERTIFICATE: ContextVar[bytes] = ContextVar("certificate", default=b"")

Headers = list[tuple[str, str]]
_Message = TypeVar("_Message")

_STOPPING = "the control server is stopping"
_OVERDUE = "the deadline that the caller set has passed"
# Seconds; a caller that gives less does not wait for an answer, and none is worked for.
_SHORTEST = 0.001

# gRPC over HTTP/2: TimeoutValue is a positive integer of at most 8 digits.
_TIMEOUT = re.compile(r"[0-9]{1,8}[HMSmun]", re.ASCII)


class Codec(ProtoCodec):
    """Protobuf, with the sender's mistakes told to the sender."""

    def decode(self, data: bytes, message_type: Any) -> Any:
        """A message of the type, or GRPCError(INVALID_ARGUMENT)."""
        try:
            return super().decode(data, message_type)
        except (DecodeError, UnicodeDecodeError):
            name = message_type.DESCRIPTOR.full_name
            raise GRPCError(Status.INVALID_ARGUMENT, f"the request is not a {name} message") from None


@dataclass(frozen=True)
class Methods:
    """What the port serves: path to handler, and where grpclib's events are dispatched.

    ``brief`` are the paths of calls that may finish when the server stops.
    """

    handlers: dict[str, Handler]
    server: Server
    brief: frozenset[str]
    codec: Codec = field(default_factory=Codec)


class Calls(AbstractHandler):
    """Runs the calls of one connection for one caller.

    ``completed`` is called for each complete request message.
    """

    def __init__(self, methods: Methods, limits: Limits, caller: Caller, completed: Callable[[], None]) -> None:
        self._methods = methods
        self._limits = limits
        self._caller = caller
        self._completed = completed
        self._pending = Pending(limits.pending_bytes)
        self._tasks: dict[Stream, asyncio.Task[None]] = {}
        self._brief: set[Stream] = set()
        self._stopped = False
        self.certificate = b""
        self.ended_at = 0.0

    @property
    def tasks(self) -> frozenset[asyncio.Task[None]]:
        """The calls that run now."""
        return frozenset(self._tasks.values())

    def accept(self, stream: Stream, headers: Headers, release_stream: Callable[[], None]) -> None:
        """Start the call of a new stream; called by grpclib."""
        path = dict(headers).get(":path", "")
        stream.buffer = self._inbox(stream, path, dict(headers).get("grpc-encoding", "identity"))
        loop = asyncio.get_running_loop()
        task = loop.create_task(self._serve(stream, headers), name=f"scistreamd control call {path[:60]!r}")
        self._tasks[stream] = task
        if path in self._methods.brief:
            self._brief.add(stream)
        # Not in the task itself: one that is cancelled before its first step never runs a line.
        task.add_done_callback(lambda _: self._ended(stream, release_stream))

    def cancel(self, stream: Stream) -> None:
        """The caller reset the stream; called by grpclib."""
        if stream in self._tasks:
            self._tasks[stream].cancel()

    def close(self) -> None:
        """The connection is gone; called by grpclib."""
        for task in self._tasks.values():
            task.cancel()

    def refuse(self, *, brief: bool) -> None:
        """End calls with UNAVAILABLE because the server stops: those that wait, or ``brief`` ones too; and new ones."""
        self._stopped = True
        for stream, task in self._tasks.items():
            if stream in self._brief and not brief:
                continue
            if stream.wrapper is None:
                task.cancel()
            else:
                stream.wrapper.cancel(GRPCError(Status.UNAVAILABLE, _STOPPING))

    def _inbox(self, stream: Stream, path: str, encoding: str) -> Inbox:
        handler = self._methods.handlers.get(path)
        number = stream.id
        return Inbox(
            lambda size: stream.connection.ack(number, size) if number and not stream.connection.is_closing() else None,
            limits=self._limits,
            pending=self._pending,
            encoding=encoding,
            required=handler is None or not handler.cardinality.client_streaming,
            completed=self._completed,
        )

    async def _serve(self, stream: Stream, headers: Headers) -> None:
        if self._stopped:
            await _answer(stream, Status.UNAVAILABLE, _STOPPING)
            return
        CALLER.set(self._caller)
        CERTIFICATE.set(self.certificate)
        timeout = dict(headers).get("grpc-timeout")
        if timeout is not None and not _TIMEOUT.fullmatch(timeout):
            await _answer(stream, Status.INVALID_ARGUMENT, "grpc-timeout: not a duration")
            return
        if timeout is None:
            await self._handle(stream, headers)
            return
        seconds = decode_timeout(timeout)
        if seconds < _SHORTEST:
            await _answer(stream, Status.DEADLINE_EXCEEDED, _OVERDUE)
            return
        timer = asyncio.get_running_loop().call_later(seconds, _overdue, stream)
        try:
            await self._handle(stream, headers)
        finally:
            timer.cancel()

    async def _handle(self, stream: Stream, headers: Headers) -> None:
        methods = self._methods
        await request_handler(
            methods.handlers,
            stream,
            _harmless(headers),
            methods.codec,
            None,
            methods.server.__dispatch__,
            lambda: None,
        )

    def _ended(self, stream: Stream, release_stream: Callable[[], None]) -> None:
        del self._tasks[stream]
        self._brief.discard(stream)
        self.ended_at = asyncio.get_running_loop().time()
        release_stream()
        # grpclib before 0.4.8 calls a stream closable whose connection is gone.
        if not stream.connection.is_closing() and stream.closable:
            # RFC 9113, 8.1: all was said; a caller that never ends its half must not keep the stream.
            stream.reset_nowait()


def _overdue(stream: Stream) -> None:
    if stream.wrapper is not None:
        stream.wrapper.cancel(GRPCError(Status.DEADLINE_EXCEEDED, _OVERDUE))


def _harmless(headers: Headers) -> Headers:
    # grpclib decodes every -bin value as base64 and dies of others; no option is one, so the name is all
    # that `wire` needs. Its way with grpc-timeout reports a deadline that passes at once as a bug of ours.
    kept = [(key, value) for key, value in headers if key != "grpc-timeout"]
    return [(key, "" if key.endswith("-bin") else value) for key, value in kept]


async def _answer(stream: Stream, status: Status, message: str) -> None:
    """A response of trailers alone."""
    headers = [
        (":status", "200"),
        ("content-type", "application/grpc+proto"),
        ("grpc-status", str(status.value)),
        ("grpc-message", encode_grpc_message(message)),
    ]
    if stream.closable:
        await stream.send_headers(headers, end_stream=True)
