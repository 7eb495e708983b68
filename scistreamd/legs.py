"""The connections and the sums of one tunnel, as `tally` keeps them.

A stream through a gateway has two legs: one that the data server accepted on a
listener, one that it opened to a target. The one on the applications' side is
what is counted as a connection, with the applications' payload; the other one
is the hop between the gateways.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from scistreamd.counts import NO_HEALTH, NOTHING, Counts, Health, Totals
from scistreamd.model import Endpoint, Role
from scistreamd.sock import Sock

USED_SECONDS = 60.0
TLS_PAYLOAD = 0.998
NOISE_BYTES = 20_000  # what handshakes and strangers bring
KEPT_ENDS = 64  # ended accepted legs that still may find their other one


@dataclass(frozen=True)
class Way:
    """A tunnel as far as its connections go; see `tunnel.Tunnel` and `plans.Bind`. ``udp``: that too."""

    id: str
    role: Role
    listeners: tuple[Endpoint, ...]
    targets: tuple[Endpoint, ...]
    udp: bool = False


@dataclass
class Leg:
    """A connection that belongs to a tunnel, with what of it is in the sums already.

    ``after``: at that time it did not exist yet, seconds since the epoch.
    """

    tunnel: str
    active: bool
    after: float
    counted: Totals = NOTHING
    retransmits: int = 0
    fin_received: bool = False
    last: Sock | None = None

    def now(self, sock: Sock, towards_targets: bool) -> Totals:
        """What it has carried in all; ``towards_targets``: what we send on it goes there."""
        self.fin_received = self.fin_received or sock.fin_received
        sent = sock.payload_sent(self.active), sock.packets_out
        received = sock.payload_received(self.active, self.fin_received), sock.packets_in
        into, out = (sent, received) if towards_targets else (received, sent)
        # A guess about a FIN may be taken back; sums never go down.
        return Totals(*map(max, (into[0], out[0], into[1], out[1]), self.counted))


class End(NamedTuple):
    """An accepted leg that has ended ``at`` a time, its other half being unknown."""

    at: float
    after: float
    sock: Sock


@dataclass
class Saved:
    """The sums of a tunnel as they are written down: ``legs`` are the open connections by their cookies.

    Of each leg: whether we opened it, what of it is in the sums, and its retransmits. ``tcp`` and ``udp``: what had
    passed on the listeners when the sums were these.
    """

    counts: Counts
    legs: Mapping[int, tuple[bool, Totals, int]] = field(default_factory=dict)
    tcp: Totals = NOTHING
    udp: Totals = NOTHING


@dataclass
class Sums:
    """One tunnel."""

    way: Way
    targets: set[tuple[bytes, int]] = field(default_factory=set)
    plain: Totals = NOTHING
    wan: Totals = NOTHING
    retransmits: int = 0
    connections: int = 0
    total: int = 0
    used: float = 0
    used_told: float = 0
    estimated: bool = False
    health: Health = NO_HEALTH
    # What had passed on the listeners when we looked last, None: never; the sums at that time, after a restart.
    tcp: Totals | None = None
    udp: Totals | None = None
    before: Counts | None = None
    accepted: int = 0  # legs that came in on a listener
    opened: int = 0  # legs towards targets that are known to be of this tunnel
    # Accepted legs that ended, and when: their other half may be told of later.
    ends: deque[End] = field(default_factory=lambda: deque(maxlen=KEPT_ENDS))

    def is_plain(self, leg: Leg) -> bool:
        """Whether the leg is on the applications' side."""
        return leg.active is (self.way.role is Role.PROD)

    def ended_before(self, cookie: int, then: float) -> bool:
        """Whether this accepted leg had not just ended at that time."""
        return all(each.at <= then for each in self.ends if each.sock.cookie == cookie)

    def forget_end(self, cookie: int) -> None:
        """The other half of this accepted leg has been found."""
        self.ends = deque((each for each in self.ends if each.sock.cookie != cookie), KEPT_ENDS)

    def counts(self) -> Counts:
        """As others may see them, without rates."""
        return Counts(
            connections=self.connections,
            connections_total=self.total,
            plain=self.plain,
            wan=self.wan,
            retransmits=self.retransmits,
            health=self.health,
            used=self.used,
            estimated=self.estimated,
        )

    def picture(self, legs: list[tuple[Leg, Sock]], now: float) -> bool:
        """Take down how many connections are open, and how the hop between the gateways is.

        Whether the time of the last use has become so much later that it should be written down.
        """
        alive = [(leg, sock) for leg, sock in legs if sock.open]
        self.connections = sum(self.is_plain(leg) for leg, _ in alive)
        if self.connections:
            self.used = now
        wan = [sock for leg, sock in alive if not self.is_plain(leg)]
        self.health = Health(
            len(wan),
            max((sock.rtt_usec for sock in wan), default=0),
            sum(sock.cwnd for sock in wan),
            sum(sock.delivery_rate for sock in wan),
        )
        late = self.used - self.used_told > USED_SECONDS
        self.used_told = self.used if late else self.used_told
        return late

    def take_passed(self, tcp: Totals, udp: Totals) -> bool:
        """Take in what has passed on the listeners, as counted from the outside; whether the sums have changed.

        Of TCP that matters after a restart alone, where it tells what passed unseen.
        """
        changed = self.before is not None and self._estimate(_since(tcp, self.tcp), self.before)
        more = _since(udp, self.udp)
        if any(more):
            self.plain, self.wan = self.plain.plus(more), self.wan.plus(more)
        self.tcp, self.udp, self.before = tcp, udp, None
        return changed or any(more)

    def _estimate(self, passed: Totals, before: Counts) -> bool:
        """Add what ``passed`` on the listeners beyond what has been counted since ``before``; whether that is much.

        The listeners of an inbound tunnel are on the hop, with TLS: a record of 16 KiB has 22 bytes of it.
        """
        inbound = self.way.role is Role.PROD
        known = self.wan.minus(before.wan) if inbound else self.plain.minus(before.plain)
        missed = Totals(*(max(0, each) for each in passed.minus(known)))
        if missed.bytes_in + missed.bytes_out <= NOISE_BYTES + (passed.bytes_in + passed.bytes_out) // 50:
            return False
        plain = missed.scaled(TLS_PAYLOAD) if inbound else missed
        self.plain, self.wan = self.plain.plus(plain), self.wan.plus(missed)
        self.estimated = True
        return True

    def resume(self, saved: Saved) -> None:
        """Go on from what the daemon before wrote down."""
        before = saved.counts
        self.plain, self.wan, self.retransmits = before.plain, before.wan, before.retransmits
        self.total, self.used, self.estimated = before.connections_total, before.used, before.estimated
        self.tcp, self.udp, self.before = saved.tcp, saved.udp, before
        self.opened = sum(active for active, *_ in saved.legs.values())
        self.accepted = len(saved.legs) - self.opened


def _since(now: Totals, before: Totals | None) -> Totals:
    """What came after ``before``; all of it where somebody has set the counters back, nothing where we never looked."""
    if before is None:
        return NOTHING
    return now if any(one < two for one, two in zip(now, before, strict=True)) else now.minus(before)
