"""Real data servers in pairs, with applications at both ends: what the tests of the data plane share."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import ipaddress
import itertools
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass

from scistreamd.dataserver import DATA_SERVERS, parse_type
from scistreamd.interfaces import Held, PortsBusy, Told
from scistreamd.keys import TunnelKeys
from scistreamd.model import Endpoint, Role, Security, Uid
from scistreamd.plans import Bind, Plan, Program, Tuning
from scistreamd.process import ProcessLauncher

TYPES = tuple(server.name for server in DATA_SERVERS)
CHUNK = 1 << 16
MIB = 1 << 20

_ports = itertools.cycle(range(21000, 22000))

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass(frozen=True)
class Pair:
    """The outbound type, the inbound type, and what protects the hop between them."""

    outbound: str
    inbound: str
    security: Security = Security.TLS

    def __str__(self) -> str:
        return f"{self.outbound}-{self.inbound}-{self.security.value}"


def pairs(*securities: Security) -> Iterator[Pair]:
    """Every pair of types that both can do the security mode."""
    for security in securities:
        able = [server.name for server in DATA_SERVERS if security in server.securities]
        yield from (Pair(outbound, inbound, security) for outbound, inbound in itertools.product(able, repeat=2))


def endpoint(address: str, port: int) -> Endpoint:
    return Endpoint(ipaddress.ip_address(address), port)


class Gateway:
    """One side of a tunnel: a data server that the process launcher runs."""

    def __init__(
        self,
        held: Held,
        binds: tuple[Bind, ...],
        kind: str,
        role: Role,
        security: Security,
        uid: Uid,
        tuning: Tuning,
    ) -> None:
        self.held = held
        self.binds = binds
        self.listeners = tuple(bind.endpoint for bind in binds)
        self._server = parse_type(kind).server
        self._what = role, security
        self._uid = uid
        self._tuning = tuning
        self._generation = 0

    def render(self, *targets: Endpoint | tuple[Endpoint, ...]) -> Program:
        """The program of the next generation."""
        self._generation += 1
        each = tuple(target if isinstance(target, tuple) else (target,) for target in targets)
        plan = Plan("0123456789ab", *self._what, self.binds, each, self._generation, self._tuning)
        return self._server.render(plan, self.held.places)

    async def serve(self, *targets: Endpoint | tuple[Endpoint, ...]) -> None:
        """Start it, or retarget it; one target for each listener."""
        addresses = {each.address for each in self.listeners}
        await self.held.serve(self.render(*targets), TunnelKeys().files(self._uid, *self._what, addresses))


class Field:
    """All that one test starts; it is ended in the reverse order."""

    def __init__(self, launcher: ProcessLauncher, stack: contextlib.AsyncExitStack) -> None:
        self.launcher = launcher
        self.stack = stack
        self.failures: list[str] = []
        self._ids = itertools.count()

    async def gateway(
        self,
        kind: str,
        role: Role,
        *targets: Endpoint | tuple[Endpoint, ...],
        uid: Uid,
        security: Security = Security.TLS,
        address: str = "127.0.0.1",
        udp: bool = False,
        tuning: Tuning | None = None,
    ) -> Gateway:
        """A data server that serves, with one listener for each target."""
        held, binds = await self._hold(len(targets), address, udp)
        self.stack.push_async_callback(held.close)
        made = Gateway(held, binds, kind, role, security, uid, tuning or Tuning())
        await made.serve(*targets)
        return made

    async def _hold(self, count: int, address: str, udp: bool) -> tuple[Held, tuple[Bind, ...]]:
        """Listeners on ports that nobody else has."""
        while True:
            binds = tuple(Bind(endpoint(address, next(_ports)), udp) for _ in range(count))
            with contextlib.suppress(PortsBusy):
                told = Told(failed=self.failures.append, ended=self.failures.append)
                return await self.launcher.hold(f"{next(self._ids):012x}", binds, told), binds

    async def tunnel(self, pair: Pair, *targets: Endpoint, address: str = "127.0.0.1") -> tuple[Endpoint, ...]:
        """Both gateways of a pair; gives the listeners of the outbound one."""
        uid = Uid.random()
        inbound = await self.gateway(
            pair.inbound, Role.PROD, *targets, uid=uid, security=pair.security, address=address
        )
        outbound = await self.gateway(
            pair.outbound, Role.CONS, *inbound.listeners, uid=uid, security=pair.security, address=address
        )
        return outbound.listeners

    async def application(self, handler: Handler, address: str = "127.0.0.1") -> Endpoint:
        """A server application; its connections are closed when the handler returns."""
        server = await asyncio.start_server(closing(handler), address, 0, limit=CHUNK)
        self.stack.push_async_callback(server.wait_closed)
        self.stack.callback(server.close)
        return endpoint(address, server.sockets[0].getsockname()[1])


@contextlib.asynccontextmanager
async def field(launcher: ProcessLauncher) -> AsyncIterator[Field]:
    async with contextlib.AsyncExitStack() as stack:
        made = Field(launcher, stack)
        yield made
    assert not made.failures


def closing(handler: Handler) -> Handler:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(ConnectionError):
                await handler(reader, writer)
        finally:
            await close(writer)

    return handle


async def close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


@contextlib.asynccontextmanager
async def connected(to: Endpoint) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection(str(to.address), to.port, limit=CHUNK)
    try:
        yield reader, writer
    finally:
        await close(writer)


async def drained(reader: asyncio.StreamReader) -> tuple[int, str]:
    """Length and SHA-256 of all that comes until the end of the stream."""
    digest, length = hashlib.sha256(), 0
    while data := await reader.read(CHUNK):
        digest.update(data)
        length += len(data)
    return length, digest.hexdigest()


async def poured(writer: asyncio.StreamWriter, mebibytes: int) -> tuple[int, str]:
    """Send so much; length and SHA-256 of it."""
    digest, block = hashlib.sha256(), os.urandom(MIB)
    for number in range(mebibytes):
        data = number.to_bytes(8, "big") + block[8:]
        digest.update(data)
        writer.write(data)
        await writer.drain()
    return mebibytes * MIB, digest.hexdigest()


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(CHUNK):
        writer.write(data)
        await writer.drain()


async def answers(to: Endpoint, text: bytes = b"are you there?") -> bool:
    """Whether an `echo` behind this listener answers; False where the connection ends instead."""
    try:
        async with connected(to) as (reader, writer):
            writer.write(text)
            return await reader.readexactly(len(text)) == text
    except (ConnectionError, asyncio.IncompleteReadError):
        return False
