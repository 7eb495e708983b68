"""The ways from client to server that are compared, all of them up during all rounds."""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.bench.gateways import Pair
from tests.bench.rig import INBOUND, OUTBOUND, BenchError, Rig, Spawned, accepts, program

DIRECT = "direct"
NULL = "1.2 NULL"

# What SciStream 1.2 writes for its Stunnel type, as far as it bears on speed.
_NULL_SETTINGS = """fips = no
PSKsecrets = {secrets}
securityLevel = 0
sslVersionMax = TLSv1.2
ciphers = eNULL
debug = 7
foreground = yes
pid =
"""

# Of the client side, at debug = 7: "TLSv1.2 ciphersuite: ECDHE-PSK-NULL-SHA (0-bit encryption)".
_CIPHER = re.compile(r"ciphersuite: (\S+)")


@dataclass(frozen=True)
class Chain:
    """One way: where the client connects for streams and for echo, and the data servers on the way."""

    name: str
    host: str
    stream_port: int
    echo_port: int
    outbound: tuple[int, ...] = ()
    inbound: tuple[int, ...] = ()
    log: Path | None = None

    def cipher(self) -> str:
        """What Stunnel's ends agreed on, once something went through; BenchError where its log does not say."""
        found = _CIPHER.search(self.log.read_text(errors="replace") if self.log else "")
        if found is None:
            raise BenchError(f"no log tells the cipher of {self.name}")
        return found[1]


def build(rig: Rig, pairs: Sequence[Pair]) -> list[Chain]:
    """Start what the chains need; the first is `DIRECT`, the second `NULL`, then one for each pair."""
    ports = rig.ports
    direct = Chain(DIRECT, INBOUND, ports.iperf3, ports.echo)
    return [direct, _null(rig), *(_ours(rig, pair) for pair in pairs)]


def _ours(rig: Rig, pair: Pair) -> Chain:
    before = pair.outbound.data_servers, pair.inbound.data_servers
    opened = pair.open([rig.ports.iperf3, rig.ports.echo])
    stream, echo = (int(listener.rpartition(":")[2]) for listener in opened.listeners)
    outbound = tuple(pid for pid in pair.outbound.data_servers if pid not in before[0])
    inbound = tuple(pid for pid in pair.inbound.data_servers if pid not in before[1])
    return Chain(pair.kind, OUTBOUND, stream, echo, outbound, inbound)


def _null(rig: Rig) -> Chain:
    """Two plain stunnel processes with the settings of SciStream 1.2."""
    ports = rig.ports
    key = rig.scratch / "psk.txt"
    key.write_text(f"client1:{secrets.token_hex(16)}\n")
    key.chmod(0o600)
    hops = list(zip(ports.null, (ports.iperf3, ports.echo), strict=True))
    inbound = _stunnel(rig, "inbound", "no", [(f"{INBOUND}:{a}", f"{INBOUND}:{b}") for a, b in hops])
    outbound = _stunnel(rig, "outbound", "yes", [(f"{OUTBOUND}:{a}", f"{INBOUND}:{a}") for a, _ in hops])
    for host, process in ((INBOUND, inbound), (OUTBOUND, outbound)):
        process.wait_for(partial(_all_accept, host, ports.null), "stunnel of SciStream 1.2")
    stream, echo = ports.null
    return Chain(NULL, OUTBOUND, stream, echo, (outbound.pid,), (inbound.pid,), outbound.log)


def _all_accept(host: str, ports: Sequence[int]) -> bool:
    return all(accepts(host, port) for port in ports)


def _stunnel(rig: Rig, name: str, client: str, hops: Sequence[tuple[str, str]]) -> Spawned:
    text = _NULL_SETTINGS.format(secrets=rig.scratch / "psk.txt")
    for number, (accept, connect) in enumerate(hops):
        text += f"[service{number}]\nclient = {client}\naccept = {accept}\nconnect = {connect}\n"
    config = rig.scratch / f"stunnel-{name}.conf"
    config.write_text(text)
    return rig.start([program("stunnel"), str(config)])
