"""``HOST:PORT`` to sockets and back, for the demo's small programs."""

from __future__ import annotations

import socket
from typing import Any

Address = tuple[str, int]

# Nobody waits longer than this for a byte on loopback.
SECONDS = 60


def parse(text: str) -> Address:
    """An IPv4 address and a port."""
    host, _, port = text.rpartition(":")
    return host, int(port)


def shown(address: Any) -> str:
    """``HOST:PORT`` of a socket's address."""
    return f"{address[0]}:{address[1]}"


def listen(address: Address) -> socket.socket:
    """A listening socket; port 0 takes a free one."""
    return socket.create_server(address)


def connect(address: Address) -> socket.socket:
    """A connection; OSError where there is none to be had."""
    return socket.create_connection(address, timeout=SECONDS)
