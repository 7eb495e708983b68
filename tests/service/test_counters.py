"""What tunnels carry, counted by the kernel: exact against peers that count, live, whatever the data server."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import socket
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pytest

from scistreamd import tally
from scistreamd.counterbooks import FileCounterBooks
from scistreamd.daemon import Plugged
from scistreamd.gate import Verb
from scistreamd.interfaces import Flow
from scistreamd.kernel import kernel_traffic
from scistreamd.legs import Way
from scistreamd.meter import Meter
from scistreamd.model import Caller, Change, Endpoint, Options, Role, Security, Target
from scistreamd.packetcount import PacketCount
from scistreamd.plans import Bind
from scistreamd.sock import Sock
from scistreamd.sockdiag import SockDiag
from tests.service.counters_kit import LOOPBACK, gateway, pair, payload, peer, settings, stream, until
from tests.service.dataplane_kit import Pair as Types
from tests.service.dataplane_kit import pairs
from tests.service.netns_kit import in_netns, run

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")

MIB = 1 << 20


@pytest.mark.parametrize("types", list(pairs(Security.TLS, Security.NONE)), ids=str)
async def test_exact_for_connections_that_end(types: Types) -> None:
    """Long ones and some that nobody saw alive, one after the other and many at a time, both ways."""
    async with pair() as gateways, peer() as application:
        tunnel = await gateways.tunnel(application.at, types.inbound, types.outbound, types.security)
        assert (tunnel.both, tunnel.total) == (((0, 0), (0, 0)), (0, 0))
        lengths = [1, 3 * MIB + 5, 2, 77_777, *[10_000 + 1_013 * number for number in range(12)]]
        done = [await stream(tunnel.listener, length) for length in lengths[:4]]
        done += await asyncio.gather(*(stream(tunnel.listener, length) for length in lengths[4:]))
        exact = sum(one for one, _ in done), sum(two for _, two in done)
        assert (application.got, application.sent) == exact
        await until(lambda: tunnel.both == (exact, exact))
        await until(lambda: tunnel.open == (0, 0))
        assert tunnel.total == (len(lengths), len(lengths))
        assert not tunnel.inbound.estimated
        assert not tunnel.outbound.estimated


async def test_live_during_long_streams() -> None:
    """Bytes, connections, rates and the hop's TCP are there while a stream runs, not at its end."""
    async with pair() as gateways, peer() as application:
        tunnel = await gateways.tunnel(application.at, "Haproxy", "Nginx")
        application.hold.clear()
        streams = [asyncio.create_task(stream(tunnel.listener, 2 * MIB)) for _ in range(3)]
        await until(lambda: tunnel.both == ((6 * MIB, 0), (6 * MIB, 0)))
        assert tunnel.open == (3, 3)
        for counts in (tunnel.inbound, tunnel.outbound):
            assert counts.health.connections == 3
            assert counts.health.rtt_usec > 0
            assert counts.health.cwnd >= 3
            assert counts.wan.bytes_in > 6 * MIB
            assert counts.plain.packets_in > 6
        # Their delivery rate is of the side that sends over the hop.
        assert tunnel.outbound.health.delivery_rate > 0
        await until(lambda: tunnel.inbound.rates.bytes_in and tunnel.inbound.rates.bytes_in[2] > 0)
        application.hold.set()
        await asyncio.gather(*streams)
        await until(lambda: tunnel.open == (0, 0))
        assert tunnel.both == ((6 * MIB, application.sent), (6 * MIB, application.sent))
        assert tunnel.inbound.health.connections == 0
        # The first second's bytes are in the last ten seconds, and not in the last one.
        await until(lambda: tunnel.inbound.rates.bytes_in[0] == 0)
        assert tunnel.inbound.rates.bytes_in[1] > 0


