"""Looks at the kernel's sockets (sock_diag(7)), addresses and settings of ports (ip(7))."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import pwd
import socket
import struct
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from scistreamd.model import IPAddress
from scistreamd.netattributes import attributes
from scistreamd.netlink import DUMP, NETLINK_ROUTE, Netlink, Refused
from scistreamd.portcheck import Look, Socket

_SOCK_DIAG, _BY_FAMILY = 4, 20
_REQUEST = struct.Struct("=BBBxI48x")  # struct inet_diag_req_v2
_MESSAGE = struct.Struct("=BBxxHH16s16sIQ4xIIII")  # struct inet_diag_msg
_SKV6ONLY = 11
_TCP_LISTEN, _UDP_UNCONNECTED = 1 << 10, 1 << 7
_GETADDR = 22
_SETTINGS = Path("/proc/sys/net/ipv4")


class PortView:
    """`interfaces.PortView`: the network namespace that we are in, as it is at each call."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ports")

    async def look(self, *, programs: bool) -> Look:
        """See `interfaces.PortView.look`."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, look, programs)

    def close(self) -> None:
        """Needed no more."""
        self._thread.shutdown()


def look(programs: bool) -> Look:
    """Look now; what cannot be seen is said, not raised. ``programs``: into other processes too, which takes longer."""
    unseen: list[str] = []
    found = _try(_sockets, unseen, "which ports are in use") or []
    names = _programs({inode for _, inode in found}) if programs else {}
    if programs and any(inode and inode not in names for _, inode in found):
        unseen.append("the programs of some ports (their users are seen; more needs root, outside of a sandbox)")
    named = tuple(_named(each, names.get(inode, "")) for each, inode in found)
    text = _try((_SETTINGS / "ip_local_port_range").read_text, unseen, "the ephemeral ports")
    reserved = _try((_SETTINGS / "ip_local_reserved_ports").read_text, unseen, "reserved ports") or ""
    first, last = map(int, text.split()) if text else (0, 0)
    addresses = _try(_addresses, unseen, "the host's addresses") or []
    return Look(named, (first, last) if text else None, reserved.strip(), frozenset(addresses), tuple(unseen))


def _try(work: Any, unseen: list[str], what: str) -> Any:
    try:
        return work()
    except OSError as problem:
        unseen.append(f"{what}: {problem.strerror}")
        return None


class _Answer:
    def __init__(self, data: bytes) -> None:
        self.data = data[16:]

    def decode(self) -> None:
        """Left to those who asked."""


def _sockets() -> list[tuple[Socket, int]]:
    """Every socket that takes connections or packets of anyone, with its user in place of its owner, and its inode."""
    found = []
    kernel = Netlink(_SOCK_DIAG)
    try:
        for family in (socket.AF_INET, socket.AF_INET6):
            for protocol, number, states in (
                ("tcp", socket.IPPROTO_TCP, _TCP_LISTEN),
                ("udp", socket.IPPROTO_UDP, _UDP_UNCONNECTED),
            ):
                try:
                    answers = kernel.dump(_REQUEST.pack(family, number, 0, states), _BY_FAMILY, _Answer, flags=DUMP)
                except Refused:
                    continue  # a kernel without IPv6, or without udp_diag
                found += [_socket(protocol, each.data) for each in answers]
    finally:
        kernel.close()
    return found


def _socket(protocol: str, data: bytes) -> tuple[Socket, int]:
    family, _, port, _, source, _, _, _, _, _, user, inode = _MESSAGE.unpack_from(data)
    address = ipaddress.ip_address(source[:4] if family == socket.AF_INET else source)
    only = dict(attributes(data[_MESSAGE.size :])).get(_SKV6ONLY, b"\0")[0] == 1
    return Socket(protocol, address, socket.ntohs(port), only, str(user)), inode


def _named(found: Socket, program: str) -> Socket:
    try:
        user = pwd.getpwuid(int(found.owner)).pw_name
    except KeyError:
        user = f"number {found.owner}"
    return replace(found, owner=f"{program} (user {user})" if program else f"a program of user {user}")


def _programs(inodes: set[int]) -> dict[int, str]:
    """Which program has each socket, as far as we may look into other processes (proc(5))."""
    wanted = {f"socket:[{inode}]": inode for inode in inodes}
    found: dict[int, str] = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            links = list((process / "fd").iterdir())
            name = (process / "comm").read_text().strip()
        except OSError:
            continue  # not ours to look into, or it has ended
        for link in links:
            with contextlib.suppress(OSError):  # closed meanwhile
                inode = wanted.get(str(link.readlink()))
                if inode:
                    found[inode] = f"{name}[{process.name}]"
    return found


def _addresses() -> list[IPAddress]:
    kernel = Netlink(NETLINK_ROUTE)
    try:
        answers = kernel.dump(bytes(8), _GETADDR, _Answer, flags=DUMP)  # struct ifaddrmsg
    finally:
        kernel.close()
    found = (dict(attributes(each.data[8:])) for each in answers)
    # IFA_LOCAL before IFA_ADDRESS: with a peer address that one is the peer's.
    return [ipaddress.ip_address(each.get(2) or each[1]) for each in found if each.get(2) or each.get(1)]
