"""The queueing disciplines of this host's interfaces: our root, where there is only the kernel's own, and its classes.

tc(8) is the manual; the messages are those of rtnetlink(7).
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import socket
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from scistreamd import shaping
from scistreamd.errors import Code, ScistreamError
from scistreamd.netattributes import attributes
from scistreamd.netlink import CREATE, DUMP, EXCL, NETLINK_ROUTE, Netlink, Order, Refused

_T = TypeVar("_T")

_NEWQDISC, _DELQDISC, _GETQDISC, _NEWTCLASS, _DELTCLASS, _GETTCLASS = 36, 37, 38, 40, 41, 42
_HEADER = struct.Struct("=BBHiIII")  # struct tcmsg: family, padding, interface, handle, parent, info
_AT_ROOT, _AT_INGRESS = 0xFFFFFFFF, 0xFFFFFFF1
_REPLACE = 0x100
_MAJOR, _MINOR = 0xFFFF0000, 0xFFFF
_KIND, _STATS = 1, 3
_STATS_SIZE = 36
_SIOCGIFMTU = 0x8921
_AT_ONCE = 1 << 40  # bytes a second


@dataclass(frozen=True)
class Discipline:
    """A queueing discipline or a class: of which interface, which number, below which, of which kind.

    ``sent``: the bytes that have left it; ``waiting``: the packets in it.
    """

    interface: int
    handle: int
    parent: int
    kind: str
    sent: int
    waiting: int


class _Answer:
    def __init__(self, data: bytes) -> None:
        self._data = data[16:]

    def decode(self) -> None:
        _, _, _, interface, handle, parent, _ = _HEADER.unpack_from(self._data)
        found = dict(attributes(self._data[_HEADER.size :]))
        kind = found.get(_KIND, b"").rstrip(b"\0").decode()
        # struct tc_stats: bytes, packets, drops, overlimits, two rates, packets that wait
        sent, *_, waiting = struct.unpack_from("=Q6I", found.get(_STATS, bytes(_STATS_SIZE)))
        self.made = Discipline(interface, handle, parent, kind, sent, waiting)


class TrafficControl:
    """Our part of it. Calls wait for each other and raise Refused where the kernel does not do it."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="tc")
        self._kernel: Netlink | None = None

    async def disciplines(self) -> list[Discipline]:
        """All queueing disciplines of all interfaces."""
        return await self._run(self._dump, _GETQDISC, 0)

    async def classes(self, interface: int) -> dict[int, Discipline]:
        """The classes below our root there, by number."""
        found = await self._run(self._dump, _GETTCLASS, interface)
        return {each.handle & _MINOR: each for each in found if each.handle & _MAJOR == shaping.ROOT}

    async def take(self, interface: int) -> None:
        """Put our root there; the kernel refuses (EEXIST) where somebody set another one."""
        await self._ask(_NEWQDISC, (interface, shaping.ROOT, _AT_ROOT), shaping.root(), CREATE | EXCL)

    async def give_back(self, interface: int) -> None:
        """Remove our root; the kernel puts its own back."""
        await self._ask(_DELQDISC, (interface, shaping.ROOT, _AT_ROOT))

    async def set_class(self, interface: int, minor: int, bytes_per_second: int, mtu: int) -> None:
        """Make a class with its queue, or change the rate of one that is there."""
        number = shaping.ROOT | minor
        described = shaping.htb_class(bytes_per_second, mtu)
        await self._ask(_NEWTCLASS, (interface, number, shaping.ROOT), described, CREATE | _REPLACE)
        try:
            await self._ask(_NEWQDISC, (interface, 0, number), shaping.queue(bytes_per_second, mtu), CREATE | _REPLACE)
        except Refused as problem:
            problem.part = b"tbf"
            raise

    async def speed_up(self, interface: int, minor: int) -> None:
        """Let a class send all that waits in it."""
        described = shaping.htb_class(_AT_ONCE, 0)
        await self._ask(_NEWTCLASS, (interface, shaping.ROOT | minor, shaping.ROOT), described, CREATE | _REPLACE)

    async def remove_class(self, interface: int, minor: int) -> None:
        """Remove a class, with what waits in it."""
        await self._ask(_DELTCLASS, (interface, shaping.ROOT | minor, shaping.ROOT))

    def close(self) -> None:
        """Needed no more."""
        self._thread.submit(self._disconnect).result()
        self._thread.shutdown()

    async def _ask(self, kind: int, place: tuple[int, int, int], described: bytes = b"", flags: int = 0) -> None:
        """``place``: interface, handle, parent."""
        body = _HEADER.pack(0, 0, 0, *place, 0) + described
        await self._run(lambda: self._connection.ask(Order(body, kind, flags)))

    async def _run(self, work: Callable[..., _T], *arguments: Any) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)

    # In the thread

    @property
    def _connection(self) -> Netlink:
        if self._kernel is None:
            self._kernel = Netlink(NETLINK_ROUTE)
        return self._kernel

    def _disconnect(self) -> None:
        if self._kernel is not None:
            self._kernel.close()

    def _dump(self, kind: int, interface: int) -> list[Discipline]:
        body = _HEADER.pack(0, 0, 0, interface, 0, 0, 0)
        return [each.made for each in self._connection.dump(body, kind, _Answer, flags=DUMP)]


def mtu_of(name: str) -> int:
    """The largest packet that the interface takes, in bytes (SIOCGIFMTU, netdevice(7))."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        answer = fcntl.ioctl(asker, _SIOCGIFMTU, struct.pack("16si20x", name.encode(), 0))
    return int(struct.unpack_from("16xi", answer)[0])


def ours(disciplines: list[Discipline]) -> set[int]:
    """The interfaces that have our root."""
    return {each.interface for each in disciplines if each.handle == shaping.ROOT and each.parent == _AT_ROOT}


def foreign(disciplines: list[Discipline], interface: int) -> Discipline | None:
    """What somebody set there, so that we leave it alone; None where there is the kernel's own (handle 0), or ours."""
    there = [each for each in disciplines if each.interface == interface and each.parent != _AT_INGRESS]
    if any(each.handle == shaping.ROOT for each in there):
        return None
    return next((each for each in there if each.handle), None)


def explained(problem: Refused, name: str) -> ScistreamError:
    """Why the kernel did not do it on the interface ``name``."""
    if problem.errno == errno.EPERM:
        return ScistreamError(
            Code.FAILED_PRECONDITION,
            "rate: not permitted to shape traffic",
            "this needs CAP_NET_ADMIN: scistreamd has it, s2cs only as root",
        )
    if problem.errno == errno.ENOENT:
        kind = problem.part.decode() or "htb"
        return ScistreamError(
            Code.FAILED_PRECONDITION,
            f"rate: this kernel has no queueing discipline {kind} ({problem.strerror})",
            f"`modprobe sch_{kind}` loads it where the kernel's package has it",
        )
    return ScistreamError(
        Code.FAILED_PRECONDITION, f"rate: cannot shape {name}: {problem.strerror}", "leave the rate out"
    )
