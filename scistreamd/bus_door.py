"""D-Bus as `daemon.Plugged` takes it: the connection, polkit and the front door, joined."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable
from pathlib import Path

from scistreamd import names, sockets
from scistreamd.bus import Bus
from scistreamd.bus_api import BusApi
from scistreamd.bus_messages import Call, CallError, Reply
from scistreamd.bus_needs import Host
from scistreamd.errors import Code, ScistreamError
from scistreamd.gate import Gate
from scistreamd.interfaces import Counters, PortsBusy
from scistreamd.manager import Manager
from scistreamd.model import Endpoint, IPAddress
from scistreamd.plans import Bind

_GRACE = 5.0  # seconds for calls that are under way when the daemon stops


def interface_xml() -> str:
    """The text of dbus/org.scistream.scistreamd1.xml, from the source tree or from where it is installed."""
    file = f"{names.SERVICE}.xml"
    installed = Path("share") / "dbus-1" / "interfaces" / file
    source = Path(__file__).parent.parent / "dbus" / file
    for path in (source, Path(sys.prefix) / installed, Path("/usr") / installed):
        with contextlib.suppress(FileNotFoundError):
            return path.read_text(encoding="utf-8")
    raise ScistreamError(Code.FAILED_PRECONDITION, f"{file} is not installed", "install scistreamd anew")


class BusDoor:
    """The way in by D-Bus, over one manager and gate; a `daemon.FrontDoor`."""

    def __init__(
        self,
        bus: Bus,
        manager: Manager,
        gate: Gate,
        reload: Callable[[], None],
        any_address: IPAddress,
        *,
        counters: Counters,
    ) -> None:
        """``bus``: not serving yet; `Polkit` may use the same. ``any_address``: as for `Manager`."""
        self._bus = bus
        self._gate = gate
        self._any_address = any_address
        host = Host(lambda: gate.settings, self._busy, counters, reload)
        self._api = BusApi(bus, manager, gate, host, interface_xml())
        self._decided = asyncio.Event()
        self._serving = False

    async def open(self) -> None:
        """Own the name; calls wait for `serve`. ScistreamError where the bus does not let us."""
        await self._bus.serve(self._answer)

    def serve(self) -> None:
        """Answer the calls that wait, and all others."""
        self._serving = True
        self._api.start()
        self._decided.set()

    async def close(self) -> None:
        """Take no new call, let those that came finish, and be gone."""
        self._decided.set()
        await self._bus.close(_GRACE)
        self._api.stop()

    async def _answer(self, call: Call) -> Reply:
        await self._decided.wait()
        if not self._serving:
            raise CallError(names.error_name(Code.UNAVAILABLE), "scistreamd ends before it has served")
        return await self._api.answer(call)

    def settings_changed(self) -> None:
        """Tell of the gateway's properties after a reload."""
        self._api.settings_changed()

    def _busy(self, port: int) -> str:
        """Why no inbound listener could have the port now: by trying."""
        address = self._gate.settings.listen_inbound or self._any_address
        try:
            probes = sockets.hold([Bind(Endpoint(address, port))], keepalive_idle=60)
        except PortsBusy as busy:
            return busy.reason
        except ScistreamError as problem:
            return str(problem)
        for probe in probes:
            probe.close()
        return ""
