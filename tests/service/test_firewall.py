"""The firewall as a part of the daemon: warnings, refusals, and what happens when the rules change."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import replace
from typing import Any

import pytest

from scistreamd import firewall as part
from scistreamd.config import FirewallMode
from scistreamd.errors import Code, ScistreamError
from scistreamd.firewall import Firewall
from scistreamd.interfaces import Flow
from scistreamd.model import Endpoint, PortRange, Role
from scistreamd.nft import shared
from scistreamd.nft.evaluate import Outcome, evaluate
from scistreamd.nft.packet import Arrival
from scistreamd.nft.ruleset import Ruleset
from scistreamd.plans import Bind
from tests.service.arena import Arena, is_possible

pytestmark = pytest.mark.skipif(not is_possible(), reason="network namespaces need root")

PORTS = PortRange(5100, 5200)
RULES = """\
table inet filter {
chain input {
type filter hook input priority 0; policy drop;
ct state established accept
ip saddr 10.1.0.0/24 tcp dport 5100 accept
ip saddr 10.1.9.0/24 tcp dport 5100 reject with tcp reset
}
}"""


@pytest.fixture
def arena() -> Iterator[Arena]:
    with Arena() as arena:
        yield arena


def flow(*allow_from: str, port: int = 5100, role: Role = Role.PROD) -> Flow:
    networks = tuple(ipaddress.ip_network(each) for each in allow_from)
    return Flow("aaaaaaaaaaaa", role, (Bind(Endpoint(ipaddress.ip_address("10.1.0.1"), port)),), allow_from=networks)


def within(arena: Arena, mode: FirewallMode, work: Callable[[Firewall], Coroutine[Any, Any, None]]) -> None:
    async def life() -> None:
        firewall = Firewall(mode, PORTS, None)
        try:
            await work(firewall)
        finally:
            await firewall.close()

    arena.host.run(lambda: asyncio.run(life()))


def test_a_blocked_listener_is_warned_of(arena: Arena) -> None:
    arena.rules(RULES)

    async def life(firewall: Firewall) -> None:
        assert await firewall.apply(flow("10.1.0.2/32")) == ()
        [warning] = await firewall.apply(flow("10.1.9.3/32"))
        assert warning == (
            "the firewall blocks 10.1.0.1:5100: 10.1.9.3/32 is rejected by `ip saddr 10.1.9.0/24 tcp dport 5100 "
            "reject with tcp reset` in table inet filter chain input "
            "(`nft insert rule inet filter input ip saddr 10.1.9.3/32 tcp dport "
            "5100-5200 accept` lets them in)"
        )
        [warning] = await firewall.apply(flow("10.1.0.2/32", port=5101))
        assert "dropped by `policy drop` in table inet filter chain input" in warning
        [warning] = await firewall.apply(flow("10.1.0.2/32", "192.0.2.7/32"))
        assert "192.0.2.7/32 is dropped" in warning

    within(arena, FirewallMode.CHECK, life)


def test_the_cure_cures(arena: Arena) -> None:
    arena.rules(RULES)

    async def life(firewall: Firewall) -> None:
        [warning] = await firewall.apply(flow("10.1.9.3/32"))
        arena.host.call(*warning.partition("(`")[2].partition("`")[0].split())
        assert await firewall.apply(flow("10.1.9.3/32")) == ()

    within(arena, FirewallMode.CHECK, life)


def test_require_refuses_with_the_rule_and_the_cure(arena: Arena) -> None:
    arena.rules(RULES)

    async def life(firewall: Firewall) -> None:
        assert await firewall.apply(flow("10.1.0.2/32")) == ()
        with pytest.raises(ScistreamError) as caught:
            await firewall.apply(flow("10.1.9.3/32"))
        assert caught.value.code is Code.FAILED_PRECONDITION
        assert "`ip saddr 10.1.9.0/24 tcp dport 5100 reject with tcp reset`" in caught.value.message
        assert "nft insert rule inet filter input" in caught.value.hint

    within(arena, FirewallMode.REQUIRE, life)


@pytest.mark.parametrize("mode", [FirewallMode.CHECK, FirewallMode.REQUIRE, FirewallMode.MANAGE])
def test_what_cannot_be_told_is_told_to_who_asked_for_more_than_a_look(arena: Arena, mode: FirewallMode) -> None:
    arena.rules("table inet f {\nchain i {\ntype filter hook input priority 0;\nnumgen random mod 2 0 drop\n}\n}")

    async def life(firewall: Firewall) -> None:
        said = await firewall.apply(flow())
        if mode is FirewallMode.CHECK:
            assert said == ()
        else:
            [warning] = said
            assert "is unknown: " in warning and "`numgen random mod 2 0 drop` in table inet f" in warning
            assert ("opens firewalld alone, which does not run here" in warning) is (mode is FirewallMode.MANAGE)

    within(arena, mode, life)


def test_off_looks_at_nothing(arena: Arena) -> None:
    arena.rules(RULES)

    async def life(firewall: Firewall) -> None:
        assert await firewall.apply(flow("10.1.9.3/32")) == ()
        assert await firewall.reconcile([flow("10.1.9.3/32")]) == {}

    within(arena, FirewallMode.OFF, life)


def test_a_changed_firewall_is_judged_again(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part, "_SECONDS_BETWEEN_LOOKS", 0.05)

    async def life(firewall: Firewall) -> None:
        said: asyncio.Queue[tuple[str, tuple[str, ...]]] = asyncio.Queue()
        firewall.watch(lambda tunnel, warnings: said.put_nowait((tunnel, warnings)))
        assert await firewall.apply(flow("10.1.9.3/32")) == ()
        tunnel, warnings = "", tuple[str, ...]()
        while not warnings:  # what changes before its first look goes unnoticed
            arena.rules(RULES)
            with contextlib.suppress(asyncio.TimeoutError):
                tunnel, warnings = await asyncio.wait_for(said.get(), 1)
        assert tunnel == "aaaaaaaaaaaa" and "is rejected by" in warnings[0]
        arena.rules("")
        while warnings:
            tunnel, warnings = await said.get()
        assert tunnel == "aaaaaaaaaaaa"

    within(arena, FirewallMode.CHECK, life)


def test_many_tunnels_are_judged_together(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    arena.rules(RULES)
    worked: list[int] = []

    def evaluated(ruleset: Ruleset, arrival: Arrival) -> tuple[Outcome, ...]:
        worked.append(arrival.target.port)
        return evaluate(ruleset, arrival)

    monkeypatch.setattr(shared, "evaluate", evaluated)

    async def life(firewall: Firewall) -> None:
        listed = [
            replace(flow(f"10.1.{9 * (port % 2)}.3/32", port=port), tunnel_id=f"{port:012x}")
            for port in range(5100, 5200)
        ]
        told = await firewall.reconcile(listed)
        assert len(told) == 100
        assert sum(bool(warnings) for warnings in told.values()) == 99  # 5100 from 10.1.0.3 alone gets in
        # Those at 5100, and all the others.
        assert len(worked) == 2

    within(arena, FirewallMode.CHECK, life)


def test_a_start_does_not_wait_for_long(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    arena.rules(RULES)
    monkeypatch.setattr(part, "_START_SECONDS", 0)

    async def life(firewall: Firewall) -> None:
        said: asyncio.Queue[tuple[str, tuple[str, ...]]] = asyncio.Queue()
        firewall.watch(lambda tunnel, warnings: said.put_nowait((tunnel, warnings)))
        assert await firewall.reconcile([flow("10.1.9.3/32")]) == {}
        tunnel, warnings = await said.get()
        assert tunnel == "aaaaaaaaaaaa" and "is rejected by" in warnings[0]

    within(arena, FirewallMode.CHECK, life)


def test_an_outbound_tunnel_is_judged_once_its_ports_are_settled(arena: Arena) -> None:
    arena.rules(RULES)

    async def life(firewall: Firewall) -> None:
        waiting = flow("10.1.9.3/32", role=Role.CONS)
        assert await firewall.apply(waiting) == ()
        target = Endpoint(ipaddress.ip_address("192.0.2.9"), 5100)
        settled = Flow(waiting.tunnel_id, Role.CONS, waiting.binds, (target,), allow_from=waiting.allow_from)
        assert len(await firewall.apply(settled)) == 1

    within(arena, FirewallMode.CHECK, life)
