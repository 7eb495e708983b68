"""Judgements of many listeners: what a ruleset does is worked out once for all that it does not tell apart."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import replace

from scistreamd.model import Endpoint, IPNetwork, PortRange
from scistreamd.nft.cuts import cuts
from scistreamd.nft.evaluate import Action, Outcome, evaluate
from scistreamd.nft.host import Host, everybody
from scistreamd.nft.judgement import Judgement, judge
from scistreamd.nft.packet import Arrival
from scistreamd.nft.ruleset import Ruleset


class Judge:
    """As `judgement.judge`, by one ruleset on one host."""

    def __init__(self, ruleset: Ruleset, host: Host) -> None:
        self.ruleset = ruleset
        self.host = host
        self._cuts = cuts(ruleset)
        self._outcomes: dict[Arrival, tuple[Outcome, ...]] = {}
        self._verdicts: dict[object, Judgement] = {}

    def judge(
        self, listener: Endpoint, allow_from: Sequence[IPNetwork], ports: PortRange | None = None, *, udp: bool = False
    ) -> Judgement:
        """See `judgement.judge`."""
        # Without ports it tells how to open the listener's own.
        where = self._part(listener) if ports is not None else listener
        key = where, tuple(allow_from), ports, udp
        if key not in self._verdicts:
            self._verdicts[key] = judge(
                self.ruleset, self.host, listener, allow_from, ports, udp=udp, evaluated=self._evaluated
            )
        return self._verdicts[key]

    def _evaluated(self, arrival: Arrival) -> tuple[Outcome, ...]:
        """What becomes of everybody who comes that way, as far as those are among them."""
        shared = [
            replace(each, sources=each.sources & arrival.sources)
            for each in self._shared(everybody(self.host, arrival))
        ]
        found = tuple(each for each in shared if each.sources)
        # Why a verdict is unknown is told once for all of them, and may be about others.
        if any(each.action is Action.UNKNOWN for each in found):
            return self._shared(arrival)
        return found

    def _shared(self, arrival: Arrival) -> tuple[Outcome, ...]:
        key = replace(arrival, target=self._part(arrival.target))
        if key not in self._outcomes:
            self._outcomes[key] = evaluate(self.ruleset, arrival)
        return self._outcomes[key]

    def _part(self, listener: Endpoint) -> Endpoint:
        """One for all whose ports are between the same cuts."""
        if self._cuts is None:
            return listener
        return Endpoint(listener.address, bisect.bisect_right(self._cuts, listener.port))
