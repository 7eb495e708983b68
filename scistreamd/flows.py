"""What the kernel's network does for tunnels, part by part: asked for in order, undone where one of them cannot."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from scistreamd.errors import Code, ScistreamError
from scistreamd.interfaces import Doorkeeper, FirewallJudge, Flow, Traffic
from scistreamd.model import Endpoint
from scistreamd.plans import Bind
from scistreamd.tunnel import Tunnel

_log = logging.getLogger("scistreamd.flows")


class Flows:
    """The parts of the kernel's network that tunnels go through, as one."""

    def __init__(
        self, parts: Sequence[Traffic], guarded: Callable[[Tunnel], bool], changed: Callable[[Tunnel], None]
    ) -> None:
        """``guarded``: whether launcher or data server keep out who may not connect to the tunnel;
        ``changed`` is called with a tunnel whose warnings have changed by themselves."""
        self._parts = tuple(parts)
        self._guarded = guarded
        self._changed = changed
        self._known: dict[str, Tunnel] = {}
        self._applied: dict[str, Flow] = {}
        for number, part in enumerate(self._parts):
            part.watch(functools.partial(self._warned, number))

    async def apply(self, tunnel: Tunnel, *, binds: Sequence[Bind] | None = None, rate: int | None = None) -> None:
        """Have every part do what the tunnel asks for now; with other ``binds`` or another ``rate`` where given.

        Raises ScistreamError where one cannot; then all are as they were.
        """
        if not self._parts:
            if rate or tunnel.rate:
                raise ScistreamError(Code.UNIMPLEMENTED, "rate: nothing here can enforce it", "leave the rate out")
            return
        flow = await self._flow(tunnel)
        flow = replace(
            flow, binds=flow.binds if binds is None else tuple(binds), rate=flow.rate if rate is None else rate
        )
        before = self._applied.get(tunnel.id)
        if flow == before:
            return
        self._known[tunnel.id] = tunnel
        warnings: list[tuple[str, ...]] = []
        try:
            for part in self._parts:
                warnings.append(await part.apply(flow))
        except BaseException:
            for part in reversed(self._parts[: len(warnings) + 1]):
                await (part.apply(before) if before else part.forget(tunnel.id))
            raise
        self._applied[tunnel.id] = flow
        for number, said in enumerate(warnings):
            self._note(tunnel, number, said)

    async def shut(self, tunnel: Tunnel) -> None:
        """The tunnel drains: refuse new connections from now on; where the kernel cannot, that is a line in the log."""
        self._known.pop(tunnel.id, None)  # the firewall's judge would warn of what is done here
        try:
            for part in self._parts:
                if isinstance(part, Doorkeeper):
                    await part.shut(await self._flow(tunnel))
        except ScistreamError as problem:
            _log.warning("takes new streams while it drains: %s", problem.message, extra={"tunnel": tunnel.id})

    async def forget(self, tunnel: Tunnel) -> None:
        """The tunnel has ended."""
        self._known.pop(tunnel.id, None)
        self._applied.pop(tunnel.id, None)
        for part in reversed(self._parts):
            await part.forget(tunnel.id)

    async def reconcile(self, tunnels: Iterable[Tunnel]) -> None:
        """After a restart: have the network do what these ask for, and nothing for others."""
        self._known = {tunnel.id: tunnel for tunnel in tunnels}
        # At once: each asks systemd for the user of its data server.
        flows = await asyncio.gather(*map(self._flow, self._known.values()))
        self._applied = {flow.tunnel_id: flow for flow in flows}
        for number, part in enumerate(self._parts):
            for tunnel_id, said in (await part.reconcile(tuple(self._applied.values()))).items():
                self._note(self._known[tunnel_id], number, said)

    async def verdicts(self, listeners: Sequence[Endpoint]) -> list[tuple[str, str]]:
        """As `interfaces.FirewallJudge` has it; none where no part knows."""
        for part in self._parts:
            if isinstance(part, FirewallJudge):
                return await part.verdicts(listeners)
        return []

    async def close(self) -> None:
        """The daemon ends; what outlives it stays as it is."""
        for part in reversed(self._parts):
            await part.close()

    async def _flow(self, tunnel: Tunnel) -> Flow:
        return Flow(
            tunnel.id,
            tunnel.role,
            tunnel.binds,
            targets=tuple(dict.fromkeys(each for of_one in tunnel.addresses for each in of_one)),
            rate=tunnel.rate,
            allow_from=tunnel.options.allow_from,
            guarded=self._guarded(tunnel),
            user=await tunnel.held.user() if tunnel.held is not None else None,
        )

    def _warned(self, number: int, tunnel_id: str, said: tuple[str, ...]) -> None:
        tunnel = self._known.get(tunnel_id)
        if tunnel is not None and tunnel.traffic_warnings.get(number, ()) != said:
            self._note(tunnel, number, said)
            self._changed(tunnel)

    @staticmethod
    def _note(tunnel: Tunnel, number: int, said: tuple[str, ...]) -> None:
        before = tunnel.traffic_warnings.get(number, ())
        for warning in [each for each in said if each not in before]:
            _log.warning("%s", warning, extra={"tunnel": tunnel.id})
        tunnel.traffic_warnings[number] = said
