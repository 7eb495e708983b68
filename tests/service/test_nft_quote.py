"""Rules are quoted as nft itself prints them."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from scistreamd import nft_dump
from scistreamd.nft import quote
from tests.service.arena import Arena, is_possible
from tests.service.rulesets import Rulesets

pytestmark = pytest.mark.skipif(not is_possible(), reason="network namespaces need root")

DEVICES = {1: "lo", 2: "eth0", 3: "eth1"}
# What firewalls are made of.
RULES = """\
ct state established,related accept
ct state vmap { invalid : drop, established : accept, related : accept }
iifname "lo" accept
iif "eth0" tcp dport 22 accept
iifname { "lo", "eth0" } accept
iifname "eth*" tcp dport { 22, 80-90 } accept
ip saddr 10.0.0.0/8 tcp dport 5100-5200 counter packets 0 bytes 0 accept comment "facility"
ip saddr 192.0.2.128/25 drop
ip6 saddr 2001:db8::/32 tcp dport 5100 accept
ip saddr != { 10.1.0.0/16, 192.0.2.1 } drop
ip saddr @nets tcp dport 5100 accept
tcp dport != 22 drop
tcp dport >= 1024 accept
tcp flags syn / fin,syn,rst,ack accept
tcp sport 30000-65535 tcp dport 5100 drop
udp dport 53 accept
meta l4proto { tcp, udp } th dport 53 accept
meta mark 0x00000001 accept
meta mark set meta mark | 0x00000002
ct mark set 0x00000001
ct status dnat accept
fib daddr type local accept
fib saddr . iif oif missing drop
limit rate 10/second burst 7 packets accept
limit rate over 1 mbytes/second drop
log prefix "dropped: " level info
reject with icmpx admin-prohibited
meta nfproto ipv4 reject
ip saddr . tcp dport { 10.1.0.1 . 22, 10.2.0.0/16 . 5100-5200 } accept
ip saddr vmap { 10.1.0.0/16 : accept, 172.16.0.0/12 : drop }
tcp dport vmap { 22 : accept, 5100-5200 : jump other }
meta nfproto ipv6 drop
ip protocol tcp accept
jump other
goto other
drop"""


@pytest.fixture(scope="module")
def arena() -> Iterator[Arena]:
    with Arena() as arena:
        yield arena


def quoted(arena: Arena) -> list[tuple[str, str]]:
    """Each rule as nft prints it and as we do; counters and long sets, which nft breaks, on one line."""
    listed = re.sub(r",\n\s+", ", ", arena.host.call("nft", "-a", "list", "ruleset"))
    lines, table = {}, ""
    for line in listed.splitlines():
        if opened := re.match(r"table (\S+ \S+) \{", line):
            table = opened[1]
        elif rule := re.match(r"\s+(.*) # handle (\d+)$", line):
            lines[table, int(rule[2])] = re.sub(r"packets \d+ bytes \d+", "packets N", rule[1])
    found = []
    for each in arena.host.run(nft_dump.read).tables:
        for rule_ in (rule for chain in each.chains.values() for rule in chain.rules):
            ours = re.sub(r"packets \d+ bytes \d+", "packets N", quote.rule(rule_, each, DEVICES))
            found.append((lines[f"{each.family} {each.name}", rule_.handle], ours))
    return found


def test_common_rules(arena: Arena) -> None:
    arena.rules(
        "table inet filter {\nset nets { type ipv4_addr; flags interval; elements = { 10.0.0.0/8 }\n}\n"
        f"chain other {{\n}}\nchain input {{\ntype filter hook input priority 0\n{RULES}\n}}\n}}"
    )
    compared = quoted(arena)
    assert len(compared) == len(RULES.splitlines())
    assert [ours for _, ours in compared] == [theirs for theirs, _ in compared]


def test_random_rules(arena: Arena) -> None:
    """nft leaves out and keeps restrictions to a protocol by rules of its own; else it is word for word."""
    made, same, every = Rulesets(3), 0, 0
    for _ in range(15):
        arena.rules_that_nft_takes(made.ruleset())
        compared = quoted(arena)
        same += sum(theirs == ours for theirs, ours in compared)
        every += len(compared)
    assert same > 0.95 * every
