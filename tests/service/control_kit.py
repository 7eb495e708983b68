"""What the tests of the control port share: a manager that obeys `Tunnels`, a running port, raw peers.

Messages are encoded by hand, as a client that knows nothing of our stubs sends them.
"""

from __future__ import annotations

import asyncio
import gc
import ipaddress
import os
import socket
import ssl
import struct
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import h2.config
import h2.connection
import h2.events

from scistreamd.control.limits import Limits
from scistreamd.control.server import ControlServer
from scistreamd.errors import Code, ScistreamError
from scistreamd.gate import Grant, Verb
from scistreamd.identity import Credentials
from scistreamd.model import Answer, Caller, Change, Endpoint, Options, Role, Target, TunnelView, Uid

HOST = "127.0.0.1"
PORTS = range(23000, 23100)
GATEWAY = ipaddress.ip_address("192.0.2.9")
LIMITS = Limits(linger_seconds=0.3)


def text(number: int, value: str | bytes) -> bytes:
    """A length-delimited field."""
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def varint(value: int) -> bytes:
    out = bytearray()
    value &= 2**64 - 1
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def number(field_number: int, value: int) -> bytes:
    return varint(field_number << 3) + varint(value)


def request(uid: str, role: str = "PROD", count: int = 1, rate: int = 10000) -> bytes:
    return text(1, uid) + text(2, role) + number(3, count) + number(4, rate)


def hello(uid: str, *targets: str, role: str = "PROD") -> bytes:
    return text(1, uid) + b"".join(text(2, target) for target in targets) + text(3, role)


update = hello  # the same numbers: uid 1, remote_listeners 2, role 3


def release(uid: str) -> bytes:
    return text(1, uid)


def strings(message: bytes, field_number: int) -> list[str]:
    """The values of a length-delimited field; every field of the answers is one, shorter than 128 bytes."""
    found = []
    while message:
        key, size = message[0], message[1]
        assert key & 7 == 2 and size < 128
        if key >> 3 == field_number:
            found.append(message[2 : 2 + size].decode())
        message = message[2 + size :]
    return found


def new_uid() -> str:
    return str(uuid.uuid4())


class Doorman:
    """A gate that lets everyone in, unless told otherwise."""

    def __init__(self) -> None:
        self.closed_for: set[Verb] = set()

    async def identify(self, caller: Caller, credentials: Credentials) -> Caller:
        return caller

    def failed(self, caller: Caller, code: Code) -> None:
        """Nobody is slowed down here."""

    def admit(self, caller: Caller, verb: Verb) -> Grant:
        if verb in self.closed_for:
            raise ScistreamError(Code.PERMISSION_DENIED, f"{verb.value} is not yours", "ask the operator")
        return Grant(caller, verb)


@dataclass
class Bench:
    """A manager for tests: req waits for hello; what it was asked is written down."""

    waiting: dict[Uid, asyncio.Future[Answer]] = field(default_factory=dict)
    granted: list[Grant] = field(default_factory=list)
    options: list[Options] = field(default_factory=list)
    updates: list[tuple[Role | None, tuple[Target, ...]]] = field(default_factory=list)
    freed: list[Uid] = field(default_factory=list)
    failure: Exception | None = None
    slow: asyncio.Event | None = None

    # scistream.v2.Tunnels has tests of its own, with the real manager.

    def own(self, grant: Grant, *, everyone: bool = False) -> tuple[TunnelView, ...]:
        return ()

    def owns(self, grant: Grant, view: TunnelView) -> bool:
        return False

    def own_id(self, grant: Grant, name: str, *, change: bool) -> str:
        raise ScistreamError(Code.NOT_FOUND, "no such tunnel")

    def view(self, tunnel_id: str) -> TunnelView:
        raise ScistreamError(Code.NOT_FOUND, "no such tunnel")

    async def extend(self, grant: Grant, tunnel_id: str, seconds: int) -> TunnelView:
        raise ScistreamError(Code.NOT_FOUND, "no such tunnel")

    async def end(self, grant: Grant, tunnel_id: str, drain: float) -> None:
        raise ScistreamError(Code.NOT_FOUND, "no such tunnel")

    def watch(self, see: Callable[[Change], None]) -> Callable[[], None]:
        return lambda: None

    async def request(self, grant: Grant, uid: Uid, role: Role, count: int, options: Options) -> Answer:
        self._note(grant)
        self.options.append(options)
        if uid in self.waiting:
            raise ScistreamError(Code.ALREADY_EXISTS, "there is a request for this UID already")
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self.waiting[uid] = future
        try:
            brought = await future
        finally:
            del self.waiting[uid]
            self.freed.append(uid)
        listeners = tuple(Endpoint(GATEWAY, 5100 + index) for index in range(count))
        return Answer(listeners, brought.targets if role is Role.PROD else ())

    async def hello(self, grant: Grant, uid: Uid, role: Role, entries: tuple[Target, ...]) -> Answer:
        self._note(grant)
        if uid not in self.waiting:
            raise ScistreamError(Code.NOT_FOUND, "no request waits for this UID", "send req first")
        self.waiting[uid].set_result(Answer((), entries))
        return Answer((Endpoint(GATEWAY, 5100),))

    async def update(self, grant: Grant, uid: Uid, role: Role | None, targets: tuple[Target, ...]) -> Answer:
        self._note(grant)
        self.updates.append((role, targets))
        if self.slow is not None:
            await self.slow.wait()
        return Answer((Endpoint(GATEWAY, 5100),), targets)

    async def release(self, grant: Grant, uid: Uid) -> None:
        self._note(grant)

    def _note(self, grant: Grant) -> None:
        self.granted.append(grant)
        if self.failure is not None:
            raise self.failure


