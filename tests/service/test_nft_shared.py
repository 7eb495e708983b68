"""Judging many listeners at once against judging each for itself, by random rulesets that the kernel holds."""

from __future__ import annotations

import ipaddress
import random
from collections.abc import Iterator

import pytest

from scistreamd import host_view, nft_dump
from scistreamd.model import Endpoint, IPNetwork, PortRange
from scistreamd.nft.cuts import cuts
from scistreamd.nft.judgement import judge
from scistreamd.nft.shared import Judge
from tests.service.arena import LISTENERS, PEERS, Arena, is_possible
from tests.service.rulesets import V4, V6, Rulesets

pytestmark = pytest.mark.skipif(not is_possible(), reason="network namespaces need root")

RULESETS = 20
EVERY = PortRange(1, 65535)
PORTS = (1, 21, 22, 23, 4999, 5000, 5099, 5100, 5101, 5150, 5200, 5201, 32768, 65535)
NETWORKS: list[IPNetwork] = [
    ipaddress.ip_network(each) for each in (*V4, *V6, *PEERS["eth0"], *PEERS["eth1"]) if "-" not in each
]
# Rules that look at a part of the port, or do more with it than to compare it.
ODD = ("@th,24,8 236 accept", "tcp dport & 0xff00 == 0x1300 accept", "meta mark set @th,0,32 meta mark 5100 accept")
MARKS = """\
table inet marks {
map ports { type inet_service : mark; elements = { 5100 : 1, 5150 : 2 } }
chain input {
type filter hook input priority 0; policy drop;
meta mark set tcp dport map @ports
meta mark 2 accept
tcp sport . tcp dport { 1024-65535 . 5101 } accept
ip saddr . tcp dport { 10.1.0.0/24 . 22 } accept
}
chain nat {
type nat hook prerouting priority -100;
tcp dport { 5000-5099 } redirect to :5099
tcp dport 5200 dnat ip to tcp dport map { 5200 : 10.1.0.1 . 5201 }
}
}"""


@pytest.fixture(scope="module")
def arena() -> Iterator[Arena]:
    with Arena() as arena:
        yield arena


def compare(arena: Arena, text: str, choice: random.Random) -> tuple[int, ...] | None:
    """Every listener judged in both ways; the cuts."""
    ruleset, host = arena.host.run(nft_dump.read), arena.host.run(host_view.look)
    shared = Judge(ruleset, host)
    listeners = [Endpoint(ipaddress.ip_address(each), 0) for both in LISTENERS.values() for each in both]
    for port in PORTS:
        listener = Endpoint(choice.choice(listeners).address, port)
        for allow_from in ((), tuple(choice.sample(NETWORKS, 2))):
            alone = judge(ruleset, host, listener, allow_from, EVERY)
            assert shared.judge(listener, allow_from, EVERY) == alone, f"{text}\n{listener} for {allow_from}"
    return cuts(ruleset)


def test_random_rulesets(arena: Arena) -> None:
    made, choice, told = Rulesets(7), random.Random(7), 0
    for _ in range(RULESETS):
        text = arena.rules_that_nft_takes(made.ruleset())
        told += compare(arena, text, choice) is not None
    assert told > RULESETS / 2


@pytest.mark.parametrize("rule", ODD)
def test_what_does_more_with_the_port_than_to_compare_it(arena: Arena, rule: str) -> None:
    text = f"table inet odd {{\nchain input {{\ntype filter hook input priority 0; policy drop;\n{rule}\n}}\n}}"
    arena.rules(text)
    assert compare(arena, text, random.Random(8)) is None


def test_ports_in_maps_and_where_nat_sends_to(arena: Arena) -> None:
    choice = random.Random(8)
    arena.rules(MARKS)
    for _ in range(10):
        found = compare(arena, MARKS, choice)
        assert found is not None and {22, 23, 5000, 5099, 5100, 5101, 5150, 5200, 5201} <= set(found)
