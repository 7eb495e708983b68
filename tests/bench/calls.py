"""Requests to control ports over one connection each, timed from the caller's side, and what they cost in memory."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from scistreamd.cli.gateway import Gateway as Connection
from scistreamd.cli.trust import Trust
from scistreamd.control import scistream_pb2 as pb
from scistreamd.errors import ScistreamError
from scistreamd.model import Role, Target, Uid
from tests.bench import proc
from tests.bench.gateways import Gateway, Pair
from tests.bench.rig import INBOUND, BenchError
from tests.bench.stats import percentile

_BYTE = b"!"
_SECONDS = 20.0
_SETTLE_SECONDS = 0.5


@asynccontextmanager
async def connected(gateway: Gateway) -> AsyncIterator[Connection]:
    """A TLS connection to the control port."""
    target = Target.parse(gateway.control)
    async with Connection(target, Trust(gateway.certificate), lambda text: None) as connection:
        yield connection


async def _reserve(connection: Connection, uid: str, role: Role, target: str) -> str:
    """`req` and `hello` beside each other; returns the listener."""
    request = pb.Request(uid=uid, role=role.value, num_conn=1, rate=10000)
    entries = (target,) if role is Role.PROD else ()
    answer, _ = await asyncio.gather(connection.req(request, {}), connection.hello(uid, role.value, entries))
    return str(answer.listeners[0])


@dataclass(frozen=True)
class Request:
    """One tunnel through both gateways; times in seconds.

    ``update_in``, ``update_out``: the call itself, at the inbound and the outbound gateway.
    ``first_byte``: from the outbound update until a byte that waited in the
    listener's backlog came back from the echo server through both gateways.
    """

    reserve: float
    update_in: float
    update_out: float
    first_byte: float
    release: float


async def request(pair: Pair, echo: int) -> Request:
    """Open a tunnel on both gateways, send a byte as early as a client can, and release both."""
    uid = Uid.random().reveal()
    async with connected(pair.inbound) as inbound, connected(pair.outbound) as outbound:
        target = f"{INBOUND}:{echo}"
        began = time.perf_counter()
        hop = await _reserve(inbound, uid, Role.PROD, target)
        reserve = time.perf_counter() - began
        began = time.perf_counter()
        await inbound.update(uid, Role.PROD.value, [target])
        update_in = time.perf_counter() - began
        listener = await _reserve(outbound, uid, Role.CONS, "")
        update_out, first_byte = await _update_and_use(outbound, uid, listener, hop)
        began = time.perf_counter()
        await outbound.release(uid)
        release = time.perf_counter() - began
        await inbound.release(uid)
    return Request(reserve, update_in, update_out, first_byte, release)


async def _update_and_use(outbound: Connection, uid: str, listener: str, hop: str) -> tuple[float, float]:
    host, _, port = listener.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(_BYTE)
        began = time.perf_counter()

        async def update() -> float:
            await outbound.update(uid, Role.CONS.value, [hop])
            return time.perf_counter() - began

        async def echo() -> float:
            if await asyncio.wait_for(reader.read(1), _SECONDS) != _BYTE:
                raise BenchError("the tunnel ended the connection that waited for it")
            return time.perf_counter() - began

        updated, echoed = await asyncio.gather(update(), echo())
    finally:
        writer.close()
        await writer.wait_closed()
    return updated, echoed


@dataclass(frozen=True)
class Churn:
    """Sequential rounds of request, hello and release on one gateway; times in seconds."""

    rounds: int
    failures: int
    total: float
    p50: float
    p99: float
    rss_before: int
    rss_after: int


async def churn(gateway: Gateway, rounds: int) -> Churn:
    """So many rounds, one listener each, over one connection."""
    times, failures = [], 0
    before, began = proc.rss(gateway.process.pid), time.perf_counter()
    async with connected(gateway) as connection:
        for _ in range(rounds):
            uid, start = Uid.random().reveal(), time.perf_counter()
            try:
                await _reserve(connection, uid, Role.PROD, f"{INBOUND}:1")
                await connection.release(uid)
            except ScistreamError as error:  # told in the table, where none may be
                failures += 1
                print(f"request/release round failed: {error}", file=sys.stderr)
            times.append(time.perf_counter() - start)
    total = time.perf_counter() - began
    after = proc.rss(gateway.process.pid)
    return Churn(rounds, failures, total, percentile(times, 50), percentile(times, 99), before, after)


@dataclass(frozen=True)
class Memory:
    """Bytes: the daemon before any request, and what active tunnels cost in the daemon and in data servers.

    RSS counts shared pages whole, PSS in proportion. ``first``: growth of the
    daemon's RSS at its first tunnel; ``further``: at each one after that.
    """

    idle_rss: int
    idle_pss: int
    first: int
    further: float
    data_server: float


async def memory(gateway: Gateway, tunnels: int, target: int) -> Memory:
    """Measure the fresh gateway, with one tunnel, then with so many more; all are released again."""
    pid = gateway.process.pid
    idle_rss, idle_pss = proc.rss(pid), proc.pss([pid])
    uids = [Uid.random().reveal() for _ in range(tunnels + 1)]
    async with connected(gateway) as connection:
        await _activate(connection, uids[:1], target)
        first = proc.rss(pid)
        await _activate(connection, uids[1:], target)
        further, servers = proc.rss(pid) - first, proc.pss(gateway.data_servers)
        for uid in uids:
            await connection.release(uid)
    return Memory(idle_rss, idle_pss, first - idle_rss, further / tunnels, servers / (tunnels + 1))


async def _activate(connection: Connection, uids: Sequence[str], target: int) -> None:
    """Open an inbound tunnel for each UID, and give their data servers time to settle."""
    for uid in uids:
        await _reserve(connection, uid, Role.PROD, f"{INBOUND}:{target}")
        await connection.update(uid, Role.PROD.value, [f"{INBOUND}:{target}"])
    await asyncio.sleep(_SETTLE_SECONDS)
