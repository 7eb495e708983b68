"""Rates, allow-from and ports as packaged: within the daemon's sandbox, for data servers with users of their own."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest

from tests.bench import rates
from tests.system.gateways import (
    APPLICATION,
    INBOUND_ADDRESS,
    OUTBOUND_ADDRESS,
    PRODUCER,
    TYPES,
    Field,
    field_of,
    listed,
    one,
    restarted,
)
from tests.system.host import Host, Running
from tests.system.lab import Lab

pytestmark = pytest.mark.timeout(600)  # the first lab of a machine builds the base tree

_SCRIPT = "/root/stream_end.py"
_RATE_END = "/root/rate_end.py"
_DIAL = "import socket,sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 5); print('in')"


def roots(host: Host) -> set[str]:
    return {line.split()[1] for line in host.run(["tc", "qdisc", "show"]).stdout.splitlines() if " root " in line}


def test_rates_of_every_type_through_a_kill_of_the_daemon(lab: Lab) -> None:
    """By what the receiving applications got in the middle of their streams, each of which goes one way."""
    streams = {"Haproxy": (300, "forth"), "Nginx": (2500, "back"), "Stunnel": (1000, "forth")}
    script = (Path(rates.__file__).parent / "rate_end.py").read_text()
    for name in ("producer", "consumer"):
        lab[name].write(_RATE_END, script)
    with field_of(lab) as field:
        before = roots(field.near), roots(field.far)
        made = {kind: field.tunnel(kind, "--rate", str(rate)) for kind, (rate, _) in streams.items()}
        with contextlib.ExitStack() as ends:
            sinks = {kind: _stream(field, ends, *made[kind], streams[kind][1]) for kind in TYPES}
            restarted(field.near, ["systemctl", "kill", "-s", "KILL", "scistreamd"])
            for sink in sinks.values():
                field.near.wait_until(lambda sink=sink: "]]" in sink.output(), "measured", 120)  # type: ignore[misc]
            found = {kind: json.loads(sink.output().splitlines()[-1]) for kind, sink in sinks.items()}
        off = {
            kind: round(100 * (rates.rate_between(each, 1, 11) / streams[kind][0] - 1), 1)
            for kind, each in found.items()
        }
        assert all(abs(each) <= 3 for each in off.values()), off
        assert one(field.near, made["Nginx"][0])["rate"] == 2500
        field.near.run(["s2ctl", "update", "-q", made["Nginx"][0], "--rate", "2000"])
        assert one(field.near, made["Nginx"][0])["rate"] == 2000
        assert "htb" in roots(field.near)
        for host in (field.near, field.far):
            host.run(["s2ctl", "release", "--all", "-q"])
        assert (roots(field.near), roots(field.far)) == before
    for name in ("producer", "consumer"):
        lab[name].run(["rm", _RATE_END])


def _stream(
    field: Field, ends: contextlib.ExitStack, inbound: str, outbound: str, port: int, direction: str
) -> Running:
    """Three connections, as fast as they can; the end that measures."""
    target = port + 2000
    field.near.run(["s2ctl", "update", "-q", inbound, f"{PRODUCER}:{target}"])
    producer, consumer = field.lab["producer"], field.lab["consumer"]
    near, far = ("sink", "source") if direction == "forth" else ("source", "sink")
    server = ends.enter_context(producer.start(["python3", _RATE_END, "serve", str(target), near, "3", "11.2"]))
    producer.wait_until(lambda: "listening" in server.output(), "listening")
    dial = ["python3", _RATE_END, "dial", OUTBOUND_ADDRESS, str(port), far, "3", "11.2"]
    client = ends.enter_context(consumer.start(dial))
    return server if near == "sink" else client


def test_who_may_connect_and_who_has_ports(lab: Lab) -> None:
    with field_of(lab) as field:
        for kind in TYPES:
            ask = [
                "s2ctl",
                "inbound",
                "-q",
                "--type",
                kind,
                "--allow-from",
                "192.168.20.0/24",
                f"{PRODUCER}:{APPLICATION}",
            ]
            [listener] = one(field.near, field.near.run(ask).stdout.strip())["listeners"]
            dial = ["python3", "-c", _DIAL, INBOUND_ADDRESS, listener.rpartition(":")[2]]
            assert lab["consumers2"].run(dial).stdout == "in\n"
            refused = lab["producer"].run(dial, check=False)
            assert "ConnectionRefusedError" in refused.stderr
        field.near.run(["s2ctl", "release", "--all", "-q"])
        rival = (
            "import socket,time; kept = socket.create_server(('', 5150)); print('there', flush=True); time.sleep(600)"
        )
        with field.near.start(["python3", "-c", rival]) as running:
            field.near.wait_until(lambda: "there" in running.output(), "there")
            said = json.loads(field.near.run(["s2ctl", "check", "--json=short", "5150"], check=False).stdout)
        assert not said[0]["free"]
        assert said[0]["reason"] == "a program of user root has tcp 0.0.0.0:5150, which is every address"
        low, high = map(int, field.near.run(["cat", "/proc/sys/net/ipv4/ip_local_port_range"]).stdout.split())
        assert bool(said[0]["warnings"]) is (low <= 5150 <= high)


def test_a_tunnel_that_drains_takes_nobody_new_and_cuts_nobody(lab: Lab) -> None:
    """Stunnel would go on accepting, and of every type the socket unit listens on."""
    with field_of(lab) as field, contextlib.ExitStack() as ends:
        for kind in ("Nginx", "Stunnel"):
            field.start(kind, ends)
        # Long enough for all that follows; what drains by itself ends with its stream.
        seconds = {"Nginx": "300", "Stunnel": "25"}
        drain = ["s2ctl", "release", "-q", "--drain"]
        drains = [
            ends.enter_context(field.far.start([*drain, seconds[each.kind], each.outbound])) for each in field.streams
        ]
        field.far.wait_until(lambda: {each["state"] for each in listed(field.far)} == {"releasing"}, "draining")
        for each in field.streams:
            asked = lab["consumer"].run(["python3", _SCRIPT, "ask", OUTBOUND_ADDRESS, str(each.port)], check=False)
            assert "ConnectionRefusedError" in asked.stderr, each.kind
        restarted(field.far, ["systemctl", "restart", "scistreamd"])
        for drained in drains:
            assert drained.process.wait(90) != 0
            assert "ends when it has drained" in drained.output()
        assert {each["state"] for each in listed(field.far)} == {"releasing"}, "the next daemon goes on with it"
        field.end_streams()
        field.far.wait_until(lambda: listed(field.far) == [], "drained")
        for each in field.streams:
            about = f"TUNNEL_ID={each.outbound}"
            field.far.wait_until(lambda: "ended: released" in field.far.journal(about), "told of the end")  # noqa: B023
            assert "firewall" not in field.far.journal(about)
        field.near.run(["s2ctl", "release", "--all", "-q"])
