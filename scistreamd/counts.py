"""What is counted of a tunnel, as others may see it: plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

# The time spans, in seconds, over which rates are told.
SPANS = (1, 10, 60)


class Totals(NamedTuple):
    """What has passed: bytes of payload and TCP segments, ``in`` being towards targets, ``out`` back."""

    bytes_in: int = 0
    bytes_out: int = 0
    packets_in: int = 0
    packets_out: int = 0

    def plus(self, other: Totals) -> Totals:
        """Both together."""
        return Totals(*(one + two for one, two in zip(self, other, strict=True)))

    def minus(self, other: Totals) -> Totals:
        """What came after ``other``."""
        return Totals(*(one - two for one, two in zip(self, other, strict=True)))

    def scaled(self, share: float) -> Totals:
        """That share of the bytes, and all packets."""
        return self._replace(bytes_in=round(self.bytes_in * share), bytes_out=round(self.bytes_out * share))


NOTHING = Totals()

# What has passed on each port, of TCP or (True) of UDP: payload, of TCP by estimate.
Passed = Mapping[tuple[int, bool], Totals]


@dataclass(frozen=True)
class Health:
    """TCP of the hop between the gateways, on its open connections (tcp_info of tcp(7)).

    ``rtt_usec``: the smoothed round-trip time of the slowest of them, ``cwnd``
    (segments) and ``delivery_rate`` (bytes/s) of all together.
    """

    connections: int = 0
    rtt_usec: int = 0
    cwnd: int = 0
    delivery_rate: int = 0


@dataclass(frozen=True)
class Rates:
    """Bytes/s over each of `SPANS`; empty before there are two samples to compare."""

    bytes_in: tuple[float, ...] = ()
    bytes_out: tuple[float, ...] = ()


NO_HEALTH = Health()
NO_RATES = Rates()


@dataclass(frozen=True)
class Counts:
    """What one tunnel has carried since it was made.

    A connection is one of the applications', on the gateway's plain side.
    ``wan``: bytes and segments of the hop between the gateways, TLS included;
    ``retransmits``: segments that were sent again there. ``used``: when a
    connection was open last, seconds since the epoch, 0: never.
    ``estimated``: part of it passed unseen and was estimated.
    """

    connections: int = 0
    connections_total: int = 0
    plain: Totals = NOTHING
    wan: Totals = NOTHING
    retransmits: int = 0
    rates: Rates = NO_RATES
    health: Health = NO_HEALTH
    used: float = 0
    estimated: bool = False
