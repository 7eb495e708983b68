"""The names and addresses by which this host can be dialled."""

from __future__ import annotations

import ipaddress
import socket

from pyroute2 import IPRoute

from scistreamd.errors import ScistreamError
from scistreamd.model import IPAddress, Target


def own() -> tuple[tuple[str, ...], tuple[IPAddress, ...]]:
    """The host name and ``localhost``; every address but link-local ones, loopback last (rtnetlink(7))."""
    names = [name for name in (socket.gethostname(),) if _is_name(name)]
    with IPRoute() as routes:
        texts = [message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS") for message in routes.get_addr()]
    found = {ipaddress.ip_address(text) for text in texts if text}
    dialable = sorted(
        (address for address in found if not address.is_link_local),
        key=lambda address: (address.is_loopback, address.version, int(address)),
    )
    return tuple(dict.fromkeys([*names, "localhost"])), tuple(dialable)


def _is_name(text: str) -> bool:
    """Whether a client could dial it by this name."""
    try:
        return Target.parse(f"{text}:1").address is None
    except ScistreamError:
        return False
