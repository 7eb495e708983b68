"""Rules as nft prints them: the statements of `nft list ruleset`, from the kernel's expressions."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from scistreamd.nft.evaluate import Decision
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
    Source,
    Test,
    Verdict,
)
from scistreamd.nft.quote_values import OF_SET, Type, between, bits, has_bits, masked, number, value
from scistreamd.nft.ruleset import Element, NftSet, Rule, Table

_SIGNS = {Op.EQ: "", Op.NE: "!= ", Op.LT: "< ", Op.LE: "<= ", Op.GT: "> ", Op.GE: ">= "}
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
_IPV4, _IPV6 = 2, 10
_ETHERTYPES = {0x0800: _IPV4, 0x86DD: _IPV6}


@dataclass(frozen=True)
class _Field:
    """What a register holds, as nft names it; ``mask`` where it was masked. ``needs``: the protocol it belongs to.

    ``swapped``: it was turned from the host's byte order to big-endian.
    """

    said: str
    kind: Type
    size: int = 0
    mask: bytes = b""
    needs: str = ""
    swapped: bool = False


def decision(by: Decision, devices: Mapping[int, str]) -> str:
    """The rule that decided, or the policy, with the chain that it stands in."""
    said = f"policy {by.chain.policy}" if by.rule is None else rule(by.rule, by.table, devices)
    return f"`{said}` in table {by.table.family} {by.table.name} chain {by.chain.name}"


def rule(shown: Rule, table: Table, devices: Mapping[int, str]) -> str:
    """The rule in nft's language; ``devices`` names interface indexes."""
    words = _Writer(table, devices).write(shown.expressions)
    if shown.comment:
        words.append(f'comment "{shown.comment}"')
    return " ".join(words)


