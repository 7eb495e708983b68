"""Builds what the kernel's network does for tunnels."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import AsyncIterator
from pathlib import Path

from scistreamd.config import FirewallMode, Settings
from scistreamd.firewall import Firewall
from scistreamd.firewalld import Firewalld
from scistreamd.guard import Guard
from scistreamd.interfaces import Traffic
from scistreamd.nfttable import NftTable
from scistreamd.packetcount import PacketCount
from scistreamd.rates import Rates

_TABLE = "scistream"


@contextlib.asynccontextmanager
async def kernel_traffic(
    settings: Settings, *, lasting: bool, runtime: Path | None = None
) -> AsyncIterator[tuple[Traffic, ...]]:
    """The parts, in the order of asking, until the daemon ends.

    ``lasting``: whether what they did outlives the daemon, as its tunnels do.
    A host has one such daemon, and as many others as there are. ``runtime``:
    where that one keeps what undoes its work when a tunnel ends without it.
    """
    table = NftTable(_TABLE if lasting else f"{_TABLE}-{secrets.token_hex(4)}", lasting=lasting)
    count = PacketCount(table, settings.port_range, every=lasting)
    try:
        firewalld = Firewalld(settings.port_range, runtime) if settings.firewall is FirewallMode.MANAGE else None
        # The firewall last: it may refuse, and opens what the others guard by then.
        yield Guard(table), Rates(table), count, Firewall(settings.firewall, settings.port_range, firewalld)
    finally:
        count.disconnect()
        await table.close()
