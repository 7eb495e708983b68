"""What of a ruleset is on a packet's way: chains that only count and log are not."""

from __future__ import annotations

import pytest

from scistreamd.nft.program import (
    Ct,
    Decide,
    Expression,
    Limited,
    Load,
    Lookup,
    Meta,
    Nat,
    Notrack,
    Passed,
    Remember,
    SetMeta,
    Verdict,
)
from scistreamd.nft.ruleset import BaseHook, Chain, Hook, Rule, Ruleset, Table

BASE = BaseHook(Hook.INPUT, 0, "filter")
COUNT = Passed("counter")
JUMP = Decide(Verdict("jump", "below"))


def ruleset(*expressions: Expression, below: tuple[Expression, ...] = (COUNT,), policy: str = "accept") -> Ruleset:
    chains = Chain("top", (Rule(1, expressions),), BASE, policy), Chain("below", (Rule(2, below),))
    return Ruleset((Table("inet", "t", chains={chain.name: chain for chain in chains}),))


@pytest.mark.parametrize(
    "made",
    [
        ruleset(COUNT),
        ruleset(Load(1, Meta(1)), COUNT, Decide(Verdict("accept"))),
        ruleset(JUMP),
        ruleset(Remember("s", 1, "add", 0, (COUNT,), inverted=False)),
        ruleset(Load(1, Ct(0)), Lookup("s", 1, None, inverted=False), JUMP, below=(Decide(Verdict("return")),)),
    ],
)
def test_what_lets_everything_pass_filters_nothing(made: Ruleset) -> None:
    assert not made.filters
    assert not made.tables[0].deciding


@pytest.mark.parametrize(
    "made",
    [
        ruleset(COUNT, policy="drop"),
        ruleset(COUNT, Decide(Verdict("drop"))),
        ruleset(JUMP, below=(COUNT, Decide(Verdict("drop")))),
        ruleset(JUMP, below=(JUMP,)),  # the kernel takes no such circle
        ruleset(Decide(Verdict("goto", "nowhere"))),
        ruleset(Lookup("map", 1, 0, inverted=False)),
        ruleset(SetMeta(1, 1)),
        ruleset(Notrack()),
        ruleset(Remember("s", 1, "add", 0, (Limited("limit rate 1/second", over=False),), inverted=False)),
        ruleset(Remember("s", 1, "add", 0, (COUNT,), inverted=False), Lookup("s", 1, None, inverted=False)),
        ruleset(Nat("redirect")),
    ],
)
def test_whatever_may_do_something_does(made: Ruleset) -> None:
    assert made.filters
    assert made.tables[0].deciding == {"top"}


def test_a_filter_beside_nftables_filters() -> None:
    assert Ruleset(unseen=("iptables",)).filters


def test_a_chain_that_only_looks_at_connections_has_them_tracked() -> None:
    assert ruleset(Load(1, Ct(0)), COUNT).tables[0].tracking == {4: {"top"}, 6: {"top"}}
    assert ruleset(Load(1, Meta(1)), COUNT).tables[0].tracking == {4: set(), 6: set()}


def test_a_rewrite_of_one_ip_version_has_that_one_tracked() -> None:
    assert ruleset(Nat("dnat", family=2)).tables[0].tracking == {4: {"top"}, 6: set()}
    assert ruleset(Nat("redirect")).tables[0].tracking == {4: {"top"}, 6: {"top"}}
