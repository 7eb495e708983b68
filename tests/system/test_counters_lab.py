"""What tunnels carry, as packaged: in the daemon's sandbox, through restarts and kills of it, exact to the byte."""

from __future__ import annotations

import contextlib
import json
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.system.gateways import OUTBOUND_ADDRESS, PRODUCER, TYPES, Field, Stream, field_of, gateway, one, restarted
from tests.system.host import Host
from tests.system.lab import Lab

pytestmark = pytest.mark.timeout(600)  # the first lab of a machine builds the base tree

_MIB = 1 << 20
_GREETING = 5  # bytes that the application says first


def sides(field: Field, stream: Stream) -> list[tuple[Host, str]]:
    return [(field.near, stream.inbound), (field.far, stream.outbound)]


def ended(field: Field, stream: Stream) -> tuple[int, int]:
    """End the stream; the bytes that its client has sent, and those that came back with the application's greeting."""
    stream.client.send(15)
    field.lab["consumer"].wait_until(lambda: "went" in stream.client.output(), f"{stream.kind} whole")
    _, sent, _, _, received, _ = stream.client.output().split("\n")[1].split()
    return int(sent), int(received) + _GREETING


def files(host: Host) -> list[str]:
    return host.run(["ls", "/var/lib/scistreamd/counters"]).stdout.split()


def carried(shown: dict[str, Any]) -> tuple[int, int]:
    return shown["bytes_in"], shown["bytes_out"]


def test_exact_through_restarts_and_kills_of_the_daemon(lab: Lab) -> None:
    """Three types with one target, so that their connections are told apart by their owners."""
    with field_of(lab) as field, contextlib.ExitStack() as ends:
        for kind in TYPES:
            field.start(kind, ends)
        for stream in field.streams:
            for host, tunnel in sides(field, stream):
                host.wait_until(lambda: one(host, tunnel)["bytes_out"] > _MIB, f"live: {one(host, tunnel)}")  # noqa: B023
                shown = one(host, tunnel)
                assert (shown["connections"], shown["connections_total"]) == (1, 1), shown
                assert shown["wan_connections"] == 1
                assert shown["wan_rtt_usec"] > 0
                assert shown["wan_cwnd"] > 0
                assert shown["wan_bytes_in"] > shown["bytes_in"] - _MIB
        restarted(field.near, ["systemctl", "kill", "-s", "KILL", "scistreamd"])
        restarted(field.far, ["systemctl", "restart", "scistreamd"])
        [batch] = field.far.run(["s2ctl", "top", "-n1", "--json=short"]).stdout.splitlines()
        assert [each["connections"] for each in json.loads(batch)["tunnels"]] == [1, 1, 1]
        exact = {stream.kind: ended(field, stream) for stream in field.streams}
        for stream in field.streams:
            for host, tunnel in sides(field, stream):
                whole = exact[stream.kind]
                host.wait_until(lambda: carried(one(host, tunnel)) == whole, f"{whole} exactly")  # noqa: B023
                shown = one(host, tunnel)
                assert (shown["connections_total"], shown["estimated"]) == (1, False)
        _while_nobody_counts(field, field.streams[1])
        for host in (field.near, field.far):
            assert "not counted" not in host.journal("-u", "scistreamd")
            host.wait_until(lambda: len(files(host)) == 3, "written down")  # noqa: B023
            host.run(["s2ctl", "release", "--all", "-q"])
            assert files(host) == []
            assert "scistream" not in host.run(["nft", "list", "ruleset"]).stdout


def _while_nobody_counts(field: Field, tunnel: Stream) -> None:
    """Connections that end, or come and go, while no daemon is there: within 5 %, and said to be estimates."""
    whole = {host: carried(one(host, of)) for host, of in sides(field, tunnel)}
    with contextlib.ExitStack() as ends:
        before = client(field, tunnel, ends)
        time.sleep(1.5)
        field.near.run(["systemctl", "kill", "-s", "KILL", "scistreamd.service"])  # and it is not to come back yet:
        for host in (field.near, field.far):
            host.run(["systemctl", "stop", "scistreamd.service"])
        between = client(field, tunnel, ends)
        time.sleep(3)
        done = [ended(field, each) for each in (before, between)]
        after = client(field, tunnel, ends)
        for host in (field.near, field.far):
            assert "chain count-in" in host.run(["nft", "list", "table", "inet", "scistream"]).stdout
            host.run(["systemctl", "start", "scistreamd.service"])
        done.append(ended(field, after))
    sent, received = (sum(each) for each in zip(*done, strict=True))
    for host, of in sides(field, tunnel):
        host.wait_until(lambda: one(host, of)["connections"] == 0, "ended")  # noqa: B023
        shown = one(host, of)
        assert shown["estimated"]
        carried_meanwhile = (shown["bytes_in"] - whole[host][0], shown["bytes_out"] - whole[host][1])
        assert carried_meanwhile == pytest.approx((sent, received), rel=0.05)


def client(field: Field, tunnel: Stream, ends: contextlib.ExitStack) -> Stream:
    """A further stream through the tunnel."""
    consumer = field.lab["consumer"]
    script = ["python3", "/root/stream_end.py", "stream", OUTBOUND_ADDRESS, str(tunnel.port)]
    running = ends.enter_context(consumer.start(script))
    consumer.wait_until(lambda: "streams" in running.output(), "streaming")
    return replace(tunnel, client=running)


def test_metrics_where_their_socket_is_switched_on(lab: Lab) -> None:
    """By the lines of docs/counters.md; off before, and off again after."""
    unit, fetch = "scistreamd-metrics.socket", ["python3", "-c", _FETCH]
    with gateway(lab["producers2"]) as host:
        host.run(["systemctl", "start", "scistreamd.service"])
        assert host.run(["systemctl", "is-enabled", unit], check=False).stdout == "disabled\n"
        assert host.run(fetch, check=False).returncode != 0
        host.run(["systemd-analyze", "verify", unit])
        tunnel = host.run(["s2ctl", "inbound", "-q", "--label", "measured", f"{PRODUCER}:1"]).stdout.strip()
        document = (Path(__file__).parent.parent.parent / "docs" / "counters.md").read_text()
        [block] = re.findall(r"```sh\n(systemctl enable.*?)```", document, re.DOTALL)
        try:
            for line in block.splitlines():
                host.run(line.split())
            text = host.run(fetch).stdout
            labels = f'id="{tunnel}",label="measured",role="PROD",type="Haproxy"'
            assert f'scistreamd_tunnel_bytes_total{{direction="in",{labels}}} 0.0\n' in text
            assert "scistreamd_counters_available 1.0\n" in text
            assert ":9641" not in host.run(["ss", "-Htln", "not src 127.0.0.1"]).stdout
            host.run(["s2ctl", "release", "-q", tunnel])
            assert tunnel not in host.run(fetch).stdout
        finally:
            host.run(["systemctl", "disable", "--now", unit])
        host.run(["systemctl", "restart", "scistreamd.service"])


_FETCH = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:9641/metrics', timeout=60).read().decode())"
