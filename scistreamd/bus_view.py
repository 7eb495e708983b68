"""Tunnels and the gateway as D-Bus shows them: pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import scistreamd
from scistreamd import names
from scistreamd.bus_messages import Typed
from scistreamd.config import Settings
from scistreamd.counts import Counts, Totals
from scistreamd.dataserver import TYPES, parse_type
from scistreamd.hop import Finding
from scistreamd.model import TunnelView

Properties = dict[str, Typed]

# Without PropertiesChanged, and counted while somebody asks.
COUNTERS = ("Connections", "BytesIn", "BytesOut")


def tunnel(view: TunnelView) -> Properties:
    """The properties of a tunnel, all but the counters."""
    return {
        "Id": Typed("s", view.id),
        "Label": Typed("s", view.label),
        "Role": Typed("s", view.role.value),
        "State": Typed("s", view.state.value),
        "Type": Typed("s", view.type),
        "Security": Typed("s", view.security.value),
        "Listeners": Typed("as", listeners(view)),
        "Targets": Typed("as", [str(target) for target in view.targets]),
        "Rate": Typed("t", view.rate),
        "Unit": Typed("s", view.unit),
        "Owner": Typed("s", view.owner),
        "CreatedUSec": Typed("t", view.created_usec),
        "ExpiresUSec": Typed("t", view.expires_usec),
        "Result": Typed("s", view.result),
        "Warnings": Typed("as", list(view.warnings)),
    }


def row(view: TunnelView) -> list[Any]:
    """A tunnel in the answer of ListTunnels."""
    return [
        view.id,
        view.role.value,
        view.state.value,
        listeners(view),
        [str(target) for target in view.targets],
        view.type,
        view.owner,
        names.tunnel_path(view.id),
    ]


def listeners(view: TunnelView) -> list[str]:
    """The listeners as text."""
    return [str(endpoint) for endpoint in view.listeners]


def manager(settings: Settings, free_ports: int, tunnels: int, warnings: Sequence[str]) -> Properties:
    """The properties of the gateway."""
    ports = settings.port_range
    return {
        "Version": Typed("s", scistreamd.__version__),
        "ListenerAddress": Typed("s", str(settings.listen_inbound or "")),
        "PortRange": Typed("(qq)", [ports.first, ports.last]),
        "FreePorts": Typed("u", free_ports),
        "DefaultType": Typed("s", parse_type(settings.default_type).name),
        "Types": Typed("as", [each.name for each in TYPES]),
        "NTunnels": Typed("u", tunnels),
        "Warnings": Typed("as", list(warnings)),
    }


def counters(counts: Counts) -> Properties:
    """The properties that count."""
    return {
        "Connections": Typed("u", counts.connections),
        "BytesIn": Typed("t", counts.plain.bytes_in),
        "BytesOut": Typed("t", counts.plain.bytes_out),
    }


def counts_row(tunnel_id: str, counts: Counts) -> list[Any]:
    """A tunnel in the answer of ListCounters."""
    return [
        tunnel_id,
        counts.connections,
        counts.connections_total,
        *counts.plain,
        list(counts.rates.bytes_in),
        list(counts.rates.bytes_out),
        counts.health.rtt_usec,
        counts.retransmits,
        counts.health.cwnd,
        counts.health.delivery_rate,
        counts.estimated,
    ]


def counts_told(counts: Counts) -> Properties:
    """The answer of GetCounters."""
    return {
        "connections": Typed("u", counts.connections),
        "connections-total": Typed("t", counts.connections_total),
        **_totals("", counts.plain),
        "rates-in": Typed("ad", list(counts.rates.bytes_in)),
        "rates-out": Typed("ad", list(counts.rates.bytes_out)),
        "used-usec": Typed("t", round(counts.used * 1e6)),
        "estimated": Typed("b", counts.estimated),
        **_totals("wan-", counts.wan),
        "wan-connections": Typed("u", counts.health.connections),
        "wan-retransmits": Typed("t", counts.retransmits),
        "wan-rtt-usec": Typed("u", counts.health.rtt_usec),
        "wan-cwnd": Typed("u", counts.health.cwnd),
        "wan-delivery-rate": Typed("t", counts.health.delivery_rate),
    }


def _totals(prefix: str, totals: Totals) -> Properties:
    return {f"{prefix}{name.replace('_', '-')}": Typed("t", value) for name, value in totals._asdict().items()}


def finding(found: Finding) -> dict[str, Typed]:
    """One test of a hop, as Test and TestPath tell it."""
    return {
        "listener": Typed("s", str(found.listener)),
        "ok": Typed("b", found.outcome.code is None),
        "outcome": Typed("s", found.outcome.value),
        "message": Typed("s", found.message),
        "hint": Typed("s", found.hint),
        "connect-usec": Typed("t", found.connect_usec),
        "handshake-usec": Typed("t", found.handshake_usec),
        "rtt-usec": Typed("t", found.rtt_usec),
        "sent-bytes": Typed("t", found.sent_bytes),
        "throughput": Typed("t", found.throughput),
    }
