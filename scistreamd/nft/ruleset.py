"""A ruleset of nftables as frozen data: what the kernel holds, in the kernel's own terms (nf_tables.h, nft(8)).

A rule is a list of expressions, a small program over registers. `decode` makes these of what netlink says.
Registers are counted in words of 32 bits, as the kernel keeps them: word 0 is the verdict's.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from scistreamd.nft.spans import Spans

VERDICT_WORD = 0


class Hook(enum.Enum):
    """Where a base chain sits, as far as a packet for this host passes it."""

    INGRESS = "ingress"
    PREROUTING = "prerouting"
    INPUT = "input"
    FORWARD = "forward"
    OUTPUT = "output"
    POSTROUTING = "postrouting"
    EGRESS = "egress"


class Base(enum.IntEnum):
    """What a payload expression counts its offset from (enum nft_payload_bases)."""

    LINK = 0
    NETWORK = 1
    TRANSPORT = 2
    INNER = 3


class Op(enum.IntEnum):
    """How `Compare` compares (enum nft_cmp_ops)."""

    EQ = 0
    NE = 1
    LT = 2
    LE = 3
    GT = 4
    GE = 5


@dataclass(frozen=True)
class Verdict:
    """What a rule or an element of a verdict map decides: ``accept``, ``drop``, ``continue``, ``return``,
    ``queue`` or, with a ``chain``, ``jump`` or ``goto``."""

    kind: str
    chain: str = ""


# Sources of values


@dataclass(frozen=True)
class Payload:
    """Bytes of the packet."""

    base: Base
    offset: int
    size: int


@dataclass(frozen=True)
class Meta:
    """A fact about the packet: ``key`` of enum nft_meta_keys."""

    key: int


@dataclass(frozen=True)
class Ct:
    """A fact about its connection: ``key`` of enum nft_ct_keys; ``direction`` 0 original, 1 reply, None: none."""

    key: int
    direction: int | None = None


@dataclass(frozen=True)
class Fib:
    """What the routing tables say: ``result`` and ``flags`` of enum nft_fib_result and nft_fib_flags."""

    result: int
    flags: int


@dataclass(frozen=True)
class Exthdr:
    """An extension header or option; ``operation`` of enum nft_exthdr_op, ``flags`` 1: whether it is there."""

    operation: int
    type: int
    offset: int
    size: int
    flags: int


@dataclass(frozen=True)
class Elsewhere:
    """Something that is not modelled, by its name: numgen, hash, socket, rt."""

    name: str


Source = Payload | Meta | Ct | Fib | Exthdr | Elsewhere

# Expressions


@dataclass(frozen=True)
class Load:
    """Put a value into registers."""

    word: int
    source: Source


@dataclass(frozen=True)
class Immediate:
    """Put a constant into registers."""

    word: int
    data: bytes


@dataclass(frozen=True)
class Decide:
    """Take a verdict."""

    verdict: Verdict


@dataclass(frozen=True)
class Bitwise:
    """``target = (source & mask) ^ xor``."""

    source: int
    target: int
    mask: bytes
    xor: bytes


@dataclass(frozen=True)
class Byteorder:
    """Swap the bytes of every ``size`` bytes out of ``length``."""

    source: int
    target: int
    length: int
    size: int


@dataclass(frozen=True)
class Compare:
    """Go on where the bytes compare so with the constant."""

    word: int
    op: Op
    data: bytes


@dataclass(frozen=True)
class Among:
    """Go on where ``size`` bytes, as a big-endian number, are in ``spans``, or, ``inverted``, where they are not."""

    word: int
    size: int
    spans: Spans
    inverted: bool = False


@dataclass(frozen=True)
class Lookup:
    """Go on where the bytes are in the set (``inverted``: are not); a map's value goes to the ``target`` word."""

    set: str
    word: int
    target: int | None
    inverted: bool


@dataclass(frozen=True)
class Passed:
    """A statement that decides nothing: counter, log, notes; ``text`` is what nft prints for it."""

    text: str


@dataclass(frozen=True)
class Limited:
    """A limit on rate, connections or volume; a new connection is taken to be within it.

    ``over``: the rule goes on only beyond the limit.
    """

    text: str
    over: bool


@dataclass(frozen=True)
class Notrack:
    """The connection is not tracked."""


@dataclass(frozen=True)
class SetMeta:
    """Write a value to a fact about the packet."""

    key: int
    word: int


@dataclass(frozen=True)
class SetCt:
    """Write a value to a fact about the connection."""

    key: int
    word: int


@dataclass(frozen=True)
class Remember:
    """Add the packet's key to a set, or remove it from there (dynset); ``parts`` work on the element."""

    set: str
    word: int
    operation: str
    timeout: int
    parts: tuple[Expression, ...]
    inverted: bool


@dataclass(frozen=True)
class Reject:
    """Drop with an answer; ``text`` is what nft prints, ``text6`` where the rule is for IPv6 in a table for both."""

    text: str
    text6: str = ""


@dataclass(frozen=True)
class Nat:
    """Rewrite an address: ``kind`` dnat, snat, masquerade or redirect; words of what it becomes, None: as it was.

    ``last_*``: the end of a range of which the kernel takes one.
    """

    kind: str
    family: int = 0
    address: int | None = None
    last_address: int | None = None
    port: int | None = None
    last_port: int | None = None
    flags: int = 0

    def is_of(self, version: int) -> bool:
        """Whether it is for packets of this IP version; `dnat ip` of a table of both is for one."""
        return self.family not in _NAT_FAMILIES.values() or self.family == _NAT_FAMILIES[version]


# By IP version; NFPROTO_IPV4 and NFPROTO_IPV6.
_NAT_FAMILIES = {4: 2, 6: 10}


@dataclass(frozen=True)
class Test:
    """A condition put into other expressions, as those of iptables are: ``all`` of them hold, or, ``inverted``, not.

    ``text`` is what nft prints.
    """

    all: tuple[Expression, ...]
    inverted: bool
    text: str


@dataclass(frozen=True)
class Maybe:
    """A condition that is not modelled: it may hold or not."""

    text: str


@dataclass(frozen=True)
class Elsewhither:
    """A statement that takes the packet out of our sight: queue, tproxy, synproxy, fwd."""

    text: str


Expression = (
    Load | Immediate | Decide | Bitwise | Byteorder | Compare | Among | Lookup | Passed | Limited | Notrack
    | SetMeta | SetCt | Remember | Reject | Nat | Test | Maybe | Elsewhither
)  # fmt: skip


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
            for version in _NAT_FAMILIES
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