async def test_tunnels_that_share_a_target_and_strangers_there() -> None:
    """Whose a connection is that nobody saw alive; another program's at the same target is nobody's."""
    async with pair() as gateways, peer() as application:
        tunnels = [await gateways.tunnel(application.at, kind, kind) for kind in ("Haproxy", "Nginx", "Stunnel")]
        # Each outbound tunnel has tested its hop: a connection that no other half belongs to, for so long.
        await asyncio.sleep(tally._TOGETHER)
        strangers = [await stream(application.at, 5_000 + number) for number in range(3)]
        # Nor of those, where connections of tunnels end at the same time and others cannot be told from theirs.
        await asyncio.sleep(tally._TOGETHER)
        for turn, tunnel in enumerate(tunnels):
            done = [await stream(tunnel.listener, 20_000 * (turn + 1) + number) for number in range(10)]
            exact = sum(one for one, _ in done), sum(two for _, two in done)
            await until(lambda: tunnel.both == (exact, exact), lambda: (tunnel.both, exact))  # noqa: B023
        together = await asyncio.gather(*(stream(each.listener, 300_000 * n) for n, each in enumerate(tunnels, 1)))
        strangers.append(await stream(application.at, 123))
        before = [sum(20_000 * (turn + 1) + number for number in range(10)) for turn in range(3)]
        for (sent, _), tunnel, sum_before in zip(together, tunnels, before, strict=True):
            both = sum_before + sent
            await until(lambda: tunnel.both[0][0] == tunnel.both[1][0] == both, lambda: (tunnel.both, both))  # noqa: B023
        assert application.got == sum(tunnel.both[0][0] for tunnel in tunnels) + sum(one for one, _ in strangers)
        await tunnels[1].release()
        assert tunnels[1].total == (0, 0)
        assert tunnels[0].total == (11, 11)


async def test_exact_against_iperf3(tmp_path: Path) -> None:
    """Its own counts of the data, and what its control connection carries beside that: some kilobytes of JSON.

    Its server ends without reading what is still under way: with small blocks at this rate that is little.
    """
    async with pair() as gateways:
        port = 28090
        server = await asyncio.create_subprocess_exec(
            "iperf3", "-s", "-1", "-p", str(port), "-B", "127.0.0.1", stdout=-3
        )
        await until(lambda: b"iperf3" in listening(port))
        tunnel = await gateways.tunnel(Endpoint(LOOPBACK, port), "Nginx", "Haproxy")
        words = [
            "-c",
            "127.0.0.1",
            "-p",
            str(tunnel.listener.port),
            "-n",
            "4M",
            "-b",
            "20M",
            "-l",
            "1K",
            "-P",
            "2",
            "--json",
        ]
        client = await asyncio.create_subprocess_exec("iperf3", *words, stdout=asyncio.subprocess.PIPE)
        out, _ = await client.communicate()
        await server.wait()
        sums = json.loads(out)["end"]
        sent, received = sums["sum_sent"]["bytes"], sums["sum_received"]["bytes"]
        await until(lambda: tunnel.open == (0, 0) and tunnel.total == (3, 3), lambda: (tunnel.open, tunnel.total))
        assert sent == 4 * MIB
        for side in (0, 1):
            await until(lambda: received <= tunnel.both[side][0] <= sent + 5_000, lambda: (tunnel.both, received))  # noqa: B023
        assert sent - received < 200_000


def listening(port: int) -> bytes:
    return subprocess.run(["ss", "-Htlnp", f"sport = :{port}"], capture_output=True).stdout


async def test_a_tunnel_without_a_connection_ends(tmp_path: Path) -> None:
    """One that is used stays, also by a connection that only is open; so does one that may carry UDP."""
    async with pair(idle_timeout=3) as gateways, peer() as application:
        used = await gateways.tunnel(application.at, "Nginx", "Nginx")
        application.hold.clear()
        open_one = asyncio.create_task(stream(used.listener, 1))
        datagrams = await gateways.tunnel(application.at, "Nginx", "Nginx", Security.NONE)
        idle = await gateways.tunnel(application.at, "Nginx", "Nginx")
        manager = gateways.inbound.manager
        await until(lambda: idle.uid.id not in [view.id for view in manager.tunnels()])
        await asyncio.sleep(3)
        assert {view.id for view in manager.tunnels()} == {used.uid.id, datagrams.uid.id}
        application.hold.set()
        await open_one
        await until(lambda: len(manager.tunnels()) == len(gateways.outbound.manager.tunnels()) == 1)
        await datagrams.release()
        assert manager.free_ports == 10


async def test_nothing_is_asked_while_there_is_nothing_to_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """No tunnel: no socket, no timer. Tunnels that nobody asks about: a look each ten seconds."""
    monkeypatch.setattr("scistreamd.meter._ASKED", 0.5)
    async with pair() as gateways, peer() as application:
        meter = gateways.inbound.meter
        looks = 0
        sockets = meter._sockets  # whom the meter asks
        dump = sockets.dump

        def counted() -> list[Sock]:
            nonlocal looks
            looks += 1
            return dump()

        sockets.dump = counted  # type: ignore[method-assign]
        assert meter.all() == {}
        await asyncio.sleep(1.2)
        assert looks == 0
        tunnel = await gateways.tunnel(application.at, "Nginx", "Nginx")
        await asyncio.sleep(0.1)
        before = looks
        await asyncio.sleep(3)
        assert looks == before
        for _ in range(20):
            assert tunnel.inbound.connections == 0
        assert looks <= before + 1
        await tunnel.release()
        assert meter.all() == {}


