"""Counts what tunnels carry: live while somebody asks, at long intervals otherwise, and each end of a connection.

What the kernel keeps of open connections need not be asked for often to be
exact: it is told once more when they end. So a daemon that nobody asks wakes
up for ends of connections, and every `_SELDOM` seconds while there are tunnels.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Protocol

from scistreamd.counts import SPANS, Counts, Passed, Rates
from scistreamd.errors import ScistreamError
from scistreamd.interfaces import CounterBooks, Passing, Sockets
from scistreamd.legs import Way
from scistreamd.model import Change, ChangeKind
from scistreamd.tally import Tally

_OFTEN = 1.0  # seconds between two looks at all connections while somebody asks; never more often
_SELDOM = 10.0
_ASKED = 5.0  # so long after a question somebody is taken to be still asking
_SOON = 0.1  # where a connection has ended and the other half of it is yet to be found
_WRITE = 5.0
_WRITE_FRESH = 0.5  # for a new tunnel: from where on the next daemon is to count
_SHORTEST = 0.2  # seconds that a rate is worth telling of
_log = logging.getLogger("scistreamd.meter")


class Metered(Protocol):
    """What the meter needs of `manager.Manager`."""

    def ways(self) -> Iterable[Way]:
        """Where connections of each tunnel can be, the tunnels of the daemon before included."""

    def watch(self, see: Callable[[Change], None]) -> Callable[[], None]:
        """Tell of every change; returns the way to stop."""

    @property
    def idle_timeout(self) -> float:
        """Seconds without a connection after which a tunnel ends, 0: never."""

    def end_idle(self, used: Callable[[str], float]) -> None:
        """End the tunnels that were not used for so long; ``used``: seconds since the epoch, 0: never."""


class Meter:
    """Knows the counts of all tunnels."""

    def __init__(
        self, metered: Metered, sockets: Sockets, books: CounterBooks | None, passing: Passing | None = None
    ) -> None:
        """``books`` keep counts from one daemon to the next, None: no tunnel outlives this one; ``passing`` counts
        UDP, and what passes between two daemons."""
        self._passing = passing
        self._metered = metered
        self._sockets = sockets
        self._books = books
        self._tally = Tally()
        self._problem: ScistreamError | None = None
        self._fd = -1  # what becomes readable when connections have ended; -1: we do not listen
        self._told = ""
        self._unread = ""
        self._passed = 0.0  # loop time of the last look at ports
        self._lost = False
        self._looked = 0.0  # loop time of the last look, 0: there was none
        self._asked = float("-inf")
        self._samples: deque[tuple[float, dict[str, tuple[int, int]]]] = deque()
        self._look_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._know_handle: asyncio.Handle | None = None
        self._unwatch: Callable[[], None] | None = None

    def start(self) -> None:
        """Count from now on, going on from what was written down of the tunnels that there are."""
        self._loop = asyncio.get_running_loop()
        self._unwatch = self._metered.watch(self._changed)
        self._tally.know(self._metered.ways())
        if self._books is not None:
            self._resume(self._books)
        self._arrange()

    def stop(self) -> None:
        """Count no more, and write down what there is."""
        if self._unwatch is None:
            return
        if self._listening:
            self._look()
        self._unwatch()
        self._unwatch = None
        for each in (self._look_timer, self._write_timer, self._know_handle):
            if each is not None:
                each.cancel()
        self._deafen()
        self._write()

    def counts(self, tunnel_id: str) -> Counts:
        """What the tunnel has carried; UNAVAILABLE where the kernel tells nothing, with the reason."""
        self._ask()
        return self._with_rates(tunnel_id)

    def all(self) -> dict[str, Counts]:
        """`counts` of all tunnels by their ids."""
        self._ask()
        return {tunnel: self._with_rates(tunnel) for tunnel in self._tally}

    # Looking

    @property
    def _listening(self) -> bool:
        return self._fd >= 0

    def _ask(self) -> None:
        """Somebody wants to know: what is told is at most `_OFTEN` seconds old, ends of connections are newer."""
        self._asked = self._loop.time()
        self._know()
        if self._listening:
            self._hear()
            if self._is_old:
                self._look()
            elif self._tally.carries_udp and self._loop.time() - self._passed >= _SOON:
                self._pass_by(time.time())  # no end of anything will be told
        if self._problem is not None:
            raise self._problem
        self._arrange()

    def _look(self) -> None:
        """Take in all connections as they are now."""
        self._know()
        now = time.time()  # what begins while the kernel answers may be missing
        try:
            socks = self._sockets.dump()
        except ScistreamError as problem:
            self._blind(problem)
            return
        # Those that end meanwhile are told of by now, or stay unknown until they are.
        ended = self._hear()
        self._tally.see((sock for sock in socks if sock.cookie not in ended), now, lost=self._lost)
        self._lost = False
        self._pass_by(now)
        self._looked = self._loop.time()
        self._look_at_no_time()  # what was due before is done; `_arrange` says when the next one is
        if not self._samples or self._looked - self._samples[-1][0] > _OFTEN - _SHORTEST:
            self._samples.append((self._looked, {tunnel: self._bytes(tunnel) for tunnel in self._tally}))
        while self._samples[0][0] < self._looked - SPANS[-1] - _SELDOM:
            self._samples.popleft()
        self._note()

    def _pass_by(self, now: float) -> None:
        self._passed = self._loop.time()
        if passed := self._read():
            self._tally.pass_by(passed, now)

    def _read(self) -> Passed:
        """What has passed on ports; nothing, and a warning, where that cannot be seen."""
        if self._passing is None:
            return {}
        try:
            return self._passing.read()
        except ScistreamError as problem:
            if str(problem) != self._unread:
                self._unread = str(problem)
                _log.warning("UDP, and what tunnels carry while scistreamd is not there, is not counted: %s", problem)
            return {}

    def _hear(self) -> set[int]:
        """Take in the connections that have ended; returns their cookies."""
        ended, lost = self._sockets.ended()
        if lost:
            _log.warning("more connections ended at once than the kernel could tell of: some counts are estimates")
            self._lost = True
        self._tally.ended(ended, time.time())
        self._note()
        return {sock.cookie for sock in ended}

    def _heard(self) -> None:
        """The kernel has something to tell."""
        self._know()
        self._hear()
        if self._tally.puzzled or self._lost:
            self._look_in(_SOON)

    def _tick(self) -> None:
        self._look_timer = None
        if self._problem is not None:
            self._problem = None
            self._arrange()
        if self._listening:
            self._look()
        if self._listening and self._metered.idle_timeout:
            self._metered.end_idle(lambda tunnel: self._tally.counts(tunnel).used)
        self._arrange()

    # When to look

    def _arrange(self) -> None:
        """Listen and look again while there are tunnels, and only then."""
        if not len(self._tally):
            self._deafen()
            return
        if not self._listening and self._problem is None:
            self._listen()
        asked = self._loop.time() - self._asked < _ASKED
        seldom = min(_SELDOM, max(_OFTEN / 4, self._metered.idle_timeout / 4 or _SELDOM))
        often = _SOON if self._tally.puzzled else _OFTEN
        self._look_in(often if asked or self._tally.puzzled or self._tally.waiting else seldom)

    @property
    def _is_old(self) -> bool:
        """Whether the last look is so long ago that there may be another."""
        return not self._looked or self._loop.time() - self._looked >= _OFTEN

    def _look_at_no_time(self) -> None:
        if self._look_timer is not None:
            self._look_timer.cancel()
            self._look_timer = None

    def _look_in(self, seconds: float) -> None:
        due = self._loop.time() + seconds
        if self._look_timer is not None:
            if self._look_timer.when() <= due:
                return
            self._look_timer.cancel()
        self._look_timer = self._loop.call_later(seconds, self._tick)

    def _listen(self) -> None:
        try:
            self._fd = self._sockets.open()
        except ScistreamError as problem:
            self._blind(problem)
            return
        self._loop.add_reader(self._fd, self._heard)
        self._look()

    def _deafen(self) -> None:
        self._look_at_no_time()
        if self._listening:
            self._loop.remove_reader(self._fd)
            self._sockets.close()
            self._fd = -1
        self._looked = 0.0
        self._samples.clear()

    def _blind(self, problem: ScistreamError) -> None:
        if str(problem) != self._told:
            self._told = str(problem)
            _log.warning("connections are not counted: %s", problem)
        self._deafen()
        self._problem = problem

    # Which tunnels there are

    def _changed(self, change: Change) -> None:
        if change.kind is ChangeKind.REMOVED:
            # At once: a tunnel with the same UID may be there before the others are looked at.
            self._tally.forget(change.view.id)
            if self._books is not None:
                self._books.delete(change.view.id)
        if self._know_handle is None:
            self._know_handle = self._loop.call_soon(self._know_and_arrange)

    def _know_and_arrange(self) -> None:
        self._know()
        self._arrange()

    def _know(self) -> None:
        """Take in what has changed of the tunnels, once for all changes of a turn of the event loop."""
        if self._know_handle is not None:
            self._know_handle.cancel()
            self._know_handle = None
            self._tally.know(self._metered.ways())
            if self._tally.fresh:
                self._tally.begin(self._read())
                if self._books is not None:
                    self._write_in(_WRITE_FRESH)

    # Rates

    def _bytes(self, tunnel_id: str) -> tuple[int, int]:
        plain = self._tally.counts(tunnel_id).plain
        return plain.bytes_in, plain.bytes_out

    def _with_rates(self, tunnel_id: str) -> Counts:
        return replace(self._tally.counts(tunnel_id), rates=self._rates(tunnel_id))

    def _rates(self, tunnel_id: str) -> Rates:
        """From the newest sample back over each span, or over the next longer time of which there is one."""
        if not self._samples:
            return Rates()
        now, newest = self._samples[-1]
        found = []
        for span in SPANS:
            older = [each for each in self._samples if now - each[0] >= span - _SHORTEST]
            then, before = older[-1] if older else self._samples[0]
            if now - then < _SHORTEST:
                return Rates()
            one, two = newest.get(tunnel_id, (0, 0)), before.get(tunnel_id, (0, 0))
            found.append(tuple(max(0, new - old) / (now - then) for new, old in zip(one, two, strict=True)))
        return Rates(tuple(each[0] for each in found), tuple(each[1] for each in found))

    # Books

    def _resume(self, books: CounterBooks) -> None:
        saved = books.load()
        for tunnel in self._tally:
            if tunnel in saved:
                self._tally.resume(tunnel, saved[tunnel])
            else:
                self._tally.used_now(tunnel, time.time())
        for gone in saved.keys() - set(self._tally):
            books.delete(gone)
        self._lost = True

    def _note(self) -> None:
        """Write down what has changed, before long."""
        if self._books is not None and self._tally.changed:
            self._write_in(_WRITE)

    def _write_in(self, seconds: float) -> None:
        if self._write_timer is not None:
            if self._write_timer.when() <= self._loop.time() + seconds:
                return
            self._write_timer.cancel()
        self._write_timer = self._loop.call_later(seconds, self._write_soon)

    def _write_soon(self) -> None:
        """With what has passed on the listeners until the last look, so that it is known what passes after us."""
        self._write_timer = None
        if self._listening and self._is_old:
            self._look()
            self._arrange()
        self._write()

    def _write(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None
        changed, self._tally.changed = self._tally.changed, set()
        if self._books is None or not changed:
            return
        try:
            self._books.save(self._tally.saved(changed))
        except ScistreamError as problem:
            _log.error("counts are not written down: %s", problem)
            self._tally.changed |= changed
