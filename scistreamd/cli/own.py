"""One's own tunnels on a gateway, from afar: ``s2uc list``, ``show``, ``extend`` and ``watch``."""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from scistreamd.cli import output, uids
from scistreamd.cli.ctl import human
from scistreamd.cli.ctl.screen import RED, STATE_COLOURS, YELLOW, Screen
from scistreamd.cli.ctl.table import Cell, pairs, render
from scistreamd.cli.requests import run
from scistreamd.errors import Code, ScistreamError, invalid
from scistreamd.model import shown

if TYPE_CHECKING:
    from scistreamd.cli.gateway import Gateway
    from scistreamd.control.scistream_v2_pb2 import Change, Tunnel

_SECONDS = 30
_LONGEST_WATCH = 10 * 365 * 86400
_TITLES = ("ID", "LABEL", "ROLE", "STATE", "LISTENERS", "TARGETS", "TYPE", "ENDS")


def listed(options: Namespace) -> int:
    """``s2uc list``."""
    screen = _screen(options)

    async def work(gateway: Gateway) -> None:
        found = await gateway.tunnels(everyone=options.everyone)
        if screen.json:
            screen.data([as_dict(each) for each in found])
        else:
            footer = f"{human.counted(len(found), 'tunnel')}.".capitalize()
            screen.text(render(screen, _TITLES, [_row(each) for each in found], footer))

    return run(options, work, _SECONDS, "the list")


def show(options: Namespace) -> int:
    """``s2uc show``."""

    def tell(screen: Screen, tunnel: Tunnel) -> None:
        screen.text(pairs(screen, _facts(tunnel)))

    return _one(options, lambda gateway, tunnel_id: gateway.tunnel(tunnel_id), tell)


def extend(options: Namespace) -> int:
    """``s2uc extend``."""

    def tell(screen: Screen, tunnel: Tunnel) -> None:
        output.result(f"{tunnel.id} ends {human.away(tunnel.expires_usec, time.time())}")

    return _one(options, lambda gateway, name: gateway.extend(name, options.lifetime), tell)


def watch(options: Namespace) -> int:
    """``s2uc watch``: a line for each tunnel that there is and for each change, until interrupted."""
    screen = _screen(options, "short")

    async def work(gateway: Gateway) -> None:
        async for change in gateway.watch(everyone=options.everyone):
            if change.HasField("tunnel"):
                _tell(screen, change)

    return run(options, work, _LONGEST_WATCH, "watching")


def _screen(options: Namespace, mode: str = "pretty") -> Screen:
    return Screen.of(Namespace(**{**vars(options), "json": mode if options.json else "off"}))


def _tell(screen: Screen, change: Change) -> None:
    kind = type(change).Kind.Name(change.kind).lower()
    if screen.json:
        screen.data({"change": kind, "tunnel": as_dict(change.tunnel)})
        return
    tunnel = change.tunnel
    label = f" ({tunnel.label})" if tunnel.label else ""
    why = f": {tunnel.result}" if tunnel.result else ""
    output.result(output.harmless(f"{time.strftime('%H:%M:%S')} {tunnel.id}{label} {kind}, {tunnel.state}{why}"))


def as_dict(tunnel: Tunnel) -> dict[str, Any]:
    """A tunnel for programs, with the names that s2ctl uses."""
    values = {field.name: getattr(tunnel, field.name) for field in tunnel.DESCRIPTOR.fields}
    return {name: value if isinstance(value, str | int) else list(value) for name, value in values.items()}


def _one(
    options: Namespace,
    ask: Callable[[Gateway, str], Coroutine[Any, Any, Tunnel]],
    tell: Callable[[Screen, Tunnel], None],
) -> int:
    screen = _screen(options)

    async def work(gateway: Gateway) -> None:
        tunnel = await ask(gateway, await _name(gateway, options.name))
        if screen.json:
            screen.data(as_dict(tunnel))
        else:
            tell(screen, tunnel)

    return run(options, work, _SECONDS, "the answer")


async def _name(gateway: Gateway, text: str) -> str:
    """What the gateway calls the tunnel: an id or a UID as it is, the start of an id or a label looked up."""
    if uids.is_hidden(text):
        return uids.read(text).reveal()
    if len(text) >= uids.ID_LENGTH and set(text.lower()) <= set("0123456789abcdef-"):
        return text
    tunnels = await gateway.tunnels(everyone=False)
    found = [each.id for each in tunnels if each.label == text or each.id.startswith(text)]
    if len(found) == 1:
        return found[0]
    if not found:
        raise ScistreamError(Code.NOT_FOUND, f"no tunnel of yours is called {shown(text)}", "s2uc list shows them")
    raise invalid("TUNNEL", f"{shown(text)} names {len(found)} tunnels: {', '.join(found)}", "give more of the id")


def _row(tunnel: Tunnel) -> list[Cell | str]:
    state = Cell(tunnel.state, STATE_COLOURS.get(tunnel.state, ""))
    listeners, targets = ", ".join(tunnel.listeners), ", ".join(tunnel.targets)
    ends = human.moment(tunnel.expires_usec)
    return [tunnel.id, tunnel.label, tunnel.role, state, listeners, targets, tunnel.type, ends]


def _facts(tunnel: Tunnel) -> list[tuple[str, Cell | str]]:
    now = time.time()
    facts: list[tuple[str, Cell | str]] = [
        ("Id", tunnel.id),
        ("Label", tunnel.label),
        ("State", Cell(tunnel.state, STATE_COLOURS.get(tunnel.state, ""))),
        ("Role", tunnel.role),
        ("Listeners", ", ".join(tunnel.listeners)),
        ("Targets", ", ".join(tunnel.targets)),
        ("Data server", tunnel.type),
        ("Security", tunnel.security),
        ("Rate", human.rate(tunnel.rate)),
        ("Since", human.away(tunnel.created_usec, now)),
        ("Ends", human.away(tunnel.expires_usec, now)),
        ("Owner", tunnel.owner),
        ("Result", Cell(tunnel.result, RED)),
    ]
    known = [(name, value) for name, value in facts if value not in ("", Cell("", RED))]
    return known + [("Warning", Cell(each, YELLOW)) for each in tunnel.warnings]
