"""What a register holds, as nft names it: the selectors of `nft list ruleset`, from what the kernel loads."""

from __future__ import annotations

from dataclasses import dataclass

from scistreamd.nft.program import Base, Ct, Elsewhere, Exthdr, Fib, Meta, Payload, Source
from scistreamd.nft.quote_values import Type

IPV4, IPV6 = 2, 10  # NFPROTO_ of linux/netfilter.h
ETHERTYPES = {0x0800: IPV4, 0x86DD: IPV6}

_META = {
    0: ("meta length", Type.NUMBER), 1: ("meta protocol", Type.ETHERTYPE), 2: ("meta priority", Type.CLASS),
    3: ("meta mark", Type.MARK), 4: ("iif", Type.INDEX), 5: ("oif", Type.INDEX), 6: ("iifname", Type.NAME),
    7: ("oifname", Type.NAME), 8: ("iiftype", Type.NUMBER), 10: ("meta skuid", Type.NUMBER),
    11: ("meta skgid", Type.NUMBER), 12: ("meta nftrace", Type.NUMBER), 15: ("meta nfproto", Type.FAMILY),
    16: ("meta l4proto", Type.PROTOCOL), 19: ("meta pkttype", Type.PACKET), 20: ("meta cpu", Type.NUMBER),
    26: ("meta iifkind", Type.NAME), 30: ("meta time", Type.NUMBER), 31: ("meta day", Type.NUMBER),
    32: ("meta hour", Type.NUMBER),
}  # fmt: skip
_CT = {
    0: ("state", Type.STATE), 1: ("direction", Type.DIRECTION), 2: ("status", Type.STATUS), 3: ("mark", Type.MARK),
    6: ("helper", Type.NAME), 7: ("l3proto", Type.FAMILY), 10: ("protocol", Type.PROTOCOL),
    11: ("proto-src", Type.PORT), 12: ("proto-dst", Type.PORT), 17: ("zone", Type.NUMBER),
    19: ("ip saddr", Type.ADDRESS4), 20: ("ip daddr", Type.ADDRESS4), 21: ("ip6 saddr", Type.ADDRESS6),
    22: ("ip6 daddr", Type.ADDRESS6), 8: ("saddr", Type.NUMBER), 9: ("daddr", Type.NUMBER),
}  # fmt: skip
_TRANSPORT = {6: "tcp", 17: "udp", 33: "dccp", 132: "sctp"}
_WIDTHS = {
    Type.ADDRESS4: 4, Type.ADDRESS6: 16, Type.PORT: 2, Type.NAME: 16, Type.PROTOCOL: 1, Type.FAMILY: 1,
    Type.ETHERTYPE: 2, Type.PACKET: 1, Type.FLAGS: 1, Type.DIRECTION: 1,
}  # fmt: skip
_PREFIXES = (Type.ADDRESS4, Type.ADDRESS6)
_NETWORK = {
    (IPV4, 12): ("ip saddr", Type.ADDRESS4, 4),
    (IPV4, 16): ("ip daddr", Type.ADDRESS4, 4),
    (IPV4, 9): ("ip protocol", Type.PROTOCOL, 1),
    (IPV4, 8): ("ip ttl", Type.NUMBER, 1),
    (IPV6, 8): ("ip6 saddr", Type.ADDRESS6, 16),
    (IPV6, 24): ("ip6 daddr", Type.ADDRESS6, 16),
    (IPV6, 6): ("ip6 nexthdr", Type.PROTOCOL, 1),
    (IPV6, 7): ("ip6 hoplimit", Type.NUMBER, 1),
}
_PORTS = {(0, 2): "sport", (2, 2): "dport"}


@dataclass(frozen=True)
class Field:
    """One selector; ``mask`` where it was masked. ``needs``: the protocol it belongs to.

    ``swapped``: it was turned from the host's byte order to big-endian.
    """

    said: str
    kind: Type
    size: int = 0
    mask: bytes = b""
    needs: str = ""
    swapped: bool = False

    @property
    def width(self) -> int:
        """Bytes of it in the key of a set, without padding."""
        return self.size or width(self.kind)


def width(kind: Type) -> int:
    """Bytes of a value of this kind in the key of a set, without padding."""
    return _WIDTHS.get(kind, 4)


def meta(key: int) -> Field:
    """What is known of a packet beside its bytes, by its key (NFT_META_ of linux/netfilter/nf_tables.h)."""
    return Field(*_META.get(key, (f"meta {key}", Type.NUMBER)))


def tracked(key: int, direction: int | None = None) -> Field:
    """What is known of its connection (NFT_CT_); ``direction`` 0: as it began, 1: of the replies."""
    said, kind = _CT.get(key, (f"{key}", Type.NUMBER))
    way = "" if direction is None else ("original ", "reply ")[direction]
    return Field(f"ct {way}{said}", kind)


def loaded(source: Source, network: int, transport: int) -> Field:
    """What is loaded from ``source``, in a rule for these protocols (`IPV4`, `IPV6`; of IP); 0: for any."""
    match source:
        case Meta(key=key):
            return meta(key)
        case Ct(key=key, direction=direction):
            return tracked(key, direction)
        case Fib():
            return _fib(source)
        case Payload():
            return _payload(source, network, transport)
        case Exthdr():
            return Field(f"exthdr {source.type}", Type.EXISTS if source.flags & 1 else Type.NUMBER)
        case Elsewhere(name=name):
            return Field(name, Type.NUMBER)


def _payload(source: Payload, network: int, transport: int) -> Field:
    found = None
    if source.base is Base.NETWORK:
        found = _in_network(source, network)
    elif source.base is Base.TRANSPORT:
        found = _in_transport(source, _TRANSPORT.get(transport, "th"))
    name = ("ll", "nh", "th", "ih")[source.base]
    return found or Field(f"@{name},{8 * source.offset},{8 * source.size}", Type.NUMBER, source.size)


def _in_network(source: Payload, network: int) -> Field | None:
    said, kind, size = _NETWORK.get((network, source.offset), ("", Type.NUMBER, 0))
    if source.size == size or (kind in _PREFIXES and source.size < size):
        return Field(said, kind, source.size, needs="network")
    return None


def _in_transport(source: Payload, protocol: str) -> Field | None:
    port = _PORTS.get((source.offset, source.size))
    if port:
        return Field(f"{protocol} {port}", Type.PORT, 2, needs="transport")
    if (protocol, source.offset, source.size) == ("tcp", 13, 1):
        return Field("tcp flags", Type.FLAGS, 1, needs="transport")
    return None


def _fib(source: Fib) -> Field:
    names = ((1, "saddr"), (2, "daddr"), (4, "mark"), (8, "iif"), (16, "oif"))
    by = " . ".join(name for bit, name in names if source.flags & bit)
    if source.flags & 32:
        return Field(f"fib {by} oif", Type.EXISTS)
    said, kind = {1: ("oif", Type.INDEX), 2: ("oifname", Type.NAME)}.get(source.result, ("type", Type.ADDRTYPE))
    return Field(f"fib {by} {said}", kind)
