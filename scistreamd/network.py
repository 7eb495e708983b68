"""Names and addresses as this host sees them."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import socket
from concurrent.futures import ThreadPoolExecutor

from scistreamd.errors import Code, ScistreamError, invalid
from scistreamd.model import IPAddress, shown

_MOST_ADDRESSES = 8


def _lookup(host: str) -> list[IPAddress]:
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return [ipaddress.ip_address(str(sockaddr[0]).partition("%")[0]) for *_, sockaddr in found]


class HostNetwork:
    """Resolves by the host's resolver and asks the kernel's routing tables."""

    def __init__(self, resolve_seconds: float) -> None:
        self._resolve_seconds = resolve_seconds
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
            addresses = await asyncio.wait_for(lookup, self._resolve_seconds)
        except asyncio.TimeoutError:
            raise ScistreamError(
                Code.INVALID_ARGUMENT,
                f"target: host {shown(host)} did not resolve within {self._resolve_seconds:g} s",
                "check the resolver of the gateway, or give an address",
            ) from None
        except (OSError, UnicodeError) as problem:
            reason = problem.strerror if isinstance(problem, OSError) else "not a host name"
            raise invalid("target", f"host {shown(host)} does not resolve on the gateway: {reason}") from None
        return tuple(dict.fromkeys(addresses))[:_MOST_ADDRESSES]

    def is_local(self, address: IPAddress) -> bool:
        """Whether a packet to the address would stay on this host (route of type local, rtnetlink(7))."""
        # Imported here: it takes a third of a second, and a daemon without targets needs none of it.
        from pyroute2 import IPRoute, NetlinkError  # noqa: PLC0415
        from pyroute2.netlink.rtnl import rt_type  # noqa: PLC0415

        family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
        with IPRoute() as kernel:
            try:
                routes = kernel.route("get", dst=str(address), family=family)
            except NetlinkError as problem:
                if problem.code in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL):
                    return False
                raise
            return any(route["type"] == rt_type["local"] for route in routes)
