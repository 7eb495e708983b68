"""Policy: which rule decides, and what it is about."""

from __future__ import annotations

import ipaddress
import sys
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scistreamd import rulefile, rules
from scistreamd.configfile import effective, parse
from scistreamd.errors import Code, ScistreamError
from scistreamd.identity import Identity
from scistreamd.model import Endpoint, Options, PortRange, Role, Security, Target
from scistreamd.rules import VERBS, Ceilings, Question, Reach, Rule, Who, decide

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ALICE = Identity("oauth2", "https://issuer.example#7", "alice@example.org", groups=frozenset({"beamline"}))
LAN = (ipaddress.ip_network("10.0.0.0/8"),)
NEAR, FAR = "10.1.1.1:5000", "203.0.113.1:5000"


def made(*tables: dict[str, Any]) -> tuple[Rule, ...]:
    return rulefile.join((), rulefile.parse(list(tables)))


def asked(*targets: str, identity: Identity | None = ALICE, **more: Any) -> Question:
    found = [Target.parse(each) for each in targets]
    pairs = tuple((each, (Endpoint(ipaddress.ip_address(each.host), each.port),)) for each in found)
    given_ = {"role": Role.PROD, "type": "Haproxy", "security": Security.TLS, "count": 1, **more}
    source = given_.pop("source", "192.0.2.1")
    return Question("create", identity, ipaddress.ip_address(source), **given_, targets=pairs if targets else None)


def ruled(table: dict[str, Any], question: Question) -> bool:
    return not decide(made(table), question, LAN).reason


@pytest.mark.parametrize(
    ("table", "question", "allowed"),
    [
        ({}, asked(NEAR), True),
        ({}, asked(FAR), False),
        ({}, asked(FAR, role=Role.CONS), True),
        ({}, asked(NEAR, identity=None), False),
        ({"anonymous": True}, asked(NEAR, identity=None), True),
        ({"anonymous": True}, asked(NEAR), True),
        ({"user": "alice@example.org"}, asked(NEAR), True),
        ({"user": "https://issuer.example#7"}, asked(NEAR), True),
        ({"user": "bob@example.org"}, asked(NEAR), False),
        ({"user": "alice@example.org"}, asked(NEAR, identity=Identity("token", "1", "alice@example.org")), False),
        ({"token": "alice@example.org"}, asked(NEAR, identity=Identity("token", "1", "alice@example.org")), True),
        (
            {"certificate": "a.example"},
            asked(NEAR, identity=Identity("mtls", "CN=x", "x", frozenset({"a.example"}))),
            True,
        ),
        ({"local": "1000"}, asked(NEAR, identity=Identity("local", "1000", "al")), True),
        ({"group": ["x", "beamline"]}, asked(NEAR), True),
        ({"domain": "Example.ORG"}, asked(NEAR), True),
        ({"domain": "ample.org"}, asked(NEAR), False),
        ({"group": "x", "user": "alice@example.org"}, asked(NEAR), True),
        ({"from": "192.0.2.0/24"}, asked(NEAR), True),
        ({"from": "192.0.2.0/24"}, asked(NEAR, source="192.0.3.1"), False),
        ({"from": "192.0.2.0/24"}, asked(NEAR, source="2001:db8::1"), False),
        ({"verbs": ["update"]}, asked(NEAR), False),
        ({"role": "CONS"}, asked(NEAR), False),
        ({"type": ["nginx"]}, asked(NEAR), False),
        ({"type": ["haproxy"]}, asked(NEAR), True),
        ({"security": "none"}, asked(NEAR), False),
        ({"targets": ["203.0.113.0/24"]}, asked(FAR), True),
        ({"targets": ["203.0.113.0/24:1-4999"]}, asked(FAR), False),
        ({"targets": ["lan:5000", "203.0.113.1"]}, asked(NEAR, FAR), True),
        ({"targets": ["lan:5001", "203.0.113.1"]}, asked(NEAR, FAR), False),
        ({"targets": ["any"]}, asked(NEAR, FAR, "[2001:db8::1]:1"), True),
        ({"targets": ["10.9.0.0/16"]}, asked(), True),
        ({"listeners": "5100-5110"}, asked(NEAR, ports=(5100, 5110)), True),
        ({"listeners": "5100-5110"}, asked(NEAR, ports=(5100, 5111)), False),
        ({"max_rate": 5}, asked(NEAR, rate=6), False),
        ({"max_rate": 5}, asked(NEAR, rate=0), True),
        ({"max_lifetime": 60}, asked(NEAR, lifetime=61), False),
        ({"max_listeners": 2}, asked(NEAR, count=3), False),
        ({"max_tunnels": 2}, asked(NEAR, tunnels=1), True),
        ({"max_tunnels": 2}, asked(NEAR, tunnels=2), False),
    ],
)
def test_what_one_rule_is_about(table: dict[str, Any], question: Question, allowed: bool) -> None:
    assert ruled(table, question) is allowed


