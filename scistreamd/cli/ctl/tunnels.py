"""Tunnels and the gateway as s2ctl sees them over the bus: the one place that knows the interface."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dbus_next.signature import Variant

from scistreamd import names
from scistreamd.cli import uids
from scistreamd.cli.ctl.bus import CHANGE_SECONDS, Bus
from scistreamd.errors import Code, ScistreamError, did_you_mean, invalid
from scistreamd.model import Uid, shown

_ID = re.compile(r"[0-9a-f]{12}", re.ASCII)
_PREFIX = re.compile(r"[0-9a-f]{1,12}", re.ASCII)
_SHOWN_MATCHES = 5
# A tunnel may have many targets, and each test with throughput takes up to 40 seconds.
_TEST_SECONDS = 3600.0

# D-Bus property to field of `Tunnel`, in the order of the fields.
PROPERTIES = {
    "Id": "id",
    "Label": "label",
    "Role": "role",
    "State": "state",
    "Type": "type",
    "Security": "security",
    "Listeners": "listeners",
    "Targets": "targets",
    "Rate": "rate",
    "Unit": "unit",
    "Owner": "owner",
    "CreatedUSec": "created_usec",
    "ExpiresUSec": "expires_usec",
    "Result": "result",
    "Warnings": "warnings",
}

# The a{sv} of a method, by the names that the interface's XML gives, with plain values.
Options = Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """A tunnel as ListTunnels tells it."""

    id: str
    role: str
    state: str
    listeners: list[str]
    targets: list[str]
    type: str
    owner: str


@dataclass(frozen=True)
class Tunnel:
    """A tunnel with all that can be read of it: rate in kB/s, times in microseconds since the epoch (0: none)."""

    id: str
    label: str
    role: str
    state: str
    type: str
    security: str
    listeners: list[str]
    targets: list[str]
    rate: int
    unit: str
    owner: str
    created_usec: int
    expires_usec: int
    result: str
    warnings: list[str]


@dataclass(frozen=True)
class Carried:
    """What a tunnel has carried, as ListCounters tells it; rates are bytes/s over 1, 10 and 60 s, or none yet."""

    id: str
    connections: int
    connections_total: int
    bytes_in: int
    bytes_out: int
    packets_in: int
    packets_out: int
    rates_in: list[float]
    rates_out: list[float]
    wan_rtt_usec: int
    wan_retransmits: int
    wan_cwnd: int
    wan_delivery_rate: int
    estimated: bool


# What GetCounters tells beyond the properties, by the names that s2ctl gives it.
COUNTED = (
    "connections", "connections_total", "bytes_in", "bytes_out", "packets_in", "packets_out", "rates_in", "rates_out",
    "used_usec", "estimated", "wan_connections", "wan_bytes_in", "wan_bytes_out", "wan_packets_in", "wan_packets_out",
    "wan_retransmits", "wan_rtt_usec", "wan_cwnd", "wan_delivery_rate",
)  # fmt: skip


@dataclass(frozen=True)
class Facts:
    """The gateway itself."""

    version: str
    listener_address: str
    port_range: list[int]
    free_ports: int
    default_type: str
    types: list[str]
    tunnels: int
    warnings: list[str]


@dataclass(frozen=True)
class Port:
    """Whether a port is the gateway's to use, whether nobody uses it, and what is against it."""

    port: int
    in_range: bool
    free: bool
    reason: str
    sockets: list[str]
    warnings: list[str]
    firewall: str = ""

    @property
    def usable(self) -> bool:
        """Whether a tunnel could listen on it now."""
        return self.in_range and self.free


@dataclass(frozen=True)
class Hop:
    """A test of the way to an inbound listener, as Test tells it: times in microseconds, throughput in bytes/s."""

    listener: str
    ok: bool
    outcome: str
    message: str
    hint: str
    connect_usec: int
    handshake_usec: int
    rtt_usec: int
    sent_bytes: int
    throughput: int


_HOP = ("listener", "ok", "outcome", "message", "hint", "connect-usec", "handshake-usec", "rtt-usec", "sent-bytes",
        "throughput")  # fmt: skip


