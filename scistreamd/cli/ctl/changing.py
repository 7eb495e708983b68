"""Verbs that change something: inbound, outbound, update, extend, release."""

from __future__ import annotations

import contextlib
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import asdict

from scistreamd.cli import output, uids
from scistreamd.cli.ctl import events, human, permission, remote
from scistreamd.cli.ctl.bus import Bus
from scistreamd.cli.ctl.screen import as_json
from scistreamd.cli.ctl.tunnels import Options, Tunnels
from scistreamd.cli.options import UsageError
from scistreamd.errors import Code, ScistreamError
from scistreamd.model import Uid

_NAME = "s2ctl"
# scistreamd takes 64 calls of one connection at the same time.
_AT_ONCE = 50


@contextlib.contextmanager
def _asking(options: Namespace) -> Iterator[Bus]:
    """The bus, with polkit's agent where a password may be asked for."""
    interactive = permission.may_ask(options)
    with remote.bus(options, interactive=interactive) as bus, permission.agent(options, interactive):
        yield bus


def inbound(options: Namespace) -> int:
    """``s2ctl inbound``: make an inbound tunnel, and show its UID this once."""
    given = uids.read(options.uid) if options.uid else None
    if options.uid_file and not given:
        given = Uid.random()  # ours, so that it is safe in its file before there is a tunnel
    wanted = _wanted(options) | ({"uid": given.reveal()} if given else {})
    hidden = options.uid_file is not None or (options.uid is not None and uids.is_hidden(options.uid))
    # Without a file nothing is kept, and the UID is the gateway's.
    with _asking(options) as bus, uids.kept_in(options.uid_file, given or Uid.random(), at_once=False) as keep:
        if options.wait:
            events.subscribe(bus)
        uid, tunnel_id, listeners = Tunnels(bus).create_inbound(_each(options.targets), wanted)
        keep()
        _created(options, bus, tunnel_id, "" if hidden else uid)
        if not options.quiet and options.json == "off":
            output.note(_NAME, f"next, on the other gateway: s2ctl outbound UID {' '.join(listeners)}")
        return _waited(options, bus, tunnel_id)


def outbound(options: Namespace) -> int:
    """``s2ctl outbound``: make the outbound tunnel of an inbound one."""
    uid = uids.read(options.uid)
    wanted = _wanted(options)
    with _asking(options) as bus:
        if options.wait:
            events.subscribe(bus)
        tunnel_id, _ = Tunnels(bus).create_outbound(uid, _each(options.listeners), wanted)
        _created(options, bus, tunnel_id, "")
        return _waited(options, bus, tunnel_id)


def _each(given: Sequence[str]) -> list[str]:
    """The targets of arguments that may hold several."""
    return [target for text in given for target in text.split(",")]


def _wanted(options: Namespace) -> dict[str, object]:
    """The options of the D-Bus call that the user gave, and no others."""
    asked = {
        "type": options.type,
        "listen": options.listen or None,
        "rate": options.rate,
        "security": options.security,
        "lifetime": options.lifetime,
        "allow-from": [network for networks in options.allow_from for network in networks] or None,
        "label": options.label,
    }
    return {name: value for name, value in asked.items() if value is not None}


def _created(options: Namespace, bus: Bus, tunnel_id: str, uid: str) -> None:
    """Print the tunnel that was made, and the UID where it is not empty."""
    if options.quiet and options.json == "off":
        output.result(tunnel_id)
        return
    if options.json == "off":
        # At once: whatever comes now, its owner knows the tunnel.
        output.result(f"ID: {tunnel_id}")
        if uid:
            output.result(f"UID: {uid}")
    tunnel = Tunnels(bus).tunnel(tunnel_id)
    if options.json != "off":
        output.result(as_json({**asdict(tunnel), "uid": uid or None}, options.json))
    else:
        output.result(f"Listeners: {' '.join(tunnel.listeners)}")
    if not options.quiet:
        for warning in tunnel.warnings:
            output.note(_NAME, warning)


def _waited(options: Namespace, bus: Bus, tunnel_id: str) -> int:
    if options.wait:
        events.wait_for_end(bus, tunnel_id)
    return 0


def update(options: Namespace) -> int:
    """``s2ctl update``: other targets, another rate or lifetime; running streams are not touched."""
    asked = {"rate": options.rate, "lifetime": options.lifetime}
    wanted: Options = {name: value for name, value in asked.items() if value is not None}
    if not options.targets and not wanted:
        raise UsageError("nothing to change was given", "name targets, --rate or --lifetime")
    with _asking(options) as bus:
        tunnels = Tunnels(bus)
        tunnel_id = tunnels.find(options.id)
        tunnels.update(tunnel_id, _each(options.targets), wanted)
        _say(options, f"Updated {tunnel_id}.")
    return 0


def extend(options: Namespace) -> int:
    """``s2ctl extend``: the tunnel ends so long from now, in place of when it would have."""
    with _asking(options) as bus:
        tunnels = Tunnels(bus)
        tunnel_id = tunnels.find(options.id)
        tunnels.update(tunnel_id, (), {"lifetime": options.time})
        ends = human.away(tunnels.tunnel(tunnel_id).expires_usec, time.time())
        _say(options, f"{tunnel_id} ends: {ends}")
    return 0


def release(options: Namespace) -> int:
    """``s2ctl release``: end tunnels. All names are looked up first; one that is none releases nothing."""
    if bool(options.ids) == options.all:
        raise UsageError("which tunnels?", "name some, or say --all")
    drain: Options = {"drain": options.drain} if options.drain else {}
    with _asking(options) as bus:
        tunnels = Tunnels(bus)
        found = [row.id for row in tunnels.rows()] if options.all else [tunnels.find(text) for text in options.ids]
        wanted = list(dict.fromkeys(found))
        # One after the other where a password may be asked for: nobody can type into several prompts.
        size = 1 if permission.may_ask(options) else _AT_ONCE
        groups = [wanted[start : start + size] for start in range(0, len(wanted), size)]
        failures = [code for group in groups for code in _released(options, tunnels, group, drain)]
    return failures[0].exit_status if failures else 0


def _released(options: Namespace, tunnels: Tunnels, ids: Sequence[str], drain: Options) -> list[Code]:
    """End these tunnels at the same time; returns why some could not be ended."""
    failures = []
    calls = [(tunnel_id, tunnels.start_release(tunnel_id, drain)) for tunnel_id in ids]
    for tunnel_id, call in calls:
        try:
            tunnels.finish_release(call, options.drain)
        except ScistreamError as problem:
            if options.all and problem.code is Code.NOT_FOUND:
                continue  # it ended by itself in between
            output.failure(_NAME, f"{tunnel_id}: {problem.message}", problem.hint)
            failures.append(problem.code)
        else:
            _say(options, f"Released {tunnel_id}.")
    return failures


def _say(options: Namespace, line: str) -> None:
    if not options.quiet:
        output.result(line)
