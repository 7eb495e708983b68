"""What a gateway forwards to, and how much of it one caller may have."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from scistreamd.errors import Code, ScistreamError
from scistreamd.model import IPAddress

# Addresses where clouds serve credentials to whoever asks from the host, beyond 169.254.0.0/16.
_METADATA = frozenset(
    ipaddress.ip_address(text)
    for text in ("fd00:ec2::254", "fd20:ce::254", "100.100.100.200", "168.63.129.16", "192.0.0.192")
)
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052
_THIS_NETWORK = ipaddress.IPv4Network("0.0.0.0/8")  # RFC 1122: Linux connects 0.0.0.0 to itself


@dataclass(frozen=True)
class Quotas:
    """Ceilings on what callers may hold at a time."""

    ports_per_request: int = 128
    tunnels_per_peer: int = 512
    pending: int = 1024

    def check(self, count: int, of_peer: int, pending: int) -> None:
        """Raise RESOURCE_EXHAUSTED where one more request for ``count`` ports is too much.

        ``of_peer``: tunnels that this peer (an address, or a user of this host) has now; ``pending``: requests of
        all peers that wait for hello or update now.
        """
        if count > self.ports_per_request:
            raise _too_much(f"num_conn: {count} ports asked for, at most {self.ports_per_request} go into one request")
        if of_peer >= self.tunnels_per_peer:
            raise _too_much(f"this peer has {of_peer} tunnels, at most {self.tunnels_per_peer} are allowed")
        if pending >= self.pending:
            raise _too_much(f"{pending} requests wait for their hello, at most {self.pending} may")


def _too_much(message: str) -> ScistreamError:
    return ScistreamError(Code.RESOURCE_EXHAUSTED, message, "release tunnels that are not needed, or try again later")


def why_no_target(address: IPAddress, *, own: bool, loopback_gateway: bool) -> str:
    """Why a tunnel must not forward to the address, or an empty string.

    ``own``: the address is the gateway's. ``loopback_gateway``: the gateway
    listens on loopback alone, so only users of this host can reach it, and they
    can reach loopback by themselves.
    """
    for each in (address, *_embedded(address)):
        if reason := _forbidden(each, own=own, loopback_gateway=loopback_gateway):
            return reason
    return ""


def _embedded(address: IPAddress) -> list[IPAddress]:
    """IPv4 addresses that packets to an IPv6 one may end up at."""
    if not isinstance(address, ipaddress.IPv6Address):
        return []
    inner = [address.ipv4_mapped, address.sixtofour]
    if address in _NAT64 or (int(address) >> 32 == 0 and int(address) > 1):
        inner.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    if address.teredo:
        inner.extend(address.teredo)
    return [found for found in inner if found is not None]


def _forbidden(address: IPAddress, *, own: bool, loopback_gateway: bool) -> str:
    # 240.0.0.0/4 holds broadcast; IPv6's `is_reserved` would also catch 64:ff9b::/96, judged by its inside.
    never = {
        "is no single host's address": address.is_unspecified or address in _THIS_NETWORK or address.is_multicast,
        "is a metadata service's address": address in _METADATA,
        "is a link-local address": address.is_link_local,
        "is a reserved address": address.version == 4 and address.is_reserved,
    }
    beyond_loopback = {
        "is a loopback address": address.is_loopback,
        "is an address of the gateway itself": own,
    }
    reasons = never if loopback_gateway else never | beyond_loopback
    return next((reason for reason, applies in reasons.items() if applies), "")
