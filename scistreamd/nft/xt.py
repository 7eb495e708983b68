"""Matches and targets of iptables that stand in nftables rules (iptables-nft, as ufw and Docker use it).

Their arguments are the C structures of linux/netfilter/xt_*.h in the host's byte order, by name and revision.
They become expressions of `ruleset`, so that `evaluate` knows one language.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence

from scistreamd.nft.attributes import text
from scistreamd.nft.program import (
    Among,
    Base,
    Bitwise,
    Compare,
    Ct,
    Elsewhere,
    Elsewhither,
    Expression,
    Exthdr,
    Fib,
    Immediate,
    Limited,
    Load,
    Maybe,
    Meta,
    Nat,
    Notrack,
    Op,
    Passed,
    Payload,
    Reject,
    SetCt,
    SetMeta,
    Test,
)  # fmt: skip
from scistreamd.nft.spans import Spans

Expressions = tuple[Expression, ...]
_WORD = 4  # the register that translated matches use
_OTHER = 12
_EVERY_PORT = (0, 65535)
_META_MARK, _META_L4PROTO = 3, 16
_CT_STATE, _CT_STATUS, _CT_MARK = 0, 2, 3
_STATES = ((1, "invalid"), (2, "established"), (4, "related"), (8, "new"), (64, "untracked"))
_TYPES = ("unspec", "unicast", "local", "broadcast", "anycast", "multicast", "blackhole", "unreachable", "prohibit")
_FIB_ADDRTYPE, _FIB_SADDR, _FIB_DADDR, _FIB_IIF = 3, 1, 2, 8
_ROUTING_HEADER, _FRAGMENT_HEADER = 43, 44
_FLAGS = ("fin", "syn", "rst", "psh", "ack", "urg", "ecn", "cwr")


def match(name: str, revision: int, info: bytes, family: str) -> Expressions:
    """A match as expressions; `Maybe` where it, or this revision of it, is not known."""
    make = _MATCHES.get(name)
    try:
        made = make(revision, info, family) if make else None
    except struct.error:
        made = None
    return (Maybe(f'xt match "{name}"'),) if made is None else made


def target(name: str, revision: int, info: bytes, family: str) -> Expressions:
    """A target as expressions; `Elsewhither` where it is not known."""
    if name in _HARMLESS:
        return (Passed(f'xt target "{name}"'),)
    make = _TARGETS.get(name)
    try:
        made = make(revision, info, family) if make else None
    except struct.error:
        made = None
    return (Elsewhither(f'xt target "{name}"'),) if made is None else made


def _within(source: Payload, bounds: tuple[int, int], inverted: bool, said: str) -> Expressions:
    if bounds == _EVERY_PORT and not inverted:
        return ()
    shown = f"{bounds[0]}" if bounds[0] == bounds[1] else f"{bounds[0]}-{bounds[1]}"
    among = Among(_WORD, source.size, Spans.of([bounds]))
    return (Test((Load(_WORD, source), among), inverted, f"{said} {'!= ' * inverted}{shown}"),)


_SPORT, _DPORT = Payload(Base.TRANSPORT, 0, 2), Payload(Base.TRANSPORT, 2, 2)


def _tcp(_revision: int, info: bytes, _family: str) -> Expressions | None:
    s0, s1, d0, d1, option, mask, wanted, inverted = struct.unpack_from("=4H4B", info)
    made = _within(_SPORT, (s0, s1), bool(inverted & 1), "tcp sport")
    made += _within(_DPORT, (d0, d1), bool(inverted & 2), "tcp dport")
    if mask or inverted & 4:
        parts = Load(_WORD, Payload(Base.TRANSPORT, 13, 1)), Bitwise(_WORD, _WORD, bytes([mask]), b"\0")
        same = Compare(_WORD, Op.EQ, bytes([wanted]))
        said = f"tcp flags {'!= ' * bool(inverted & 4)}{_names(wanted)} / {_names(mask)}"
        made += (Test((*parts, same), bool(inverted & 4), said),)
    if option:
        made += (Maybe(f"tcp option {option}"),)
    return made


def _names(bits: int) -> str:
    return ",".join(name for at, name in enumerate(_FLAGS) if bits >> at & 1) or "0x0"


def _udp(_revision: int, info: bytes, _family: str) -> Expressions | None:
    s0, s1, d0, d1, inverted = struct.unpack_from("=4HB", info)
    made = _within(_SPORT, (s0, s1), bool(inverted & 1), "udp sport")
    return made + _within(_DPORT, (d0, d1), bool(inverted & 2), "udp dport")


def _multiport(revision: int, info: bytes, _family: str) -> Expressions | None:
    which, count, *ports = struct.unpack_from("=BB15H", info)
    flags, inverted = (info[32:47], bool(info[47])) if revision else (bytes(15), False)
    if which > 1:
        return None
    ranges, at = [], 0
    while at < count:
        ends = 1 if flags[at] else 0
        ranges.append((ports[at], ports[at + ends]))
        at += 1 + ends
    source, word = ((_SPORT, "sport"), (_DPORT, "dport"))[which]
    shown = ", ".join(f"{first}" if first == last else f"{first}-{last}" for first, last in ranges)
    parts = Load(_WORD, source), Among(_WORD, 2, Spans.of(ranges))
    return (Test(parts, inverted, f"th {word} {'!= ' * inverted}{{ {shown} }}"),)


def _conntrack(revision: int, info: bytes, _family: str) -> Expressions | None:
    if revision < 1:
        return None
    flags, inverted = struct.unpack_from("=HH", info, 146)
    states, statuses = struct.unpack_from("=BB" if revision == 1 else "=HH", info, 150)
    if flags & ~(1 | 64 | 0x2000):
        return None
    made = _state(states, bool(inverted & 1)) if flags & 1 else ()
    if made is None:
        return None
    if flags & 64:
        made += _bits(Ct(_CT_STATUS), statuses, bool(inverted & 64), f"ct status {statuses:#x}")
    return made


def _state(states: int, inverted: bool) -> Expressions | None:
    """ctstate's bits: those of nftables but for untracked, and two for connections that are rewritten."""
    if states & 256:
        states = states & ~256 | 512
    plain = states & 15 | (64 if states & 512 else 0)
    rewritten = (16 if states & 64 else 0) | (32 if states & 128 else 0)
    if rewritten and plain:
        return None
    if rewritten:
        return _bits(Ct(_CT_STATUS), rewritten, inverted, "ct status " + ("dnat" if rewritten == 32 else "snat"))
    said = ",".join(name for bit, name in _STATES if plain & bit)
    return _bits(Ct(_CT_STATE), plain, inverted, f"ct state {'!= ' * inverted}{said}")


