"""Two gateways made of paper for the user client's tests: one in today's manners, one in those of SciStream 1.2.

Neither uses our generated messages: what is on the wire is encoded by hand.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from grpclib.const import Cardinality, Handler, Status
from grpclib.encoding.base import CodecBase
from grpclib.exceptions import GRPCError
from grpclib.server import Server, Stream

FIRST_PORT = 24000
SECONDS = 90
Fields = dict[int, list[Any]]


def encode(fields: Fields) -> bytes:
    """A message of strings (wire type 2) and small integers (wire type 0)."""
    out = b""
    for number, values in fields.items():
        for value in values:
            if isinstance(value, int):
                out += bytes([number << 3]) + varint(value)
            else:
                out += bytes([number << 3 | 2]) + varint(len(value.encode())) + value.encode()
    return out


def varint(value: int) -> bytes:
    """Seven bits a byte, the low ones first."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def decode(data: bytes) -> Fields:
    """Field number to values."""
    fields: Fields = {}
    position = 0

    def number() -> int:
        nonlocal position
        value = shift = 0
        while True:
            byte = data[position]
            position += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while position < len(data):
        key = number()
        value: Any = number()
        if key & 7 == 2:
            value, position = data[position : position + value].decode(), position + value
        fields.setdefault(key >> 3, []).append(value)
    return fields


@dataclass
class Call:
    """One call as the gateway saw it."""

    name: str
    fields: Fields
    metadata: dict[str, str]


@dataclass
class Result:
    """How a run of s2uc ended."""

    status: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        """Standard output, line by line."""
        return self.out.splitlines()


def command(*words: str) -> list[str]:
    """s2uc with every warning an error, so that what it leaves open shows on stderr."""
    return [sys.executable, "-W", "error", "-m", "scistreamd.cli.s2uc", *words]