@dataclass
class Port:
    """A control port that runs."""

    server: ControlServer
    bench: Bench
    doorman: Doorman
    number: int
    host: str = HOST

    @property
    def address(self) -> str:
        return f"[{self.host}]:{self.number}" if ":" in self.host else f"{self.host}:{self.number}"


def bound(host: str = HOST) -> socket.socket:
    """A socket bound inside our block of ports."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for candidate in PORTS:
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, candidate))
            # With SO_REUSEADDR another may bind the same until one of us listens.
            listener.listen()
            return listener
        except OSError:
            listener.close()
    raise AssertionError("no free port in the block")


async def until(true: Callable[[], bool]) -> None:
    """Wait for a condition; pytest's own time limit ends a wait in vain."""
    while not true():  # noqa: ASYNC110 - conditions of sockets and counters have no event to wait for
        await asyncio.sleep(0.01)


@asynccontextmanager
async def control_port(
    context: ssl.SSLContext | None = None, host: str = HOST, grace: float = 5, foreign: bool = False, **limits: Any
) -> AsyncIterator[Port]:
    """Run a control port; at the end no task and no socket of it may be left.

    ``foreign``: grpcio was in use, whose event engine closes its own sockets when it likes.
    """
    before, sockets = asyncio.all_tasks(), open_sockets()
    listener = bound(host)
    bench, doorman = Bench(), Doorman()
    server = ControlServer(bench, doorman, replace(LIMITS, **limits))
    await server.start([listener], context)
    try:
        yield Port(server, bench, doorman, listener.getsockname()[1], host)
    finally:
        await server.close(grace)
    assert server.connections == 0
    assert not bench.waiting
    gc.collect()
    await until(lambda: not {task for task in asyncio.all_tasks() - before if "scistreamd" in task.get_name()})
    await until(lambda: foreign or open_sockets() <= sockets)


def open_sockets() -> set[str]:
    """The inodes of our sockets."""
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        try:
            link = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:
            continue
        if link.startswith("socket:"):
            found.add(link)
    return found


class Raw:
    """A peer that speaks HTTP/2 by hand: as much of it, and as wrong, as a test wants."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        config = h2.config.H2Configuration(
            client_side=True, header_encoding="utf-8", validate_outbound_headers=False, normalize_outbound_headers=False
        )
        self.h2 = h2.connection.H2Connection(config)
        self.events: list[h2.events.Event] = []

    @classmethod
    @asynccontextmanager
    async def to(cls, port: Port, context: ssl.SSLContext | None = None, preface: bool = True) -> AsyncIterator[Raw]:
        """Connect, say the preface, and in the end close without ceremony."""
        name = None if context is None else "localhost"
        reader, writer = await asyncio.open_connection(port.host, port.number, ssl=context, server_hostname=name)
        raw = cls(reader, writer)
        try:
            if preface:
                raw.h2.initiate_connection()
                raw.flush()
                await raw.read_until(lambda: raw.saw(h2.events.RemoteSettingsChanged))
            yield raw
        finally:
            writer.transport.abort()

    def flush(self) -> None:
        self.writer.write(self.h2.data_to_send())

    def saw(self, kind: type[h2.events.Event], stream: int | None = None) -> bool:
        return any(
            isinstance(event, kind) and stream in (None, getattr(event, "stream_id", None)) for event in self.events
        )

    async def read(self) -> bool:
        """Read once; False at the end of the connection."""
        try:
            data = await self.reader.read(65536)
        except (ConnectionError, ssl.SSLError):
            return False
        if not data:
            return False
        self.events += self.h2.receive_data(data)
        self.flush()
        return True

    async def read_until(self, true: Callable[[], bool]) -> None:
        while not true():
            assert await self.read(), f"closed; saw {self.events}"

    async def closed(self) -> None:
        """Read until the server closes."""
        while await self.read():
            pass

    def call(self, path: str, *extra: tuple[str, str], leave_out: str = "") -> int:
        """Open a stream; returns its number."""
        stream = self.h2.get_next_available_stream_id()
        headers = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", path),
            (":authority", "localhost"),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            *extra,
        ]
        self.h2.send_headers(stream, [pair for pair in headers if pair[0] != leave_out])
        self.flush()
        return stream

    def send(self, stream: int, data: bytes, end: bool = True) -> None:
        self.h2.send_data(stream, data, end_stream=end)
        self.flush()

    async def status(self, stream: int) -> tuple[int, str]:
        """The gRPC status and message of a stream."""
        await self.read_until(lambda: "grpc-status" in self.headers(stream))
        found = self.headers(stream)
        return int(found["grpc-status"]), found.get("grpc-message", "")

    def headers(self, stream: int) -> dict[str, str]:
        kinds = (h2.events.ResponseReceived, h2.events.TrailersReceived)
        found: dict[str, str] = {}
        for event in self.events:
            if isinstance(event, kinds) and event.stream_id == stream:
                found.update({_text(key): _text(value) for key, value in event.headers or ()})
        return found

    async def exchange(self, path: str, message: bytes, *extra: tuple[str, str]) -> tuple[int, str]:
        """One whole call."""
        stream = self.call(path, *extra)
        self.send(stream, framed(message))
        return await self.status(stream)


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def framed(message: bytes, flag: int = 0, length: int | None = None) -> bytes:
    """A gRPC message with its prefix."""
    return struct.pack(">BI", flag, len(message) if length is None else length) + message


async def still_serves(port: Port, context: ssl.SSLContext | None = None) -> None:
    """A whole release by another client is answered."""
    async with Raw.to(port, context) as raw:
        assert await raw.exchange("/scistream.Control/release", release(new_uid())) == (0, "")