def _bits(source: Ct | Meta, bits: int, inverted: bool, said: str) -> Expressions:
    mask = struct.pack("=I", bits)
    parts = Load(_WORD, source), Bitwise(_WORD, _WORD, mask, bytes(4)), Compare(_WORD, Op.NE, bytes(4))
    return (Test(parts, inverted, said),)


def _old_state(_revision: int, info: bytes, _family: str) -> Expressions | None:
    (states,) = struct.unpack_from("=I", info)
    return _state(states, False)


def _addrtype(revision: int, info: bytes, _family: str) -> Expressions | None:
    if revision != 1:
        return None
    source, destination, flags = struct.unpack_from("=HHI", info)
    if flags & 12:
        return None
    made: Expressions = ()
    for mask, side, inverted, said in (
        (source, _FIB_SADDR, bool(flags & 1), "saddr"),
        (destination, _FIB_DADDR, bool(flags & 2), "daddr"),
    ):
        kinds = [kind for kind in range(16) if mask >> kind & 1]
        if len(kinds) > 1:
            return None
        for kind in kinds:
            parts = Load(_WORD, Fib(_FIB_ADDRTYPE, side)), Compare(_WORD, Op.EQ, struct.pack("=I", kind))
            name = _TYPES[kind] if kind < len(_TYPES) else kind
            made += (Test(parts, inverted, f"fib {said} type {'!= ' * inverted}{name}"),)
    return made


