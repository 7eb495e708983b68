"""What a ruleset does to connections from a set of peers to a listener: accepted, dropped, rejected, sent elsewhere.

The packets go through the hooks as the kernel takes them: ingress of the device, prerouting (where a DNAT may
take them away), input; in each through all base chains in the order of their priorities. Whatever is not certain
goes both ways; where both come to the same it did not matter, else the verdict is `unknown` and says why. A new
connection is taken to be within every limit. Then the packets that follow go the same way: a firewall that lets a
connection open and drops what comes next blocks it as well.
Not seen: bridges' own tables, tc, XDP and BPF programs.
"""

from __future__ import annotations

import enum
import ipaddress
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from scistreamd.model import Endpoint
from scistreamd.nft.facts import Tracking
from scistreamd.nft.packet import Arrival, Bytes, Known, State, merged
from scistreamd.nft.program import Elsewhither, Reject, Verdict
from scistreamd.nft.ruleset import Chain, Hook, Rule, Ruleset, Table
from scistreamd.nft.spans import Spans
from scistreamd.nft.steps import Budget, Effect, Place, Rewrite, TooMuch, apply

_STEPS = 3_000_000
_PERHAPS_NO_NAT = "NAT rules work only while something has connections tracked"
_DEEPEST = 16  # NFT_JUMP_STACK_SIZE
# enum nf_ip_hook_priorities
_CONNTRACK, _NAT_DST, _NAT_SRC = -200, -100, 100
_FAMILIES = {4: ("ip", "inet"), 6: ("ip6", "inet")}


class Action(enum.Enum):
    """What becomes of a connection; ``dnat``: it is sent to something else than the listener."""

    ACCEPT = "accept"
    DROP = "drop"
    REJECT = "reject"
    DNAT = "dnat"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Decision:
    """Who decided: a rule of a chain, or, ``rule`` None, the chain's policy."""

    table: Table
    chain: Chain
    rule: Rule | None


@dataclass(frozen=True)
class Outcome:
    """What becomes of some peers' connections; ``by`` None: no rule was against it. ``why``: for `UNKNOWN`.

    ``late``: the connection opens, and what follows is blocked.
    """

    action: Action
    sources: Spans
    ports: Spans
    by: Decision | None = None
    why: str = ""
    late: bool = False


def evaluate(ruleset: Ruleset, arrival: Arrival) -> tuple[Outcome, ...]:
    """All that may become of the connections, each with whom it befalls; of those that are unknown, why.

    The sources of outcomes are disjoint but where a verdict depends on the peer's port.
    """
    walk = _Walk(arrival)
    if bridge := _bridge(ruleset, arrival):
        return (Outcome(Action.UNKNOWN, arrival.sources, arrival.source_ports, why=bridge),)
    try:
        first = [State(arrival.sources, arrival.source_ports, arrival.target)]
        route = list(_route(ruleset, arrival))
        states = [_later(state, arrival) for state in walk.through(first, route)]
        states = walk.through(merged(states), route)
    except TooMuch:
        why = "the ruleset has more cases than can be followed"
        return (Outcome(Action.UNKNOWN, arrival.sources, arrival.source_ports, why=why),)
    if ruleset.unseen:
        states = [state.doubting(ruleset.unseen[0]) for state in states]
    ended = [*walk.ended, *(_Ended(Action.ACCEPT, state, None) for state in states)]
    if ruleset.unseen:
        ended += [_Ended(Action.DROP, state, None) for state in states]
    return tuple(_agreed(ended))


def _later(state: State, arrival: Arrival) -> State:
    # The kernel rewrites later packets as the first, before any chain sees them but those ahead of its NAT.
    return state.later(state.target if state.rewritten else arrival.target)


def _bridge(ruleset: Ruleset, arrival: Arrival) -> str:
    for table in ruleset.tables:
        bases = [chain.base for chain in table.chains.values() if chain.base]
        hooked = any(base.hook in (Hook.PREROUTING, Hook.INPUT) for base in bases)
        if table.family == "bridge" and hooked and not table.dormant and arrival.interface.kind == "bridge":
            return f"table bridge {table.name} filters what comes over the bridge {arrival.interface.name}"
    return ""


@dataclass(frozen=True)
class _Stop:
    """A base chain on the way; ``nat``: it runs where the kernel's NAT does, until one rewrites.

    NAT needs connection tracking, which the kernel does where a rule of any table asks for it (nf_ct_netns_get);
    then ``tracks``. Where none does, something beside nftables may.
    """

    table: Table
    chain: Chain
    tracking: Tracking
    nat: bool
    tracks: bool


