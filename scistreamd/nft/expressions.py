"""The expressions of rules, from netlink attributes to `program` types (nf_tables.h).

What is not modelled becomes `Maybe`, `Elsewhere` or `Elsewhither`, never nothing: `evaluate` then says that it
does not know, where it matters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from scistreamd.nft import xt
from scistreamd.nft.attributes import Attributes, entries, number, signed, table, text
from scistreamd.nft.program import (
    Among,
    Base,
    Bitwise,
    Byteorder,
    Compare,
    Ct,
    Decide,
    Elsewhere,
    Elsewhither,
    Expression,
    Exthdr,
    Fib,
    Immediate,
    Limited,
    Load,
    Lookup,
    Maybe,
    Meta,
    Nat,
    Notrack,
    Op,
    Passed,
    Payload,
    Reject,
    Remember,
    SetCt,
    SetMeta,
    Verdict,
)  # fmt: skip
from scistreamd.nft.spans import Spans

_VERDICTS = {0: "drop", 1: "accept", 3: "queue", -1: "continue", -2: "break", -3: "jump", -4: "goto", -5: "return"}
_UNITS = {1: "second", 60: "minute", 3600: "hour", 86400: "day", 604800: "week"}
_LEVELS = ("emerg", "alert", "crit", "err", "warn", "notice", "info", "debug", "audit")
_LOG_FLAGS = ((1, "tcp sequence"), (2, "tcp options"), (4, "ip options"), (8, "skuid"), (32, "ether"))
_LOG_ALL = 0x2F
_WHATEVER_BURST = 5  # nft's default for packets, which it does not print
_PORT_UNREACHABLE = {("ip", 0): 3, ("ip6", 0): 4, ("inet", 2): 1, ("bridge", 2): 1, ("netdev", 2): 1}
_CODES = {
    "icmp": (
        *("net-unreachable", "host-unreachable", "prot-unreachable", "port-unreachable", "", "", "", "", ""),
        *("net-prohibited", "host-prohibited", "", "", "admin-prohibited"),
    ),
    "icmpv6": (
        *("no-route", "admin-prohibited", "", "addr-unreachable", "port-unreachable", "policy-fail"),
        "reject-route",
    ),
    "icmpx": ("no-route", "port-unreachable", "host-unreachable", "admin-prohibited"),
}
# enum nft_object_type: those that decide nothing
_HARMLESS_OBJECTS = {
    1: "counter name",
    3: "ct helper set",
    7: "ct timeout set",
    8: "meta secmark set",
    9: "ct expectation set",
}
_LIMITING_OBJECTS = {2: "quota name", 4: "limit name", 5: "ct count name"}


def word(register: bytes) -> int:
    """A register's first word: 1 to 4 are of 16 bytes, from 8 on of 4 (nft_parse_register in the kernel)."""
    named = number(register)
    return named * 4 if named <= 4 else named - 4


def data_of(attribute: bytes) -> bytes | Verdict:
    """What NFTA_DATA_* hold: bytes, or a verdict."""
    parts = table(attribute)
    return parts[1] if 1 in parts else _verdict(table(parts[2]))


def expression(attributes: Attributes, family: str) -> tuple[Expression, ...]:
    """One expression of a rule of a table of that family; iptables' ones may become several."""
    name = text(attributes[1])
    make = _MAKERS.get(name)
    if make is None:
        return (Maybe(name),)
    return make(table(attributes.get(2, b"")), family)


def _verdict(parts: Attributes) -> Verdict:
    code = signed(parts[1])
    kind = _VERDICTS.get(code if code < 0 else code & 0xFF, "queue")
    return Verdict(kind, text(parts.get(2, b"")))


def _bytes(attribute: bytes) -> bytes:
    return table(attribute)[1]


def _immediate(parts: Attributes, _: str) -> tuple[Expression, ...]:
    data = data_of(parts[2])
    return (Decide(data),) if isinstance(data, Verdict) else (Immediate(word(parts[1]), data),)


def _payload(parts: Attributes, _: str) -> tuple[Expression, ...]:
    if 5 in parts:
        return (Passed("payload set"),)
    source = Payload(Base(number(parts[2])), number(parts[3]), number(parts[4]))
    return (Load(word(parts[1]), source),)


def _meta(parts: Attributes, _: str) -> tuple[Expression, ...]:
    key = number(parts[2])
    return (SetMeta(key, word(parts[3])),) if 3 in parts else (Load(word(parts[1]), Meta(key)),)


def _ct(parts: Attributes, _: str) -> tuple[Expression, ...]:
    key = number(parts[2])
    if 4 in parts:
        return (SetCt(key, word(parts[4])),)
    direction = number(parts[3]) if 3 in parts else None
    return (Load(word(parts[1]), Ct(key, direction)),)


