"""The gateway and its tunnels as Prometheus metrics.

prometheus.io/docs/practices/naming: base units, ``_total`` for what only
grows. Labels name a tunnel by its id; no UID, owner or peer is among them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder

import scistreamd
from scistreamd.counts import Counts, Totals
from scistreamd.errors import ScistreamError
from scistreamd.interfaces import Counters
from scistreamd.model import State, TunnelView

_TUNNEL = ("id", "label", "role", "type")


class Tunnels(Protocol):
    """What of `manager.Manager` is told."""

    @property
    def free_ports(self) -> int:
        """How many ports of the range no tunnel has."""

    def tunnels(self) -> tuple[TunnelView, ...]:
        """All tunnels, the oldest first."""


@dataclass(frozen=True)
class _Number:
    """One metric of a tunnel: its name, what it is, and its value."""

    name: str
    about: str
    value: Callable[[Counts], float]


@dataclass(frozen=True)
class _Directions:
    """A counter of a tunnel for each direction."""

    name: str
    about: str
    totals: Callable[[Counts], Totals]
    field: str


_COUNTERS = (
    _Number("connections", "Connections of applications since the tunnel was made", lambda c: c.connections_total),
    _Number(
        "wan_retransmits", "TCP segments sent again on the hop between the gateways", lambda counts: counts.retransmits
    ),
)
_BOTH_WAYS = (
    _Directions("bytes", "Payload of the applications: in is towards targets", lambda counts: counts.plain, "bytes"),
    _Directions("packets", "TCP segments of the applications", lambda counts: counts.plain, "packets"),
    _Directions("wan_bytes", "Bytes on the hop between the gateways, TLS included", lambda counts: counts.wan, "bytes"),
)
_GAUGES = (
    _Number("open_connections", "Connections of applications that are open", lambda counts: counts.connections),
    _Number("wan_connections", "Open connections between the gateways", lambda counts: counts.health.connections),
    _Number(
        "wan_rtt_seconds", "Smoothed round-trip time between the gateways, of the slowest connection; 0 without one",
        lambda counts: counts.health.rtt_usec / 1e6,
    ),
    _Number("wan_cwnd_segments", "Congestion windows towards the other gateway", lambda counts: counts.health.cwnd),
    _Number(
        "wan_delivery_rate_bytes_per_second", "What TCP has last delivered to the other gateway",
        lambda counts: counts.health.delivery_rate,
    ),
    _Number("used_timestamp_seconds", "When a connection was open last, 0: never", lambda counts: counts.used),
    _Number("estimated", "1 where a part of the counters was estimated", lambda counts: counts.estimated),
)  # fmt: skip


class Metrics:
    """Collects them when asked."""

    def __init__(self, tunnels: Tunnels, counters: Counters) -> None:
        """Asks nothing yet."""
        self._tunnels = tunnels
        self._counters = counters
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def text(self, accept: str) -> tuple[bytes, str]:
        """All metrics in the form that ``accept``, a request's header, prefers; and the content type of that."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type

    def collect(self) -> Iterator[Metric]:
        """What prometheus_client's registry asks for."""
        views = self._tunnels.tunnels()
        version = GaugeMetricFamily("scistreamd_build_info", "The version, as a label; always 1", labels=["version"])
        version.add_metric([scistreamd.__version__], 1)
        yield version
        states = Counter(view.state for view in views)
        tunnels = GaugeMetricFamily("scistreamd_tunnels", "Tunnels by state", labels=["state"])
        for state in State:
            tunnels.add_metric([state.value], states[state])
        yield tunnels
        yield GaugeMetricFamily("scistreamd_free_ports", "Ports that no tunnel has", self._tunnels.free_ports)
        yield from self._of_tunnels(views)

    def _of_tunnels(self, views: tuple[TunnelView, ...]) -> Iterator[Metric]:
        try:
            counts = self._counters.all()
        except ScistreamError:
            counts = {}  # no zeros for what cannot be seen: there is a metric that says so
            yield GaugeMetricFamily("scistreamd_counters_available", "Whether the kernel tells of connections", 0)
        else:
            yield GaugeMetricFamily("scistreamd_counters_available", "Whether the kernel tells of connections", 1)
        known = [
            ([view.id, view.label, view.role.value, view.type], counts[view.id]) for view in views if view.id in counts
        ]
        for number in _COUNTERS:
            counter = CounterMetricFamily(f"scistreamd_tunnel_{number.name}", number.about, labels=_TUNNEL)
            for labels, of_one in known:
                counter.add_metric(labels, number.value(of_one))
            yield counter
        for both in _BOTH_WAYS:
            name = f"scistreamd_tunnel_{both.name}"
            counter = CounterMetricFamily(name, both.about, labels=(*_TUNNEL, "direction"))
            for labels, of_one in known:
                for direction in ("in", "out"):
                    counter.add_metric([*labels, direction], getattr(both.totals(of_one), f"{both.field}_{direction}"))
            yield counter
        for number in _GAUGES:
            gauge = GaugeMetricFamily(f"scistreamd_tunnel_{number.name}", number.about, labels=_TUNNEL)
            for labels, of_one in known:
                gauge.add_metric(labels, number.value(of_one))
            yield gauge
