"""The two gateways of the lab with scistreamd as it is installed, for tests that make tunnels on them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.system.host import Host, Running
from tests.system.installed import DROP_INS, as_installed
from tests.system.lab import Lab

SITE = "/etc/scistreamd/scistreamd.toml.d/test.toml"
STATE = "/var/lib/scistreamd"
DROP_IN = f"{DROP_INS}/test.conf"
TYPES = ("Haproxy", "Nginx", "Stunnel")
INBOUND_ADDRESS, OUTBOUND_ADDRESS, PRODUCER = "192.168.10.11", "192.168.30.10", "192.168.10.10"
APPLICATION, OTHER_APPLICATION = 7001, 7002

_SCRIPT = "/root/stream_end.py"


def shown(host: Host, name: str, unit: str = "scistreamd.service") -> str:
    """A property of a unit."""
    return host.run(["systemctl", "show", "--value", "-p", name, unit]).stdout.strip()


@contextlib.contextmanager
def gateway(host: Host, configuration: str = "") -> Iterator[Host]:
    """The host with this configuration, its control port open for callers; at the end as it was, and nothing left."""
    with as_installed(host):
        host.run(["mkdir", "-p", SITE.rpartition("/")[0]])
        host.write(SITE, configuration)
        host.run(["systemctl", "start", "scistreamd.socket"])
        yield host
        assert_nothing_left(host)


def assert_nothing_left(host: Host) -> None:
    """No tunnel, unit, listener or file of one."""
    assert listed(host) == []
    # systemd closes listeners and forgets units a moment after it has answered.
    units = ["systemctl", "list-units", "--all", "--plain", "--no-legend", "scistream-*"]
    host.wait_until(lambda: host.run(units).stdout == "", "free of units of tunnels")
    host.wait_until(lambda: ":51" not in host.run(["ss", "-Htln"]).stdout, "free of listeners of tunnels")
    assert host.run(["ls", f"{STATE}/tunnels"]).stdout == ""
    # Beside them there is that of the daemon that runs, for children that it does not have.
    find = ["find", "/run/scistreamd", "-mindepth", "1", "-maxdepth", "1", "-type", "d", "-printf", "%f\n"]
    host.wait_until(lambda: len(host.run(find).stdout.split()) == 1, "free of directories of tunnels")
    [own] = host.run(find).stdout.split()
    assert own.startswith("scistream-s2cs-")


def listed(host: Host) -> list[dict[str, Any]]:
    """What `s2ctl list` says."""
    found: list[dict[str, Any]] = json.loads(host.run(["s2ctl", "list", "--long", "--json=short"]).stdout)
    return found


def restarted(host: Host, way: Sequence[str], seconds: float = 90) -> None:
    """Do what ends scistreamd; return when systemd has started it again and it serves."""
    before = shown(host, "InvocationID")
    host.run(way)
    host.wait_until(
        lambda: shown(host, "InvocationID") != before and shown(host, "ActiveState") == "active",
        "started anew",
        seconds,
    )


@dataclass
class Stream:
    """A tunnel on each gateway, and a client that streams through both."""

    kind: str
    inbound: str
    outbound: str
    port: int
    client: Running


@dataclass
class Field:
    """Gateways, applications on producer, clients on consumer."""

    lab: Lab
    streams: list[Stream] = field(default_factory=list)

    @property
    def near(self) -> Host:
        """The inbound gateway."""
        return self.lab["producers2"]

    @property
    def far(self) -> Host:
        """The outbound gateway."""
        return self.lab["consumers2"]

    def tunnel(self, kind: str, *words: str, near: Sequence[str] = ()) -> tuple[str, str, int]:
        """A tunnel through both gateways; ids, and the port that clients dial. ``near``: words for the inbound one."""
        uid = f"/vagrant/uid-{kind}"
        ask = ["s2ctl", "inbound", "-q", "--type", kind, "--uid-file", uid, "--listen", INBOUND_ADDRESS, *words, *near]
        inbound = self.near.run([*ask, f"{PRODUCER}:{APPLICATION}"]).stdout.strip()
        [listener] = one(self.near, inbound)["listeners"]
        ask = ["s2ctl", "outbound", "-q", "--type", kind, "--listen", OUTBOUND_ADDRESS, *words, f"@{uid}", listener]
        outbound = self.far.run(ask).stdout.strip()
        [dialled] = one(self.far, outbound)["listeners"]
        self.near.run(["rm", uid])
        return inbound, outbound, int(dialled.rpartition(":")[2])

    def ask(self, port: int) -> int:
        """The port of the application that a new connection reaches."""
        return int(self.lab["consumer"].run(["python3", _SCRIPT, "ask", OUTBOUND_ADDRESS, str(port)]).stdout)

    def start(self, kind: str, ends: contextlib.ExitStack) -> None:
        """A tunnel of this type, with a stream in it that runs until `end`."""
        inbound, outbound, port = self.tunnel(kind)
        words = ["python3", _SCRIPT, "stream", OUTBOUND_ADDRESS, str(port)]
        client = ends.enter_context(self.lab["consumer"].start(words))
        self.lab["consumer"].wait_until(lambda: "streams" in client.output(), f"streaming through {kind}")
        self.streams.append(Stream(kind, inbound, outbound, port, client))

    def assert_all_goes_on(self, target: int) -> None:
        """The streams run; list, update and further connections work as before."""
        for host in (self.near, self.far):
            found = {each["id"]: each["state"] for each in listed(host)}
            mine = [each.inbound if host is self.near else each.outbound for each in self.streams]
            assert found == dict.fromkeys(mine, "active")
        for each in self.streams:
            assert each.client.process.poll() is None, each.client.output()
            self.near.run(["s2ctl", "update", "-q", each.inbound, f"{PRODUCER}:{target}"])
            assert self.ask(each.port) == target, each.kind

    def end(self) -> None:
        """End each stream in order, then release."""
        self.end_streams()
        for host in (self.near, self.far):
            host.run(["s2ctl", "release", "--all", "-q"])

    def end_streams(self) -> None:
        """Byte for byte, what went is what came."""
        for each in self.streams:
            each.client.send(15)
            self.lab["consumer"].wait_until(lambda each=each: "went" in each.client.output(), f"{each.kind} whole")  # type: ignore[misc]
            word, sent, digest, _, received, came = each.client.output().split("\n")[1].split()
            assert word == "went"
            assert (received, came) == (sent, digest), each.kind
            assert int(sent) > 100_000


def one(host: Host, tunnel: str) -> dict[str, Any]:
    """What `s2ctl show` says of a tunnel."""
    found: dict[str, Any] = json.loads(host.run(["s2ctl", "show", "--json=short", tunnel]).stdout)
    return found


@contextlib.contextmanager
def field_of(lab: Lab, configuration: str = "") -> Iterator[Field]:
    """Both gateways, and two applications on producer."""
    script = (Path(__file__).parent / "stream_end.py").read_text()
    ends = ("producer", "consumer")
    for name in ends:
        lab[name].write(_SCRIPT, script)
    try:
        with contextlib.ExitStack() as stack:
            for name in ("producers2", "consumers2"):
                stack.enter_context(gateway(lab[name], configuration))
            for port in (APPLICATION, OTHER_APPLICATION):
                server = stack.enter_context(lab["producer"].start(["python3", _SCRIPT, "echo", str(port)]))
                lab["producer"].wait_until(lambda server=server: "listening" in server.output(), "listening")  # type: ignore[misc]
            yield Field(lab)
    finally:
        for name in ends:
            lab[name].run(["rm", "-f", _SCRIPT])
