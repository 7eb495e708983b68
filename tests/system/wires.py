"""The tutorial's topology: four hosts in a row, of which the middle two are gateways."""

from __future__ import annotations

from pathlib import Path

from tests.system.tools import call

HOSTS = ("producer", "producers2", "consumers2", "consumer")
# Each link is a network of two hosts.
_LINKS = (
    (("producer", "192.168.10.10"), ("producers2", "192.168.10.11")),
    (("producers2", "192.168.20.10"), ("consumers2", "192.168.20.11")),
    (("consumers2", "192.168.30.10"), ("consumer", "192.168.30.11")),
)
# The tutorial's inbound listener is 192.168.10.11, an address of the far gateway's inner side.
_ROUTE = ("consumers2", "192.168.10.0/24", "192.168.20.10")
_NAMESPACES = Path("/run/netns")


def namespace(host: str) -> Path:
    """The host's network namespace, in the mount namespace where ``connect`` ran."""
    return _NAMESPACES / host


def addresses(host: str) -> list[str]:
    """The host's own addresses, in the order of its devices eth0, eth1."""
    return [address for link in _LINKS for name, address in link if name == host]


def names(host: str) -> str:
    """What /etc/hosts of the host says: itself, and its neighbours by the addresses that it reaches."""
    lines = ["127.0.0.1 localhost", "::1 localhost"]
    for link in _LINKS:
        if host in dict(link):
            lines += [f"{address} {name}" for name, address in link]
    return "\n".join(lines) + "\n"


def connect() -> None:
    """Make the namespaces and the links between them. Forwarding is off: gateways relay, they do not route."""
    for host in HOSTS:
        call(["ip", "netns", "add", host])
        call(["ip", "-netns", host, "link", "set", "lo", "up"])
        call(["nsenter", f"--net={namespace(host)}", "sysctl", "-q", "net.ipv4.ip_forward=0"])
    devices = dict.fromkeys(HOSTS, 0)
    for (left, left_address), (right, right_address) in _LINKS:
        ends = [f"eth{devices[left]}", f"eth{devices[right]}"]
        peer = ["type", "veth", "peer", "name", ends[1], "netns", right]
        call(["ip", "link", "add", ends[0], "netns", left, *peer])
        for host, device, address in ((left, ends[0], left_address), (right, ends[1], right_address)):
            call(["ip", "-netns", host, "address", "add", f"{address}/24", "dev", device])
            call(["ip", "-netns", host, "link", "set", device, "up"])
            devices[host] += 1
    host, network, gateway = _ROUTE
    call(["ip", "-netns", host, "route", "add", network, "via", gateway])