def environment() -> dict[str, str]:
    """A plain one."""
    return {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"}


def run(*words: str, cwd: Path, stdin: str = "") -> Result:
    """Run s2uc to its end."""
    done = subprocess.run(
        command(*words), cwd=cwd, env=environment(), input=stdin, capture_output=True, text=True, timeout=SECONDS
    )
    return Result(done.returncode, done.stdout, done.stderr)


async def arun(
    *words: str,
    cwd: Path,
    interrupt: Callable[[], Awaitable[object]] | None = None,
    number: int = signal.SIGINT,
) -> Result:
    """Run s2uc beside a server in this loop; ``interrupt`` returns when the signal is due."""
    process = await asyncio.create_subprocess_exec(
        *command(*words), cwd=cwd, env=environment(), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        reading = asyncio.ensure_future(process.communicate())
        if interrupt is not None:
            await interrupt()
            process.send_signal(number)
        out, err = await asyncio.wait_for(reading, SECONDS)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return Result(process.returncode or 0, out.decode(), err.decode())


class _Fields(CodecBase):
    __content_subtype__ = "proto"

    def encode(self, message: Any, message_type: Any) -> bytes:
        return encode(message)

    def decode(self, data: bytes, message_type: Any) -> Any:
        return decode(data)


@dataclass
class Paper:
    """A gateway in today's manners: an early hello waits for its req, a cancelled req is forgotten.

    ``refuse`` maps a call's name to the status and text that it answers with; those of
    ``silent`` wait for ``answering``; ``listeners`` and ``targets`` are what req answers (None: hello's).
    """

    listeners: list[str] = field(default_factory=lambda: ["127.0.0.1:5100"])
    targets: list[str] | None = None
    refuse: dict[str, tuple[Status, str]] = field(default_factory=dict)
    silent: set[str] = field(default_factory=set)
    calls: list[Call] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    port: int = 0
    waiting: asyncio.Event = field(default_factory=asyncio.Event)
    releasing: asyncio.Event = field(default_factory=asyncio.Event)
    answering: asyncio.Event = field(default_factory=asyncio.Event)
    _greeted: asyncio.Event = field(default_factory=asyncio.Event)
    _hello: list[str] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """The calls that came, in their order."""
        return [call.name for call in self.calls]

    def one(self, name: str) -> Call:
        """The only call of that name."""
        (found,) = [call for call in self.calls if call.name == name]
        return found

    def __mapping__(self) -> dict[str, Handler]:
        return {
            f"/scistream.Control/{name}": Handler(self._handler(name), Cardinality.UNARY_UNARY, object, object)
            for name in ("req", "hello", "update", "release")
        }

    def _handler(self, name: str) -> Callable[[Stream[Any, Any]], Awaitable[None]]:
        async def handle(stream: Stream[Any, Any]) -> None:
            fields = await stream.recv_message()
            assert isinstance(fields, dict)
            metadata = {key: str(value) for key, value in (stream.metadata or {}).items()}
            self.calls.append(Call(name, fields, metadata))
            if name in self.refuse:
                raise GRPCError(*self.refuse[name])
            try:
                if name == "release":
                    self.releasing.set()
                if name in self.silent:
                    await self.answering.wait()
                await stream.send_message(await getattr(self, f"_{name}_answer")(fields))
            except asyncio.CancelledError:
                self.cancelled.append(name)
                raise

        return handle

    async def _req_answer(self, fields: Fields) -> Fields:
        self.waiting.set()
        await self._greeted.wait()
        return {1: self.listeners, 2: self._hello if self.targets is None else self.targets}

    async def _hello_answer(self, fields: Fields) -> Fields:
        self._hello = fields.get(2, [])
        self._greeted.set()
        return {1: ["Sending Prod listeners..."], 2: self.listeners}

    async def _update_answer(self, fields: Fields) -> Fields:
        return {1: self.listeners, 2: fields[2]}

    async def _release_answer(self, fields: Fields) -> Fields:
        return {}


@contextlib.asynccontextmanager
async def served(paper: Paper, tls: ssl.SSLContext | None = None) -> AsyncIterator[Paper]:
    """Serve a paper gateway on loopback."""
    server = Server([paper], codec=_Fields())
    for paper.port in range(FIRST_PORT, FIRST_PORT + 1000):
        with contextlib.suppress(OSError):
            await server.start("127.0.0.1", paper.port, ssl=tls)
            break
    try:
        yield paper
    finally:
        server.close()
        await server.wait_closed()


class Legacy:
    """A control server in the manners of SciStream 1.2: an early hello is an exception, the UID is in its text."""

    def __init__(self, listeners: list[str], *, slow: float = 0.0, deaf: bool = False) -> None:
        self.listeners = listeners
        self.calls: list[Call] = []
        self.port = 0
        self._slow = slow
        self._deaf = deaf
        self._entries: dict[str, tuple[threading.Event, list[str]]] = {}
        self._ends = threading.Event()

    def handler(self, name: str) -> grpc.RpcMethodHandler:
        """The generic handler of one call."""

        def behave(data: bytes, context: grpc.ServicerContext) -> bytes:
            fields = decode(data)
            metadata = {key: str(value) for key, value in context.invocation_metadata()}
            self.calls.append(Call(name, fields, metadata))
            return encode(getattr(self, f"_{name}")(fields[1][0], fields))

        return grpc.unary_unary_rpc_method_handler(behave)

    def _req(self, uid: str, fields: Fields) -> Fields:
        time.sleep(self._slow)
        if uid in self._entries:
            raise ValueError("Entry already found for uid")
        greeted, targets = self._entries[uid] = threading.Event(), []
        while not greeted.wait(0.05):
            if self._ends.is_set():
                raise ValueError("Hello not received within the timeout period")
        return {1: self.listeners, 2: targets}

    def _entry(self, name: str, uid: str) -> tuple[threading.Event, list[str]]:
        if uid not in self._entries or (self._deaf and name == "hello"):
            raise ValueError(f"{name} request invalid, entry not found for uid '{uid}'")
        return self._entries[uid]

    def _hello(self, uid: str, fields: Fields) -> Fields:
        greeted, targets = self._entry("hello", uid)
        targets += fields.get(2, [])
        greeted.set()
        return {1: ["Sending Prod listeners..."]}

    def _update(self, uid: str, fields: Fields) -> Fields:
        self._entry("update", uid)
        return {1: self.listeners, 2: fields[2]}

    def _release(self, uid: str, fields: Fields) -> Fields:
        self._entry("release", uid)
        del self._entries[uid]
        return {}

    def stop(self) -> None:
        """Let the requests that wait give up."""
        self._ends.set()


@contextlib.contextmanager
def legacy(server: Legacy, key: bytes, certificate: bytes) -> Iterator[Legacy]:
    """Serve it with grpcio over TLS, as SciStream 1.2 does."""
    with ThreadPoolExecutor(max_workers=10) as pool:
        port = grpc.server(pool, options=[("grpc.so_reuseport", 0)])
        names = ("req", "hello", "update", "release")
        handlers = {name: server.handler(name) for name in names}
        port.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("scistream.Control", handlers),))
        credentials = grpc.ssl_server_credentials([(key, certificate)])
        for number in range(FIRST_PORT, FIRST_PORT + 1000):
            with contextlib.suppress(RuntimeError):
                server.port = port.add_secure_port(f"127.0.0.1:{number}", credentials)
                break
        port.start()
        try:
            yield server
        finally:
            server.stop()
            port.stop(None).wait()
