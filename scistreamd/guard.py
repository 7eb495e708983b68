"""Who may connect to a tunnel's listeners: `allow-from`, and nobody while it drains, by our own table of nftables."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from scistreamd.errors import ScistreamError
from scistreamd.interfaces import Flow
from scistreamd.nftrules import (
    FILTER,
    INPUT,
    Chain,
    Hook,
    Rule,
    Section,
    accept,
    go_to,
    opens_no_connection,
    prohibit,
    reset,
    source,
    towards,
)
from scistreamd.nfttable import NftTable

_NAME = "guard"
# Before the host's own filter, so that this counts and logs only what may come in.
_HOOK = Hook(INPUT, FILTER - 10)

_log = logging.getLogger("scistreamd.guard")


class Guard:
    """`interfaces.Traffic`: refuses a connection before anything of it reaches the data server.

    Where nftables cannot be had, tunnels whose launcher or data server do the
    same are made all the same; others are refused.
    """

    def __init__(self, table: NftTable) -> None:
        self._table = table
        self._flows: dict[str, Flow] = {}
        self._lock = asyncio.Lock()
        self._told = False

    def watch(self, say: Callable[[str, tuple[str, ...]], None]) -> None:
        """No warnings come by themselves."""

    async def apply(self, flow: Flow) -> tuple[str, ...]:
        """See `interfaces.Traffic.apply`."""
        async with self._lock:
            before = self._flows.get(flow.tunnel_id)
            if _what(flow) != _what(before):
                others = {each: self._flows[each] for each in self._flows if each != flow.tunnel_id}
                await self._set(others | ({flow.tunnel_id: flow} if _what(flow) else {}), [flow])
        return ()

    async def shut(self, flow: Flow) -> None:
        """See `interfaces.Doorkeeper`."""
        await self.apply(replace(flow, shut=True))

    async def forget(self, tunnel_id: str) -> None:
        """See `interfaces.Traffic.forget`."""
        async with self._lock:
            if tunnel_id in self._flows:
                await self._set({each: self._flows[each] for each in self._flows if each != tunnel_id}, [])

    async def reconcile(self, flows: Sequence[Flow]) -> Mapping[str, tuple[str, ...]]:
        """See `interfaces.Traffic.reconcile`."""
        async with self._lock:
            wanted = {flow.tunnel_id: flow for flow in flows if _what(flow)}
            try:
                await self._set(wanted, list(wanted.values()))
            except ScistreamError as problem:
                bare = [flow.tunnel_id for flow in wanted.values() if not flow.guarded]
                return dict.fromkeys(bare, (f"who may connect is not enforced: {problem.message}",))
        return {}

    async def close(self) -> None:
        """See `interfaces.Traffic.close`."""

    async def _set(self, wanted: dict[str, Flow], needy: Sequence[Flow]) -> None:
        """Have rules for the wanted; raises where there can be none and one of the ``needy`` is not guarded."""
        try:
            await self._table.replace(section(wanted.values()))
        except ScistreamError as problem:
            if any(flow.shut for flow in needy):
                raise
            if any(_what(flow) and not flow.guarded for flow in needy):
                raise ScistreamError(
                    problem.code,
                    f"allow-from: this data server type refuses nobody by itself, and {problem.message}",
                    f"{problem.hint}; or ask for Haproxy or Nginx",
                ) from problem
            if wanted and not self._told:
                self._told = True
                _log.info("allow-from is left to listeners and data servers: %s", problem.message)
            return
        self._flows = wanted


def _what(flow: Flow | None) -> object:
    """What there is to do for the flow: None where everyone may connect."""
    if flow is None or not flow.binds or not (flow.allow_from or flow.shut):
        return None
    return flow.binds, flow.allow_from, flow.shut


def section(flows: Iterable[Flow]) -> Section:
    """The rules: a connection to a listener goes through its tunnel's chain, which ends in a refusal."""
    known = sorted(flows, key=lambda flow: flow.tunnel_id)
    if not known:
        return Section(_NAME)
    first = Rule((*opens_no_connection(), *accept()), "connections that exist")
    ways = tuple(
        Rule((*each, *go_to(_chain(flow))), f"tunnel {flow.tunnel_id}")
        for flow in known
        for bind in flow.binds
        for each in towards(bind)
    )
    return Section(_NAME, (Chain(_NAME, (first, *ways), _HOOK), *(Chain(_chain(each), _who(each)) for each in known)))


def _chain(flow: Flow) -> str:
    return f"{_NAME}-{flow.tunnel_id}"


def _who(flow: Flow) -> tuple[Rule, ...]:
    networks = () if flow.shut else flow.allow_from
    allowed = tuple(Rule((*source(network), *accept())) for network in networks)
    return *allowed, Rule(reset()), Rule(prohibit())
