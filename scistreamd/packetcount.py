"""Counts the packets of listeners by nftables: of UDP, and of all tunnels for the time when no daemon runs.

One hashed look for each packet of the port range, however many tunnels there
are. The rules stay when a daemon with tunnels that outlive it ends, also when it is killed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence

from scistreamd.counts import NOTHING, Passed, Totals
from scistreamd.errors import Code, ScistreamError
from scistreamd.interfaces import Flow
from scistreamd.model import PortRange
from scistreamd.netattributes import attributes
from scistreamd.netlink import NETLINK_NETFILTER, Netlink, Refused
from scistreamd.nftrules import INPUT, OUTPUT, TCP, UDP, Chain, Hook, PortCounts, Rule, Section, count_port, port_key
from scistreamd.nfttable import NftTable, elements

_NAME = "count"
_SIDES = {"in": INPUT, "out": OUTPUT}
# After the host's own filter: only what was let in and out.
_LATE = 300
# Bytes of IP, and of TCP with its timestamps or of UDP.
_HEADERS = {(4, TCP): 52, (6, TCP): 72, (4, UDP): 28, (6, UDP): 48}

_log = logging.getLogger("scistreamd.packetcount")


class PacketCount:
    """`interfaces.Traffic` and `interfaces.Passing`: the part ``count`` of our table, over a range of ports."""

    def __init__(self, table: NftTable, ports: PortRange, *, every: bool) -> None:
        """``every``: count for all tunnels; else for those with UDP, which nothing else counts."""
        self._table = table
        self._ports = ports
        self._every = every
        self._flows: dict[str, tuple[int, ...]] = {}
        self._covered: PortRange | None = None
        self._lock = asyncio.Lock()
        self._kernel: Netlink | None = None
        self._told = False

    def watch(self, say: Callable[[str, tuple[str, ...]], None]) -> None:
        """No warnings come by themselves."""

    async def apply(self, flow: Flow) -> tuple[str, ...]:
        """See `interfaces.Traffic.apply`; where it cannot be, that is a warning."""
        return (await self._set({**self._flows, **self._of([flow])}, [flow])).get(flow.tunnel_id, ())

    async def forget(self, tunnel_id: str) -> None:
        """See `interfaces.Traffic.forget`."""
        if tunnel_id in self._flows:
            await self._set({each: ports for each, ports in self._flows.items() if each != tunnel_id}, [])

    async def reconcile(self, flows: Sequence[Flow]) -> Mapping[str, tuple[str, ...]]:
        """See `interfaces.Traffic.reconcile`."""
        return await self._set(self._of(flows), flows)

    async def close(self) -> None:
        """See `interfaces.Traffic.close`; `read` goes on."""

    def disconnect(self) -> None:
        """Needed no more."""
        if self._kernel is not None:
            self._kernel.close()

    def _of(self, flows: Iterable[Flow]) -> dict[str, tuple[int, ...]]:
        """The ports of those that there is something to count of."""
        return {
            flow.tunnel_id: tuple(bind.endpoint.port for bind in flow.binds)
            for flow in flows
            if flow.binds and (self._every or _has_udp(flow))
        }

    async def _set(self, wanted: dict[str, tuple[int, ...]], needy: Sequence[Flow]) -> Mapping[str, tuple[str, ...]]:
        """Have rules for the ``wanted``; warnings for the ``needy``."""
        async with self._lock:
            self._flows = wanted
            ports = _hull(self._ports, [port for ports in wanted.values() for port in ports])
            try:
                if ports != self._covered or not wanted:
                    await self._table.replace(section(ports))
                    self._covered = ports
            except ScistreamError as problem:
                if self._every and wanted and not self._told:
                    self._told = True
                    _log.warning("what tunnels carry while scistreamd is not there is not counted: %s", problem)
                return {flow.tunnel_id: (f"UDP is not counted: {problem.message}",) for flow in needy if _has_udp(flow)}
        return {}

    def read(self) -> Passed:
        """See `interfaces.Passing.read`."""
        if self._covered is None:
            return {}
        try:
            if self._kernel is None:
                self._kernel = Netlink(NETLINK_NETFILTER)
            return _read(self._kernel, self._table.name)
        except Refused as problem:
            raise ScistreamError(Code.UNAVAILABLE, f"nftables: {problem.strerror}") from problem


def _has_udp(flow: Flow) -> bool:
    return any(bind.udp for bind in flow.binds)


def _hull(ports: PortRange, more: Sequence[int]) -> PortRange | None:
    """The range with all of these; None where there are none."""
    return PortRange(min(ports.first, *more), max(ports.last, *more)) if more else None


def _read(kernel: Netlink, table: str) -> Passed:
    found: dict[tuple[int, bool], Totals] = {}
    for side in _SIDES:
        # Once each: a table that grows meanwhile may tell of one twice.
        for key, element in dict(elements(kernel, table, f"{_NAME}-{side}")).items():
            version, protocol, port = port_key(key)
            # NFTA_SET_ELEM_EXPR; of it NFTA_EXPR_DATA; of that NFTA_COUNTER_BYTES and NFTA_COUNTER_PACKETS
            counter = dict(attributes(dict(attributes(element[7]))[2]))
            size, packets = (int.from_bytes(counter[each], "big") for each in (1, 2))
            payload = max(0, size - packets * _HEADERS[version, protocol])
            more = Totals(payload, 0, packets, 0) if side == "in" else Totals(0, payload, 0, packets)
            at = port, protocol == UDP
            found[at] = found.get(at, NOTHING).plus(more)
    return found


def section(ports: PortRange | None) -> Section:
    """The rules; None: none."""
    if ports is None:
        return Section(_NAME)
    chains = []
    for side, hook in _SIDES.items():
        name = f"{_NAME}-{side}"
        rules = (Rule(count_port(name, each, ports, source=side == "out")) for each in (TCP, UDP))
        chains.append(Chain(name, tuple(rules), Hook(hook, _LATE)))
    return Section(_NAME, tuple(chains), tuple(PortCounts(f"{_NAME}-{side}") for side in _SIDES))
