"""ICMP messages about a TCP connect: who sent them, and whether that is a firewall's word (ip(7), ipv6(7)).

Linux tells of them since 5.9; before, nothing is heard.
"""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass

from scistreamd.model import IPAddress

# Level and option (linux/in.h, linux/in6.h), where the address in their sockaddr begins, and its size.
_RECVERR: dict[int, tuple[int, int, int, int]] = {
    socket.AF_INET: (socket.IPPROTO_IP, 11, 4, 4),
    socket.AF_INET6: (socket.IPPROTO_IPV6, 25, 8, 16),
}
_EXTENDED_ERR = 16  # struct sock_extended_err (linux/errqueue.h): ee_origin, ee_type, ee_code are bytes 4 to 6
# RFC 792 and RFC 4443, by origin (SO_EE_ORIGIN_ICMP, _ICMP6): the type, and its codes for no network and no host.
_UNREACHABLE = {2: (3, (0, 1)), 3: (1, (0, 3))}


@dataclass(frozen=True)
class Message:
    """``unreachable``: no way leads there, or nobody answers for the address; else somebody forbids it."""

    sender: IPAddress
    unreachable: bool


def keep(line: socket.socket, on: bool) -> None:
    """Have the kernel keep ICMP messages about the socket's connections for `heard`, or no more."""
    level, option, _, _ = _RECVERR[line.family]
    line.setsockopt(level, option, on)


def heard(line: socket.socket) -> Message | None:
    """The message about a connect that failed, None where there was none. The socket does not block afterwards."""
    level, option, at, size = _RECVERR[line.family]
    line.settimeout(0)
    try:
        _, messages, _, _ = line.recvmsg(0, 512, socket.MSG_ERRQUEUE)
    except OSError:
        return None
    for where, kind, data in messages:
        if (where, kind) == (level, option) and data[4] in _UNREACHABLE:
            address = data[_EXTENDED_ERR + at : _EXTENDED_ERR + at + size]
            type_, codes = _UNREACHABLE[data[4]]
            return Message(ipaddress.ip_address(address), data[5] == type_ and data[6] in codes)
    return None
