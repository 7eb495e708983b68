"""The objects on the bus, and the standard interfaces that every one of them answers.

Properties are read from the manager when they are asked for; nothing is kept
here. The text of Introspect is that of the XML.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

from scistreamd import bus_view, names
from scistreamd.bus_messages import CallError, Typed
from scistreamd.bus_view import Properties
from scistreamd.counts import Counts
from scistreamd.errors import Code, ScistreamError
from scistreamd.interfaces import Counters
from scistreamd.introspection import Interface, node
from scistreamd.model import TunnelView

_EVERYWHERE = (names.INTROSPECTABLE, names.PEER, names.PROPERTIES)


class Objects:
    """Which object has which interfaces, properties and children."""

    def __init__(
        self,
        interfaces: Mapping[str, Interface],
        gateway: Callable[[], Properties],
        view: Callable[[str], TunnelView],
        views: Callable[[], tuple[TunnelView, ...]],
        counters: Counters,
    ) -> None:
        """``gateway``: the properties of the root object; ``view`` raises NOT_FOUND; ``views``: all tunnels."""
        self._interfaces = interfaces
        self._gateway = gateway
        self._view = view
        self._views = views
        self._counters = counters

    def at(self, path: str) -> dict[str, Interface]:
        """The interfaces of an object by name; UnknownObject where there is none.

        The objects above ours are there only to be walked through.
        """
        if path == names.ROOT:
            own: tuple[str, ...] = (names.OBJECT_MANAGER, names.MANAGER)
        elif tunnel_id := names.tunnel_id(path):
            self._tunnel(tunnel_id)
            own = (names.TUNNEL,)
        elif path in ("/", names.TUNNELS) or names.ROOT.startswith(f"{path}/"):
            own = ()
        else:
            raise CallError(names.UNKNOWN_OBJECT, f"no object {path}")
        return {name: self._interfaces[name] for name in (*_EVERYWHERE, *own)}

    def introspect(self, path: str) -> str:
        """The XML of one object."""
        return node(self.at(path).values(), self._children(path))

    def managed(self) -> dict[str, dict[str, Properties]]:
        """The answer to GetManagedObjects."""
        with_counts: dict[str, Counts] = {}
        with contextlib.suppress(ScistreamError):  # what cannot be seen is left out
            with_counts = self._counters.all()
        return {names.tunnel_path(view.id): {names.TUNNEL: _tunnel(view, with_counts)} for view in self._views()}

    def get(self, path: str, interface: str, name: str) -> Typed:
        """One property; UNAVAILABLE for a counter where nothing can be seen, with the reason."""
        if name not in self._declared(path, interface):
            raise CallError(names.UNKNOWN_PROPERTY, f"no property {name} in {interface or 'any interface'} of {path}")
        tunnel_id = names.tunnel_id(path)
        if tunnel_id and name in bus_view.COUNTERS:
            return bus_view.counters(self._counters.counts(tunnel_id))[name]
        return self._values(path)[name]

    def all(self, path: str, interface: str) -> Properties:
        """The properties of one interface, or of all where it is empty; counters as far as they can be seen."""
        declared = self._declared(path, interface)
        found = self._values(path)
        tunnel_id = names.tunnel_id(path)
        if tunnel_id and declared:
            with contextlib.suppress(ScistreamError):
                found |= bus_view.counters(self._counters.counts(tunnel_id))
        return {name: typed for name, typed in found.items() if name in declared}

    def set(self, path: str, interface: str, name: str) -> None:
        """No property can be set."""
        if name not in self._declared(path, interface):
            raise CallError(names.UNKNOWN_PROPERTY, f"no property {name} in {interface or 'any interface'} of {path}")
        raise CallError(names.PROPERTY_READ_ONLY, f"{name} is set by methods only")

    def _declared(self, path: str, interface: str) -> dict[str, Any]:
        offered = self.at(path)
        if interface and interface not in offered:
            raise CallError(names.UNKNOWN_INTERFACE, f"{path} has no interface {interface}")
        chosen = [offered[interface]] if interface else list(offered.values())
        return {name: declared for each in chosen for name, declared in each.properties.items()}

    def _values(self, path: str) -> Properties:
        if path == names.ROOT:
            return self._gateway()
        tunnel_id = names.tunnel_id(path)
        return bus_view.tunnel(self._tunnel(tunnel_id)) if tunnel_id else {}

    def _tunnel(self, tunnel_id: str) -> TunnelView:
        try:
            return self._view(tunnel_id)
        except ScistreamError as problem:
            if problem.code is Code.NOT_FOUND:
                raise CallError(names.UNKNOWN_OBJECT, f"no tunnel {tunnel_id}: it has ended") from None
            raise

    def _children(self, path: str) -> list[str]:
        if path == names.TUNNELS:
            return [view.id for view in self._views()]
        above = path.rstrip("/") + "/"
        return [names.TUNNELS.removeprefix(above).partition("/")[0]] if names.TUNNELS.startswith(above) else []


def _tunnel(view: TunnelView, with_counts: Mapping[str, Counts]) -> Properties:
    found = bus_view.tunnel(view)
    return found | bus_view.counters(with_counts[view.id]) if view.id in with_counts else found