class _Writer:
    """Writes one rule. ``network`` and ``transport``: protocols that it was restricted to, not yet written."""

    def __init__(self, table: Table, devices: Mapping[int, str]) -> None:
        self._table = table
        self._devices = devices
        self._registers: dict[int, _Field | bytes | str] = {}
        self._network = {"ip": _IPV4, "ip6": _IPV6}.get(table.family, 0)
        self._transport = 0
        self._words: list[str] = []
        self._pending: dict[str, str] = {}

    def write(self, expressions: Sequence[Expression]) -> list[str]:
        """The words of the rule."""
        at = 0
        while at < len(expressions):
            at += self._one(expressions[at], expressions[at + 1 :])
        self._flush()
        return self._words

    def _flush(self) -> None:
        self._words += self._pending.values()
        self._pending.clear()

    def _say(self, text: str, needs: str = "") -> None:
        """Write a statement; a restriction to the protocol that it shows anyway needs no words."""
        for layer in ("network", "transport"):
            if needs == layer:
                self._pending.pop(layer, None)
        if needs != "network":
            kept = self._pending.pop("transport", None) if needs == "transport" else None
            self._flush()
            if kept:
                self._words.append(kept)
        self._words.append(text)

    def _one(self, each: Expression, following: Sequence[Expression]) -> int:
        """Write one expression; how many it took."""
        match each:
            case Load(word=word, source=source):
                self._registers[word] = self._field(source)
            case Immediate(word=word, data=data):
                self._registers[word] = data
            case Bitwise():
                self._mask(each)
            case Byteorder(source=source_word, target=target):
                held = self._registers.get(source_word, "?")
                self._registers[target] = replace(held, swapped=True) if isinstance(held, _Field) else held
            case Compare():
                return self._compare(each, following)
            case Among():
                self._among(each)
            case Lookup():
                self._lookup(each)
            case Reject(text=text, text6=text6):
                needs = "network" if "icmp " in text else ""
                self._say(text6 if text6 and self._network == _IPV6 else text, needs)
            case _:
                self._say(self._statement(each))
        return 1

    # Selectors

    def _field(self, source: Source) -> _Field:
        match source:
            case Meta(key=key):
                said, kind = _META.get(key, (f"meta {key}", Type.NUMBER))
                return _Field(said, kind)
            case Ct(key=key, direction=direction):
                said, kind = _CT.get(key, (f"{key}", Type.NUMBER))
                way = "" if direction is None else ("original ", "reply ")[direction]
                return _Field(f"ct {way}{said}", kind)
            case Fib():
                return _fib(source)
            case Payload():
                return self._payload(source)
            case Exthdr():
                return _Field(f"exthdr {source.type}", Type.EXISTS if source.flags & 1 else Type.NUMBER)
            case Elsewhere(name=name):
                return _Field(name, Type.NUMBER)

    def _payload(self, source: Payload) -> _Field:
        if source.base is Base.NETWORK:
            found = _NETWORK.get((self._network, source.offset))
            if found and (source.size == found[2] or (found[1] in _PREFIXES and source.size < found[2])):
                return _Field(found[0], found[1], source.size, needs="network")
        if source.base is Base.TRANSPORT:
            protocol = _TRANSPORT.get(self._transport, "th")
            port = _PORTS.get((source.offset, source.size))
            if port:
                return _Field(f"{protocol} {port}", Type.PORT, 2, needs="transport")
            if (protocol, source.offset, source.size) == ("tcp", 13, 1):
                return _Field("tcp flags", Type.FLAGS, 1, needs="transport")
        name = ("ll", "nh", "th", "ih")[source.base]
        return _Field(f"@{name},{8 * source.offset},{8 * source.size}", Type.NUMBER, source.size)

    def _mask(self, each: Bitwise) -> None:
        held = self._registers.get(each.source)
        if isinstance(held, _Field) and not any(each.xor):
            self._registers[each.target] = replace(held, mask=each.mask)
        elif isinstance(held, _Field):
            order = sys.byteorder if held.kind is Type.MARK else "big"
            keep, flip = (int.from_bytes(part, order) for part in (each.mask, each.xor))
            whole = (1 << 8 * len(each.mask)) - 1
            if flip & keep == 0:
                said = (
                    f"{held.said} | {flip:#010x}" if keep == whole & ~flip else f"{held.said} & {keep:#x} | {flip:#x}"
                )
            else:
                said = f"{held.said} & {keep:#x} ^ {flip:#x}"
            self._registers[each.target] = replace(held, said=said)

    # Comparisons

    def _compare(self, each: Compare, following: Sequence[Expression]) -> int:
        held = self._registers.get(each.word)
        if not isinstance(held, _Field):
            self._say(f"? {_SIGNS[each.op]}{each.data.hex()}")
            return 1
        if self._restricts(held, each):
            return 1
        second = following[0] if following else None
        if each.op is Op.GE and isinstance(second, Compare) and (second.word, second.op) == (each.word, Op.LE):
            self._say(f"{held.said} {self._range(held, each.data, second.data)}", held.needs)
            return 2
        self._say(self._comparison(held, each), held.needs)
        return 1

    def _range(self, held: _Field, first: bytes, last: bytes) -> str:
        if held.swapped and sys.byteorder == "little":
            first, last = first[::-1], last[::-1]
        return between(first, last, held.kind, self._devices)

    def _comparison(self, held: _Field, each: Compare) -> str:
        if held.mask and any(held.mask):
            return self._under_mask(held, each)
        parts = self._adjacent(held, each.data)
        if parts and each.op is Op.EQ:
            return parts
        data = each.data[::-1] if held.swapped and sys.byteorder == "little" else each.data
        return f"{held.said} {_SIGNS[each.op]}{value(data, held.kind, self._devices)}"

    def _adjacent(self, held: _Field, data: bytes) -> str:
        """Two fields that nft compares at once, as it does with neighbours."""
        if not held.said.startswith("@"):
            return ""
        base, offset, length = held.said[1:].split(",")
        at, end, words = int(offset) // 8, (int(offset) + int(length)) // 8, []
        begin = at
        while at < end:
            sizes = ((size, self._named(base, at, size)) for size in (16, 4, 2, 1) if at + size <= end)
            size, field = next((each for each in sizes if each[1] is not None), (0, None))
            if field is None:
                return ""
            words.append(f"{field.said} {value(data[at - begin : at - begin + size], field.kind, self._devices)}")
            at += size
        layer = {"nh": "network", "th": "transport"}.get(base, "")
        self._pending.pop(layer, None)
        return " ".join(words)

    def _named(self, base: str, offset: int, size: int) -> _Field | None:
        layer = {"nh": Base.NETWORK, "th": Base.TRANSPORT}.get(base)
        field = self._payload(Payload(layer, offset, size)) if layer is not None else None
        return field if field is not None and not field.said.startswith("@") else None

    def _under_mask(self, held: _Field, each: Compare) -> str:
        sign = _SIGNS[each.op]
        prefix = masked(each.data, held.mask, held.kind, self._devices)
        if prefix:
            return f"{held.said} {sign}{prefix}"
        if has_bits(held.kind):
            mask, wanted = bits(number(held.mask, held.kind), held.kind), number(each.data, held.kind)
            if wanted == 0:
                return f"{held.said} {'' if each.op is Op.NE else '! '}{mask}"
            return f"{held.said} {sign}{bits(wanted, held.kind)} / {mask}"
        compared = value(each.data, held.kind, self._devices)
        return f"{held.said} & {value(held.mask, held.kind, self._devices)} {sign or '== '}{compared}"

    def _restricts(self, held: _Field, each: Compare) -> bool:
        """A restriction to a protocol, written only where nothing that follows shows it."""
        if each.op is not Op.EQ or held.mask:
            return False
        said = f"{held.said} {value(each.data, held.kind, self._devices)}"
        if held.said == "meta l4proto":
            self._transport = each.data[0]
            self._pending["transport"] = said
        elif held.said == "meta nfproto" or (
            held.said == "meta protocol" and self._table.family in ("netdev", "bridge")
        ):
            found = int.from_bytes(each.data, "big")
            self._network = _ETHERTYPES.get(found, found)
            self._pending["network"] = said
        elif held.said in ("ip protocol", "ip6 nexthdr"):
            self._transport = each.data[0]
            self._say(said, held.needs)
        else:
            return False
        return True

    def _among(self, each: Among) -> None:
        held = self._registers.get(each.word)
        field = held if isinstance(held, _Field) else _Field("?", Type.NUMBER)
        (first, last), size = each.spans.ranges[0], each.size
        shown = self._range(field, first.to_bytes(size, "big"), last.to_bytes(size, "big"))
        self._say(f"{field.said} {'!= ' * each.inverted}{shown}", field.needs)

    # Sets

    def _lookup(self, each: Lookup) -> None:
        where = self._table.sets.get(each.set)
        fields = self._fields(each.word, where)
        for field in fields[:-1]:
            self._drop(field.needs)
        said = " . ".join(field.said for field in fields) or "?"
        if each.target is None:
            content = self._content(where, fields) if where and where.anonymous else f"@{each.set}"
            self._say(f"{said} {'!= ' * each.inverted}{content}", fields[-1].needs if fields else "")
            return
        content = self._content(where, fields) if where and where.anonymous else f"@{each.set}"
        if each.target == 0:
            self._say(f"{said} vmap {content}", fields[-1].needs if fields else "")
        else:
            self._drop(fields[-1].needs if fields else "")
            self._registers[each.target] = f"{said} map {content}"

    def _drop(self, layer: str) -> None:
        self._pending.pop(layer, None)

    def _fields(self, word: int, where: NftSet | None) -> list[_Field]:
        """What the key is made of: one field, or one after another where it is a concatenation."""
        fields: list[_Field] = []
        left = (where.key_size if where else 0) or 1
        while left > 0:
            held = self._registers.get(word)
            if not isinstance(held, _Field):
                break
            fields.append(held)
            size = held.size or _SIZES.get(held.kind, 4)
            word += (size + 3) // 4
            left -= (size + 3) & ~3
        return fields

    def _content(self, where: NftSet, fields: Sequence[_Field]) -> str:
        kinds = [field.kind for field in fields] or [OF_SET.get(where.key_type, Type.NUMBER)]
        shown = [self._element(each, where, kinds) for each in _sorted(where)]
        if where.catchall is not None:
            shown.append(f"*{self._given(where.catchall, where)}")
        return f"{{ {', '.join(shown)} }}"

    def _element(self, each: Element, where: NftSet, kinds: Sequence[Type]) -> str:
        parts, at = [], 0
        for kind in kinds:
            size = where.key_size if len(kinds) == 1 else _SIZES.get(kind, 4)
            parts.append(between(each.key[at : at + size], each.last[at : at + size], kind, self._devices))
            at += (size + 3) & ~3
        return " . ".join(parts) + self._given(each, where)

    def _given(self, each: Element, where: NftSet) -> str:
        if each.value is None:
            return ""
        if isinstance(each.value, Verdict):
            return f" : {_verdict(each.value)}"
        return f" : {value(each.value, OF_SET.get(where.data_type, Type.NUMBER), self._devices)}"

    # Statements

    def _statement(self, each: Expression) -> str:
        match each:
            case SetMeta(key=key, word=word):
                said, kind = _META.get(key, (f"meta {key}", Type.NUMBER))
                return f"{said} set {self._operand(word, kind, 4)}"
            case SetCt(key=key, word=word):
                said, kind = _CT.get(key, (f"{key}", Type.NUMBER))
                return f"ct {said} set {self._operand(word, kind, 4)}"
            case Nat():
                return self._nat(each)
            case Remember():
                return self._remember(each)
        return _plain(each)

    def _operand(self, word: int, kind: Type, size: int) -> str:
        held = self._registers.get(word, "?")
        if isinstance(held, bytes):
            return value(held[:size], kind, self._devices)
        return held.said if isinstance(held, _Field) else held

    def _nat(self, each: Nat) -> str:
        family = {_IPV4: "ip", _IPV6: "ip6"}.get(each.family, "")
        words = [each.kind] + ([family] if family and self._table.family == "inet" and each.address is not None else [])
        target = ""
        if each.address is not None:
            six = each.family == _IPV6
            kind, size = (Type.ADDRESS6, 16) if six else (Type.ADDRESS4, 4)
            target = self._ends(each.address, each.last_address, kind, size)
            if six and each.port is not None:
                target = f"[{target}]"
        if each.port is not None:
            target += ":" + self._ends(each.port, each.last_port, Type.PORT, 2)
        return " ".join([*words, "to", target] if target else words)

    def _ends(self, first: int, last: int | None, kind: Type, size: int) -> str:
        begin = self._operand(first, kind, size)
        end = begin if last is None else self._operand(last, kind, size)
        return begin if begin == end else f"{begin}-{end}"

    def _remember(self, each: Remember) -> str:
        fields = self._fields(each.word, self._table.sets.get(each.set))
        parts = [" . ".join(field.said for field in fields)]
        if each.timeout:
            parts.append(f"timeout {each.timeout // 1000}s")
        parts += [self._statement(part) for part in each.parts]
        for field in fields:
            self._drop(field.needs)
        return f"{each.operation} @{each.set} {{ {' '.join(parts)} }}"