def test_a_ceiling_that_has_come_down_keeps_nobody_from_ending_a_tunnel() -> None:
    rules = made({"max_rate": 100, "max_lifetime": 60, "max_listeners": 1})
    above = asked(rate=200, lifetime=600, count=2)
    for verb in VERBS:
        refused = bool(decide(rules, replace(above, verb=verb), LAN).reason)
        assert refused == (verb in ("create", "update"))


def test_before_the_targets_are_known_a_ceiling_of_some_targets_refuses_nothing_that_a_later_rule_allows() -> None:
    low, high = {"name": "low", "targets": [NEAR], "max_rate": 100}, {"name": "high", "targets": ["any"]}
    rules = made(low, high)
    assert decide(rules, asked(rate=200), LAN).rule.name == "high"
    assert decide(rules, asked(rate=100), LAN).rule.name == "low"
    assert "policy low allows at most rate 100" in decide(rules, asked(NEAR, rate=200), LAN).reason
    assert decide(rules, asked(FAR, rate=200), LAN).reason == ""
    nobody = {"name": "nobody", "effect": "deny"}
    assert "policy low allows at most" in decide(made(low, nobody), asked(rate=200), LAN).reason
    assert "policy low allows at most" in decide(made(low), asked(rate=200), LAN).reason
    everywhere = made({"name": "all", "max_rate": 100}, high)
    assert "policy all allows at most" in decide(everywhere, asked(rate=200), LAN).reason


def test_the_first_rule_that_fits_decides() -> None:
    ordered = made(
        {"name": "not the store", "effect": "deny", "targets": ["10.5.0.0/16"]},
        {"name": "slow ones", "user": "alice@example.org", "max_rate": 100},
        {"name": "rest"},
    )
    assert decide(ordered, asked(NEAR), LAN).rule.name == "slow ones"
    assert "slow ones" in decide(ordered, asked(NEAR, rate=101), LAN).reason
    refused = decide(ordered, asked(NEAR, "10.5.1.1:1"), LAN)
    assert (refused.rule.name, "not the store" in refused.reason) == ("not the store", True)
    # Of targets that are not known yet the first rule says nothing.
    assert decide(ordered, asked(), LAN).rule.name == "slow ones"
    assert decide(ordered, asked(NEAR, identity=Identity("token", "1", "t")), LAN).rule.name == "rest"
    assert decide(made({"effect": "deny"}), asked(), LAN).reason
    assert decide((), asked(NEAR), LAN) == rules.Ruling(rules.NO_RULE, decide((), asked(NEAR), LAN).reason)


@pytest.mark.parametrize(
    ("options", "most", "limited"),
    [
        (Options(), Ceilings(), Options()),
        (Options(), Ceilings(rate=5, lifetime=6, connections=7), Options(rate=5, lifetime=6, connections=7)),
        (Options(rate=4, lifetime=9), Ceilings(rate=5, lifetime=6), Options(rate=4, lifetime=6)),
        (Options(rate=4, lifetime=5), Ceilings(), Options(rate=4, lifetime=5)),
    ],
)
def test_ceilings_hold_also_for_who_asks_for_nothing(options: Options, most: Ceilings, limited: Options) -> None:
    assert most.limit(options) == limited


@pytest.mark.parametrize(
    ("text", "reach"),
    [
        ("lan", Reach()),
        ("any", Reach(everything=True)),
        ("lan:80", Reach(None, PortRange(80, 80))),
        ("any:1-2", Reach(None, PortRange(1, 2), everything=True)),
        ("10.0.0.1", Reach(ipaddress.ip_network("10.0.0.1/32"))),
        ("10.0.0.0/8:80-81", Reach(ipaddress.ip_network("10.0.0.0/8"), PortRange(80, 81))),
        ("2001:db8::/32", Reach(ipaddress.ip_network("2001:db8::/32"))),
        ("[2001:db8::/32]:80", Reach(ipaddress.ip_network("2001:db8::/32"), PortRange(80, 80))),
    ],
)
def test_targets_as_text(text: str, reach: Reach) -> None:
    assert rulefile.parse_reach(text, "targets") == reach
    assert rulefile.parse_reach(str(reach), "targets") == reach