class Tunnels:
    """What scistreamd does for s2ctl."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._all: list[Tunnel] | None = None

    def rows(self) -> list[Row]:
        """All tunnels in short, the oldest first; the quickest question."""
        (found,) = self._bus.read(names.ROOT, names.MANAGER, "ListTunnels")
        return [Row(*fields[:7]) for fields in found]

    def all(self) -> list[Tunnel]:
        """All tunnels in full, the oldest first; asked once."""
        if self._all is None:
            (objects,) = self._bus.read(names.ROOT, names.OBJECT_MANAGER, "GetManagedObjects")
            found = [of(interfaces[names.TUNNEL]) for interfaces in objects.values() if names.TUNNEL in interfaces]
            self._all = sorted(found, key=lambda tunnel: tunnel.created_usec)
        return self._all

    def labels(self) -> dict[str, str]:
        """The label of every tunnel that has one, by id, as they are now."""
        self._all = None
        return {tunnel.id: tunnel.label for tunnel in self.all()}

    def carried(self) -> dict[str, Carried]:
        """What every tunnel has carried, by id; UNAVAILABLE where scistreamd cannot see it."""
        (found,) = self._bus.read(names.ROOT, names.MANAGER, "ListCounters")
        return {fields[0]: Carried(*fields) for fields in found}

    def counted(self, tunnel_id: str) -> dict[str, Any]:
        """All that is counted of a tunnel, by the names in `COUNTED`; UNAVAILABLE where scistreamd cannot see it."""
        (found,) = self._bus.read(names.tunnel_path(tunnel_id), names.TUNNEL, "GetCounters")
        return dict(zip(COUNTED, _values(found, *(name.replace("_", "-") for name in COUNTED)), strict=True))

    def facts(self) -> Facts:
        """The gateway's properties."""
        (found,) = self._bus.read(names.ROOT, names.PROPERTIES, "GetAll", "s", names.MANAGER)
        # A daemon that has not been restarted since an upgrade knows no warnings.
        warnings = _values(found, "Warnings")[0] if "Warnings" in found else []
        known = ("Version", "ListenerAddress", "PortRange", "FreePorts", "DefaultType", "Types", "NTunnels")
        return Facts(*[*_values(found, *known), warnings])

    def find(self, text: str) -> str:
        """The id of the tunnel that an id, the start of one, a label, or a UID (also ``-``, ``@FILE``) names.

        Whether a tunnel of a whole id exists, the call with it says. Raises
        NOT_FOUND, or INVALID_ARGUMENT where several tunnels match.
        """
        if uids.is_hidden(text):
            return uids.read(text).id
        if _ID.fullmatch(text):
            return text
        uid = _uid(text)
        return uid.id if uid else self._match(text)

    def tunnel(self, text: str) -> Tunnel:
        """The tunnel that the text names, see `find`."""
        tunnel_id = self.find(text)
        path = names.tunnel_path(tunnel_id)
        (found,) = self._bus.read(path, names.PROPERTIES, "GetAll", "s", names.TUNNEL)
        return of(found)

    def ports(self, ports: Sequence[int]) -> list[Port]:
        """Whether these ports, or those of the whole range, could be listened on now."""
        (found,) = self._bus.read(names.ROOT, names.MANAGER, "CheckPorts", "aq", list(ports))
        return [
            Port(*_values(each, "port", "in-range", "free", "reason", "sockets", "warnings", "firewall"))
            for each in found
        ]

    def create_inbound(self, targets: Sequence[str], options: Options) -> tuple[str, str, list[str]]:
        """Make an inbound tunnel: UID, id, listeners."""
        serial = self._bus.start(
            names.ROOT, names.MANAGER, "CreateInbound", "asa{sv}", list(targets), _variants(options)
        )
        uid, path, listeners = self._bus.finish(serial)
        return uid, _id_of(path), listeners

    def create_outbound(self, uid: Uid, listeners: Sequence[str], options: Options) -> tuple[str, list[str]]:
        """Make an outbound tunnel to the inbound gateway's listeners: id, own listeners."""
        body = (uid.reveal(), list(listeners), _variants(options))
        serial = self._bus.start(names.ROOT, names.MANAGER, "CreateOutbound", "sasa{sv}", *body)
        path, own = self._bus.finish(serial)
        return _id_of(path), own

    def update(self, tunnel_id: str, targets: Sequence[str], options: Options) -> None:
        """Change targets, rate or lifetime."""
        path = names.tunnel_path(tunnel_id)
        self._bus.finish(self._bus.start(path, names.TUNNEL, "Update", "asa{sv}", list(targets), _variants(options)))

    def test(self, tunnel_id: str, options: Options) -> list[Hop]:
        """Test the hop to each target of an outbound tunnel."""
        serial = self._bus.start(names.tunnel_path(tunnel_id), names.TUNNEL, "Test", "a{sv}", _variants(options))
        (found,) = self._bus.finish(serial, _TEST_SECONDS)
        return [Hop(*_values(each, *_HOP)) for each in found]

    def test_path(self, uid: Uid, listener: str, options: Options) -> Hop:
        """Test the hop that an outbound tunnel of this UID to ``listener`` would have."""
        body = (uid.reveal(), listener, _variants(options))
        serial = self._bus.start(names.ROOT, names.MANAGER, "TestPath", "ssa{sv}", *body)
        (found,) = self._bus.finish(serial, _TEST_SECONDS)
        return Hop(*_values(found, *_HOP))

    def start_release(self, tunnel_id: str, options: Options) -> int:
        """Begin to end a tunnel; `finish_release` waits until it has ended."""
        return self._bus.start(names.ROOT, names.MANAGER, "Release", "sa{sv}", tunnel_id, _variants(options))

    def finish_release(self, call: int, drain: int) -> None:
        """Wait for the end of a tunnel whose streams have ``drain`` seconds."""
        self._bus.finish(call, CHANGE_SECONDS + drain)

    def reveal(self, tunnel_id: str) -> str:
        """The tunnel's UID."""
        uid: str = self._bus.finish(self._bus.start(names.tunnel_path(tunnel_id), names.TUNNEL, "GetUid"))[0]
        return uid

    def _match(self, text: str) -> str:
        tunnels = self.all()
        prefix = _PREFIX.fullmatch(text) is not None
        found = [each.id for each in tunnels if each.label == text or (prefix and each.id.startswith(text))]
        if len(found) == 1:
            return found[0]
        if not found:
            known = [each.label for each in tunnels if each.label]
            hint = did_you_mean(text, known) or "s2ctl list --long shows ids and labels"
            raise ScistreamError(Code.NOT_FOUND, f"no tunnel's id starts with {shown(text)}, and no label is it", hint)
        several = ", ".join(found[:_SHOWN_MATCHES]) + (", ..." if found[_SHOWN_MATCHES:] else "")
        raise invalid("ID", f"{shown(text)} names {len(found)} tunnels: {several}", "give more of the id")


def of(properties: Mapping[str, Any]) -> Tunnel:
    """A tunnel of the properties of its object."""
    return Tunnel(*_values(properties, *PROPERTIES))


def _values(properties: Mapping[str, Any], *wanted: str) -> list[Any]:
    missing = [name for name in wanted if name not in properties]
    if missing:
        message = f"scistreamd tells nothing of {', '.join(missing)}"
        raise ScistreamError(Code.INTERNAL, message, "are s2ctl and scistreamd of one version?")
    return [properties[name] for name in wanted]


def _id_of(path: str) -> str:
    tunnel_id = names.tunnel_id(path)
    if tunnel_id is None:
        raise ScistreamError(Code.INTERNAL, f"{shown(path)} is no tunnel", "are s2ctl and scistreamd of one version?")
    return tunnel_id


def _variants(options: Options) -> dict[str, Variant]:
    return {name: Variant(names.OPTION_SIGNATURES[name], value) for name, value in options.items()}


def _uid(text: str) -> Uid | None:
    try:
        return Uid.parse(text)
    except ScistreamError:
        return None