@dataclass(frozen=True)
class _Ended:
    action: Action
    state: State
    by: Decision | None


def _route(ruleset: Ruleset, arrival: Arrival) -> Iterator[Sequence[_Stop]]:
    """The base chains in order; those of one NAT hook together."""
    name, version = arrival.interface.name, arrival.version
    yield from _ordered(ruleset, lambda table, chain: _is_ingress(table, chain, name), Hook.INGRESS, version)
    for hook in (Hook.PREROUTING, Hook.INPUT):
        yield from _ordered(ruleset, lambda table, _: table.family in _FAMILIES[version], hook, version)


def _is_ingress(table: Table, chain: Chain, device: str) -> bool:
    names = chain.base.devices if chain.base else ()
    return table.family in ("netdev", "inet") and any(
        device == name or (name.endswith("*") and device.startswith(name[:-1])) for name in names
    )


def _ordered(
    ruleset: Ruleset, wanted: Callable[[Table, Chain], bool], hook: Hook, version: int
) -> Iterator[Sequence[_Stop]]:
    found: list[tuple[int, int, int, _Stop]] = []
    tracks = any(wanted(table, table.chains[name]) for table in ruleset.tables for name in table.tracking[version])
    for table in ruleset.tables:
        for chain in table.chains.values() if not table.dormant else ():
            deciding = chain.base is not None and chain.base.hook is hook and chain.name in table.deciding
            if chain.base is None or not deciding or not wanted(table, chain):
                continue
            nat = chain.base.kind == "nat"
            place = (_NAT_DST if hook is Hook.PREROUTING else _NAT_SRC) if nat else chain.base.priority
            # Of equal priority, the chain that was made last comes first.
            made = -len(found)
            found.append((place, made, chain.base.priority, _Stop(table, chain, _tracking(hook, place), nat, tracks)))
    nats = [each for each in found if each[3].nat]
    plain = [(place, made, [stop]) for place, made, _, stop in found if not stop.nat]
    if nats:
        in_order = [each[3] for each in sorted(nats, key=lambda each: (each[2], each[1]))]
        plain.append((nats[0][0], min(each[1] for each in nats), in_order))
    yield from (stops for _, _, stops in sorted(plain, key=lambda each: each[:2]))


def _tracking(hook: Hook, priority: int) -> Tracking:
    if hook is Hook.INGRESS or (hook is Hook.PREROUTING and priority < _CONNTRACK):
        return Tracking.BEFORE
    return Tracking.PERHAPS if hook is Hook.PREROUTING and priority == _CONNTRACK else Tracking.DONE


