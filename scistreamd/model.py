"""The words of SciStream as frozen types: what exists here is valid.

Every parser takes the text as it came over the wire or the command line and
the name of the field, and raises ScistreamError(INVALID_ARGUMENT) naming it.
"""

from __future__ import annotations

import enum
import hashlib
import ipaddress
import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field

from scistreamd.errors import invalid
from scistreamd.identity import ANONYMOUS, Identity

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

# The UID that the public tutorial and `s2uc --mock True` use: known to everyone.
PUBLIC_UID = "4f8583bc-a4d3-11ee-9fd6-034d1fcbd7c3"

_UID = re.compile(r"[0-9a-f]{32}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?", re.ASCII | re.IGNORECASE)
# WHATWG URL, "ends in a number": inet_aton() would read such a host as an address.
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*", re.ASCII | re.IGNORECASE)
_PORT = re.compile(r"[0-9]{1,5}", re.ASCII)
_MAX_SHOWN = 60
_FORM = "as in 192.0.2.1:5001, [2001:db8::1]:5001 or daq.example.org:5001"
_HOST_FORM = "as in 192.0.2.1, 2001:db8::1 or daq.example.org"


def shown(text: str) -> str:
    """A hostile string made fit for a message: printable, quoted, short."""
    return ascii(text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "...")


class Role(enum.Enum):
    """The side of a stream that a tunnel serves."""

    PROD = "PROD"
    CONS = "CONS"

    @classmethod
    def parse(cls, text: str, name: str = "role") -> Role:
        """``PROD`` (inbound) or ``CONS`` (outbound), exactly."""
        try:
            return cls(text)
        except ValueError:
            raise invalid(
                name, f"{shown(text)} is neither PROD nor CONS", "PROD for an inbound tunnel, CONS for an outbound one"
            ) from None


class Security(enum.Enum):
    """What protects the hop between the gateways."""

    TLS = "tls"
    PSK_NULL = "psk-null"
    NONE = "none"

    @classmethod
    def parse(cls, text: str, name: str = "security") -> Security:
        """One of ``tls``, ``psk-null``, ``none``; case is ignored."""
        try:
            return cls(text.lower())
        except ValueError:
            known = ", ".join(mode.value for mode in cls)
            raise invalid(name, f"{shown(text)} is not a security mode", f"one of: {known}") from None


class State(enum.Enum):
    """Where a tunnel is in its life; `lifecycle` says which change follows which."""

    PENDING = "pending"
    READY = "ready"
    ACTIVE = "active"
    FAILED = "failed"
    RELEASING = "releasing"


@dataclass(frozen=True)
class Uid:
    """The shared identifier and secret of a tunnel: 16 bytes.

    Its text is shown to nobody but its owner; ``repr`` and ``str`` give the
    public id, so that a log line cannot leak it by accident.
    """

    bytes: bytes = field(repr=False)

    @classmethod
    def parse(cls, text: str, name: str = "uid") -> Uid:
        """36 characters with dashes or 32 of hex, nothing else; the text is never echoed."""
        if not _UID.fullmatch(text.lower()) or not text.isascii():
            raise invalid(name, "not a UID", "36 characters with dashes or 32 of hex, as s2uc prints it")
        return cls(uuid.UUID(text).bytes)

    @classmethod
    def random(cls) -> Uid:
        """A new UID with 122 random bits (RFC 9562 version 4)."""
        return cls(uuid.uuid4().bytes)

    @property
    def id(self) -> str:
        """The public name: the first 12 hex digits of SHA-256 over the 16 bytes."""
        return hashlib.sha256(self.bytes).hexdigest()[:12]

    @property
    def warning(self) -> str:
        """Why this UID protects little, or an empty string."""
        if self.reveal() == PUBLIC_UID:
            return "this UID is published in the SciStream tutorial: everyone can join the tunnel"
        if uuid.UUID(bytes=self.bytes).version != 4:
            return "this UID is not a random one (version 4): it can be guessed"
        return ""

    def reveal(self) -> str:
        """The secret text, 36 characters. For the owner's eyes and the wire alone."""
        return str(uuid.UUID(bytes=self.bytes))

    def __str__(self) -> str:
        return self.id

    def __repr__(self) -> str:
        return f"Uid(id={self.id})"


