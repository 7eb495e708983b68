"""Names and addresses as this host sees them."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import socket
from collections.abc import Set
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from scistreamd.errors import Code, ScistreamError, invalid
from scistreamd.model import IPAddress, IPNetwork, shown, unmapped

if TYPE_CHECKING:
    from pyroute2 import IPRoute

_MOST_ADDRESSES = 8
_NO_ROUTE = frozenset({errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL})


def _lookup(host: str) -> list[IPAddress]:
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return [unmapped(ipaddress.ip_address(str(sockaddr[0]).partition("%")[0])) for *_, sockaddr in found]


class HostNetwork:
    """Resolves by the host's resolver and asks the kernel's routing tables."""

    def __init__(self, resolve_seconds: float) -> None:
        self.resolve_seconds = resolve_seconds
        # A pool of its own and large: getaddrinfo(3) cannot be cancelled, and a dead name server holds each
        # thread for many seconds.
        self._lookups = ThreadPoolExecutor(max_workers=64, thread_name_prefix="resolve")

    def close(self) -> None:
        """Give up the lookups that still run."""
        self._lookups.shutdown(wait=False, cancel_futures=True)

    async def resolve(self, host: str) -> tuple[IPAddress, ...]:
        """A name's addresses, AAAA and A, best first as RFC 6724 has it, at most eight."""
        loop = asyncio.get_running_loop()
        lookup = loop.run_in_executor(self._lookups, _lookup, host)
        try:
            addresses = await asyncio.wait_for(lookup, self.resolve_seconds)
        except asyncio.TimeoutError:
            raise ScistreamError(
                Code.INVALID_ARGUMENT,
                f"target: host {shown(host)} did not resolve within {self.resolve_seconds:g} s",
                "check the resolver of the gateway, or give an address",
            ) from None
        except (OSError, UnicodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not a host name"
            problem = f"host {shown(host)} does not resolve on the gateway: {reason}"
            raise invalid("target", problem, "check the name and the gateway's resolver, or give an address") from None
        return tuple(dict.fromkeys(addresses))[:_MOST_ADDRESSES]

    async def local(self, addresses: Set[IPAddress]) -> frozenset[IPAddress]:
        """Those to which a packet would stay on this host (routes of type local, rtnetlink(7))."""
        # In a thread: since 0.9 pyroute2's plain API runs an event loop of its own, which cannot stand inside ours.
        return await asyncio.get_running_loop().run_in_executor(self._lookups, _local, addresses)

    async def attached(self) -> frozenset[IPNetwork]:
        """The networks of the addresses of all interfaces (rtnetlink(7), RTM_GETADDR), without those of one address."""
        return await asyncio.get_running_loop().run_in_executor(self._lookups, _attached)


def _attached() -> frozenset[IPNetwork]:
    from pyroute2 import IPRoute  # noqa: PLC0415

    with IPRoute() as kernel:
        found = [(each.get_attr("IFA_ADDRESS"), each["prefixlen"]) for each in kernel.get_addr()]
    networks = [ipaddress.ip_network(f"{address}/{length}", strict=False) for address, length in found]
    return frozenset(network for network in networks if network.num_addresses > 1)


def _local(addresses: Set[IPAddress]) -> frozenset[IPAddress]:
    # Imported here: it takes a third of a second, and a daemon that has forwarded nothing needs none of it.
    from pyroute2 import IPRoute  # noqa: PLC0415

    with IPRoute() as kernel:
        return frozenset(address for address in addresses if _is_local(kernel, address))


def _is_local(kernel: IPRoute, address: IPAddress) -> bool:
    from pyroute2 import NetlinkError  # noqa: PLC0415
    from pyroute2.netlink.rtnl import rt_type  # noqa: PLC0415

    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    try:
        routes = list(kernel.route("get", dst=str(address), family=family))
    except NetlinkError as problem:
        if problem.code in _NO_ROUTE:
            return False
        raise
    return any(route["type"] == rt_type["local"] for route in routes)


def dialable() -> IPAddress | None:
    """The address of this host that others most likely dial: that of its default route, else the first it has.

    None where it has loopback alone. No packet is sent for it.
    """
    for family, somewhere in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):  # RFC 5737, RFC 3849
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((somewhere, 9))
            return ipaddress.ip_address(probe.getsockname()[0].partition("%")[0])
    return next(iter(own_addresses()), None)


def own_addresses() -> tuple[IPAddress, ...]:
    """The addresses of this host but loopback and link-local ones."""
    from scistreamd import addresses  # noqa: PLC0415  as above

    with ThreadPoolExecutor(1) as beside:  # as above
        _, found = beside.submit(addresses.own).result()
    return tuple(each for each in found if not each.is_loopback)
