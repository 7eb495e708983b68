"""Tells the bus of every change of a tunnel and of the gateway, whichever front door made it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

from scistreamd import bus_view, names
from scistreamd.bus_messages import Connection, Signal, Typed
from scistreamd.bus_view import Properties
from scistreamd.model import Change, ChangeKind, TunnelView


class Announcer:
    """Keeps what was told last, and emits what differs from it."""

    def __init__(self, bus: Connection, gateway: Callable[[], Properties]) -> None:
        """``gateway`` gives the properties of the gateway as they are now."""
        self._bus = bus
        self._gateway = gateway
        self._told_of_gateway: Properties = {}
        self._told: dict[str, Properties] = {}
        self._due: asyncio.Handle | None = None

    def start(self, views: Iterable[TunnelView]) -> None:
        """Take these tunnels and the gateway as known: nobody is told of them."""
        self._told = {view.id: bus_view.tunnel(view) for view in views}
        self._told_of_gateway = self._gateway()

    @property
    def tunnels(self) -> int:
        """How many tunnels the bus knows of."""
        return len(self._told)

    def stop(self) -> None:
        """Emit nothing more."""
        if self._due:
            self._due.cancel()
            self._due = None

    def see(self, change: Change) -> None:
        """Tell of one change."""
        view = change.view
        path, now = names.tunnel_path(view.id), bus_view.tunnel(view)
        if change.kind is ChangeKind.REMOVED:
            self._told.pop(view.id, None)
            self._emit(names.ROOT, names.MANAGER, "TunnelRemoved", "so", view.id, path)
            self._emit(names.ROOT, names.OBJECT_MANAGER, "InterfacesRemoved", "oas", path, [names.TUNNEL])
        elif view.id not in self._told:
            self._emit(names.ROOT, names.OBJECT_MANAGER, "InterfacesAdded", "oa{sa{sv}}", path, {names.TUNNEL: now})
            self._emit(names.ROOT, names.MANAGER, "TunnelAdded", "so", view.id, path)
            self._told[view.id] = now
        else:
            self._differences(path, names.TUNNEL, self._told[view.id], now)
            self._told[view.id] = now
        self.gateway_changed()

    def gateway_changed(self) -> None:
        """Tell of the gateway's properties, once for all changes of this turn of the event loop."""
        if self._due is None:
            self._due = asyncio.get_running_loop().call_soon(self._tell_of_gateway)

    def _tell_of_gateway(self) -> None:
        self._due = None
        now = self._gateway()
        self._differences(names.ROOT, names.MANAGER, self._told_of_gateway, now)
        self._told_of_gateway = now

    def _differences(self, path: str, interface: str, before: Properties, now: Properties) -> None:
        changed: dict[str, Typed] = {name: typed for name, typed in now.items() if before.get(name) != typed}
        if changed:
            self._emit(path, names.PROPERTIES, "PropertiesChanged", "sa{sv}as", interface, changed, [])

    def _emit(self, path: str, interface: str, member: str, signature: str, *body: Any) -> None:
        self._bus.emit(Signal(path, interface, member, signature, body))