def _parse_port(text: str, name: str, form: str = _FORM) -> int:
    if not _PORT.fullmatch(text) or not 1 <= int(text) <= 65535:
        raise invalid(name, f"port {shown(text)} is not a number from 1 to 65535", form)
    return int(text)


def parse_address(text: str, name: str = "address") -> IPAddress:
    """An IPv4 or IPv6 address, with or without the brackets of a URL, without a zone."""
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    try:
        if "%" in bare:
            raise ValueError
        return ipaddress.ip_address(bare)
    except ValueError:
        raise invalid(name, f"{shown(text)} is not an IP address", "for example 192.0.2.1 or 2001:db8::1") from None


def unmapped(address: IPAddress) -> IPAddress:
    """The IPv4 address that a socket reaches by ``::ffff:a.b.c.d`` (RFC 4291, 2.5.5.2), else the address itself."""
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def join_host_port(host: str, port: int) -> str:
    """``host:port`` with the brackets that an IPv6 address needs (RFC 3986)."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@dataclass(frozen=True, order=True)
class Endpoint:
    """An address and a port; as text ``192.0.2.1:5100`` or ``[2001:db8::1]:5100``."""

    address: IPAddress
    port: int

    @property
    def is_wildcard(self) -> bool:
        """Whether it stands for every address of the host."""
        return self.address.is_unspecified

    def __str__(self) -> str:
        return join_host_port(str(self.address), self.port)


@dataclass(frozen=True)
class Target:
    """What a caller wants forwarded to: a host name or an address, and a port.

    ``host`` is an address in canonical form or a lower-case DNS name in ASCII.
    """

    host: str
    port: int

    @classmethod
    def parse(cls, text: str, name: str = "target") -> Target:
        """``HOST:PORT`` or ``[IPV6]:PORT``; inet_aton's number forms are refused."""
        host, colon, port = text.rpartition(":")
        if not colon or not host:
            raise invalid(name, f"{shown(text)} is not HOST:PORT", _FORM)
        number = _parse_port(port, name)
        if host.startswith("[") or ":" in host:
            return cls(_bracketed_ipv6(host, text, name), number)
        return cls(_host(host, name), number)

    @property
    def address(self) -> IPAddress | None:
        """The address, where the host is one and needs no resolving."""
        try:
            return ipaddress.ip_address(self.host)
        except ValueError:
            return None

    def __str__(self) -> str:
        return join_host_port(self.host, self.port)


def _bracketed_ipv6(host: str, text: str, name: str) -> str:
    if not (host.startswith("[") and host.endswith("]")):
        raise invalid(name, f"{shown(text)} is not HOST:PORT", "an IPv6 address goes in brackets: [::1]:5001")
    address = parse_address(host, name)
    if address.version != 6:
        raise invalid(name, f"{shown(text)}: brackets are for IPv6 addresses", _FORM)
    return str(unmapped(address))


def _host(host: str, name: str) -> str:
    try:
        return str(ipaddress.IPv4Address(host))
    except ValueError:
        pass
    labels = host.removesuffix(".").split(".")
    if not host.isascii():
        raise invalid(name, f"host {shown(host)} is not ASCII", "write an international name in its xn-- form")
    if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise invalid(name, f"{shown(host)} is neither a host name nor an IP address", _HOST_FORM)
    if _NUMBER.fullmatch(labels[-1]):
        raise invalid(name, f"{shown(host)} is not an IP address", "write all four numbers: 192.0.2.1")
    return host.lower().removesuffix(".")


