"""The data servers that a tunnel can run on, as a visible list."""

from __future__ import annotations

from dataclasses import dataclass

from scistreamd.dataserver.haproxy import Haproxy
from scistreamd.dataserver.nginx import Nginx
from scistreamd.dataserver.stunnel import Stunnel
from scistreamd.errors import invalid
from scistreamd.interfaces import DataServer
from scistreamd.model import shown

DATA_SERVERS: tuple[DataServer, ...] = (Haproxy(), Nginx(), Stunnel())

_SUBPROCESS = "Subprocess"


@dataclass(frozen=True)
class DataServerType:
    """What a user chooses: a data server, and whether it must be a child of the daemon."""

    name: str
    server: DataServer
    subprocess: bool


TYPES: tuple[DataServerType, ...] = tuple(
    DataServerType(server.name + suffix, server, bool(suffix))
    for suffix in ("", _SUBPROCESS)
    for server in DATA_SERVERS
)


def parse_type(text: str, name: str = "type") -> DataServerType:
    """A data server type by its name, case ignored; INVALID_ARGUMENT with the list of types for another."""
    for known in TYPES:
        if known.name.lower() == text.lower():
            return known
    names = ", ".join(known.name for known in TYPES)
    raise invalid(name, f"{shown(text)} is not a data server type", f"one of: {names}")
