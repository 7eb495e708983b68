"""Connections from a set of peers to one listener, as far as rules can see their packets.

A peer's address and port are sets of which a rule may match a part; everything else is known, or known bit by
bit, or not known. `State` is one such set of packets on its way through the hooks; nothing in it is changed.
"""

from __future__ import annotations

import enum
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from scistreamd.model import Endpoint, IPAddress
from scistreamd.nft.program import Expression
from scistreamd.nft.spans import Spans

TCP, UDP = 6, 17
NOWHERE = Spans()
ANY_PORT = Spans(((0, 65535),))
# What clients dial from when they do not choose: Linux takes 32768-60999, others 49152-65535 (RFC 6335).
EPHEMERAL = Spans(((32768, 65535),))


@dataclass(frozen=True)
class Interface:
    """A device that packets come in by; ``addresses`` are the host's own on it."""

    index: int
    name: str
    kind: str = ""
    addresses: tuple[IPAddress, ...] = ()
    type: int = 1  # ARPHRD_ETHER


@dataclass(frozen=True)
class Arrival:
    """Packets that open connections: from ``sources`` (as numbers) by ``interface`` to ``target``.

    ``wildcard``: the listener takes every address of the host. ``own``: all addresses of the host.
    ``routed``: where the host's own routes lead out by this interface, for reverse path checks.
    """

    interface: Interface
    sources: Spans
    target: Endpoint
    wildcard: bool = False
    protocol: int = TCP
    source_ports: Spans = EPHEMERAL
    own: frozenset[IPAddress] = frozenset()
    routed: Spans = NOWHERE

    @property
    def version(self) -> int:
        """4 or 6."""
        return self.target.address.version


class Field(enum.Enum):
    """What is a set: the peer's address and port."""

    SOURCE = "saddr"
    PORT = "sport"


@dataclass(frozen=True)
class Known:
    """A byte of which the bits in ``mask`` are known."""

    value: int
    mask: int = 255


@dataclass(frozen=True)
class Part:
    """Byte ``index`` of a field that is ``size`` bytes long: ``(byte & mask) ^ xor``."""

    field: Field
    index: int
    size: int
    mask: int = 255
    xor: int = 0


Byte = Known | Part
Bytes = tuple[Byte, ...]
UNKNOWN = Known(0, 0)


def known(data: bytes) -> Bytes:
    """Bytes that are known."""
    return tuple(map(Known, data))


def whole(number: int, size: int) -> Bytes:
    """A number in the host's byte order."""
    return known(number.to_bytes(size, sys.byteorder))


def field_bytes(field: Field, size: int) -> Bytes:
    """All bytes of a field."""
    return tuple(Part(field, index, size) for index in range(size))


_NO_MARK: Bytes = known(bytes(4))


@dataclass(frozen=True)
class State:
    """Packets that have taken the same way so far: all pairs of ``sources`` and ``ports``.

    ``doubts``: conditions on the way that may have come out otherwise. ``target`` is the destination now, after
    a rewrite. ``established``: later packets of connections that came to be. ``touched``: sets that rules on the
    way wrote to, and the statements of such an element. ``masked``: the source was rewritten.
    """

    sources: Spans
    ports: Spans
    target: Endpoint
    mark: Bytes = _NO_MARK
    connection_mark: Bytes = _NO_MARK
    tracked: bool = True
    rewritten: bool = False
    established: bool = False
    masked: bool = False
    touched: frozenset[tuple[str, tuple[Expression, ...]]] = frozenset()
    doubts: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.sources) and bool(self.ports)

    def later(self, target: Endpoint) -> State:
        """The next packets of the same connections, which are sent to the target that the first were sent to."""
        return replace(self, mark=_NO_MARK, established=True, masked=False, target=target)

    def doubting(self, why: str) -> State:
        """The same, with one more doubt."""
        return self if why in self.doubts else replace(self, doubts=(*self.doubts, why))

    def within(self, box: Box) -> State:
        """Those in the box."""
        return replace(self, sources=self.sources & box.sources, ports=self.ports & box.ports)

    def without(self, box: Box) -> list[State]:
        """Those outside the box."""
        inside = self.sources & box.sources
        parts = (
            replace(self, sources=self.sources - box.sources),
            replace(self, sources=inside, ports=self.ports - box.ports),
        )
        return [part for part in parts if part]


EVERYTHING = Spans(((0, (1 << 128) - 1),))


@dataclass(frozen=True)
class Box:
    """Where a condition holds: all pairs of sources and ports; ``sure`` False: there it may hold or not."""

    sources: Spans = EVERYTHING
    ports: Spans = ANY_PORT
    sure: bool = True

    def __bool__(self) -> bool:
        return bool(self.sources) and bool(self.ports)

    def __and__(self, other: Box) -> Box:
        return Box(self.sources & other.sources, self.ports & other.ports, self.sure and other.sure)


ALWAYS = Box()
NEVER = Box(Spans(), Spans())
PERHAPS = Box(sure=False)


def merged(states: Iterable[State]) -> list[State]:
    """The same packets in fewer states: those that differ in their sources alone become one."""
    found: dict[tuple[object, ...], list[State]] = {}
    for state in states:
        found.setdefault(_but_sources(state), []).append(state)
    return [_union(each) for each in found.values()]


def _but_sources(state: State) -> tuple[object, ...]:
    return (
        state.ports, state.target, state.mark, state.connection_mark, state.tracked, state.rewritten,
        state.established, state.masked, state.touched, state.doubts,
    )  # fmt: skip


def _union(states: Sequence[State]) -> State:
    if len(states) == 1:
        return states[0]
    return replace(states[0], sources=Spans.of(span for state in states for span in state.sources.ranges))
