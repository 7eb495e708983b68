"""Gateways that count, and applications that count too."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from scistreamd.config import Settings
from scistreamd.counts import Counts
from scistreamd.daemon import Gateway, Plugged
from scistreamd.gate import Verb
from scistreamd.model import Caller, Endpoint, Options, PortRange, Role, Security, Target, Uid
from scistreamd.runtime import runtime_directory
from tests.service.dataplane_kit import close, closing

LOOPBACK = ipaddress.ip_address("127.0.0.1")
CHUNK = 1 << 16


def settings(first: int, **more: object) -> Settings:
    modes = frozenset({Security.TLS, Security.NONE})
    given = {"port_range": PortRange(first, first + 9), "allowed_security": modes, **more}
    return Settings(listen_inbound=LOOPBACK, listen_outbound=LOOPBACK, **given)  # type: ignore[arg-type]


@contextlib.asynccontextmanager
async def gateway(config: Settings, plugged: Plugged | None = None) -> AsyncIterator[Gateway]:
    with runtime_directory() as runtime:
        made = Gateway(config, runtime, LOOPBACK, plugged or Plugged())
        try:
            await made.start([], None)
            yield made
        finally:
            await made.close()


@dataclass
class Pair:
    """An inbound and an outbound gateway in this network namespace."""

    inbound: Gateway
    outbound: Gateway

    async def tunnel(self, target: Endpoint, inner: str, outer: str, mode: Security = Security.TLS) -> Tunnel:
        """A stream's two sides of these data server types."""
        grant = self.inbound.gate.admit(Caller("test", peer=LOOPBACK, reached=LOOPBACK), Verb.CREATE)
        options = [Options(data_server=kind, security=mode) for kind in (inner, outer)]
        uid, view = await self.inbound.manager.create(grant, Role.PROD, (Target.parse(str(target)),), options[0])
        remote = (Target.parse(str(view.listeners[0])),)
        _, out = await self.outbound.manager.create(grant, Role.CONS, remote, options[1], uid)
        return Tunnel(self, uid, out.listeners[0])


@dataclass
class Tunnel:
    """Both sides of a stream."""

    pair: Pair
    uid: Uid
    listener: Endpoint

    @property
    def inbound(self) -> Counts:
        return self.pair.inbound.meter.counts(self.uid.id)

    @property
    def outbound(self) -> Counts:
        return self.pair.outbound.meter.counts(self.uid.id)

    @property
    def both(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Bytes in and out, as each gateway counts them."""
        return payload(self.inbound), payload(self.outbound)

    @property
    def open(self) -> tuple[int, int]:
        return self.inbound.connections, self.outbound.connections

    @property
    def total(self) -> tuple[int, int]:
        return self.inbound.connections_total, self.outbound.connections_total

    async def release(self) -> None:
        grant = self.pair.inbound.gate.admit(Caller("test", peer=LOOPBACK, reached=LOOPBACK), Verb.RELEASE)
        await self.pair.outbound.manager.end(grant, self.uid.id, 0)
        await self.pair.inbound.manager.end(grant, self.uid.id, 0)


def payload(counts: Counts) -> tuple[int, int]:
    return counts.plain.bytes_in, counts.plain.bytes_out


@contextlib.asynccontextmanager
async def pair(first: int = 28000, **more: object) -> AsyncIterator[Pair]:
    async with gateway(settings(first, **more)) as inbound, gateway(settings(first + 10, **more)) as outbound:
        yield Pair(inbound, outbound)


@dataclass
class Peer:
    """A server application that counts what it gets and sends, over all connections."""

    at: Endpoint
    got: int = 0
    sent: int = 0
    finished: int = 0
    hold: asyncio.Event = field(default_factory=asyncio.Event)


@contextlib.asynccontextmanager
async def peer(answer: Callable[[int], int] = lambda got: got // 3 + 7) -> AsyncIterator[Peer]:
    """It reads to the end of the stream, and then, when let, sends back as many bytes as ``answer`` says, and ends."""
    made: Peer

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        got = 0
        while data := await reader.read(CHUNK):
            got += len(data)
            made.got += len(data)
        await made.hold.wait()
        back = os.urandom(answer(got))
        writer.write(back)
        await writer.drain()
        made.sent += len(back)
        made.finished += 1

    server = await asyncio.start_server(closing(serve), "127.0.0.1", 0, limit=CHUNK)
    made = Peer(Endpoint(LOOPBACK, server.sockets[0].getsockname()[1]))
    made.hold.set()
    async with server:
        yield made


async def stream(listener: Endpoint, length: int) -> tuple[int, int]:
    """A client application that sends so much, reads all that comes back; returns what it sent and got."""
    reader, writer = await asyncio.open_connection(str(listener.address), listener.port, limit=CHUNK)
    try:
        writer.write(os.urandom(length))
        await writer.drain()
        writer.write_eof()
        got = 0
        while data := await reader.read(CHUNK):
            got += len(data)
        return length, got
    finally:
        await close(writer)


async def until(true: Callable[[], object], seen: Callable[[], object] = lambda: "") -> None:
    """Wait for what the kernel tells in its own time; a wait in vain ends with what was ``seen`` last."""
    for _ in range(3000):
        if true():
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"not in 60 s: {seen()}")
