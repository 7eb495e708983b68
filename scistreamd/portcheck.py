"""Who is in the way of listeners: judged from a look at the kernel's sockets, addresses and settings."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from scistreamd.model import Endpoint, IPAddress, PortRange, join_host_port


@dataclass(frozen=True)
class Socket:
    """A socket that takes connections or packets of anyone.

    ``protocol``: ``tcp`` or ``udp``; ``only_v6``: a wildcard of IPv6 that leaves
    IPv4 alone; ``owner``: who has it, as far as that can be seen.
    """

    protocol: str
    address: IPAddress
    port: int
    only_v6: bool = False
    owner: str = ""

    def takes(self, address: IPAddress) -> bool:
        """Whether nobody else can listen on this address and the same port (ip(7), ipv6(7))."""
        mine, theirs = _plain(self.address), _plain(address)
        if mine.is_unspecified or theirs.is_unspecified:
            both = (mine.version == 6 and mine.is_unspecified and not self.only_v6) or (
                theirs.version == 6 and theirs.is_unspecified
            )
            return both or mine.version == theirs.version
        return mine == theirs

    def __str__(self) -> str:
        everywhere = ", which is every address" if self.address.is_unspecified else ""
        where = join_host_port(str(self.address), self.port)
        return f"{self.owner or 'another program'} has {self.protocol} {where}{everywhere}"


def _plain(address: IPAddress) -> IPAddress:
    return (address.ipv4_mapped or address) if isinstance(address, ipaddress.IPv6Address) else address


@dataclass(frozen=True)
class Look:
    """What there is on a host at one moment.

    ``ephemeral``: the first and last port that the kernel gives to outgoing connections, but for the
    ``reserved`` ones; None where that cannot be seen. ``addresses``: the host's
    own. ``unseen``: what could not be looked at, and why.
    """

    sockets: tuple[Socket, ...] = ()
    ephemeral: tuple[int, int] | None = None
    reserved: str = ""
    addresses: frozenset[IPAddress] = frozenset()
    unseen: tuple[str, ...] = ()

    def by_port(self) -> dict[int, list[Socket]]:
        """The sockets of each port."""
        found: dict[int, list[Socket]] = {}
        for each in self.sockets:
            found.setdefault(each.port, []).append(each)
        return found

    def in_the_way(self, endpoint: Endpoint, *, udp: bool = False) -> list[Socket]:
        """Those that keep a listener from the endpoint, or share it."""
        protocols = ("tcp", "udp") if udp else ("tcp",)
        there = (each for each in self.sockets if each.port == endpoint.port and each.protocol in protocols)
        return [each for each in there if each.takes(endpoint.address)]


def numbers(text: str) -> set[int]:
    """The ports of a list as ``ip_local_reserved_ports`` has it: ``8080,9000-9010``; ValueError for other text."""
    found: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return found


def overlap(look: Look, ports: PortRange) -> str:
    """Why outgoing connections may take ports of the range, with the line that cures it; or an empty string."""
    if look.ephemeral is None:
        return ""
    first, last = look.ephemeral
    reserved = numbers(look.reserved)
    open_ports = [port for port in ports if first <= port <= last and port not in reserved]
    if not open_ports:
        return ""
    wanted = ",".join(filter(None, [look.reserved.strip(), f"{ports}" if len(ports) > 1 else str(ports.first)]))
    return (
        f"outgoing connections of this host may take {runs(open_ports)}: ephemeral ports are {first}-{last}"
        f" (sysctl -w net.ipv4.ip_local_reserved_ports={wanted} keeps them free; in /etc/sysctl.d it stays)"
    )


def absent(look: Look, configured: Iterable[tuple[str, IPAddress | None]]) -> list[str]:
    """What is configured as an address of this host and is none; ``configured``: the key and its value."""
    known = look.addresses
    return [
        f"{key}: {address} is not an address of this host (`ip address` shows those that are)"
        for key, address in configured
        if address is not None and known and not address.is_unspecified and not address.is_loopback
        and address not in known
    ]  # fmt: skip


def runs(ports: Collection[int]) -> str:
    """Ports as people write them: ``5100-5103, 5110``."""
    parts: list[list[int]] = []
    for port in sorted(ports):
        if parts and parts[-1][-1] == port - 1:
            parts[-1][1:] = [port]
        else:
            parts.append([port])
    return ", ".join("-".join(map(str, part)) for part in parts)


def findings(look: Look, ports: PortRange, address: IPAddress, ours: Collection[int]) -> list[str]:
    """What an operator should know of a range whose listeners bind ``address``; ``ours``: ports of our tunnels."""
    found = [overlap(look, ports)]
    for port, there in sorted(look.by_port().items()):
        if port in ports and port not in ours:
            found += [f"port {port}: {each}" for each in there if each.protocol == "tcp" and each.takes(address)]
    return [line for line in found if line]
