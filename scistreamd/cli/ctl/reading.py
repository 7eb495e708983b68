"""Verbs that read: list, status, show, check."""

from __future__ import annotations

import time
from argparse import Namespace
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from scistreamd.cli import output
from scistreamd.cli.ctl import carried, human, permission, remote
from scistreamd.cli.ctl.screen import BOLD, GREEN, RED, STATE_COLOURS, YELLOW, Screen
from scistreamd.cli.ctl.table import Cell, pairs, render
from scistreamd.cli.ctl.tunnels import COUNTED, Carried, Facts, Port, Row, Tunnel, Tunnels
from scistreamd.cli.options import UsageError
from scistreamd.errors import Code, did_you_mean

_TITLES = ("ID", "ROLE", "STATE", "LISTENERS", "TARGETS", "TYPE")
_LONG_TITLES = (
    "ID", "LABEL", "ROLE", "STATE", "LISTENERS", "TARGETS", "TYPE", "SECURITY", "CONNS", "IN", "OUT", "ENDS", "OWNER",
)  # fmt: skip


def listed(options: Namespace) -> int:
    """``s2ctl list``."""
    screen = Screen.of(options)
    with remote.bus(options) as bus:
        tunnels = Tunnels(bus)
        found: Sequence[Row | Tunnel] = tunnels.all() if options.long else tunnels.rows()
        sums = carried.of_all(tunnels) if screen.json or options.long else {}
    if screen.json:
        screen.data([asdict(each) | carried.in_json(sums.get(each.id)) for each in found])
    elif options.quiet:
        for each in found:
            output.result(each.id)
    else:
        titles = _LONG_TITLES if options.long else _TITLES
        footer = f"{human.counted(len(found), 'tunnel')}.".capitalize()
        screen.text(render(screen, titles, [_row(each, sums.get(each.id)) for each in found], footer))
    return 0


def _row(tunnel: Row | Tunnel, sums: Carried | None) -> list[Cell | str]:
    state = Cell(tunnel.state, STATE_COLOURS.get(tunnel.state, ""))
    listeners, targets = ", ".join(tunnel.listeners), ", ".join(tunnel.targets)
    if isinstance(tunnel, Row):
        return [tunnel.id, tunnel.role, state, listeners, targets, tunnel.type]
    return [
        tunnel.id, tunnel.label, tunnel.role, state, listeners, targets, tunnel.type, tunnel.security,
        *carried.in_columns(sums), human.moment(tunnel.expires_usec), human.owner(tunnel.owner),
    ]  # fmt: skip


def status(options: Namespace) -> int:
    """``s2ctl status``: the gateway, or one tunnel with its last log lines."""
    from scistreamd.cli.ctl import journal

    screen = Screen.of(options)
    with remote.bus(options) as bus:
        tunnels = Tunnels(bus)
        if options.id is None:
            return _gateway_status(screen, tunnels.facts(), tunnels.rows())
        tunnel = tunnels.tunnel(options.id)
        counted = carried.of_one(tunnels, tunnel.id)
    if screen.json:
        screen.data(asdict(tunnel) | counted)
        return 0
    lines = [*_heading(screen, tunnel), *pairs(screen, _facts(tunnel, counted))]
    if options.lines:
        lines += ["", *journal.last(tunnel.id, options.lines, options.host)]
    screen.text(lines)
    return 0


def _gateway_status(screen: Screen, facts: Facts, rows: Sequence[Row]) -> int:
    if screen.json:
        screen.data(asdict(facts))
        return 0
    first, last = facts.port_range
    states = Counter(row.state for row in rows)
    told = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
    screen.text(
        [
            f"{screen.paint(screen.dot, GREEN)} {screen.paint('scistreamd', BOLD)} {facts.version}",
            *pairs(
                screen,
                [
                    ("Tunnels", human.counted(len(rows), "tunnel") + (f": {told}" if told else "")),
                    ("Ports", f"{first}-{last}, {facts.free_ports} of {last - first + 1} free"),
                    ("Inbound listeners", facts.listener_address or "every address"),
                    ("Data servers", f"{', '.join(facts.types)} (default: {facts.default_type})"),
                    *(("Warning", Cell(each, YELLOW)) for each in facts.warnings),
                ],
            ),
        ]
    )
    return 0


def _heading(screen: Screen, tunnel: Tunnel) -> list[str]:
    dot = screen.paint(screen.dot, STATE_COLOURS.get(tunnel.state, ""))
    label = f" - {tunnel.label}" if tunnel.label else ""
    (line,) = render(Screen(None, False, False, False, "off"), ("",), [[f"{tunnel.id}{label}"]], "")
    return [f"{dot} {screen.paint(line, BOLD)}"]


