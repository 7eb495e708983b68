"""Interfaces, addresses and routes of this host, from the kernel (rtnetlink(7)); needs no privilege."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterator
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.rtnl import rt_type

from scistreamd.model import IPAddress, IPNetwork
from scistreamd.nft.host import Host, Route
from scistreamd.nft.packet import Interface

_UP = 1  # IFF_UP
_MAIN = 254  # RT_TABLE_MAIN
_EVERYWHERE: dict[int, str] = {socket.AF_INET: "0.0.0.0/0", socket.AF_INET6: "::/0"}
_DEAD = ("blackhole", "unreachable", "prohibit", "throw")


def look() -> Host:
    """How the host is connected now. Policy routing is not followed: the main table decides."""
    with IPRoute() as kernel:
        addresses: dict[int, list[IPAddress]] = {}
        for each in kernel.get_addr():
            text = each.get_attr("IFA_LOCAL") or each.get_attr("IFA_ADDRESS")
            addresses.setdefault(each["index"], []).append(ipaddress.ip_address(text))
        interfaces = tuple(_interface(each, addresses) for each in kernel.get_links() if each["flags"] & _UP)
        routes = tuple(
            route
            for family in _EVERYWHERE
            for each in kernel.get_routes(family=family, table=_MAIN)
            for route in _routes(each, family)
        )
    return Host(interfaces, routes)


def _interface(link: Any, addresses: dict[int, list[IPAddress]]) -> Interface:
    info = link.get_attr("IFLA_LINKINFO")
    kind = info.get_attr("IFLA_INFO_KIND") if info is not None else ""
    mine = tuple(addresses.get(link["index"], ()))
    return Interface(link["index"], link.get_attr("IFLA_IFNAME"), kind or "", mine, link["ifi_type"])


def _routes(message: Any, family: int) -> Iterator[Route]:
    """A route, one for each interface of a multipath route."""
    if (message.get_attr("RTA_TABLE") or message["table"]) != _MAIN:
        return
    network = _network(message, family)
    if message["type"] in [rt_type[name] for name in _DEAD]:
        yield Route(network, 0, usable=False)
    elif message["type"] == rt_type["unicast"]:
        hops = [message.get_attr("RTA_OIF")] + [hop["oif"] for hop in message.get_attr("RTA_MULTIPATH") or ()]
        yield from (Route(network, index) for index in hops if index)


def _network(message: Any, family: int) -> IPNetwork:
    everywhere = _EVERYWHERE[family]
    address = message.get_attr("RTA_DST")
    return ipaddress.ip_network(everywhere if address is None else f"{address}/{message['dst_len']}", strict=False)