def _fib(parts: Attributes, _: str) -> tuple[Expression, ...]:
    return (Load(word(parts[1]), Fib(number(parts[2]), number(parts[3]))),)


def _exthdr(parts: Attributes, _: str) -> tuple[Expression, ...]:
    if 1 not in parts:
        return (Passed("exthdr set"),)
    names = number(parts.get(6)), number(parts[2]), number(parts.get(3)), number(parts.get(4)), number(parts.get(5))
    return (Load(word(parts[1]), Exthdr(*names)),)


def _elsewhere(name: str, register: int) -> Callable[[Attributes, str], tuple[Expression, ...]]:
    def make(parts: Attributes, _: str) -> tuple[Expression, ...]:
        return (Load(word(parts[register]), Elsewhere(name)),)

    return make


def _numgen(parts: Attributes, _: str) -> tuple[Expression, ...]:
    how = "random" if number(parts.get(3)) else "inc"
    return (Load(word(parts[1]), Elsewhere(f"numgen {how} mod {number(parts.get(2))}")),)


def _bitwise(parts: Attributes, _: str) -> tuple[Expression, ...]:
    if number(parts.get(6)):
        return (Load(word(parts[2]), Elsewhere("shift")),)
    return (Bitwise(word(parts[1]), word(parts[2]), _bytes(parts[4]), _bytes(parts[5])),)


def _byteorder(parts: Attributes, _: str) -> tuple[Expression, ...]:
    return (Byteorder(word(parts[1]), word(parts[2]), number(parts[4]), number(parts[5])),)


def _cmp(parts: Attributes, _: str) -> tuple[Expression, ...]:
    return (Compare(word(parts[1]), Op(number(parts[2])), _bytes(parts[3])),)


def _range(parts: Attributes, _: str) -> tuple[Expression, ...]:
    first, last = _bytes(parts[3]), _bytes(parts[4])
    spans = Spans.of([(number(first), number(last))])
    return (Among(word(parts[1]), len(first), spans, bool(number(parts[2]))),)


def _lookup(parts: Attributes, _: str) -> tuple[Expression, ...]:
    target = word(parts[3]) if 3 in parts else None
    return (Lookup(text(parts[1]), word(parts[2]), target, bool(number(parts.get(5)) & 1)),)


def _counter(parts: Attributes, _: str) -> tuple[Expression, ...]:
    return (Passed(f"counter packets {number(parts.get(2))} bytes {number(parts.get(1))}"),)


def _log(parts: Attributes, _: str) -> tuple[Expression, ...]:
    words = ["log"]
    if prefix := text(parts.get(2, b"")):
        words.append(f'prefix "{prefix}"')
    if 1 in parts:
        words.append(f"group {number(parts[1])}")
    elif 5 in parts and number(parts[5]) != 4:
        words.append(f"level {_LEVELS[number(parts[5])]}")
    flags = number(parts.get(6))
    if flags == _LOG_ALL:
        words.append("flags all")
    else:
        words += [f"flags {name}" for bit, name in _LOG_FLAGS if flags & bit]
    return (Passed(" ".join(words)),)


def _limit(parts: Attributes, _: str) -> tuple[Expression, ...]:
    over = bool(number(parts.get(5)) & 1)
    rate, burst, unit = number(parts[1]), number(parts.get(3)), _UNITS.get(number(parts[2]), "second")
    of_bytes = number(parts.get(4)) == 1
    shown = _volume(rate) if of_bytes else f"{rate}"
    said = f"limit rate {'over ' * over}{shown}/{unit}"
    if burst and not (burst == _WHATEVER_BURST and not of_bytes):
        said += f" burst {_volume(burst)}" if of_bytes else f" burst {burst} packets"
    return (Limited(said, over),)


def _volume(amount: int) -> str:
    for unit, factor in (("mbytes", 1 << 20), ("kbytes", 1 << 10)):
        if amount and amount % factor == 0:
            return f"{amount // factor} {unit}"
    return f"{amount} bytes"


def _connlimit(parts: Attributes, _: str) -> tuple[Expression, ...]:
    over = bool(number(parts.get(2)) & 1)
    return (Limited(f"ct count {'over ' * over}{number(parts[1])}", over),)


def _quota(parts: Attributes, _: str) -> tuple[Expression, ...]:
    over = bool(number(parts.get(2)) & 1)
    return (Maybe(f"quota {'over ' * over}{_volume(number(parts[1]))}"),)


