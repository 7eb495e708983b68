"""Tests of the hop to the inbound gateway: once when an outbound tunnel gets its targets, and when somebody asks."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

from scistreamd.errors import Code, ScistreamError
from scistreamd.hop import Finding
from scistreamd.interfaces import PathTester
from scistreamd.model import Endpoint, Role, Security, State, Uid
from scistreamd.tunnel import Tunnel

# An answer waits for the one try so long at most; a good path takes a few round trips.
TRY_SECONDS = 2.5
ASKED_SECONDS = 5.0
_TRIED_AT_ONCE = 8
_log = logging.getLogger("scistreamd.hop")


class HopTests:
    """What a gateway knows of the hops of its outbound tunnels."""

    def __init__(self, tester: PathTester | None) -> None:
        """``tester`` None: nothing is tried, and asking is UNIMPLEMENTED."""
        self._tester = tester

    async def warnings(self, tunnel: Tunnel) -> tuple[str, ...]:
        """What is wrong on the way to the targets of a tunnel, tried once; empty too where trying proves nothing.

        An inbound tunnel has no hop, and under ``none`` the application would see a connection.
        """
        if self._tester is None or tunnel.role is not Role.CONS or tunnel.security is Security.NONE:
            return ()
        found = await self._each(tunnel, _first(tunnel)[:_TRIED_AT_ONCE], TRY_SECONDS, 0)
        for finding in found:
            _log.info("test of %s: %s", finding.listener, finding.message, extra={"tunnel": tunnel.id})
        return _told(found)

    async def of_tunnel(self, tunnel: Tunnel, throughput: float) -> tuple[Finding, ...]:
        """A test of each target, one after the other; the tunnel's warnings follow.

        ``throughput``: seconds of sending after each, 0: none. Raises FAILED_PRECONDITION
        for a tunnel that has no hop, or none now.
        """
        if tunnel.role is not Role.CONS:
            raise ScistreamError(
                Code.FAILED_PRECONDITION,
                "an inbound tunnel is tested from the outbound gateway",
                "there: s2ctl test, with the tunnel's id or this listener",
            )
        if tunnel.state is not State.ACTIVE:
            raise ScistreamError(Code.FAILED_PRECONDITION, f"the tunnel is {tunnel.state.value}")
        found = [await self.of_path(tunnel.uid, tunnel.security, each, throughput) for each in _first(tunnel)]
        tunnel.hop_warnings = _told(found)
        return tuple(found)

    async def of_path(self, uid: Uid, security: Security, listener: Endpoint, throughput: float) -> Finding:
        """A test of one listener with the keys of this UID."""
        if self._tester is None:
            raise ScistreamError(Code.UNIMPLEMENTED, "this gateway tests no paths")
        return await self._tester.test(uid, security, listener, ASKED_SECONDS, throughput)

    async def _each(
        self, tunnel: Tunnel, listeners: Iterable[Endpoint], seconds: float, throughput: float
    ) -> list[Finding]:
        assert self._tester  # noqa: S101  the callers saw it
        tests = (self._tester.test(tunnel.uid, tunnel.security, each, seconds, throughput) for each in listeners)
        return list(await asyncio.gather(*tests))


def _first(tunnel: Tunnel) -> list[Endpoint]:
    """Where the data server connects to first, for each different target."""
    return list(dict.fromkeys(addresses[0] for addresses in tunnel.addresses))


def _told(found: Iterable[Finding]) -> tuple[str, ...]:
    return tuple(finding.warning for finding in found if finding.warning)
