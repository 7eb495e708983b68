"""Rules of nftables as plain data: the expressions of linux/netfilter/nf_tables.h, and what holds them.

`nfttable` brings them to the kernel. Addresses and ports are in network byte
order there, all other numbers in the host's.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scistreamd.model import IPAddress, IPNetwork, PortRange
from scistreamd.plans import Bind

# What our tables have for userdata: a comment, as libnftnl writes one: type, length, text.
MARK = b"\x00\x0bscistreamd\x00"
TCP, UDP = 6, 17
# Hooks, NF_INET_LOCAL_IN and NF_INET_LOCAL_OUT; priorities as nft(8) names them.
INPUT, OUTPUT = 1, 3
MANGLE, FILTER = -150, 0

_NFPROTO = {4: 2, 6: 10}
_OIF, _SKUID, _PRIORITY, _PROTOCOL_FAMILY, _L4PROTO = 5, 10, 2, 15, 16
_NETWORK_HEADER, _TRANSPORT_HEADER = 1, 2
_SOURCE, _DESTINATION = {4: 12, 6: 8}, {4: 16, 6: 24}
_VERDICT_REGISTER, _REGISTER = 0, 1
# Registers of four bytes for keys of several parts.
_PARTS = 8
_EQUAL = 0
_AT_MOST, _AT_LEAST = 3, 5
_TCP_FLAGS, _SYN, _FIN_SYN_RST_ACK = 13, b"\x02", b"\x17"
_TCP_RESET, _ADMIN_PROHIBITED = 1, 3
_DROP, _ACCEPT, _JUMP, _GOTO, _RETURN = 0, 1, -3, -4, -5


@dataclass(frozen=True)
class Verdict:
    """What becomes of a packet; ``chain`` where it goes on."""

    code: int
    chain: str = ""


@dataclass(frozen=True)
class Byte:
    """A number of one byte; others have four."""

    number: int


@dataclass(frozen=True)
class Expression:
    """One step of a rule: its name and attributes (numbers, text, bytes, a Verdict), as the kernel spells them."""

    name: str
    attributes: tuple[tuple[str, Any], ...]


Expressions = tuple[Expression, ...]


@dataclass(frozen=True)
class Rule:
    """A rule: a packet goes through its expressions until one does not match. ``comment`` is for people."""

    expressions: Expressions
    comment: str = ""


@dataclass(frozen=True)
class Hook:
    """Where packets enter a base chain."""

    number: int
    priority: int


@dataclass(frozen=True)
class Chain:
    """A chain of rules; without ``hook`` packets come from other chains only.

    A base chain accepts what none of its rules decides.
    """

    name: str
    rules: tuple[Rule, ...]
    hook: Hook | None = None


@dataclass(frozen=True)
class Map:
    """Filled by rules, with a time limit for each element: from keys of ``key_bytes`` to numbers of four bytes."""

    name: str
    key_bytes: int
    timeout_seconds: int
    size: int = 65536


@dataclass(frozen=True)
class PortCounts:
    """A set that `count_port` fills: a counter for each family, protocol and port; it keeps counting while it stays."""

    name: str
    size: int = 65536


@dataclass(frozen=True)
class Section:
    """A part of our table that is replaced as a whole: chains whose names are its name, or begin with it and a dash."""

    name: str
    chains: tuple[Chain, ...] = ()
    maps: tuple[Map | PortCounts, ...] = ()

    def has(self, name: str) -> bool:
        """Whether a chain, map or set of this name is this section's."""
        return name == self.name or name.startswith(f"{self.name}-")


def _step(name: str, **attributes: Any) -> Expression:
    return Expression(name, tuple(attributes.items()))


def _equal(value: bytes) -> Expression:
    return _step("cmp", sreg=_REGISTER, op=_EQUAL, data=value)


def _meta(key: int, value: bytes) -> Expressions:
    return _step("meta", dreg=_REGISTER, key=key), _equal(value)


def _header(base: int, offset: int, length: int, register: int = _REGISTER) -> Expression:
    return _step("payload", dreg=register, base=base, offset=offset, len=length)


def _masked(mask: bytes) -> Expression:
    return _step("bitwise", sreg=_REGISTER, dreg=_REGISTER, len=len(mask), mask=mask, xor=bytes(len(mask)))


def family(version: int) -> Expressions:
    """IPv4 or IPv6."""
    return _meta(_PROTOCOL_FAMILY, bytes([_NFPROTO[version]]))


def protocol(number: int) -> Expressions:
    """`TCP` or `UDP`."""
    return _meta(_L4PROTO, bytes([number]))


