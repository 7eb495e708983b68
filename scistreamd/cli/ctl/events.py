"""What happens to tunnels, as the bus tells it: ``watch``, and waiting for a tunnel's end."""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from scistreamd import names
from scistreamd.cli import output
from scistreamd.cli.ctl import human, remote
from scistreamd.cli.ctl.bus import Bus, Signal
from scistreamd.cli.ctl.screen import GREEN, GREY, RED, YELLOW, Screen
from scistreamd.cli.ctl.table import broken
from scistreamd.cli.ctl.tunnels import PROPERTIES, Tunnel, Tunnels
from scistreamd.errors import Code, ScistreamError

_BUS = "org.freedesktop.DBus"
# The first rule takes what the gateway's object and the tunnels' objects below it say.
_RULES = (
    f"type='signal',sender='{names.SERVICE}',path_namespace='{names.ROOT}'",
    f"type='signal',sender='{_BUS}',interface='{_BUS}',member='NameOwnerChanged',arg0='{names.SERVICE}'",
)
_MARGIN = len("12:00:00 0123456789ab changed ")
_NARROWEST = 20
_UNSAID = ("id", "unit", "created_usec")
_WORDS: Mapping[str, tuple[str, Callable[[Any], str]]] = {
    "expires_usec": ("ends", human.moment),
    "rate": ("rate", human.rate),
    "owner": ("owner", human.owner),
}
_COLOURS = {"added": GREEN, "removed": GREY, "changed": YELLOW, "stopped": RED, "started": GREEN}


@dataclass(frozen=True)
class Event:
    """``added``, ``changed`` or ``removed`` of a tunnel; ``stopped`` or ``started`` of scistreamd itself.

    ``properties`` are those that are new or have changed, by their names in `Tunnel`.
    """

    event: str
    id: str = ""
    properties: Mapping[str, Any] = field(default_factory=dict)


def subscribe(bus: Bus) -> None:
    """Receive from now on what `events` gives out."""
    for rule in _RULES:
        bus.match(rule)


def events(bus: Bus) -> Iterator[Event]:
    """What happens, as it happens."""
    for signal in bus.signals():
        found = event_of(signal)
        if found:
            yield found


def event_of(signal: Signal) -> Event | None:
    """The event that a signal tells of, None for what concerns nobody here."""
    kind = (signal.interface, signal.member)
    if kind == (_BUS, "NameOwnerChanged"):
        return Event("started" if signal.body[2] else "stopped")
    if kind == (names.MANAGER, "TunnelRemoved"):
        return Event("removed", signal.body[0])
    if kind == (names.OBJECT_MANAGER, "InterfacesAdded"):
        path, interfaces = signal.body
        return _of_tunnel("added", path, interfaces.get(names.TUNNEL, {}))
    if kind == (names.PROPERTIES, "PropertiesChanged") and signal.body[0] == names.TUNNEL:
        return _of_tunnel("changed", signal.path, signal.body[1])
    return None


def _of_tunnel(event: str, path: str, properties: Mapping[str, Any]) -> Event | None:
    tunnel_id = names.tunnel_id(path)
    known = {PROPERTIES[name]: value for name, value in properties.items() if name in PROPERTIES}
    return Event(event, tunnel_id, known) if tunnel_id and known else None


def watch(options: Namespace) -> int:
    """``s2ctl watch``: a line for each event until interrupted, or until the one tunnel has ended."""
    options.no_pager = True
    screen = Screen.of(options)
    with remote.bus(options) as bus:
        subscribe(bus)
        tunnels = Tunnels(bus)
        wanted = tunnels.tunnel(options.id).id if options.id else ""
        if not wanted:
            tunnels.rows()  # starts the daemon, so that there is something to watch
        for event in events(bus):
            if wanted and event.id not in (wanted, ""):
                continue
            _tell(screen, event)
            if event == Event("removed", wanted):
                return 0
    return 0


def _tell(screen: Screen, event: Event) -> None:
    now = time.time()
    if screen.json:
        screen.data({"time_usec": int(now * 1e6), **asdict(event)})
        return
    word = screen.paint(f"{event.event:<7}", _COLOURS[event.event])
    clock = time.strftime("%H:%M:%S", time.localtime(now))
    told = broken(output.harmless(_told(event)), screen.width and max(_NARROWEST, screen.width - _MARGIN))
    heads = [f"{clock} {event.id or 'scistreamd':<12} {word} ", *[" " * _MARGIN] * (len(told) - 1)]
    for head, part in zip(heads, told, strict=True):
        output.result(f"{head}{part}".rstrip())


def _told(event: Event) -> str:
    """The properties in words; of a new tunnel those that say something."""
    parts = []
    for name, value in event.properties.items():
        if name not in _UNSAID and (value or event.event == "changed"):
            word, tell = _WORDS.get(name, (name, _plain))
            parts.append(f"{word}={tell(value)}")
    return " ".join(parts)


def _plain(value: Any) -> str:
    return ",".join(value) if isinstance(value, list) else str(value)


def wait_for_end(bus: Bus, tunnel_id: str) -> None:
    """Return when a tunnel whose events are subscribed to has ended; FAILED_PRECONDITION where it failed.

    scistreamd may stop and start meanwhile.
    """
    tunnels = Tunnels(bus)
    _check(tunnels.tunnel(tunnel_id))
    for event in events(bus):
        if event == Event("removed", tunnel_id):
            return
        if event.event == "started" or event.id == tunnel_id:
            try:
                _check(tunnels.tunnel(tunnel_id))
            except ScistreamError as problem:
                if problem.code is Code.NOT_FOUND:
                    return
                raise


def _check(tunnel: Tunnel) -> None:
    if tunnel.state == "failed":
        raise ScistreamError(
            Code.FAILED_PRECONDITION,
            f"tunnel {tunnel.id} failed: {tunnel.result}",
            f"s2ctl logs {tunnel.id} may say more",
        )