def _facts(tunnel: Tunnel, counted: Mapping[str, Any]) -> list[tuple[str, Cell | str]]:
    now = time.time()
    role = "inbound" if tunnel.role == "PROD" else "outbound"
    facts: list[tuple[str, Cell | str]] = [
        ("State", Cell(tunnel.state, STATE_COLOURS.get(tunnel.state, ""))),
        ("Role", f"{tunnel.role} ({role})"),
        *((f"Listener {number}", way) for number, way in enumerate(_ways(tunnel), 1)),
        ("Data server", tunnel.type),
        ("Security", tunnel.security),
        ("Rate", human.rate(tunnel.rate)),
        *carried.in_words(counted),
        ("Since", human.away(tunnel.created_usec, now)),
        ("Ends", human.away(tunnel.expires_usec, now)),
        ("Owner", tunnel.owner),
    ]
    if tunnel.unit:
        facts.append(("Unit", tunnel.unit))
    if tunnel.result:
        facts.append(("Result", Cell(tunnel.result, RED)))
    return facts + [("Warning", Cell(each, YELLOW)) for each in tunnel.warnings]


def _ways(tunnel: Tunnel) -> list[str]:
    """Each listener with what it forwards to; targets repeat in turn."""
    targets = tunnel.targets
    return [
        f"{listener} -> {targets[index % len(targets)]}" if targets else listener
        for index, listener in enumerate(tunnel.listeners)
    ]


def show(options: Namespace) -> int:
    """``s2ctl show``: every property, or the UID."""
    screen = Screen.of(options)
    if options.reveal_uid:
        return _reveal(screen, options)
    with remote.bus(options) as bus:
        tunnels = Tunnels(bus)
        facts = asdict(tunnels.tunnel(options.id))
        if not options.property or set(_wanted(options.property, [*facts, *COUNTED])) & set(COUNTED):
            facts |= carried.of_one(tunnels, facts["id"])
    facts = {name: facts[name] for name in _wanted(options.property, list(facts))}
    if screen.json:
        screen.data(facts)
    else:
        screen.text(_text(value) if options.value else f"{name}={_text(value)}" for name, value in facts.items())
    return 0


def _reveal(screen: Screen, options: Namespace) -> int:
    interactive = permission.may_ask(options)
    with remote.bus(options, interactive=interactive) as bus, permission.agent(options, interactive):
        tunnels = Tunnels(bus)
        tunnel_id = tunnels.find(options.id)
        uid = tunnels.reveal(tunnel_id)
    if screen.json:
        screen.data({"id": tunnel_id, "uid": uid})
    else:
        output.result(uid)
    return 0


def _wanted(asked: Sequence[str], known: list[str]) -> list[str]:
    """The properties asked for, in that order; all where none was."""
    names = [part.strip().replace("-", "_").lower() for each in asked for part in each.split(",")]
    for name in names:
        if name not in known:
            hint = did_you_mean(name, known) or f"one of: {', '.join(known)}"
            raise UsageError(f"{name!r} is no property of a tunnel", hint)
    return names or known


def _text(value: Any) -> str:
    if value is None:
        return ""
    return output.harmless(" ".join(map(str, value)) if isinstance(value, list) else str(value))


def check(options: Namespace) -> int:
    """``s2ctl check``: exit status RESOURCE_EXHAUSTED where a port that was named, or every port, is not free."""
    screen = Screen.of(options)
    with remote.bus(options) as bus:
        found = Tunnels(bus).ports(options.ports)
    free = sum(port.usable for port in found)
    if screen.json:
        screen.data([asdict(each) for each in found])
    elif not options.quiet:
        rows = [_port_row(run) for run in _runs(found)]
        screen.text(render(screen, ("PORTS", "STATE", "REASON"), rows, f"{free} of {len(found)} free."))
        for warning in dict.fromkeys(warning for port in found for warning in port.warnings):
            output.note("s2ctl", warning)
    enough = free == len(found) if options.ports else free > 0
    return 0 if enough else Code.RESOURCE_EXHAUSTED.exit_status


def _runs(ports: Sequence[Port]) -> list[list[Port]]:
    """Neighbours of which the same is said, together."""
    runs: list[list[Port]] = []
    for port in ports:
        last = runs[-1][-1] if runs else None
        if last and replace(last, port=port.port) == port and last.port + 1 == port.port:
            runs[-1].append(port)
        else:
            runs.append([port])
    return runs


def _port_row(run: Sequence[Port]) -> list[Cell | str]:
    first, last = run[0], run[-1]
    ports = str(first.port) if first is last else f"{first.port}-{last.port}"
    word = ("free" if first.free else "taken") if first.in_range else "outside"
    return [ports, Cell(word, GREEN if first.usable else RED), first.reason]
