"""By which way peers come to a listener: interfaces and routes of a host, and the packets to judge by them."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from scistreamd.model import Endpoint, IPAddress, IPNetwork
from scistreamd.nft.packet import TCP, Arrival, Interface
from scistreamd.nft.spans import Spans

_LOOPBACK = 772  # ARPHRD_LOOPBACK
_EVERYBODY = {4: ipaddress.ip_network("0.0.0.0/0"), 6: ipaddress.ip_network("::/0")}
# Whose addresses peers can have: IPv4 without this network, loopback, multicast and reserved; IPv6's two unicast parts.
_PEERS = {
    4: Spans(((1 << 24, (127 << 24) - 1), (128 << 24, (224 << 24) - 1))),
    6: Spans.network(ipaddress.ip_network("2000::/3")) | Spans.network(ipaddress.ip_network("fc00::/7")),
}


@dataclass(frozen=True)
class Route:
    """What leads to a network: the index of an interface. ``usable`` False: a blackhole or the like."""

    network: IPNetwork
    interface: int
    usable: bool = True


@dataclass(frozen=True)
class Host:
    """The interfaces that are up, with the host's addresses, and its main routing table."""

    interfaces: tuple[Interface, ...]
    routes: tuple[Route, ...]

    @property
    def own(self) -> frozenset[IPAddress]:
        """All addresses of the host."""
        return frozenset(address for each in self.interfaces for address in each.addresses)

    @property
    def devices(self) -> dict[int, str]:
        """Names of interfaces by index."""
        return {each.index: each.name for each in self.interfaces}

    def reached_by(self, interface: Interface, version: int) -> Spans:
        """The addresses to which the best route leads out by this interface: its peers, as far as ways are the same."""
        spans, longer = Spans(), Spans()
        routes = [route for route in self.routes if route.network.version == version]
        for length in sorted({route.network.prefixlen for route in routes}, reverse=True):
            level = [route for route in routes if route.network.prefixlen == length]
            mine = [each.network for each in level if each.usable and each.interface == interface.index]
            spans |= Spans.of(span for each in mine for span in Spans.network(each).ranges) - longer
            longer |= Spans.of(span for each in level for span in Spans.network(each.network).ranges)
        return spans


def arrivals(
    host: Host, listener: Endpoint, allow_from: Sequence[IPNetwork], protocol: int = TCP
) -> tuple[Arrival, ...]:
    """The packets that open connections to the listener, from the networks that may, or else from anybody.

    Anybody comes by the interfaces that have the listener's address. Empty where no peer has a way here.
    """
    return tuple(_arrivals(host, listener, allow_from, protocol))


def everybody(host: Host, arrival: Arrival) -> Arrival:
    """The packets of all who have their way here by the same interface, whoever may connect."""
    if arrival.interface.type == _LOOPBACK:
        return arrival
    return replace(arrival, sources=_strangers([_EVERYBODY[arrival.version]], arrival.version, host) & arrival.routed)


def _strangers(networks: Iterable[IPNetwork], version: int, host: Host) -> Spans:
    """Those in the networks who can be peers, without the host itself."""
    own = Spans.of((int(each), int(each)) for each in host.own if each.version == version)
    return _peers(networks, version) - own


def _arrivals(host: Host, listener: Endpoint, allow_from: Sequence[IPNetwork], protocol: int) -> Iterator[Arrival]:
    own = host.own
    for version in _versions(listener):
        networks = [each for each in allow_from if each.version == version]
        if allow_from and not networks:
            continue
        peers = _strangers(networks or [_EVERYBODY[version]], version, host)
        for interface in host.interfaces:
            targets = _targets(host, interface, listener, version, anybody=not networks)
            sources = peers & host.reached_by(interface, version)
            if interface.type == _LOOPBACK:
                sources = _own_sources(listener, version)
            for address in targets if sources else ():
                yield Arrival(
                    interface,
                    sources,
                    Endpoint(address, listener.port),
                    wildcard=listener.is_wildcard,
                    protocol=protocol,
                    own=own,
                    routed=host.reached_by(interface, version),
                )


def _versions(listener: Endpoint) -> tuple[int, ...]:
    """``::`` takes IPv4 as well."""
    version = listener.address.version
    return (4, 6) if listener.is_wildcard and version == 6 else (version,)


def _peers(networks: Iterable[IPNetwork], version: int) -> Spans:
    return _PEERS[version] & Spans.of(span for each in networks for span in Spans.network(each).ranges)


def _own_sources(listener: Endpoint, version: int) -> Spans:
    """Who reaches a listener on loopback: this host alone."""
    if not listener.address.is_loopback:
        return Spans()
    return Spans.network(ipaddress.ip_network("127.0.0.0/8" if version == 4 else "::1/128"))


def _targets(
    host: Host, interface: Interface, listener: Endpoint, version: int, *, anybody: bool
) -> Sequence[IPAddress]:
    """The addresses that packets by this interface are sent to, to reach the listener."""
    mine = [each for each in interface.addresses if each.version == version and not each.is_link_local]
    if listener.is_wildcard:
        return [] if interface.type == _LOOPBACK else mine[:1]
    if interface.type == _LOOPBACK:
        return [listener.address] if listener.address.is_loopback else []
    if anybody and listener.address not in mine:
        return []
    return [listener.address]