class _Walk:
    """One way through the hooks; ``ended`` are the packets that did not come to the end."""

    def __init__(self, arrival: Arrival) -> None:
        self._arrival = arrival
        self._budget = Budget(_STEPS)
        self.ended: list[_Ended] = []

    def through(self, states: list[State], route: Iterable[Sequence[_Stop]]) -> list[State]:
        """The packets that every chain lets pass."""
        for stops in route:
            rewritten: list[State] = []
            waiting = states
            for stop in stops:
                going, done = self._base(waiting, stop)
                rewritten += done
                waiting = going
            states = merged(waiting + rewritten)
        return states

    def _base(self, states: list[State], stop: _Stop) -> tuple[list[State], list[State]]:
        """A base chain: the packets that go on, and those whose addresses it has rewritten."""
        passing: list[State] = []
        rewritten: list[State] = []
        if stop.nat:
            # Only the first packet is asked of, and only of connections that are tracked.
            passing = [state for state in states if not state.tracked or state.established]
            states = [state for state in states if state.tracked and not state.established]
            if not stop.tracks:
                states = [
                    state.doubting("connections are tracked, and rewritten, only where something asks")
                    for state in states
                ]
                passing += states
        accepted: list[State] = []
        place = Place(stop.table, self._arrival, stop.tracking)
        fallen = self._chain(stop.chain, states, place, (accepted, rewritten), 0)
        if stop.chain.policy == "drop":
            self._end(Action.DROP, fallen, Decision(stop.table, stop.chain, None))
            fallen = []
        return merged(passing + accepted + fallen), rewritten

    def _chain(
        self, chain: Chain, states: list[State], place: Place, through: tuple[list[State], list[State]], depth: int
    ) -> list[State]:
        """Run the packets through a chain; those that come to its end or return."""
        if depth > _DEEPEST:
            raise TooMuch
        accepted, rewritten = through
        returned: list[State] = []
        for rule in chain.rules:
            if not states:
                break
            threads, left = apply(rule.expressions, states, place, self._budget)
            by = Decision(place.table, chain, rule)
            for thread in threads:
                effect, state = thread.effect, thread.state
                if effect is not None and not isinstance(effect, Verdict):
                    rewritten += self._affect(effect, state, by)
                elif effect is None:
                    left.append(state)
                elif effect.kind in ("jump", "goto"):
                    fallen = self._chain(place.table.chains[effect.chain], [state], place, through, depth + 1)
                    (left if effect.kind == "jump" else returned).extend(fallen)
                elif effect.kind == "accept":
                    accepted.append(state)
                elif effect.kind == "return":
                    returned.append(state)
                elif effect.kind == "drop":
                    self._end(Action.DROP, [state], by)
                elif effect.kind == "queue":
                    self._end(Action.UNKNOWN, [state.doubting("a program decides (queue)")], by)
                else:
                    left.append(state)
            states = merged(left)
        return merged(states + returned)

    def _end(self, action: Action, states: Iterable[State], by: Decision) -> None:
        self.ended += [_Ended(action, state, by) for state in states]

    def _affect(self, effect: Effect, state: State, by: Decision) -> list[State]:
        """Reject, rewrite or lose packets; those that still go to the listener."""
        if isinstance(effect, Reject):
            self._end(Action.REJECT, [state], by)
        elif isinstance(effect, Elsewhither):
            self._end(Action.UNKNOWN, [state.doubting(effect.text)], by)
        elif isinstance(effect, Rewrite):
            return self._rewrite(effect, state, by)
        return []

    def _rewrite(self, effect: Rewrite, state: State, by: Decision) -> list[State]:
        if effect.nat.kind in ("snat", "masquerade"):
            return [replace(state, masked=True)]
        target = self._new_target(effect, state)
        if target is None:
            self._end(Action.UNKNOWN, [state.doubting(f"{effect.nat.kind} to what cannot be told")], by)
            return []
        if target.port != self._arrival.target.port or not self._is_ours(target):
            self._end(Action.DNAT, [state], by)
            return []
        # The kernel marks a connection as rewritten only where that changes something (nf_nat_setup_info).
        return [replace(state, target=target, rewritten=target != state.target)]

    def _new_target(self, effect: Rewrite, state: State) -> Endpoint | None:
        address, port = state.target.address, state.target.port
        if effect.nat.kind == "redirect":
            mine = [each for each in self._arrival.interface.addresses if each.version == address.version]
            if mine and address not in mine[:1]:
                address = mine[0]
        elif effect.address is not None:
            fixed = _constant(effect.address)
            if fixed is None:
                return None
            address = ipaddress.ip_address(fixed)
        if effect.port is not None:
            fixed = _constant(effect.port)
            if fixed is None:
                return None
            port = int.from_bytes(fixed, "big")
        if port == 0:
            return None
        return Endpoint(address, port)

    def _is_ours(self, target: Endpoint) -> bool:
        if self._arrival.wildcard:
            return target.address in self._arrival.own
        return target.address == self._arrival.target.address


def _constant(data: Bytes) -> bytes | None:
    if all(isinstance(byte, Known) and byte.mask == 255 for byte in data):
        return bytes(byte.value for byte in data if isinstance(byte, Known))
    return None


def _agreed(ended: Sequence[_Ended]) -> Iterator[Outcome]:
    """The outcomes, and unknown for the packets to which more than one of them could happen."""
    unclear, reasons = Spans(), []
    for at, one in enumerate(ended):
        if one.action is Action.UNKNOWN:
            unclear |= one.state.sources
            reasons.append((one.state.doubts, one.by))
        for other in ended[at + 1 :]:
            if other.action is not one.action:
                both = one.state.sources & other.state.sources
                if both and one.state.ports & other.state.ports:
                    unclear |= both
                    blamed = other if one.action is Action.ACCEPT else one
                    reasons.append((blamed.state.doubts, blamed.by))
    if unclear:
        doubts, by = reasons[0]
        ports = Spans.of(span for one in ended for span in one.state.ports.ranges)
        yield Outcome(Action.UNKNOWN, unclear, ports, by, doubts[-1] if doubts else "")
    for one in ended:
        sources = one.state.sources - unclear
        if sources and one.action is not Action.UNKNOWN:
            late = one.state.established and one.action is not Action.ACCEPT
            yield Outcome(one.action, sources, one.state.ports, one.by, late=late)