def source(network: IPNetwork) -> Expressions:
    """Packets from the network."""
    load = _header(_NETWORK_HEADER, _SOURCE[network.version], network.max_prefixlen // 8)
    mask = () if network.prefixlen == network.max_prefixlen else (_masked(network.netmask.packed),)
    return (*family(network.version), load, *mask, _equal(network.network_address.packed))


def _address(offsets: Mapping[int, int], address: IPAddress) -> Expressions:
    """The address itself; any, for a wildcard: ``::`` stands for both families."""
    if address.is_unspecified:
        return () if address.version == 6 else family(4)
    load = _header(_NETWORK_HEADER, offsets[address.version], address.max_prefixlen // 8)
    return (*family(address.version), load, _equal(address.packed))


def _port(offset: int, port: int) -> Expressions:
    return _header(_TRANSPORT_HEADER, offset, 2), _equal(struct.pack(">H", port))


def count_port(name: str, number: int, ports: PortRange, *, source: bool) -> Expressions:
    """Count packets of this protocol from, or to, one of the ports in the set, by what `port_key` reads."""
    family, protocol, port = _PARTS + 4, _PARTS + 5, _PARTS + 6
    first, last = (struct.pack(">H", each) for each in (ports.first, ports.last))
    return (
        _step("meta", dreg=protocol, key=_L4PROTO),
        _step("cmp", sreg=protocol, op=_EQUAL, data=bytes([number])),
        _header(_TRANSPORT_HEADER, 0 if source else 2, 2, port),
        _step("cmp", sreg=port, op=_AT_LEAST, data=first),
        _step("cmp", sreg=port, op=_AT_MOST, data=last),
        _step("meta", dreg=family, key=_PROTOCOL_FAMILY),
        _step("dynset", set_name=name, op=0, sreg_key=family, expr=_step("counter")),
    )


# Three registers: family, protocol, port.
PORT_KEY_BYTES = 12


def port_key(key: bytes) -> tuple[int, int, int]:
    """IP version, protocol and port of a key of `PortCounts`."""
    return next(version for version, number in _NFPROTO.items() if number == key[0]), key[4], key[8] << 8 | key[9]


def _protocols(bind: Bind) -> tuple[int, ...]:
    return (TCP, UDP) if bind.udp else (TCP,)


def towards(bind: Bind) -> tuple[Expressions, ...]:
    """Packets to the listener, one for each of its protocols."""
    to = _address(_DESTINATION, bind.endpoint.address)
    return tuple((*protocol(number), *_port(2, bind.endpoint.port), *to) for number in _protocols(bind))


def back_from(bind: Bind) -> tuple[Expressions, ...]:
    """Packets from the listener, one for each of its protocols."""
    of = _address(_SOURCE, bind.endpoint.address)
    return tuple((*protocol(number), *_port(0, bind.endpoint.port), *of) for number in _protocols(bind))


def opens_no_connection() -> Expressions:
    """TCP packets other than the first one of a connection."""
    flags = _step("cmp", sreg=_REGISTER, op=1, data=_SYN)
    return *protocol(TCP), _header(_TRANSPORT_HEADER, _TCP_FLAGS, 1), _masked(_FIN_SYN_RST_ACK), flags


def of_user(number: int) -> Expressions:
    """Packets of sockets of this user; those that a closed socket still sends have none (meta skuid, nft(8))."""
    return _meta(_SKUID, struct.pack("=I", number))


def leaves_by(interface: int) -> Expressions:
    """Packets that leave by the interface of this index."""
    return _meta(_OIF, struct.pack("=I", interface))


def set_priority(class_id: int) -> Expressions:
    """Put the packet into a class of the queueing discipline of its interface (tc-htb(8))."""
    number = struct.pack("=I", class_id)
    return _step("immediate", dreg=_REGISTER, data=number), _step("meta", key=_PRIORITY, sreg=_REGISTER)


def _connection(version: int) -> Expressions:
    """Both ports and the destination, as the key of a map of `connection_bytes`."""
    return (
        *family(version),
        _header(_TRANSPORT_HEADER, 0, 4, _PARTS + 4),
        _header(_NETWORK_HEADER, _DESTINATION[version], {4: 4, 6: 16}[version], _PARTS + 5),
    )


def connection_bytes(version: int) -> int:
    """The length of a connection's key."""
    return {4: 8, 6: 20}[version]


def remember(version: int, name: str, class_id: int) -> Expressions:
    """Note in the map that the packet's connection belongs to the class."""
    number = _step("immediate", dreg=_REGISTER, data=struct.pack("=I", class_id))
    note = _step("dynset", set_name=name, op=1, sreg_key=_PARTS + 4, sreg_data=_REGISTER)
    return *_connection(version), number, note


def set_remembered_priority(version: int, name: str) -> Expressions:
    """Put the packet into the class that the map has for its connection, if it has one."""
    found = _step("lookup", set=name, sreg=_PARTS + 4, dreg=_REGISTER)
    return *_connection(version), found, _step("meta", key=_PRIORITY, sreg=_REGISTER)


def note_interface(name: str) -> Expressions:
    """Note in the map, with keys of four bytes, which interface the packet would leave by."""
    number = _step("immediate", dreg=_PARTS + 8, data=bytes(4))
    load = _step("meta", dreg=_PARTS + 4, key=_OIF)
    return load, number, _step("dynset", set_name=name, op=0, sreg_key=_PARTS + 4, sreg_data=_PARTS + 8)


def _decide(code: int, chain: str = "") -> Expressions:
    return (_step("immediate", dreg=_VERDICT_REGISTER, data=Verdict(code, chain)),)


def accept() -> Expressions:
    """Ours is done with the packet; chains of others go on with it."""
    return _decide(_ACCEPT)


def drop() -> Expressions:
    """The packet is gone."""
    return _decide(_DROP)


def jump(chain: str) -> Expressions:
    """Go on in that chain, and come back."""
    return _decide(_JUMP, chain)


def go_to(chain: str) -> Expressions:
    """Go on in that chain."""
    return _decide(_GOTO, chain)


def reset() -> Expressions:
    """Refuse the connection: its caller sees `Connection refused`."""
    return *protocol(TCP), _step("reject", type=_TCP_RESET, icmp_code=Byte(0))


def prohibit() -> Expressions:
    """Refuse the packet by ICMP, administratively prohibited."""
    return (_step("reject", type=2, icmp_code=Byte(_ADMIN_PROHIBITED)),)
