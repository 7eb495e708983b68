"""Values as nft prints them, by the type that a selector has (nft(8), "data types")."""

from __future__ import annotations

import enum
import ipaddress
import sys
from collections.abc import Mapping


class Type(enum.Enum):
    """How a value prints."""

    ADDRESS4 = "ipv4_addr"
    ADDRESS6 = "ipv6_addr"
    PORT = "inet_service"
    NAME = "ifname"
    INDEX = "iface_index"
    MARK = "mark"
    STATE = "ct_state"
    STATUS = "ct_status"
    DIRECTION = "ct_dir"
    PROTOCOL = "inet_proto"
    FAMILY = "nf_proto"
    ETHERTYPE = "ether_type"
    PACKET = "pkt_type"
    ADDRTYPE = "fib_addrtype"
    FLAGS = "tcp_flag"
    EXISTS = "boolean"
    CLASS = "classid"
    NUMBER = "integer"


# enum datatypes of nftables, as they stand in a set's key type
OF_SET: Mapping[int, Type] = {
    2: Type.FAMILY, 7: Type.ADDRESS4, 8: Type.ADDRESS6, 10: Type.ETHERTYPE, 12: Type.PROTOCOL, 13: Type.PORT,
    15: Type.FLAGS, 19: Type.MARK, 20: Type.INDEX, 26: Type.STATE, 27: Type.DIRECTION, 28: Type.STATUS,
    31: Type.PACKET, 38: Type.ADDRTYPE, 41: Type.NAME,
}  # fmt: skip
_BITS: Mapping[Type, Mapping[int, str]] = {
    Type.STATE: {1: "invalid", 2: "established", 4: "related", 8: "new", 64: "untracked"},
    Type.STATUS: {
        1: "expected", 2: "seen-reply", 4: "assured", 8: "confirmed", 16: "snat", 32: "dnat", 512: "dying",
    },
    Type.FLAGS: {1: "fin", 2: "syn", 4: "rst", 8: "psh", 16: "ack", 32: "urg", 64: "ecn", 128: "cwr"},
}  # fmt: skip
_NAMES: Mapping[Type, Mapping[int, str]] = {
    Type.PROTOCOL: {1: "icmp", 6: "tcp", 17: "udp", 33: "dccp", 50: "esp", 51: "ah", 58: "ipv6-icmp", 132: "sctp"},
    Type.FAMILY: {2: "ipv4", 10: "ipv6"},
    Type.ETHERTYPE: {0x0800: "ip", 0x86DD: "ip6", 0x0806: "arp", 0x8100: "8021q"},
    Type.PACKET: {0: "host", 1: "broadcast", 2: "multicast", 3: "other"},
    Type.ADDRTYPE: {
        0: "unspec", 1: "unicast", 2: "local", 3: "broadcast", 4: "anycast", 5: "multicast", 6: "blackhole",
        7: "unreachable", 8: "prohibit",
    },
    Type.DIRECTION: {0: "original", 1: "reply"},
    Type.EXISTS: {0: "missing", 1: "exists"},
}  # fmt: skip
_OF_HOST = (Type.EXISTS, Type.CLASS, Type.MARK, Type.INDEX, Type.STATE, Type.STATUS, Type.ADDRTYPE)
_IFNAME = 16
# Of the number, its upper and its lower half.
_FORMATS = {Type.MARK: "{0:#010x}", Type.CLASS: "{1:x}:{2:x}"}


def number(data: bytes, kind: Type) -> int:
    """The value as a number, in the byte order that the kernel keeps it in."""
    return int.from_bytes(data, sys.byteorder if kind in _OF_HOST else "big")


def value(data: bytes, kind: Type, devices: Mapping[int, str]) -> str:
    """One value; ``devices`` names interface indexes."""
    if kind in (Type.ADDRESS4, Type.ADDRESS6):
        size = 4 if kind is Type.ADDRESS4 else 16
        address = str(ipaddress.ip_address(data.ljust(size, b"\0")))
        return address if len(data) == size else f"{address}/{8 * len(data)}"
    if kind is Type.NAME:
        # nft compares all 16 bytes, iptables as many as the name has with its end; without an end it is a beginning.
        whole = len(data) == _IFNAME or data.endswith(b"\0")
        return f'"{data.rstrip(bytes(1)).decode(errors="replace")}{"" if whole else "*"}"'
    found = number(data, kind)
    if kind is Type.INDEX and found in devices:
        return f'"{devices[found]}"'
    if kind in _BITS:
        return bits(found, kind)
    if kind in _FORMATS:
        return _FORMATS[kind].format(found, found >> 16, found & 0xFFFF)
    return _NAMES.get(kind, {}).get(found, str(found))


def bits(found: int, kind: Type) -> str:
    """Names of flags, or the number."""
    names = [name for bit, name in _BITS[kind].items() if found & bit]
    return ",".join(names) if names else f"{found:#x}"


def has_bits(kind: Type) -> bool:
    """Whether values of it are flags."""
    return kind in _BITS


def between(first: bytes, last: bytes, kind: Type, devices: Mapping[int, str]) -> str:
    """A closed range: one value, a prefix, or both ends."""
    if first == last:
        return value(first, kind, devices)
    if kind in (Type.ADDRESS4, Type.ADDRESS6):
        begin, end = ipaddress.ip_address(first), ipaddress.ip_address(last)
        free = (int(begin) ^ int(end)).bit_length()
        if int(begin) & (1 << free) - 1 == 0 and int(end) == int(begin) | (1 << free) - 1:
            return f"{begin}/{begin.max_prefixlen - free}"
    if kind is Type.NAME:
        return f'"{first.rstrip(bytes(1)).decode(errors="replace")}*"'
    return f"{value(first, kind, devices)}-{value(last, kind, devices)}"


def masked(data: bytes, mask: bytes, kind: Type, devices: Mapping[int, str]) -> str | None:
    """An address under a mask as a prefix; None where it is none."""
    free = int.from_bytes(mask, "big") ^ (1 << 8 * len(mask)) - 1
    if kind not in (Type.ADDRESS4, Type.ADDRESS6) or free & (free + 1):
        return None
    return f"{value(data, kind, devices)}/{8 * len(mask) - free.bit_length()}"
