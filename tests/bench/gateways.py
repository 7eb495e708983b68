"""Pairs of gateways as an operator starts them, and tunnels as a user asks for them."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench.proc import descendants, ended_children
from tests.bench.rig import BIN, INBOUND, OUTBOUND, Rig, Spawned, run

TYPES = ("Haproxy", "Nginx", "Stunnel")
DEFAULT_TYPE = "Haproxy"
_S2UC_SECONDS = 30.0


@dataclass(frozen=True)
class Certificate:
    """The control ports' certificate and its key."""

    certificate: Path
    key: Path


def make_certificate(rig: Rig) -> Certificate:
    """A certificate for both gateways' addresses."""
    made = Certificate(rig.scratch / "server.crt", rig.scratch / "server.key")
    names = ["--ip", INBOUND, "--ip", OUTBOUND]
    run([str(BIN / "s2ctl"), "cert", "create", *names, "--out", str(made.certificate), "--key", str(made.key)], 20)
    return made


@dataclass(frozen=True)
class Took:
    """Seconds of one s2uc process from exec to exit: by the clock, and of the processors."""

    wall: float
    cpu: float


@dataclass(frozen=True)
class Gateway:
    """A running s2cs."""

    address: str
    port: int
    process: Spawned
    certificate: Path

    @property
    def control(self) -> str:
        """``HOST:PORT`` of its control port."""
        return f"{self.address}:{self.port}"

    @property
    def data_servers(self) -> tuple[int, ...]:
        """The processes of its tunnels, which are all its descendants."""
        return descendants(self.process.pid)

    def ask(self, command: str, *arguments: str) -> tuple[str, Took]:
        """Run ``s2uc COMMAND`` against it; returns what it prints and what it took."""
        options = ["--s2cs", self.control, "--server-cert", str(self.certificate)]
        began, cpu = time.perf_counter(), ended_children()
        said = run([str(BIN / "s2uc"), command, *options, *arguments], _S2UC_SECONDS)
        return said, Took(time.perf_counter() - began, ended_children() - cpu)


def s2cs_argv(address: str, port: int, kind: str, pool: str, made: Certificate) -> list[str]:
    """The command line of a gateway on one loopback address."""
    return [
        *(str(BIN / "s2cs"), f"--listener-ip={address}", f"--port={port}", f"--type={kind}", f"--port-range={pool}"),
        *(f"--server-crt={made.certificate}", f"--server-key={made.key}"),
    ]


def start(
    rig: Rig, made: Certificate, address: str, index: int, kind: str, *, pool: int = 100,
    undo: contextlib.ExitStack | None = None,
) -> Gateway:  # fmt: skip
    """Start s2cs and wait until it says that it serves; ``pool`` is the number of its ports."""
    port = rig.ports.control(index)
    process = rig.start(s2cs_argv(address, port, kind, rig.ports.pool(index, pool), made), undo)
    process.wait_for(lambda: b"Server started" in process.log.read_bytes(), "s2cs")
    return Gateway(address, port, process, made.certificate)


@dataclass(frozen=True)
class Pair:
    """An inbound and an outbound gateway of one data server type."""

    kind: str
    inbound: Gateway
    outbound: Gateway

    def open(self, ports: Sequence[int]) -> Opened:
        """A tunnel on each, to these ports of the server application, by s2uc."""
        receivers = ",".join(map(str, ports))
        said, inbound = self.inbound.ask(
            "inbound-request", "--remote-ip", INBOUND, "--receiver-ports", receivers, "--json"
        )
        answer = json.loads(said)
        uid, listeners = answer["uid"], ",".join(answer["listeners"])
        try:
            said, outbound = self.outbound.ask("outbound-request", "--json", uid, listeners)
        except BaseException:
            self.inbound.ask("release", uid)
            raise
        return Opened(uid, tuple(json.loads(said)["listeners"]), inbound, outbound)

    def release(self, uid: str) -> None:
        """End the tunnels on both."""
        for gateway in (self.outbound, self.inbound):
            gateway.ask("release", uid)


@dataclass(frozen=True)
class Opened:
    """Tunnels of one UID on both gateways: where the client connects, and what s2uc took."""

    uid: str
    listeners: tuple[str, ...]
    inbound: Took
    outbound: Took


def start_pair(rig: Rig, made: Certificate, index: int, kind: str) -> Pair:
    """Two gateways of one type on the same ports of two addresses."""
    return Pair(kind, start(rig, made, INBOUND, index, kind), start(rig, made, OUTBOUND, index, kind))