def _objref(parts: Attributes, _: str) -> tuple[Expression, ...]:
    if 1 not in parts:
        return (Maybe("an object chosen by a map"),)
    kind, name = number(parts[1]), text(parts[2])
    if kind in _HARMLESS_OBJECTS:
        return (Passed(f'{_HARMLESS_OBJECTS[kind]} "{name}"'),)
    if kind in _LIMITING_OBJECTS:
        return (Maybe(f'{_LIMITING_OBJECTS[kind]} "{name}"'),)
    return (Elsewhither(f'synproxy name "{name}"'),)


def _reject(parts: Attributes, family: str) -> tuple[Expression, ...]:
    kind, code = number(parts[1]), number(parts.get(2))
    if kind == 1:
        return (Reject("reject with tcp reset"),)
    if _PORT_UNREACHABLE.get((family, kind)) == code:
        return (Reject("reject"),)
    if kind == 0 and family != "ip":
        six = f"reject with icmpv6 {_code('icmpv6', code)}"
        return (Reject(six),) if family == "ip6" else (Reject(f"reject with icmp {_code('icmp', code)}", six),)
    protocol = "icmpx" if kind == 2 else "icmp"
    return (Reject(f"reject with {protocol} {_code(protocol, code)}"),)


def _code(protocol: str, code: int) -> str:
    names = _CODES[protocol]
    return names[code] if code < len(names) and names[code] else str(code)


def _nat(parts: Attributes, _: str) -> tuple[Expression, ...]:
    words = {at: word(parts[at]) if at in parts else None for at in (3, 4, 5, 6)}
    kind = "dnat" if number(parts[1]) else "snat"
    return (Nat(kind, number(parts[2]), words[3], words[4], words[5], words[6], number(parts.get(7))),)


def _redir(parts: Attributes, _: str) -> tuple[Expression, ...]:
    port, last = (word(parts[at]) if at in parts else None for at in (1, 2))
    return (Nat("redirect", port=port, last_port=last, flags=number(parts.get(3))),)


def _masq(parts: Attributes, _: str) -> tuple[Expression, ...]:
    return (Nat("masquerade", flags=number(parts.get(1))),)


def _dynset(parts: Attributes, family: str) -> tuple[Expression, ...]:
    listed = [parts[7]] if 7 in parts else entries(parts.get(10, b""))
    made = tuple(part for each in listed for part in expression(table(each), family))
    operation = ("add", "update", "delete")[number(parts[3])]
    timeout = number(parts.get(6))
    return (Remember(text(parts[1]), word(parts[4]), operation, timeout, made, bool(number(parts.get(9)) & 1)),)


def _passed(said: str) -> Callable[[Attributes, str], tuple[Expression, ...]]:
    return lambda _parts, _family: (Passed(said),)


def _elsewhither(said: str) -> Callable[[Attributes, str], tuple[Expression, ...]]:
    return lambda _parts, _family: (Elsewhither(said),)


def _queue(parts: Attributes, _: str) -> tuple[Expression, ...]:
    flags = "flags bypass " * (number(parts.get(3)) & 1)
    return (Elsewhither(f"queue {flags}to {number(parts[1])}" if 1 in parts else "queue"),)


_MAKERS: Mapping[str, Callable[[Attributes, str], tuple[Expression, ...]]] = {
    "immediate": _immediate,
    "payload": _payload,
    "meta": _meta,
    "ct": _ct,
    "fib": _fib,
    "exthdr": _exthdr,
    "bitwise": _bitwise,
    "byteorder": _byteorder,
    "cmp": _cmp,
    "range": _range,
    "lookup": _lookup,
    "counter": _counter,
    "last": _passed("last"),
    "log": _log,
    "limit": _limit,
    "connlimit": _connlimit,
    "quota": _quota,
    "objref": _objref,
    "reject": _reject,
    "nat": _nat,
    "redir": _redir,
    "masq": _masq,
    "dynset": _dynset,
    "notrack": lambda _parts, _family: (Notrack(),),
    "flow_offload": _passed("flow add"),
    "dup": _passed("dup"),
    "queue": _queue,
    "tproxy": _elsewhither("tproxy"),
    "synproxy": _elsewhither("synproxy"),
    "fwd": _elsewhither("fwd"),
    "numgen": _numgen,
    "hash": _elsewhere("hash", 2),
    "socket": _elsewhere("socket", 2),
    "rt": _elsewhere("rt", 1),
    "osf": _elsewhere("osf", 1),
    "xfrm": _elsewhere("ipsec", 1),
    "tunnel": _elsewhere("tunnel", 2),
    "match": lambda parts, family: xt.match(text(parts[1]), number(parts[2]), parts[3], family),
    "target": lambda parts, family: xt.target(text(parts[1]), number(parts[2]), parts[3], family),
}
