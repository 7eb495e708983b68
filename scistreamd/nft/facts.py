"""What a rule loads: bytes of headers and facts, for packets that open a connection and those that follow."""

from __future__ import annotations

import enum
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace

from scistreamd.nft.packet import (
    TCP,
    UNKNOWN,
    Arrival,
    Bytes,
    Field,
    Known,
    State,
    field_bytes,
    known,
    whole,
)  # fmt: skip
from scistreamd.nft.program import Base, Ct, Exthdr, Fib, Meta, Payload, Source
from scistreamd.nft.spans import Spans

_SYN, _ACK = 0x02, 0x10
# ECN may set the two highest flags of a SYN (RFC 3168); later packets may have FIN, PSH and URG.
_FIRST_FLAGS, _LATER_FLAGS = Known(_SYN, 0x3F), Known(_ACK, 0x16)
# In the host's byte order and bits: NF_CT_STATE_BIT of linux/netfilter/nf_conntrack_common.h
_INVALID, _ESTABLISHED, _NEW, _UNTRACKED = 1, 2, 8, 64
_DNAT_BIT = 0x20
# What a new connection's status is known to lack: expected, seen-reply, assured, confirmed, snat; and dnat, tracked.
_STATUS_KNOWN = 0x1F | _DNAT_BIT
_ETHERTYPES = {4: 0x0800, 6: 0x86DD}
_FAMILIES = {4: 2, 6: 10}
_LOCAL, _UNICAST = 2, 1
_LOOPBACK = 772  # ARPHRD_LOOPBACK
_IFNAME = 16
_IPV6_HEADERS = 0  # Exthdr.operation
_PRESENT = 1


class Tracking(enum.Enum):
    """Whether connection tracking has seen the packet where a chain sits."""

    BEFORE = "before"
    PERHAPS = "perhaps"
    DONE = "done"


# What a load gives: packets with their bytes, or with None where the rule stops there.
Loaded = list[tuple[State, Bytes | None]]


def load(source: Source, state: State, arrival: Arrival, tracking: Tracking) -> Loaded:
    """The value, for parts of the packets where it differs; as many bytes as a rule may compare."""
    match source:
        case Payload():
            return [(state, _payload(source, state, arrival))]
        case Meta():
            return [(state, _meta(source.key, state, arrival))]
        case Ct():
            return [(state, _ct(source, state, arrival, tracking))]
        case Fib():
            return _fib(source, state, arrival)
        case Exthdr():
            return [(state, _exthdr(source))]
    return [(state, _unknown())]


def _unknown(size: int = 64) -> Bytes:
    return (UNKNOWN,) * size


# Headers


def _payload(source: Payload, state: State, arrival: Arrival) -> Bytes:
    header: Bytes = ()
    if source.base is Base.NETWORK:
        header = _ipv4(state, arrival) if arrival.version == 4 else _ipv6(state, arrival)
    elif source.base is Base.TRANSPORT:
        header = _transport(state, arrival)
    elif source.base is Base.LINK and arrival.interface.type != _LOOPBACK:
        header = _unknown(12) + known(_ETHERTYPES[arrival.version].to_bytes(2, "big"))
    taken = header[source.offset : source.offset + source.size]
    return taken + _unknown(source.size - len(taken))


def _source(state: State, size: int) -> Bytes:
    return _unknown(size) if state.masked else field_bytes(Field.SOURCE, size)


def _ipv4(state: State, arrival: Arrival) -> Bytes:
    """Without options, not a fragment: what opens a connection."""
    start = (Known(0x45), *_unknown(5), Known(0, 0xBF), Known(0), UNKNOWN, Known(arrival.protocol), *_unknown(2))
    return start + _source(state, 4) + known(state.target.address.packed)


def _ipv6(state: State, arrival: Arrival) -> Bytes:
    start = (Known(0x60, 0xF0), *_unknown(5), Known(arrival.protocol), UNKNOWN)
    return start + _source(state, 16) + known(state.target.address.packed)


def _transport(state: State, arrival: Arrival) -> Bytes:
    ports = _unknown(2) if state.masked else field_bytes(Field.PORT, 2)
    ports += known(state.target.port.to_bytes(2, "big"))
    if arrival.protocol != TCP:
        return ports
    return (*ports, *_unknown(9), _LATER_FLAGS if state.established else _FIRST_FLAGS)


def _exthdr(source: Exthdr) -> Bytes | None:
    """No IPv6 extension header is there; TCP options are the peer's."""
    if source.operation != _IPV6_HEADERS:
        return _unknown()
    return known(b"\0") if source.flags & _PRESENT else None


# Facts


def _meta(key: int, state: State, arrival: Arrival) -> Bytes:
    make = _META.get(key)
    return make(state, arrival) if make else _unknown()


def _name(text: str) -> Bytes:
    return known(text.encode()[: _IFNAME - 1].ljust(_IFNAME, b"\0"))


