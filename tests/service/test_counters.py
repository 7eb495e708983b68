"""What tunnels carry, counted by the kernel: exact against peers that count, live, whatever the data server."""

from __future__ import annotations

import asyncio
import os

import pytest

from scistreamd.model import Security
from tests.service.counters_kit import pair, peer, stream, until
from tests.service.dataplane_kit import Pair as Types
from tests.service.dataplane_kit import pairs

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
        strangers = [await stream(application.at, 5_000 + number) for number in range(3)]
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
