"""The evaluator against the kernel: random rulesets, real packets, and no verdict that they contradict."""

from __future__ import annotations

import ipaddress
import os
import time
from collections import Counter
from collections.abc import Iterator

import pytest

from scistreamd import nft_dump
from scistreamd.model import Endpoint
from scistreamd.nft.evaluate import Action, Outcome, evaluate
from scistreamd.nft.packet import Arrival, Interface
from scistreamd.nft.ruleset import Ruleset
from scistreamd.nft.spans import Spans
from tests.service.arena import LISTENERS, PEERS, Arena, Knock, is_possible
from tests.service.rulesets import Rulesets

pytestmark = pytest.mark.skipif(not is_possible(), reason="network namespaces need root")

# `make test-firewall` runs longer, from another seed each time.
SECONDS = float(os.environ.get("FIREWALL_SECONDS", "20"))
SEED = int(os.environ.get("FIREWALL_SEED", "1"))
OWN = frozenset(ipaddress.ip_address(each) for both in LISTENERS.values() for each in both)
KINDS = {Action.ACCEPT: "accept", Action.DROP: "drop", Action.REJECT: "reject"}


@pytest.fixture(scope="module")
def arena() -> Iterator[Arena]:
    with Arena() as arena:
        yield arena


class Oracle:
    """What the evaluator says of each knock; one evaluation for all peers of a device and family."""

    def __init__(self, arena: Arena) -> None:
        self.ruleset: Ruleset = arena.host.run(nft_dump.read)
        self._indexes = dict(zip(PEERS, (2, 3), strict=True))
        self._said: dict[tuple[str, str, int], tuple[Outcome, ...]] = {}

    def outcome(self, knock: Knock) -> Outcome:
        return self.outcomes(knock)[0]

    def outcomes(self, knock: Knock) -> list[Outcome]:
        key = knock.device, knock.target, knock.target_port
        if key not in self._said:
            self._said[key] = evaluate(self.ruleset, self._arrival(*key))
        number = int(ipaddress.ip_address(knock.source))
        matching = [each for each in self._said[key] if number in each.sources and knock.port in each.ports]
        assert matching, f"nothing is said of {knock}"
        return matching

    def _arrival(self, device: str, target: str, port: int) -> Arrival:
        address = ipaddress.ip_address(target)
        mine = tuple(ipaddress.ip_address(each) for each in LISTENERS[device])
        routed = [ipaddress.ip_address(each) for each in PEERS[device]]
        return Arrival(
            Interface(self._indexes[device], device, "veth", mine),
            Spans(((0, (1 << address.max_prefixlen) - 1),)),
            Endpoint(address, port),
            wildcard=True,
            own=OWN,
            routed=Spans.of((int(each), int(each)) for each in routed if each.version == address.version),
        )

    def word(self, knock: Knock) -> str:
        action = self.outcome(knock).action
        return KINDS.get(action, action.value)


def test_no_packet_contradicts_the_verdict(arena: Arena) -> None:
    """Random rulesets; where the verdict is unknown nothing is compared, which must be rare."""
    made, counts = Rulesets(SEED), Counter[str]()
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline or counts["rulesets"] < 20:
        text = arena.rules_that_nft_takes(made.ruleset())
        oracle = Oracle(arena)
        knocks = arena.knocks()
        arena.knock(knocks, oracle.word)
        counts["rulesets"] += 1
        for knock in knocks:
            said = oracle.word(knock)
            counts[said] += 1
            # What is taken elsewhere, or cut off after it opened, may look like either.
            loose = said == "dnat" or any(each.late for each in oracle.outcomes(knock))
            fits = knock.came != "accept" if loose else said in ("unknown", knock.came)
            assert fits, f"{text}\n{knock}\n{said}\n{_rule(oracle.outcome(knock))}"
    print(dict(counts))
    total = sum(counts[kind] for kind in ("accept", "drop", "reject", "dnat", "unknown"))
    assert counts["unknown"] < total / 20
    assert min(counts[kind] for kind in ("accept", "drop", "reject", "dnat")) > total / 200


# What random rulesets have found.
_NAT_OF_THE_OTHER_VERSION = """\
table inet t0 {
chain base0 {
type nat hook prerouting priority -100;
iifname "eth9" dnat ip to 10.1.0.99
tcp dport 5100 drop
}
}"""


def test_a_nat_chain_without_connection_tracking_runs_for_nobody(arena: Arena) -> None:
    """`dnat ip` of a table of both IP versions has IPv4 tracked alone; IPv6 passes the chain by."""
    arena.rules(_NAT_OF_THE_OTHER_VERSION)
    oracle = Oracle(arena)
    knocks = [each for each in arena.knocks() if each.device == "eth0" and each.target_port == 5100]
    arena.knock(knocks, oracle.word)
    met = {":" in each.source: each.came for each in knocks}
    assert met == {False: "drop", True: "accept"}
    assert {":" in each.source: oracle.word(each) for each in knocks} == {False: "drop", True: "unknown"}


_LIMIT_PER_SOURCE = """\
table ip t0 {
set seen { type ipv4_addr; flags dynamic; }
chain base0 {
type filter hook input priority 0;
add @seen { ip saddr limit rate over 100000/second } drop
}
}"""


def test_who_is_known_to_a_limit_per_source_is_held_to_it(arena: Arena) -> None:
    arena.rules(_LIMIT_PER_SOURCE)
    knocks = [each for each in arena.knocks() if ":" not in each.source]
    for _ in range(2):  # the second time the sources are in the set
        oracle = Oracle(arena)
        arena.knock(knocks, oracle.word)
        assert {(each.came, oracle.word(each)) for each in knocks} == {("accept", "accept")}


def _rule(outcome: Outcome) -> str:
    return f"{outcome.why} {outcome.by and outcome.by.rule}"