# By enum nft_meta_keys; those that are not here depend on what nobody knows beforehand.
_META: Mapping[int, Callable[[State, Arrival], Bytes]] = {
    1: lambda _, arrival: known(_ETHERTYPES[arrival.version].to_bytes(2, "big")),  # protocol
    3: lambda state, _: state.mark,
    4: lambda _, arrival: whole(arrival.interface.index, 4),  # iif
    5: lambda _, __: whole(0, 4),  # oif: none before the packet is routed to this host
    6: lambda _, arrival: _name(arrival.interface.name),
    7: lambda _, __: _name(""),  # oifname
    8: lambda _, arrival: whole(arrival.interface.type, 2),  # iiftype
    15: lambda _, arrival: known(bytes([_FAMILIES[arrival.version]])),  # nfproto
    16: lambda _, arrival: known(bytes([arrival.protocol])),  # l4proto
    19: lambda _, __: known(b"\0"),  # pkttype: for this host
    26: lambda _, arrival: _name(arrival.interface.kind),  # iifkind
}


def _ct(source: Ct, state: State, arrival: Arrival, tracking: Tracking) -> Bytes | None:
    if tracking is Tracking.PERHAPS:
        return _unknown()
    if source.key == 0:
        return whole(_connection_state(state, tracking), 4)
    if tracking is Tracking.BEFORE or not state.tracked:
        return None
    make = _CT.get(source.key)
    return make(state, arrival) if make and source.direction in (0, None) else _unknown()


def _connection_state(state: State, tracking: Tracking) -> int:
    if not state.tracked:
        return _UNTRACKED
    if tracking is Tracking.BEFORE:
        return _INVALID
    return _ESTABLISHED if state.established else _NEW


def _status(state: State, _: Arrival) -> Bytes:
    value = (_DNAT_BIT if state.rewritten else 0).to_bytes(4, sys.byteorder)
    mask = (_DNAT_BIT if state.established else _STATUS_KNOWN).to_bytes(4, sys.byteorder)
    return tuple(Known(each, bits) for each, bits in zip(value, mask, strict=True))


def _original_source(_: State, arrival: Arrival) -> Bytes:
    return field_bytes(Field.SOURCE, 4 if arrival.version == 4 else 16)


# By enum nft_ct_keys, in the original direction.
_CT: Mapping[int, Callable[[State, Arrival], Bytes]] = {
    1: lambda _, __: known(b"\0"),  # direction
    2: _status,
    3: lambda state, _: state.connection_mark,
    7: lambda _, arrival: known(bytes([_FAMILIES[arrival.version]])),
    8: _original_source,
    9: lambda _, arrival: known(arrival.target.address.packed),
    10: lambda _, arrival: known(bytes([arrival.protocol])),
    11: lambda _, __: field_bytes(Field.PORT, 2),
    12: lambda _, arrival: known(arrival.target.port.to_bytes(2, "big")),
    19: _original_source,
    20: lambda _, arrival: known(arrival.target.address.packed),
    21: _original_source,
    22: lambda _, arrival: known(arrival.target.address.packed),
}

# Routing tables: enum nft_fib_result and nft_fib_flags

_OIF, _OIFNAME, _ADDRTYPE = 1, 2, 3
_BY_SOURCE, _BY_TARGET, _BY_MARK, _BY_IIF, _EXISTENCE = 1, 2, 4, 8, 32


def _fib(source: Fib, state: State, arrival: Arrival) -> Loaded:
    selected = source.flags & (_BY_SOURCE | _BY_TARGET | _BY_IIF)
    if source.result == _ADDRTYPE and selected == _BY_TARGET:
        kind = _LOCAL if state.target.address in arrival.own else _UNICAST
        return [(state, whole(kind, 4))]
    if source.result == _ADDRTYPE and selected == _BY_SOURCE:
        return _split(state, _own(arrival), whole(_LOCAL, 4), whole(_UNICAST, 4))
    if source.result == _ADDRTYPE or selected != _BY_SOURCE | _BY_IIF:
        return [(state, _unknown())]
    if source.flags & _EXISTENCE:
        there, missing = known(b"\1"), known(b"\0")
    elif source.result == _OIF:
        there, missing = whole(arrival.interface.index, 4), whole(0, 4)
    else:
        there, missing = _name(arrival.interface.name), _name("")
    if arrival.interface.type == _LOOPBACK:
        return [(state, there)]
    return _split(state, arrival.routed, there, missing)


def _own(arrival: Arrival) -> Spans:
    return Spans.of((int(each), int(each)) for each in arrival.own if each.version == arrival.version)


def _split(state: State, spans: Spans, inside: Bytes, outside: Bytes) -> Loaded:
    parts = (
        (replace(state, sources=state.sources & spans), inside),
        (replace(state, sources=state.sources - spans), outside),
    )
    return [(part, value) for part, value in parts if part]