def _iprange(_revision: int, info: bytes, family: str) -> Expressions | None:
    flags = info[64]
    size, offset = (4, 12) if family == "ip" else (16, 8)
    made: Expressions = ()
    for wanted, turned, at, side in ((1, 16, 0, "saddr"), (2, 32, 32, "daddr")):
        if flags & wanted:
            first, last = info[at : at + size], info[at + 16 : at + 16 + size]
            place = offset + (size if side == "daddr" else 0)
            spans = Spans.of([(int.from_bytes(first, "big"), int.from_bytes(last, "big"))])
            parts = Load(_WORD, Payload(Base.NETWORK, place, size)), Among(_WORD, size, spans)
            made += (Test(parts, bool(flags & turned), f"{family} {side} in a range"),)
    return made


def _mark(_revision: int, info: bytes, _family: str) -> Expressions | None:
    mark, mask, inverted = struct.unpack_from("=IIB", info)
    same = Compare(_WORD, Op.EQ, struct.pack("=I", mark))
    parts = Load(_WORD, Meta(_META_MARK)), Bitwise(_WORD, _WORD, struct.pack("=I", mask), bytes(4)), same
    sign = "!= " if inverted else "== " if mask != 0xFFFFFFFF else ""
    said = f"meta mark & {mask:#010x} {sign}{mark:#010x}" if mask != 0xFFFFFFFF else f"meta mark {sign}{mark:#010x}"
    return (Test(parts, bool(inverted), said),)


def _connmark(_revision: int, info: bytes, _family: str) -> Expressions | None:
    mark, mask, inverted = struct.unpack_from("=IIB", info)
    same = Compare(_WORD, Op.EQ, struct.pack("=I", mark))
    parts = Load(_WORD, Ct(_CT_MARK)), Bitwise(_WORD, _WORD, struct.pack("=I", mask), bytes(4)), same
    return (Test(parts, bool(inverted), f"ct mark & {mask:#x} {'!=' if inverted else '=='} {mark:#x}"),)


def _recent(_revision: int, info: bytes, _family: str) -> Expressions | None:
    """`recent`: --set always matches; with --hitcount it is a limit; without, a list of sources that we cannot see."""
    _seconds, hits, operation, inverted = struct.unpack_from("=IIBB", info)
    said = f"recent {text(info[10:210].split(bytes(1))[0])}"
    if operation & 2 and not inverted:
        return (Passed(said),)
    if hits and not inverted:
        return (Limited(said, over=True),)
    return (Maybe(said),)


def _hashlimit(revision: int, info: bytes, _family: str) -> Expressions | None:
    (mode,) = struct.unpack_from("=I", info, 16 if revision == 1 else 272)
    return (Limited('xt match "hashlimit"', over=bool(mode & 16)),)


def _connlimit(_revision: int, info: bytes, _family: str) -> Expressions | None:
    limit, flags = struct.unpack_from("=II", info, 16)
    return (Limited(f"ct count {limit}", over=not flags & 1),)


def _absent(header: int) -> Callable[[int, bytes, str], Expressions | None]:
    """Matches only packets with that IPv6 extension header."""

    def make(_revision: int, _info: bytes, _family: str) -> Expressions | None:
        return (Load(_WORD, Exthdr(0, header, 0, 1, 1)), Compare(_WORD, Op.EQ, b"\1"))

    return make


def _only(protocol: int) -> Callable[[int, bytes, str], Expressions | None]:
    """Of another protocol than any data server's: never matches."""

    def make(_revision: int, _info: bytes, _family: str) -> Expressions | None:
        return (Load(_WORD, Meta(_META_L4PROTO)), Compare(_WORD, Op.EQ, bytes([protocol])))

    return make