async def test_nobody_makes_it_look_more_often_than_it_may(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Not who asks all the time, nor the books, nor what was due before somebody asked."""
    for name, seconds in {"_OFTEN": 0.3, "_SELDOM": 0.7, "_WRITE": 0.4, "_WRITE_FRESH": 0.1, "_ASKED": 0.5}.items():
        monkeypatch.setattr(f"scistreamd.meter.{name}", seconds)
    async with pair() as gateways, peer() as application:
        tunnel = await gateways.tunnel(application.at, "Nginx", "Nginx")
        [way] = gateways.inbound.manager.ways()
        sockets, looks = SockDiag(), list[float]()
        dump = sockets.dump

        def timed() -> list[Sock]:
            looks.append(asyncio.get_running_loop().time())
            return dump()

        sockets.dump = timed  # type: ignore[method-assign]
        meter = Meter(Metered([way]), sockets, FileCounterBooks(tmp_path / "counters"))
        application.hold.clear()
        running = asyncio.create_task(stream(tunnel.listener, 100_000))
        await until(lambda: tunnel.inbound.connections == 1)
        meter.start()
        asked = 0
        while len(looks) < 12:
            asked += 1
            if asked % 40 < 20:  # somebody comes and goes
                assert meter.counts(way.id).connections == 1
            await asyncio.sleep(0.03)
        meter.stop()
        gaps = [after - before for before, after in itertools.pairwise(looks)]
        assert min(gaps[:-1]) > 0.29, gaps  # the last one is that of the stop
        application.hold.set()
        await running


async def test_what_the_kernel_could_not_tell_is_an_estimate() -> None:
    """Too many ends at once for the queue: what was seen last counts, and is marked."""
    async with pair() as gateways, peer() as application:
        tunnel = await gateways.tunnel(application.at, "Nginx", "Nginx")
        application.hold.clear()
        running = [asyncio.create_task(stream(tunnel.listener, 100_000)) for _ in range(5)]
        await until(lambda: tunnel.both[0][0] == 500_000)
        heard = gateways.inbound.meter._sockets
        heard.ended = lambda: ([], True)  # type: ignore[method-assign]
        application.hold.set()
        await asyncio.gather(*running)
        await until(lambda: tunnel.inbound.estimated)
        assert tunnel.open[0] == 0
        assert tunnel.both[0][0] == 500_000
        assert not tunnel.outbound.estimated


@in_netns
async def test_udp_is_counted() -> None:
    """By nftables: to the byte, live, beside TCP of the same tunnel; gone with it."""
    config = settings(28000)
    async with (
        kernel_traffic(config, lasting=False) as traffic,
        gateway(config, Plugged(traffic=traffic)) as made,
        peer() as application,
    ):
        loop = asyncio.get_running_loop()
        with contextlib.closing(await _udp_echo(application.at)):
            grant = made.gate.admit(Caller("test", peer=LOOPBACK, reached=LOOPBACK), Verb.CREATE)
            options = Options(data_server="Nginx", security=Security.NONE)
            target = (Target.parse(str(application.at)),)
            _, other = await made.manager.create(grant, Role.PROD, target, options)
            made.meter.all()  # it looks at all connections, and not again for a second
            uid, view = await made.manager.create(grant, Role.PROD, target, options)
            assert view.warnings == ()
            assert await stream(view.listeners[0], 5000) == (5000, 1673)
            with socket.socket(type=socket.SOCK_DGRAM) as client:
                client.setblocking(False)
                client.connect((str(LOOPBACK), view.listeners[0].port))
                for length in (1, 1400, 30_000):
                    await loop.sock_sendall(client, bytes(length))
                    assert len(await loop.sock_recv(client, 65536)) == length
            exact = 36_401, 33_074
            await until(lambda: payload(made.meter.counts(uid.id)) == exact, lambda: made.meter.counts(uid.id))
            assert not made.meter.counts(uid.id).estimated
            assert payload(made.meter.counts(other.id)) == (0, 0)
            for each in (view, other):
                await made.manager.end(grant, each.id, 0)
            assert run("nft", "list", "ruleset") == ""


async def _udp_echo(at: Endpoint) -> asyncio.DatagramTransport:
    class Echo(asyncio.DatagramProtocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = cast(asyncio.DatagramTransport, transport)

        def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
            self.transport.sendto(data, addr)

    made, _ = await asyncio.get_running_loop().create_datagram_endpoint(Echo, (str(at.address), at.port))
    return made


def alive(way: Way) -> str:
    """Connections of its listeners that have not ended."""
    states = ("established", "fin-wait-1", "fin-wait-2", "close-wait", "last-ack", "closing")
    wanted = [word for state in states for word in ("state", state)]
    return "".join(run("ss", "-tnH", *wanted, f"sport = :{each.port}") for each in way.listeners)


@in_netns
async def test_what_passes_after_a_kill_is_an_estimate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon says nothing when it ends; what began and ended after that is found by the next one."""
    monkeypatch.setattr("scistreamd.meter._WRITE", 0.5)
    async with pair() as gateways, peer() as application, kernel_traffic(settings(28000), lasting=True) as traffic:
        [passing] = [part for part in traffic if isinstance(part, PacketCount)]
        tunnel = await gateways.tunnel(application.at, "Nginx", "Nginx")
        [way] = gateways.inbound.manager.ways()
        flow = Flow(way.id, way.role, tuple(Bind(each) for each in way.listeners))
        assert await passing.apply(flow) == ()
        books = FileCounterBooks(tmp_path / "counters")
        first, second = (Meter(Metered([way]), SockDiag(), books, passing) for _ in range(2))
        first.start()
        await stream(tunnel.listener, 300_000)
        await until(lambda: payload(first.counts(way.id)) == (300_000, 100_007))
        await until(lambda: first._write_timer is None)  # it has written that down
        kept = (tmp_path / "counters" / f"{way.id}.json").read_text()
        first.stop()
        await stream(tunnel.listener, 3 * MIB)
        (tmp_path / "counters" / f"{way.id}.json").write_text(kept)
        # Of a connection whose halves do not end together the next meter would see one, and think that it knows it.
        await until(lambda: not alive(way))
        second.start()
        counts = second.counts(way.id)
        assert counts.estimated
        assert counts.plain.bytes_in == pytest.approx(300_000 + 3 * MIB, rel=0.05)
        assert counts.plain.bytes_out == pytest.approx(100_007 + MIB + 7, rel=0.05)
        second.stop()
        await passing.forget(way.id)
        assert run("nft", "list", "ruleset") == ""


@dataclass
class Metered:
    """A manager's tunnels, as far as a meter looks."""

    known: list[Way]
    idle_timeout: float = 0

    def ways(self) -> list[Way]:
        return self.known

    def watch(self, see: Callable[[Change], None]) -> Callable[[], None]:
        return lambda: None

    def end_idle(self, used: Callable[[str], float]) -> None:
        raise AssertionError("there is no idle_timeout")


async def test_the_next_daemon_goes_on_counting(tmp_path: Path) -> None:
    """Open connections by their cookies, exactly; those that ended meanwhile by what was written down, marked."""
    async with pair() as gateways, peer() as application:
        tunnel = await gateways.tunnel(application.at, "Nginx", "Nginx")
        way = next(iter(gateways.inbound.manager.ways()))
        books = FileCounterBooks(tmp_path / "counters")
        metered = Metered([way])
        first = Meter(metered, SockDiag(), books)
        first.start()
        application.hold.clear()
        running = [asyncio.create_task(stream(tunnel.listener, 1000 * n)) for n in (1, 2)]
        await until(lambda: first.counts(way.id).plain.bytes_in == 3000)
        first.stop()
        application.hold.set()
        await asyncio.gather(*running)
        application.hold.clear()
        third = asyncio.create_task(stream(tunnel.listener, 4000))
        await until(lambda: tunnel.both[0][0] == 7000)
        second = Meter(metered, SockDiag(), books)
        second.start()
        assert second.counts(way.id).plain.bytes_in == 7000
        assert (second.counts(way.id).connections, second.counts(way.id).connections_total) == (1, 3)
        await until(lambda: second.counts(way.id).estimated)
        application.hold.set()
        await third
        await until(lambda: second.counts(way.id).connections == 0)
        assert second.counts(way.id).plain.bytes_in == 7000
        second.stop()
        gone = Meter(Metered([]), SockDiag(), books)
        gone.start()
        gone.stop()
        assert list((tmp_path / "counters").iterdir()) == []
