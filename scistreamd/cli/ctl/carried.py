"""What tunnels have carried, for the verbs that show it; where scistreamd cannot see it, they say so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from scistreamd.cli import output
from scistreamd.cli.ctl import human
from scistreamd.cli.ctl.tunnels import COUNTED, Carried, Tunnels
from scistreamd.errors import Code, ScistreamError


def of_all(tunnels: Tunnels) -> dict[str, Carried]:
    """By id; nothing, and a note, where it cannot be seen."""
    try:
        return tunnels.carried()
    except ScistreamError as problem:
        _unseen(problem)
        return {}


def of_one(tunnels: Tunnels, tunnel_id: str) -> dict[str, Any]:
    """By the names in `COUNTED`; every value None, and a note, where it cannot be seen."""
    try:
        return tunnels.counted(tunnel_id)
    except ScistreamError as problem:
        _unseen(problem)
        return dict.fromkeys(COUNTED)


def _unseen(problem: ScistreamError) -> None:
    if problem.code not in (Code.UNAVAILABLE, Code.UNIMPLEMENTED):
        raise problem
    output.note("s2ctl", f"no counters: {problem}")


def in_json(carried: Carried | None) -> dict[str, Any]:
    """Without the id; null for what cannot be seen."""
    if carried is None:
        return {each.name: None for each in fields(Carried) if each.name != "id"}
    return {name: value for name, value in asdict(carried).items() if name != "id"}


def in_columns(carried: Carried | None) -> list[str]:
    """Connections, bytes in, bytes out."""
    if carried is None:
        return ["-", "-", "-"]
    return [str(carried.connections), human.size(carried.bytes_in), human.size(carried.bytes_out)]


def in_words(counted: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Named lines for people."""
    if counted["connections"] is None:
        return []
    about = ", part of it estimated" if counted["estimated"] else ""
    into, out = (human.size(counted[name]) for name in ("bytes_in", "bytes_out"))
    lines = [
        ("Connections", f"{counted['connections']} open, {counted['connections_total']} in all"),
        ("Carried", f"{into}B in, {out}B out{about}"),
    ]
    if counted["connections"] and counted["rates_in"]:
        into, out = (human.size(counted[name][0]) for name in ("rates_in", "rates_out"))
        lines.append(("Now", f"{into}B/s in, {out}B/s out"))
    if counted["wan_connections"]:
        lines.append(
            (
                "Hop",
                f"round trip {human.milliseconds(counted['wan_rtt_usec'])}, {counted['wan_retransmits']} retransmits,"
                f" window {counted['wan_cwnd']}, delivery {human.size(counted['wan_delivery_rate'])}B/s",
            )
        )
    return lines
