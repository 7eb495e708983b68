"""A ruleset of nftables as frozen data: what the kernel holds, in the kernel's own terms (nf_tables.h, nft(8)).

What its rules are made of is in `program`; what a table does to packets at all is told here.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from scistreamd.nft.program import (
    NAT_FAMILIES,
    VERDICT_WORD,
    Among,
    Bitwise,
    Byteorder,
    Compare,
    Ct,
    Decide,
    Expression,
    Immediate,
    Limited,
    Load,
    Lookup,
    Maybe,
    Nat,
    Passed,
    Remember,
    SetCt,
    Test,
    Verdict,
)
from scistreamd.nft.spans import Spans


class Hook(enum.Enum):
    """Where a base chain sits, as far as a packet for this host passes it."""

    INGRESS = "ingress"
    PREROUTING = "prerouting"
    INPUT = "input"
    FORWARD = "forward"
    OUTPUT = "output"
    POSTROUTING = "postrouting"
    EGRESS = "egress"


@dataclass(frozen=True)
class Rule:
    """One rule; ``comment`` as its author wrote it."""

    handle: int
    expressions: tuple[Expression, ...]
    comment: str = ""


@dataclass(frozen=True)
class BaseHook:
    """What makes a chain a base chain; ``devices`` only where the hook is on devices."""

    hook: Hook
    priority: int
    kind: str
    devices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Chain:
    """A chain; ``base`` None: it is only jumped to. ``policy`` accept or drop."""

    name: str
    rules: tuple[Rule, ...] = ()
    base: BaseHook | None = None
    policy: str = "accept"


@dataclass(frozen=True)
class Element:
    """An element: its key, or the first and the ``last`` of a range (of each field of a concatenation).

    ``value``: what a map gives for it. ``limits``: statements that each element has, which may stop the lookup.
    """

    key: bytes
    last: bytes
    value: bytes | Verdict | None = None
    limits: tuple[Expression, ...] = ()


@dataclass(frozen=True)
class NftSet:
    """A set or map. ``fields``: sizes in bytes of the parts of a concatenation, each of which fills whole words.

    ``catchall``: the element that is meant where no other is.
    """

    name: str
    key_type: int
    key_size: int
    data_type: int = 0
    fields: tuple[int, ...] = ()
    anonymous: bool = False
    elements: tuple[Element, ...] = ()
    catchall: Element | None = None

    @property
    def is_concatenation(self) -> bool:
        """Whether its key has several parts."""
        return len(self.fields) > 1

    @cached_property
    def spans(self) -> Spans:
        """The keys as numbers, big-endian; for keys of one field."""
        return Spans.of((int.from_bytes(each.key, "big"), int.from_bytes(each.last, "big")) for each in self.elements)

    @cached_property
    def groups(self) -> Mapping[tuple[object, ...], tuple[Element, ...]]:
        """The elements by what they give and what they stop at."""
        found: dict[tuple[object, ...], list[Element]] = {}
        for each in self.elements:
            found.setdefault((each.value, each.limits), []).append(each)
        return {what: tuple(elements) for what, elements in found.items()}


@dataclass(frozen=True)
class Table:
    """A table; ``family`` as nft has it: ip, ip6, inet, netdev, bridge, arp."""

    family: str
    name: str
    dormant: bool = False
    chains: Mapping[str, Chain] = field(default_factory=dict)
    sets: Mapping[str, NftSet] = field(default_factory=dict)

    @cached_property
    def deciding(self) -> frozenset[str]:
        """The base chains that may do something to a packet; the others count, log and let everything pass."""
        return frozenset(
            name for name, chain in self.chains.items() if chain.base and not self._passes_all(chain, frozenset())
        )

    @cached_property
    def tracking(self) -> Mapping[int, frozenset[str]]:
        """The chains with a rule for which the kernel tracks connections of an IP version."""
        return {
            version: frozenset(
                name
                for name, chain in self.chains.items()
                if any(_tracks(each, version) for rule in chain.rules for each in _every(rule.expressions))
            )
            for version in NAT_FAMILIES
        }

    @cached_property
    def _asked(self) -> frozenset[str]:
        """The sets that something may depend on; into the others packets are only counted."""
        every = [each for chain in self.chains.values() for rule in chain.rules for each in _every(rule.expressions)]
        looked_up = {each.set for each in every if isinstance(each, Lookup)}
        limiting = {each.set for each in every if isinstance(each, Remember) and not _only_passed(each.parts)}
        return frozenset(looked_up | limiting)

    def _passes_all(self, chain: Chain, above: frozenset[str]) -> bool:
        return chain.policy == "accept" and all(
            self._lets_pass(each, above | {chain.name}) for rule in chain.rules for each in rule.expressions
        )

    def _lets_pass(self, each: Expression, above: frozenset[str]) -> bool:
        if isinstance(each, Lookup):
            return each.target != VERDICT_WORD
        if isinstance(each, Remember):
            return each.set not in self._asked
        if not isinstance(each, Decide):
            return isinstance(each, _HARMLESS)
        if each.verdict.kind not in ("jump", "goto"):
            return each.verdict.kind in ("accept", "continue", "return")
        below = self.chains.get(each.verdict.chain)
        return below is not None and below.name not in above and self._passes_all(below, above)


def _every(expressions: Iterable[Expression]) -> Iterator[Expression]:
    """With those that they are made of."""
    for each in expressions:
        yield each
        if isinstance(each, Test | Remember):
            yield from _every(each.all if isinstance(each, Test) else each.parts)


# What changes neither the packet, nor its way, nor a set. Test holds conditions alone.
_HARMLESS = (Load, Immediate, Bitwise, Byteorder, Compare, Among, Passed, Limited, Test, Maybe)


def _only_passed(expressions: Iterable[Expression]) -> bool:
    return all(isinstance(each, Passed) for each in expressions)


def _tracks(each: Expression, version: int) -> bool:
    if isinstance(each, Nat):
        return each.is_of(version)
    return isinstance(each, SetCt) or (isinstance(each, Load) and isinstance(each.source, Ct))


@dataclass(frozen=True)
class Ruleset:
    """All tables of a network namespace, in the order in which they were made.

    ``unseen``: packet filters beside nftables that were found and cannot be read, with what they are.
    """

    tables: tuple[Table, ...] = ()
    unseen: tuple[str, ...] = ()

    @property
    def filters(self) -> bool:
        """Whether anything in it, or unseen, may do something to a packet for this host."""
        hooks = (Hook.INGRESS, Hook.PREROUTING, Hook.INPUT)
        bases = (table.chains[name].base for table in self.tables for name in table.deciding)
        return bool(self.unseen) or any(base is not None and base.hook in hooks for base in bases)
