"""Counts packets by nftables while no daemon runs that could ask sock_diag; `interfaces.Passing`.

The rules are made when the daemon ends and taken away by the next one, so that
they cost nothing while it runs. Ports are found in two steps, for each packet
of the host goes through the first one.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

from scistreamd.counts import NOTHING, Totals
from scistreamd.interfaces import Bind
from scistreamd.legs import Way
from scistreamd.nftrules import (
    INPUT,
    MANGLE,
    OUTPUT,
    Chain,
    Hook,
    Rule,
    Section,
    back_from,
    count,
    family,
    go_to,
    port_at_most,
    towards,
)
from scistreamd.nfttable import NftTable

_NAME = "count"
_TOGETHER = 24  # listeners whose rules a packet goes through one after the other
_HEADERS = {4: 52, 6: 72}  # bytes of IP and of TCP with its timestamps


class PacketCount:
    """The part ``count`` of our table."""

    def __init__(self, table: NftTable) -> None:
        self._table = table

    async def begin(self, ways: Iterable[Way]) -> None:
        """Count what passes on the listeners from now on; ScistreamError where that cannot be."""
        await self._table.replace(section(list(ways)))

    async def finish(self) -> dict[str, Totals]:
        """What has passed since `begin`, by tunnel id: the payload of TCP. Nothing where nothing was begun."""
        found: dict[str, Totals] = {}
        if not await self._table.exists():
            return found
        for name, (packets, size) in (await self._table.counters()).items():
            section_name, _, rest = name.partition("-")
            if section_name == _NAME:
                tunnel, way, version = rest.split("-")
                payload = max(0, size - packets * _HEADERS[int(version)])
                more = Totals(payload, 0, packets, 0) if way == "in" else Totals(0, payload, 0, packets)
                found[tunnel] = found.get(tunnel, NOTHING).plus(more)
        await self._table.replace(Section(_NAME))
        return found


def section(ways: Sequence[Way]) -> Section:
    """The rules: a chain for each direction that finds the chain of a port's neighbourhood."""
    listeners = sorted(((each.port, way, each) for way in ways for each in way.listeners), key=lambda found: found[0])
    if not listeners:
        return Section(_NAME)
    groups = [listeners[first : first + _TOGETHER] for first in range(0, len(listeners), _TOGETHER)]
    counters = [
        f"{_NAME}-{each}-{side}-{version}"
        for each in {way.id for _, way, _ in listeners}
        for side in ("in", "out")
        for version in (4, 6)
    ]
    chains = []
    for side, hook, source in (("in", INPUT, False), ("out", OUTPUT, True)):
        finds = tuple(
            Rule((*port_at_most(group[-1][0], source=source), *go_to(f"{_NAME}-{side}-{number}")))
            for number, group in enumerate(groups)
        )
        chains.append(Chain(f"{_NAME}-{side}", finds, Hook(hook, MANGLE)))
        for number, group in enumerate(groups):
            rules = itertools.chain.from_iterable(_rules(way, Bind(each), side) for _, way, each in group)
            chains.append(Chain(f"{_NAME}-{side}-{number}", tuple(rules)))
    return Section(_NAME, tuple(chains), counters=tuple(counters))


def _rules(way: Way, bind: Bind, side: str) -> list[Rule]:
    of = back_from(bind) if side == "out" else towards(bind)
    return [
        Rule((*match, *family(version), *count(f"{_NAME}-{way.id}-{side}-{version}")), f"tunnel {way.id}")
        for match in of
        for version in (4, 6)
    ]
