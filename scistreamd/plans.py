"""What a data server is to do, and how that is rendered: plain data of manager, data servers and launchers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from scistreamd.model import Endpoint, IPNetwork, Role, Security

# sd_listen_fds(3): the first inherited socket, and where ours begin under every launcher.
FIRST_FD = 3

CA_FILE = "ca.pem"
LEAF_FILE = "leaf.pem"
PSK_FILE = "psk.txt"


@dataclass(frozen=True)
class Bind:
    """One listener to hold: TCP always, and UDP on the same port where asked for.

    The address may be a wildcard; ``::`` then takes IPv4 as well.
    ``allow_from``: the networks that may connect, in IPv4 or IPv6; empty: all.
    """

    endpoint: Endpoint
    udp: bool = False
    allow_from: tuple[IPNetwork, ...] = ()


@dataclass(frozen=True)
class Places:
    """Directories of one tunnel as its data server sees them.

    ``config`` holds no secret and is re-read on reload; ``secrets`` holds
    `CA_FILE`, `LEAF_FILE`, `PSK_FILE` as far as the security mode needs them;
    ``scratch`` is writable by the data server (control sockets, pid files).
    """

    config: PurePosixPath
    secrets: PurePosixPath
    scratch: PurePosixPath


@dataclass(frozen=True)
class Tuning:
    """Settings of the data plane, from the configuration; ../docs/data-servers.md says why these.

    ``record_bytes`` is no setting but follows from a tunnel's rate: what a TLS record holds at most, 0: what TLS
    allows (16 KiB).
    """

    threads: int = 1
    buffer_bytes: int = 65536
    handshake_seconds: int = 5
    connect_seconds: int = 10
    connections: int = 4096
    keepalive_idle_seconds: int = 60
    record_bytes: int = 0


@dataclass(frozen=True)
class Plan:
    """What a data server is to do: listener i forwards to targets[i].

    ``listeners`` are in the order of the inherited sockets (for a Bind with
    ``udp`` its UDP socket follows its TCP socket). ``targets[i]`` is never
    empty: several addresses are tried in turn, for they are one host's.
    ``generation`` grows with each update, so that an answer can be told from
    that of the configuration before.
    """

    tunnel_id: str
    role: Role
    security: Security
    listeners: tuple[Bind, ...]
    targets: tuple[tuple[Endpoint, ...], ...]
    generation: int = 1
    tuning: Tuning = field(default_factory=Tuning)


@dataclass(frozen=True)
class SocketSays:
    """Ready when the data server's own UNIX socket answers ``request`` with text that holds ``expect``."""

    path: PurePosixPath
    request: bytes
    expect: bytes


@dataclass(frozen=True)
class LogSays:
    """Ready when ``count`` new lines of the data server's output hold ``text``."""

    text: str
    count: int = 1


@dataclass(frozen=True)
class Program:
    """A data server rendered: all that a launcher needs to run, reload and drain it.

    ``argv[0]`` is the bare program name, ``argv`` names files inside `Places`.
    ``reload_signal`` makes the main process take the new ``config`` without
    touching running streams, after which ``ready`` holds again.
    ``drain_signal`` lets streams end and takes no new ones; None: it cannot.
    ``retired``: what this program says after a reload, when the processes of
    its configuration have stopped accepting; None: ``ready`` of the next
    program implies it. ``rejected``: a new line with this text after a reload
    means that the new configuration was not taken. ``routine``: lines with one
    of these texts are normal operation, not worth a place in the daemon's log.
    ``library``: see `interfaces.DataServer.library`.
    """

    argv: tuple[str, ...]
    environment: Mapping[str, str]
    config: Mapping[str, str]
    ready: SocketSays | LogSays
    reload_signal: int
    drain_signal: int | None
    retired: LogSays | None = None
    rejected: str = ""
    routine: tuple[str, ...] = ()
    library: str = ""
