"""Tunnels that are released and let their streams end by themselves first."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from scistreamd.errors import Code, ScistreamError
from scistreamd.flows import Flows
from scistreamd.interfaces import Held
from scistreamd.registry import Registry
from scistreamd.tunnel import Tunnel

_SOON = 0.1
_log = logging.getLogger("scistreamd.manager")


class Drains:
    """The drains of one gateway."""

    def __init__(self, registry: Registry, flows: Flows) -> None:
        self._registry = registry
        self._flows = flows
        self._stopping = asyncio.Event()
        self._running: dict[str, asyncio.Task[None]] = {}

    async def drain(self, tunnel: Tunnel, held: Held, note: Callable[[Tunnel], None] | None) -> None:
        """Return when the tunnel's streams have ended, or `Tunnel.drain` seconds have passed.

        ``note`` writes the tunnel down where it outlives the daemon. UNAVAILABLE where the
        daemon stops before: the next one goes on with it.
        """
        if note is not None:
            await self._bequeath(tunnel, held, note)
            await self._flows.shut(tunnel)  # a socket unit listens on
        steps = asyncio.create_task(held.drain(tunnel.drain)), asyncio.create_task(self._stopping.wait())
        self._running[tunnel.id] = steps[0]
        await asyncio.wait(steps, return_when=asyncio.FIRST_COMPLETED)
        for each in steps:
            each.cancel()
        drained, _ = await asyncio.gather(*steps, return_exceptions=True)
        del self._running[tunnel.id]
        if isinstance(drained, Exception):
            _log.error("its streams end at once", exc_info=drained, extra={"tunnel": tunnel.id})
        if note is not None and self._stopping.is_set():
            raise ScistreamError(
                Code.UNAVAILABLE,
                f"scistreamd stops; tunnel {tunnel.id} ends when it has drained",
                "it need not be released again",
            )

    async def _bequeath(self, tunnel: Tunnel, held: Held, note: Callable[[Tunnel], None]) -> None:
        """Whatever becomes of this daemon, the tunnel is released, and ends in time."""
        until = time.time() + tunnel.drain
        tunnel.expires = min(until, tunnel.expires or until)
        try:
            await held.limit(max(_SOON, tunnel.expires - time.time()))
            note(tunnel)
        except Exception as problem:
            _log.warning("drains as long as this daemon runs: %s", problem, extra={"tunnel": tunnel.id})

    async def cut_short(self, tunnel: Tunnel) -> bool:
        """End a tunnel that drains now; False where it does not."""
        drain = self._running.get(tunnel.id)
        if drain is None:
            return False
        gone = asyncio.Event()
        unwatch = self._registry.watch(
            lambda change: gone.set() if self._registry.get(tunnel.id) is not tunnel else None
        )
        try:
            drain.cancel()
            await gone.wait()
        finally:
            unwatch()
        return True

    def hurry(self) -> None:
        """The daemon is about to end: wait for no drain any more."""
        self._stopping.set()
