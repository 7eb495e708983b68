"""Sets of whole numbers as ranges: addresses and ports of which a rule matches a part."""

from __future__ import annotations

import bisect
import ipaddress
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from operator import itemgetter

_FEW = 8
_first, _last = itemgetter(0), itemgetter(1)


@dataclass(frozen=True)
class Spans:
    """A set of whole numbers; ``ranges`` are closed, sorted, disjoint and never adjacent."""

    ranges: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(cls, ranges: Iterable[tuple[int, int]]) -> Spans:
        """The union of closed ranges in any order; those that end before they begin are empty."""
        merged: list[tuple[int, int]] = []
        for first, last in sorted(each for each in ranges if each[0] <= each[1]):
            if merged and first <= merged[-1][1] + 1:
                merged[-1] = (merged[-1][0], max(merged[-1][1], last))
            else:
                merged.append((first, last))
        return cls(tuple(merged))

    @classmethod
    def network(cls, network: IPv4Network | IPv6Network) -> Spans:
        """The addresses of a network."""
        return cls(((int(network.network_address), int(network.broadcast_address)),))

    def __bool__(self) -> bool:
        return bool(self.ranges)

    def __contains__(self, number: int) -> bool:
        at = bisect.bisect_right(self.ranges, number, key=_first)
        return at > 0 and number <= self.ranges[at - 1][1]

    def __len__(self) -> int:
        raise TypeError("the size may exceed what len() can tell: use size")

    @property
    def size(self) -> int:
        """How many numbers are in it."""
        return sum(last - first + 1 for first, last in self.ranges)

    def __and__(self, other: Spans) -> Spans:
        if self._covers(other):
            return other
        return self if other._covers(self) else Spans(tuple(_common(self.ranges, other.ranges)))

    def __sub__(self, other: Spans) -> Spans:
        if other._covers(self):
            return Spans()
        return Spans(_without(self.ranges, other.ranges)) if self._meets(other) else self

    def __or__(self, other: Spans) -> Spans:
        if self._covers(other):
            return self
        return other if other._covers(self) else Spans.of((*self.ranges, *other.ranges))

    # What is so at a glance: most sets are all, none or one range, and a blocklist has 100 000.

    def _covers(self, other: Spans) -> bool:
        if not other.ranges or self.ranges is other.ranges:
            return True
        if len(self.ranges) != 1:
            return False
        return self.ranges[0][0] <= other.ranges[0][0] and other.ranges[-1][1] <= self.ranges[0][1]

    def _meets(self, other: Spans) -> bool:
        if not self.ranges or not other.ranges:
            return False
        return self.ranges[0][0] <= other.ranges[-1][1] and other.ranges[0][0] <= self.ranges[-1][1]

    def networks(self, version: int) -> Iterator[IPv4Network | IPv6Network]:
        """The same as networks of that IP version, in order."""
        make = ipaddress.IPv4Address if version == 4 else ipaddress.IPv6Address
        for first, last in self.ranges:
            yield from ipaddress.summarize_address_range(make(first), make(last))


def _common(left: tuple[tuple[int, int], ...], right: tuple[tuple[int, int], ...]) -> Iterator[tuple[int, int]]:
    # Only the part of the longer one that can matter: blocklists have 100 000 ranges, a peer has one.
    if len(left) < len(right):
        left, right = right, left
    at = 0
    for first, last in right:
        at = bisect.bisect_left(left, first, lo=at, key=_last)
        step = at
        while step < len(left) and left[step][0] <= last:
            yield max(first, left[step][0]), min(last, left[step][1])
            step += 1


def _without(left: tuple[tuple[int, int], ...], right: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
    if len(right) <= _FEW:
        for first, last in right:
            left = _cut(left, first, last)
        return left
    return tuple(_without_many(left, right))


def _cut(ranges: tuple[tuple[int, int], ...], first: int, last: int) -> tuple[tuple[int, int], ...]:
    """Without one range: a firewall that names 1000 peers one by one takes as many out of the others."""
    begin = bisect.bisect_left(ranges, first, key=_last)
    end = bisect.bisect_right(ranges, last, lo=begin, key=_first)
    if begin == end:
        return ranges
    below, above = (ranges[begin][0], first - 1), (last + 1, ranges[end - 1][1])
    return (*ranges[:begin], *(each for each in (below, above) if each[0] <= each[1]), *ranges[end:])


def _without_many(left: tuple[tuple[int, int], ...], right: tuple[tuple[int, int], ...]) -> Iterator[tuple[int, int]]:
    for first, last in left:
        begin = first
        at = bisect.bisect_left(right, first, key=_last)
        while at < len(right) and right[at][0] <= last:
            if begin < right[at][0]:
                yield begin, right[at][0] - 1
            begin = right[at][1] + 1
            at += 1
        if begin <= last:
            yield begin, last