_MATCHES: Mapping[str, Callable[[int, bytes, str], Expressions | None]] = {
    "tcp": _tcp,
    "udp": _udp,
    "multiport": _multiport,
    "conntrack": _conntrack,
    "state": _old_state,
    "addrtype": _addrtype,
    "iprange": _iprange,
    "mark": _mark,
    "connmark": _connmark,
    "limit": lambda _revision, _info, _family: (Limited('xt match "limit"', over=False),),
    "hashlimit": _hashlimit,
    "connlimit": _connlimit,
    "recent": _recent,
    "comment": lambda _revision, _info, _family: (),
    "rt": _absent(_ROUTING_HEADER),
    "frag": _absent(_FRAGMENT_HEADER),
    "icmp": _only(1),
    "icmp6": _only(58),
    "sctp": _only(132),
    "esp": _only(50),
    "ah": _only(51),
}

# Targets


def _nat(kind: str) -> Callable[[int, bytes, str], Expressions | None]:
    def make(revision: int, info: bytes, family: str) -> Expressions | None:
        if revision == 0 and family == "ip":
            flags, first, last, port, last_port = struct.unpack_from("=I4s4s2s2s", info, 4)
        else:
            flags, first, last, port, last_port = struct.unpack_from("=I16s16s2s2s", info)
            size = 4 if family == "ip" else 16
            first, last = first[:size], last[:size]
        return _rewrite(kind, flags, (first, last), (port, last_port))

    return make


def _rewrite(kind: str, flags: int, addresses: Sequence[bytes], ports: Sequence[bytes]) -> Expressions:
    words: dict[str, int] = {}
    made: Expressions = ()
    if flags & 1:
        made += (Immediate(_WORD, addresses[0]), Immediate(_WORD + 4, addresses[1]))
        words |= {"address": _WORD, "last_address": _WORD + 4}
    if flags & 2:
        made += (Immediate(_OTHER, ports[0]), Immediate(_OTHER + 1, ports[1]))
        words |= {"port": _OTHER, "last_port": _OTHER + 1}
    return (*made, Nat(kind, flags=flags, **words))


def _mark_target(_revision: int, info: bytes, _family: str) -> Expressions | None:
    mark, mask = struct.unpack_from("=II", info)
    keep = struct.pack("=I", ~mask & 0xFFFFFFFF)
    value = Bitwise(_WORD, _WORD, keep, struct.pack("=I", mark))
    return (Load(_WORD, Meta(_META_MARK)), value, SetMeta(_META_MARK, _WORD))


def _connmark_target(_revision: int, info: bytes, _family: str) -> Expressions | None:
    """--save-mark and --set-mark write the connection's mark, --restore-mark the packet's: to what, is not followed."""
    mode = struct.unpack_from("=IIIB", info)[3]
    unknown = Load(_WORD, Elsewhere("connmark"))
    return (unknown, SetMeta(_META_MARK, _WORD)) if mode == 2 else (unknown, SetCt(_CT_MARK, _WORD))


def _ct_target(_revision: int, info: bytes, _family: str) -> Expressions | None:
    (flags,) = struct.unpack_from("=H", info)
    return (Notrack(),) if flags & 1 else (Passed('xt target "CT"'),)


_TARGETS: Mapping[str, Callable[[int, bytes, str], Expressions | None]] = {
    "DNAT": _nat("dnat"),
    "REDIRECT": _nat("redirect"),
    "SNAT": lambda *_: (Nat("snat"),),
    "MASQUERADE": lambda *_: (Nat("masquerade"),),
    "REJECT": lambda *_: (Reject("reject"),),
    "MARK": _mark_target,
    "CONNMARK": _connmark_target,
    "CT": _ct_target,
    "NOTRACK": lambda *_: (Notrack(),),
}

# They change or note something and let the packet go on.
_HARMLESS = frozenset(
    (
        *("LOG", "NFLOG", "TRACE", "AUDIT", "CHECKSUM", "TCPMSS", "TCPOPTSTRIP", "TOS", "DSCP", "CLASSIFY", "HL"),
        *("TTL", "LED", "RATEEST", "SECMARK", "CONNSECMARK", "IDLETIMER", "TEE", "SET", "ECN", "HMARK"),
    )
)