@pytest.mark.parametrize(
    ("policy", "place"),
    [
        ("5", "policy"),
        ("[5]", "policy"),
        ('[{nmae = "x"}]', "policy[1].nmae"),
        ('[{}, {name = ""}]', "policy[2].name"),
        ('[{name = "a"}, {name = "a"}]', "policy[2].name"),
        ('[{effect = "maybe"}]', "policy[1].effect"),
        ("[{user = 5}]", "policy[1].user"),
        ("[{user = [5]}]", "policy[1].user[0]"),
        ('[{from = ["10.0.0.1/8"]}]', "policy[1].from[0]"),
        ('[{targets = ["10.0.0.0/8:0"]}]', "policy[1].targets[0]"),
        ('[{targets = ["host.example"]}]', "policy[1].targets[0]"),
        ('[{verbs = ["hello"]}]', "policy[1].verbs[0]"),
        ('[{role = "prod"}]', "policy[1].role"),
        ('[{type = "mock"}]', "policy[1].type"),
        ('[{security = ["tsl"]}]', "policy[1].security[0]"),
        ('[{listeners = "5200-5100"}]', "policy[1].listeners"),
        ("[{max_rate = -1}]", "policy[1].max_rate"),
        ("[{max_rate = true}]", "policy[1].max_rate"),
        ("[{anonymous = 1}]", "policy[1].anonymous"),
    ],
)
def test_a_wrong_rule_is_told_with_its_place(policy: str, place: str) -> None:
    with pytest.raises(ScistreamError) as caught:
        parse([("a.toml", tomllib.loads(f"policy = {policy}"))])
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert caught.value.message.startswith(f"a.toml: {place}: ")


def test_rules_of_several_files_add_up_and_are_written_back() -> None:
    first = """
        lan = ["192.0.2.0/24"]
        [[policy]]
        user = ["alice@example.org", 'b"\\b']
        role = ["PROD", "CONS"]
        targets = ["lan", "any:443", "[2001:db8::/32]:1-2"]
        max_rate = 5
        [[policy]]
        name = "two"
        effect = "deny"
        anonymous = true
        listeners = "5100-5101"
        from = "10.0.0.0/8"
        verbs = "create"
        type = "nginx"
        security = "tls"
    """
    second = """
        [auth]
        administrators = {group = "operators"}
        [[policy]]
        local = "1000"
    """
    settings = parse([("a", tomllib.loads(first)), ("b", tomllib.loads(second))])
    assert [rule.name for rule in settings.policy] == ["1", "two", "3"]
    assert settings.administrators == Who(groups=frozenset({"operators"}))
    assert parse([("again", tomllib.loads(effective(settings)))]) == settings


NAMES = st.frozensets(st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=8), max_size=2)
NETWORKS = st.integers(0, 2**32 - 1).map(lambda number: ipaddress.ip_network((number, 32)).supernet(new_prefix=8))
PORTS = st.tuples(st.integers(1, 65535), st.integers(1, 65535)).map(lambda pair: PortRange(min(pair), max(pair)))
REACHES = st.builds(Reach, st.none() | NETWORKS, PORTS) | PORTS.map(lambda ports: Reach(None, ports, everything=True))
RULES = st.builds(
    Rule,
    st.just("r"),
    st.booleans(),
    st.builds(Who, NAMES, NAMES, st.just(frozenset()), NAMES, NAMES, NAMES, st.booleans()),
    st.lists(NETWORKS, max_size=2).map(tuple),
    st.frozensets(st.sampled_from(rules.VERBS)),
    st.frozensets(st.sampled_from(Role)),
    st.lists(REACHES, max_size=3).map(tuple),
    st.none() | PORTS,
    st.frozensets(st.sampled_from(["Haproxy", "Nginx", "StunnelSubprocess"])),
    st.frozensets(st.sampled_from(Security)),
    st.builds(Ceilings, *[st.integers(0, 1 << 40)] * 5),
)


@given(RULES)
def test_what_is_written_is_what_was_read(rule: Rule) -> None:
    text = f"policy = {rulefile.toml([rule])}"
    assert rulefile.join((), rulefile.parse(tomllib.loads(text)["policy"])) == (rule,)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=9),
        lambda each: (
            st.lists(each, max_size=3) | st.dictionaries(st.sampled_from([*rulefile.KEYS, "x"]), each, max_size=4)
        ),
    )
)
def test_whatever_stands_there_it_is_read_or_told(raw: Any) -> None:
    try:
        rulefile.join((), rulefile.parse([raw]))
    except ScistreamError as problem:
        assert problem.code is Code.INVALID_ARGUMENT
        assert problem.message.startswith("policy")


@given(st.lists(RULES, max_size=4), st.sampled_from([NEAR, FAR, "127.0.0.1:80"]), st.sampled_from(Role))
def test_nothing_is_allowed_that_no_rule_covers(ordered: list[Rule], target: str, role: Role) -> None:
    ruling = decide(ordered, asked(target, role=role), LAN)
    if not ruling.reason:
        [(_, (endpoint,))] = asked(target).targets or ()
        assert ruling.rule in ordered
        assert ruling.rule.allow
        assert any(reach.covers(endpoint, LAN) for reach in ruling.rule.reach(role))
