"""The host's firewall: whether it lets peers in to tunnels, asked when they are made and when it changes."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from scistreamd.config import FirewallMode
from scistreamd.errors import Code, ScistreamError
from scistreamd.firewalld import Firewalld
from scistreamd.interfaces import Flow
from scistreamd.model import Endpoint, IPNetwork, PortRange, Role
from scistreamd.nft.host import Host
from scistreamd.nft.judgement import Judgement
from scistreamd.nft.ruleset import Ruleset
from scistreamd.nft.shared import Judge
from scistreamd.nft_dump import RulesetReader
from scistreamd.plans import Bind

_T = TypeVar("_T")
_SECONDS_BETWEEN_LOOKS = 10.0
# A start waits this long for verdicts on the tunnels that there are; of a big ruleset they come later.
_START_SECONDS, _AT_ONCE = 0.5, 20
_HOST_SECONDS = 2.0  # how long a look at interfaces and routes is good for
_NOT_OPENED = (
    'firewall = "manage" opens firewalld alone, which does not run here, and a rule of ours undoes no other table\'s'
)
_log = logging.getLogger("scistreamd.firewall")

Said = Callable[[str, tuple[str, ...]], None]


class Firewall:
    """`interfaces.Traffic`: warns of listeners that the firewall blocks, refuses them or opens it, as configured."""

    def __init__(self, mode: FirewallMode, ports: PortRange, firewalld: Firewalld | None) -> None:
        """``ports``: what a cure should open; ``firewalld``: for `FirewallMode.MANAGE`."""
        self._mode = mode
        self._ports = ports
        self._firewalld = firewalld if mode is FirewallMode.MANAGE else None
        # One thread: reading and judging big rulesets takes long, and must not stall the event loop.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="firewall")
        self._reader: RulesetReader | None = None
        self._judge, self._looked = Judge(Ruleset(), Host((), ())), 0.0
        self._flows: dict[str, Flow] = {}
        self._problems: dict[str, tuple[str, ...]] = {}  # of opening it
        self._say: Said = lambda _id, _warnings: None
        self._watcher: asyncio.Task[None] | None = None
        self._judging: asyncio.Task[dict[str, tuple[str, ...]]] | None = None

    def watch(self, say: Said) -> None:
        """See `interfaces.Traffic.watch`."""
        self._say = say

    async def apply(self, flow: Flow) -> tuple[str, ...]:
        """See `interfaces.Traffic.apply`; FAILED_PRECONDITION where a firewall must let peers in and does not."""
        # The ports of an outbound tunnel are not settled before it has targets; while it waits for them here, others
        # would not get what it holds and does not want.
        if self._mode is FirewallMode.OFF or (flow.role is Role.CONS and not flow.targets):
            return ()
        before = self._flows.get(flow.tunnel_id)
        if self._firewalld is not None and (before is None or _what(before) != _what(flow)):
            self._problems[flow.tunnel_id] = await self._firewalld.open(flow)
        warnings = await self._warnings(flow, refuse=self._mode is FirewallMode.REQUIRE)
        self._flows[flow.tunnel_id] = flow
        self._begin()
        return warnings

    async def forget(self, tunnel_id: str) -> None:
        """See `interfaces.Traffic.forget`."""
        self._flows.pop(tunnel_id, None)
        self._problems.pop(tunnel_id, None)
        if self._firewalld is not None:
            await self._firewalld.close_tunnel(tunnel_id)

    async def reconcile(self, flows: Sequence[Flow]) -> Mapping[str, tuple[str, ...]]:
        """See `interfaces.Traffic.reconcile`."""
        if self._mode is FirewallMode.OFF:
            return {}
        self._flows = {flow.tunnel_id: flow for flow in flows}
        if self._firewalld is not None:
            problems = await self._firewalld.reconcile(flows)
            self._problems = {flow.tunnel_id: problems for flow in flows if problems}
        self._judging = asyncio.create_task(self._every_warning(flows), name="judge tunnels")
        done, _ = await asyncio.wait([self._judging], timeout=_START_SECONDS)
        self._begin(None if done else self._judging)
        return self._judging.result() if done else {}

    async def _every_warning(self, flows: Sequence[Flow]) -> dict[str, tuple[str, ...]]:
        told = {}
        for at in range(0, len(flows), _AT_ONCE):
            # Some in one go: hundreds of tunnels would each wait for the thread.
            some = flows[at : at + _AT_ONCE]
            judged = await self._run(lambda some=some: [self._judged(flow.binds, flow.allow_from) for flow in some])
            told.update({flow.tunnel_id: self._told(flow, each) for flow, each in zip(some, judged, strict=True)})
        return told

    async def close(self) -> None:
        """See `interfaces.Traffic.close`."""
        for task in (self._watcher, self._judging):
            if task is not None:
                task.cancel()
                await asyncio.wait([task])
        if self._firewalld is not None:
            await self._firewalld.close()
        await self._run(self._close_reader)
        self._thread.shutdown()

    async def verdicts(self, listeners: Sequence[Endpoint]) -> list[tuple[str, str]]:
        """See `interfaces.FirewallJudge`."""
        if self._mode is FirewallMode.OFF:
            return []
        judged = await self._run(self._judged, [Bind(each) for each in listeners], ())
        return [(each.verdict, self._said(each)) for each in judged]

    def _said(self, each: Judgement) -> str:
        hint = self._hint(each)
        return each.short() + (f" ({hint})" if hint and each.blocked else "")

    # Warnings

    async def _warnings(self, flow: Flow, *, refuse: bool = False) -> tuple[str, ...]:
        return self._told(flow, await self._run(self._judged, flow.binds, flow.allow_from), refuse=refuse)

    def _told(self, flow: Flow, judged: Sequence[Judgement], *, refuse: bool = False) -> tuple[str, ...]:
        said = dict.fromkeys(self._problems.get(flow.tunnel_id, ()))
        for bind, each in zip(flow.binds, judged, strict=True):
            if each.blocked and refuse:
                raise ScistreamError(Code.FAILED_PRECONDITION, each.text(bind.endpoint), self._hint(each))
            if each.blocked:
                hint = self._hint(each)
                said[each.text(bind.endpoint) + (f" ({hint})" if hint else "")] = None
            elif each.verdict == "unknown":
                hint = self._hint(each)
                text = each.text(bind.endpoint) + (f" ({hint})" if hint else "")
                # Who asked for more than a look must hear that nothing is certain.
                if self._mode is not FirewallMode.CHECK:
                    said[text] = None
                _log.info("%s", text, extra={"tunnel": flow.tunnel_id})
        return tuple(said)

    def _hint(self, each: Judgement) -> str:
        hint = f"`{each.cure}` lets them in" if each.cure else ""
        if self._mode is FirewallMode.MANAGE and (self._firewalld is None or not self._firewalld.runs):
            return f"{_NOT_OPENED}; {hint}" if hint else _NOT_OPENED
        return hint

    # In the thread

    async def _run(self, work: Callable[..., _T], *arguments: object) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)

    def _judged(self, binds: Sequence[Bind], allow_from: Sequence[IPNetwork]) -> list[Judgement]:
        try:
            self._look()
        except ScistreamError as problem:
            return [Judgement("unknown", why=str(problem)) for _ in binds]
        return [self._one(bind, tuple(allow_from)) for bind in binds]

    def _look(self) -> None:
        """Read what has changed; what was judged by it before is forgotten."""
        if self._reader is None:
            self._reader = RulesetReader()
        ruleset, now, before = self._reader.ruleset(), time.monotonic(), self._judge
        if ruleset != before.ruleset or now > self._looked + _HOST_SECONDS:
            from scistreamd import host_view  # noqa: PLC0415  pyroute2 takes a third of a second

            # A host without rules, as most are, needs no look at its routes.
            host = host_view.look() if ruleset.filters else Host((), ())
            self._looked = now
            if (ruleset, host) != (before.ruleset, before.host):
                self._judge = Judge(ruleset, host)

    def _one(self, bind: Bind, allow_from: tuple[IPNetwork, ...]) -> Judgement:
        if not self._judge.ruleset.filters:
            return Judgement("accept")
        ports = self._ports if self._ports.first <= bind.endpoint.port <= self._ports.last else None
        return self._judge.judge(bind.endpoint, allow_from, ports, udp=bind.udp)

    def _generation(self) -> int:
        try:
            return self._reader.generation() if self._reader is not None else 0
        except ScistreamError:
            return 0

    def _close_reader(self) -> None:
        if self._reader is not None:
            self._reader.close()

    # When the firewall changes

    def _begin(self, judging: asyncio.Task[dict[str, tuple[str, ...]]] | None = None) -> None:
        """``judging``: what is to be said later, of the tunnels that there were at the start."""
        if self._watcher is None:
            self._watcher = asyncio.create_task(self._watch(judging), name="firewall watch")

    async def _watch(self, judging: asyncio.Task[dict[str, tuple[str, ...]]] | None) -> None:
        """Judge all tunnels again when somebody has changed the rules."""
        seen = await self._run(self._generation)
        if judging is not None:
            for tunnel_id, warnings in (await judging).items():
                if tunnel_id in self._flows:
                    self._say(tunnel_id, warnings)
        while True:
            await asyncio.sleep(_SECONDS_BETWEEN_LOOKS)
            now = await self._run(self._generation) if self._flows else seen
            if now == seen:
                continue
            seen = now
            for flow in list(self._flows.values()):
                warnings = await self._warnings(flow)
                if flow.tunnel_id in self._flows:
                    self._say(flow.tunnel_id, warnings)


def _what(flow: Flow) -> object:
    return flow.binds, flow.allow_from
