"""What a rule of nftables is made of: expressions, a small program over registers (nf_tables.h, nft(8)).

`decode` makes these of what netlink says. Registers are counted in words of 32 bits, as the kernel keeps them: word 0
is the verdict's.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from scistreamd.nft.spans import Spans

VERDICT_WORD = 0


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
        return self.family not in NAT_FAMILIES.values() or self.family == NAT_FAMILIES[version]


# By IP version; NFPROTO_IPV4 and NFPROTO_IPV6.
NAT_FAMILIES = {4: 2, 6: 10}


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