_SIZES = {
    Type.ADDRESS4: 4, Type.ADDRESS6: 16, Type.PORT: 2, Type.NAME: 16, Type.PROTOCOL: 1, Type.FAMILY: 1,
    Type.ETHERTYPE: 2, Type.PACKET: 1, Type.FLAGS: 1, Type.DIRECTION: 1,
}  # fmt: skip
_PREFIXES = (Type.ADDRESS4, Type.ADDRESS6)
_NETWORK = {
    (_IPV4, 12): ("ip saddr", Type.ADDRESS4, 4),
    (_IPV4, 16): ("ip daddr", Type.ADDRESS4, 4),
    (_IPV4, 9): ("ip protocol", Type.PROTOCOL, 1),
    (_IPV4, 8): ("ip ttl", Type.NUMBER, 1),
    (_IPV6, 8): ("ip6 saddr", Type.ADDRESS6, 16),
    (_IPV6, 24): ("ip6 daddr", Type.ADDRESS6, 16),
    (_IPV6, 6): ("ip6 nexthdr", Type.PROTOCOL, 1),
    (_IPV6, 7): ("ip6 hoplimit", Type.NUMBER, 1),
}
_PORTS = {(0, 2): "sport", (2, 2): "dport"}


def _fib(source: Fib) -> _Field:
    names = ((1, "saddr"), (2, "daddr"), (4, "mark"), (8, "iif"), (16, "oif"))
    by = " . ".join(name for bit, name in names if source.flags & bit)
    if source.flags & 32:
        return _Field(f"fib {by} oif", Type.EXISTS)
    said, kind = {1: ("oif", Type.INDEX), 2: ("oifname", Type.NAME)}.get(source.result, ("type", Type.ADDRTYPE))
    return _Field(f"fib {by} {said}", kind)


def _plain(each: Expression) -> str:
    """A statement that stands for itself."""
    match each:
        case Decide(verdict=verdict):
            return _verdict(verdict)
        case Passed(text=text) | Limited(text=text) | Reject(text=text) | Maybe(text=text) | Test(text=text):
            return text
        case Elsewhither(text=text):
            return text
        case Notrack():
            return "notrack"
    return "?"


def _verdict(verdict: Verdict) -> str:
    return f"{verdict.kind} {verdict.chain}" if verdict.chain else verdict.kind


def _sorted(where: NftSet) -> Iterable[Element]:
    # As nft sorts them: names of devices as numbers in the host's byte order.
    order = sys.byteorder if OF_SET.get(where.key_type) is Type.NAME else "big"
    return sorted(where.elements, key=lambda each: int.from_bytes(each.key, order))
