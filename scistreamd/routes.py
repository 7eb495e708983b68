"""Which interface traffic leaves by, as the kernel's routing tables and addresses say now (rtnetlink(7))."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scistreamd.model import IPAddress

if TYPE_CHECKING:
    from pyroute2 import IPRoute

_NO_ROUTE = frozenset({errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL})


@dataclass(frozen=True)
class Ways:
    """Interfaces by index: towards addresses asked for, having addresses asked for, those of default routes."""

    towards: dict[IPAddress, int]
    having: dict[IPAddress, int]
    default: frozenset[int]
    names: dict[int, str]


class Routes:
    """Looks anew at each call."""

    def __init__(self) -> None:
        # A thread: since 0.9 pyroute2's plain API runs an event loop of its own, which cannot stand inside ours.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="routes")

    async def look(self, targets: Collection[IPAddress], addresses: Collection[IPAddress]) -> Ways:
        """Where packets to ``targets`` go, and which interfaces have ``addresses``; what is not there is left out."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, _look, targets, addresses)

    def close(self) -> None:
        """Needed no more."""
        self._thread.shutdown()


def _look(targets: Collection[IPAddress], addresses: Collection[IPAddress]) -> Ways:
    # Imported here: it takes a third of a second, and most daemons need none of it.
    from pyroute2 import IPRoute  # noqa: PLC0415

    with IPRoute() as kernel:
        names = {link["index"]: link.get_attr("IFLA_IFNAME") for link in kernel.get_links()}
        ways = {target: _towards(kernel, target) for target in targets}
        return Ways(
            {target: way for target, way in ways.items() if way is not None},
            _having(kernel, {str(address): address for address in addresses}),
            frozenset(_default(kernel)),
            names,
        )


def _towards(kernel: IPRoute, target: IPAddress) -> int | None:
    from pyroute2 import NetlinkError  # noqa: PLC0415

    family = socket.AF_INET6 if target.version == 6 else socket.AF_INET
    try:
        routes = list(kernel.route("get", dst=str(target), family=family))
    except NetlinkError as problem:
        if problem.code in _NO_ROUTE:
            return None
        raise
    return next((route.get_attr("RTA_OIF") for route in routes), None)


def _having(kernel: IPRoute, wanted: dict[str, IPAddress]) -> dict[IPAddress, int]:
    found = {}
    for message in kernel.get_addr() if wanted else ():
        text = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
        if text in wanted:
            found[wanted[text]] = message["index"]
    return found


def _default(kernel: IPRoute) -> list[int]:
    """The interfaces of default routes in the main table, those of several next hops too."""
    found: list[Any] = []
    for family in (socket.AF_INET, socket.AF_INET6):
        for route in kernel.get_default_routes(family=family):
            hops = route.get_attr("RTA_MULTIPATH") or ()
            found += [route.get_attr("RTA_OIF"), *(hop["oif"] for hop in hops)]
    return [index for index in found if index]