@dataclass(frozen=True)
class PortRange:
    """The pool of listener ports, both ends included."""

    first: int
    last: int

    @classmethod
    def parse(cls, text: str, name: str = "port-range") -> PortRange:
        """``FIRST-LAST`` or a single port."""
        first, dash, last = text.partition("-")
        form = "FIRST-LAST, for example 5100-5200"
        bounds = [_parse_port(end.strip(), name, form) for end in (first, last if dash else first)]
        if bounds[0] > bounds[1]:
            raise invalid(name, f"{shown(text)} ends before it starts", form)
        return cls(*bounds)

    def __contains__(self, port: object) -> bool:
        return isinstance(port, int) and self.first <= port <= self.last

    def __len__(self) -> int:
        return self.last - self.first + 1

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.first, self.last + 1))

    def __str__(self) -> str:
        return f"{self.first}-{self.last}"


@dataclass(frozen=True)
class Listen:
    """Where a caller wants a tunnel to listen; port 0 lets the gateway choose."""

    address: IPAddress
    port: int = 0

    @classmethod
    def parse(cls, text: str, name: str = "listen") -> Listen:
        """``ADDRESS``, ``IPV4:PORT`` or ``[IPV6]:PORT``."""
        host, colon, port = text.rpartition(":")
        if colon and (host.startswith("[") or ":" not in host):
            return cls(parse_address(host, name), _parse_port(port, name))
        return cls(parse_address(text, name))


@dataclass(frozen=True)
class Options:
    """What a caller may ask for beyond the SciStream 1.2 protocol; None or empty: the gateway's default.

    ``rate`` (kB/s) is set only where the caller wants it enforced, ``sent_rate``
    is what a SciStream 1.2 client sends without asking for that; ``lifetime``
    is in seconds, ``exact_ports`` makes a wished port that is not to be had an error;
    ``connections`` is how many streams it may have at a time, 0: as the gateway's settings say.
    """

    data_server: str | None = None
    security: Security | None = None
    lifetime: int | None = None
    label: str = ""
    allow_from: tuple[IPNetwork, ...] = ()
    exact_ports: bool = False
    rate: int = 0
    sent_rate: int = 0
    listen: tuple[Listen, ...] = ()
    connections: int = 0


@dataclass(frozen=True)
class Caller:
    """Who asks, and where the question came in.

    ``peer`` is None on a UNIX socket; ``reached`` is the address of ours that
    the caller dialled, ``identity`` who an authenticator says it is, if any did.
    On D-Bus ``user`` is the numeric user id, ``bus_name`` the connection's
    unique name, and ``interactive`` whether its user may be asked for a password.
    """

    front_door: str
    peer: IPAddress | None = None
    reached: IPAddress | None = None
    identity: Identity | None = None
    user: int | None = None
    bus_name: str = ""
    interactive: bool = False

    @property
    def principal(self) -> str:
        """What says whose a tunnel is; callers who proved nothing are one."""
        return self.identity.principal if self.identity else ANONYMOUS

    def __str__(self) -> str:
        who = self.identity or ANONYMOUS
        return f"{who} from {self.peer or 'this host'} by {self.front_door}"


@dataclass(frozen=True)
class Answer:
    """What `req` and `update` answer with: real listeners, what they forward to, and what to beware of."""

    listeners: tuple[Endpoint, ...]
    targets: tuple[Target, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class TunnelView:
    """A tunnel as others may see it: no secret, times in microseconds since the epoch (0: none), rate in kB/s.

    ``owner`` is for people, ``principal`` says whether a caller is the owner,
    ``peer`` is where it was asked for.
    """

    id: str
    label: str
    role: Role
    state: State
    type: str
    security: Security
    listeners: tuple[Endpoint, ...]
    targets: tuple[Target, ...]
    rate: int
    unit: str
    owner: str
    principal: str
    peer: IPAddress | None
    created_usec: int
    expires_usec: int
    result: str
    warnings: tuple[str, ...]


class ChangeKind(enum.Enum):
    """What happened to a tunnel."""

    ADDED = "added"
    CHANGED = "changed"
    REMOVED = "removed"


@dataclass(frozen=True)
class Change:
    """One change of one tunnel, with how it looks afterwards (for REMOVED: looked last)."""

    kind: ChangeKind
    view: TunnelView
