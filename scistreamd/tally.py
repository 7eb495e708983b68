"""Which tunnel a TCP connection belongs to, and what each tunnel has carried: a pure book-keeper.

It is fed with all sockets of the host as they are (`Tally.see`) and with those
that have ended, with their last values (`Tally.ended`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping

from scistreamd.counts import NOTHING, Counts, Passed, Totals
from scistreamd.legs import End, Leg, Saved, Sums, Way
from scistreamd.sock import Sock, packed

_PATIENCE = 3.0  # seconds for the end of a connection that is gone, until it is taken for lost
_RIPE = 0.08  # seconds: of an opened leg that nobody saw alive the accepted one may end a little later
_UNLIKELY_RIPE = 0.6  # where they carried so differently that another one may fit better
_LATE = 0.5  # seconds after which the kernel has told of an end
_TOGETHER = 1.0  # seconds between the ends of both legs; after that an opened leg was another program's
# TLS makes of each byte that is sent by itself a record of 23, and a handshake may bring long certificates.
_MOST_TLS, _HANDSHAKE = 24, 16384


class Tally:
    """The sums of all tunnels."""

    def __init__(self) -> None:
        self._sums: dict[str, Sums] = {}
        self._legs: dict[int, Leg] = {}
        self._owners: dict[int, set[str]] = {}
        self._listeners: dict[int, list[tuple[bytes | None, str]]] = {}
        self._targets: dict[tuple[bytes, int], set[str]] = {}
        self._strays: dict[int, tuple[float, Sock]] = {}
        self._missing: dict[int, float] = {}
        self._seen = 0.0  # when `see` was called last
        self.fresh: set[str] = set()  # tunnels that the last `know` was the first to tell of
        self.changed: set[str] = set()  # tunnels with something new to write down, until the reader clears it

    def __len__(self) -> int:
        return len(self._sums)

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._sums))

    @property
    def puzzled(self) -> bool:
        """Whether connections have just ended of which it is not known whose they were: `see` at once again."""
        return bool(self._strays)

    @property
    def waiting(self) -> bool:
        """Whether there are connections that are gone, and whose ends may still be told: `see` soon again."""
        return bool(self._missing)

    # Tunnels

    def know(self, ways: Iterable[Way]) -> None:
        """These are the tunnels now; what others had is forgotten.

        Former targets still count, for the streams to them go on.
        """
        now = {way.id: way for way in ways}
        for gone in self._sums.keys() - now.keys():
            self.forget(gone)
        self.fresh = now.keys() - self._sums.keys()
        self.changed |= self.fresh
        for way in now.values():
            sums = self._sums.setdefault(way.id, Sums(way))
            sums.way = way
            sums.targets |= {(packed(each.address), each.port) for each in way.targets}
        self._listeners, self._targets = {}, {}
        for sums in self._sums.values():
            for each in sums.way.listeners:
                address = None if each.is_wildcard else packed(each.address)
                self._listeners.setdefault(each.port, []).append((address, sums.way.id))
            for target in sums.targets:
                self._targets.setdefault(target, set()).add(sums.way.id)

    def forget(self, tunnel: str) -> None:
        """The tunnel has ended; not knowing it is fine."""
        self._sums.pop(tunnel, None)
        self.changed.discard(tunnel)
        self._listeners = {
            port: left for port, of in self._listeners.items() if (left := [each for each in of if each[1] != tunnel])
        }
        for tunnels in self._targets.values():
            tunnels.discard(tunnel)
        self._legs = {cookie: leg for cookie, leg in self._legs.items() if leg.tunnel != tunnel}
        for tunnels in self._owners.values():
            tunnels.discard(tunnel)
        self._owners = {owner: tunnels for owner, tunnels in self._owners.items() if tunnels}

    # What the kernel tells

    def see(self, socks: Iterable[Sock], now: float, *, lost: bool = False) -> None:
        """Take in all sockets of the host as they are at ``now`` (seconds since the epoch).

        ``lost``: the ends of some were not heard; of those that are missing now and stay so what was seen last holds.
        """
        present: dict[str, list[tuple[Leg, Sock]]] = {tunnel: [] for tunnel in self._sums}
        unknown = []
        for sock in socks:
            leg = self._legs.get(sock.cookie) or self._accepted(sock)
            if leg is None:
                unknown.append(sock)
                continue
            if not leg.active and sock.attached:
                self._owners.setdefault(sock.owner, set()).add(leg.tunnel)
            self._count(leg, sock)
            present[leg.tunnel].append((leg, sock))
        for sock in unknown:
            leg = self._opened(sock, now)
            if leg is not None:
                self._count(leg, sock)
                present[leg.tunnel].append((leg, sock))
        for tunnel, legs in present.items():
            if self._sums[tunnel].picture(legs, now):
                self.changed.add(tunnel)
        if lost or self._missing:
            self._lost({sock.cookie for legs in present.values() for _, sock in legs}, now, lost)
        self._claim(now)
        self._seen = now

    def ended(self, socks: Iterable[Sock], now: float) -> None:
        """Take in sockets that have ended, with their last values."""
        for sock in socks:
            seen = sock.cookie in self._legs
            leg = self._legs.pop(sock.cookie, None) or self._accepted(sock)
            if leg is not None:
                self._finish(leg, sock, now)
                if not leg.active:
                    self._sums[leg.tunnel].ends.append(End(now, leg.after if seen else leg.after - _LATE, sock))
            elif sock.acked and (sock.remote, sock.remote_port) in self._targets:
                self._strays[sock.cookie] = (now, sock)  # no acknowledgement: the target refused it

    def _finish(self, leg: Leg, sock: Sock, now: float) -> None:
        self._legs.pop(sock.cookie, None)
        self._count(leg, sock)
        sums = self._sums[leg.tunnel]
        if sums.is_plain(leg):
            sums.used = now

    def _lost(self, present: set[int], now: float, lost: bool) -> None:
        """Give up connections that are gone, once their ends, which the kernel may tell late, have not been heard."""
        gone = self._legs.keys() - present
        self._missing = {cookie: self._missing.get(cookie, now) for cookie in gone if lost or cookie in self._missing}
        for cookie, since in list(self._missing.items()):
            if now - since > _PATIENCE:
                tunnel = self._legs.pop(cookie).tunnel
                del self._missing[cookie]
                self._sums[tunnel].estimated = True
                self.changed.add(tunnel)

    @property
    def carries_udp(self) -> bool:
        """Whether a tunnel does."""
        return any(sums.way.udp for sums in self._sums.values())

    def begin(self, passed: Passed) -> None:
        """What had passed on the ports of the `fresh` tunnels before them is not theirs."""
        for tunnel in self.fresh:
            sums = self._sums[tunnel]
            sums.take_passed(_on(passed, sums.way, udp=False), _on(passed, sums.way, udp=True))

    def pass_by(self, passed: Passed, now: float) -> None:
        """Take in what has passed on ports, right after `see`: UDP, and what passed while nobody could `see`."""
        for tunnel, sums in self._sums.items():
            if sums.take_passed(_on(passed, sums.way, udp=False), _on(passed, sums.way, udp=True)):
                sums.used = now
                self.changed.add(tunnel)

    # Whose it is

    def _accepted(self, sock: Sock) -> Leg | None:
        """A new leg on a listener."""
        for address, tunnel in self._listeners.get(sock.local_port, ()):
            if address in (None, sock.local):
                self._sums[tunnel].accepted += 1
                return self._new(sock, tunnel, active=False)
        return None

    def _opened(self, sock: Sock, now: float) -> Leg | None:
        """A new leg to a target, alive: opened by a program that accepts on the listeners."""
        candidates = self._targets.get((sock.remote, sock.remote_port), set()) & self._owners.get(sock.owner, set())
        tunnel = self._likeliest(candidates, sock, now) if sock.attached else None
        return None if tunnel is None else self._new_opened(sock, tunnel)

    def _claim(self, now: float) -> None:
        """Find the tunnels of opened legs that ended before anybody saw them: by how much they carried, and when."""
        pairs = sorted(
            (*apart, cookie, tunnel, head)
            for cookie, stray in self._strays.items()
            for apart, tunnel, head in self._heads(*stray, now)
        )
        taken: set[int] = set()
        lacking = {tunnel: sums.accepted - sums.opened for tunnel, sums in self._sums.items()}
        for unlikely, _, cookie, tunnel, head in pairs:
            if {cookie, head} & taken or lacking[tunnel] <= 0:
                continue
            taken |= {cookie, head}
            lacking[tunnel] -= 1  # also where it is too early to be sure: it is not to be had by a less likely one
            since, sock = self._strays[cookie]
            ripe = now - (_UNLIKELY_RIPE if unlikely else _RIPE)
            if since <= ripe and self._sums[tunnel].ended_before(head, ripe):
                self._finish(self._new_opened(sock, tunnel), sock, since)
                del self._strays[cookie]
                self._sums[tunnel].forget_end(head)
        self._strays = {cookie: stray for cookie, stray in self._strays.items() if now - stray[0] < _TOGETHER}

    def _heads(self, since: float, sock: Sock, now: float) -> Iterator[tuple[tuple[int, float], str, int]]:
        """The accepted legs that may be the other half of this opened one: how far apart, whose, and its cookie.

        One that is open may just have begun, with its other half not open yet.
        """
        for tunnel in self._targets.get((sock.remote, sock.remote_port), ()):
            for head in self._accepted_of(tunnel, since, None if now - since < _TOGETHER / 2 else now):
                if _bytes_apart(head.sock, sock) <= _MOST_TLS * (sock.sent + sock.received) + _HANDSHAKE:
                    yield _apart(head, sock, since), tunnel, head.sock.cookie

    def _likeliest(self, candidates: set[str], sock: Sock, now: float) -> str | None:
        """The one of several that share a target whose accepted legs carried most nearly as much."""
        if len(candidates) <= 1:
            return next(iter(candidates), None)

        def nearest(tunnel: str) -> tuple[float, float]:
            heads = self._accepted_of(tunnel, now, now)
            return min((_apart(head, sock, now) for head in heads), default=(float("inf"), 0))

        return min(sorted(candidates), key=nearest)

    def _accepted_of(self, tunnel: str, then: float, now: float | None) -> list[End]:
        """A tunnel's accepted legs that had begun by ``then`` and ended about then; given ``now``, also open ones."""
        ended = [each for each in self._sums[tunnel].ends if each.after <= then and abs(each.at - then) <= _TOGETHER]
        if now is None:
            return ended
        legs = (leg for leg in self._legs.values() if leg.tunnel == tunnel and not leg.active and leg.after <= then)
        return [*ended, *(End(now, leg.after, leg.last) for leg in legs if leg.last)]

    def _new_opened(self, sock: Sock, tunnel: str) -> Leg:
        self._sums[tunnel].opened += 1
        return self._new(sock, tunnel, active=True)

    def _new(self, sock: Sock, tunnel: str, *, active: bool) -> Leg:
        leg = self._legs[sock.cookie] = Leg(tunnel, active, self._seen)
        sums = self._sums[tunnel]
        if sums.is_plain(leg):
            sums.total += 1
            self.changed.add(tunnel)
        return leg

    # Sums

    def _count(self, leg: Leg, sock: Sock) -> None:
        sums = self._sums[leg.tunnel]
        now = leg.now(sock, towards_targets=leg.active)
        more = now.minus(leg.counted)
        leg.last = sock
        if sock.retransmits > leg.retransmits and not sums.is_plain(leg):
            sums.retransmits += sock.retransmits - leg.retransmits
            leg.retransmits = sock.retransmits
        if any(more):
            leg.counted = now
            if sums.is_plain(leg):
                sums.plain = sums.plain.plus(more)
            else:
                sums.wan = sums.wan.plus(more)
            self.changed.add(leg.tunnel)

    def counts(self, tunnel: str) -> Counts:
        """The sums of a tunnel, without rates; of one that is not known, nothing."""
        sums = self._sums.get(tunnel)
        return sums.counts() if sums else Counts()

    # From one daemon to the next

    def used_now(self, tunnel: str, now: float) -> None:
        """Take a known tunnel of which nothing was written down as in use at ``now``."""
        self._sums[tunnel].used = now
        self.changed.add(tunnel)

    def saved(self, tunnels: Collection[str]) -> dict[str, Saved]:
        """What to write down of these tunnels; of one that is not known, nothing."""
        legs: dict[str, dict[int, tuple[bool, Totals, int]]] = {each: {} for each in tunnels if each in self._sums}
        for cookie, leg in self._legs.items():
            if leg.tunnel in legs:
                legs[leg.tunnel][cookie] = leg.active, leg.counted, leg.retransmits
        return {tunnel: self._saved(self._sums[tunnel], found) for tunnel, found in legs.items()}

    @staticmethod
    def _saved(sums: Sums, legs: Mapping[int, tuple[bool, Totals, int]]) -> Saved:
        return Saved(sums.counts(), legs, sums.tcp or NOTHING, sums.udp or NOTHING)

    def resume(self, tunnel: str, saved: Saved) -> None:
        """Go on from what was written down of a tunnel that is known; the next `see` is told that ends were lost."""
        self._sums[tunnel].resume(saved)
        for cookie, (active, counted, retransmits) in saved.legs.items():
            self._legs[cookie] = Leg(tunnel, active, 0, counted, retransmits)


def _on(passed: Passed, way: Way, *, udp: bool) -> Totals:
    """What has passed on all listeners of a tunnel."""
    found = NOTHING
    if udp and not way.udp:
        return found
    for each in way.listeners:
        found = found.plus(passed.get((each.port, udp), NOTHING))
    return found


def _bytes_apart(head: Sock, sock: Sock) -> int:
    """By how much an accepted and an opened leg of one stream would differ, both ways together."""
    return abs(head.received - sock.sent) + abs(head.sent - sock.received)


def _apart(head: End, sock: Sock, since: float) -> tuple[int, float]:
    """How unlikely both are of one stream: by bytes where they differ by more than TLS usually adds, else by time."""
    usual = _HANDSHAKE // 2 + (sock.sent + sock.received) // 16
    return _bytes_apart(head.sock, sock) // usual, abs(head.at - since)
