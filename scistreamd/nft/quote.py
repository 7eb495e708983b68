"""Rules as nft prints them: the statements of `nft list ruleset`, from the kernel's expressions."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace

from scistreamd.nft.evaluate import Decision
from scistreamd.nft.program import (
    Among,
    Base,
    Bitwise,
    Byteorder,
    Compare,
    Decide,
    Elsewhither,
    Expression,
    Immediate,
    Limited,
    Load,
    Lookup,
    Maybe,
    Nat,
    Notrack,
    Op,
    Passed,
    Payload,
    Reject,
    Remember,
    SetCt,
    SetMeta,
    Test,
)
from scistreamd.nft.quote_fields import ETHERTYPES, IPV4, IPV6, Field, loaded, meta, tracked
from scistreamd.nft.quote_sets import elements, verdict
from scistreamd.nft.quote_values import Type, between, bits, has_bits, masked, number, value
from scistreamd.nft.ruleset import NftSet, Rule, Table

_SIGNS = {Op.EQ: "", Op.NE: "!= ", Op.LT: "< ", Op.LE: "<= ", Op.GT: "> ", Op.GE: ">= "}


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
        self._registers: dict[int, Field | bytes | str] = {}
        self._network = {"ip": IPV4, "ip6": IPV6}.get(table.family, 0)
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
                self._registers[word] = loaded(source, self._network, self._transport)
            case Immediate(word=word, data=data):
                self._registers[word] = data
            case Bitwise():
                self._mask(each)
            case Byteorder(source=source_word, target=target):
                held = self._registers.get(source_word, "?")
                self._registers[target] = replace(held, swapped=True) if isinstance(held, Field) else held
            case Compare():
                return self._compare(each, following)
            case Among():
                self._among(each)
            case Lookup():
                self._lookup(each)
            case Reject(text=text, text6=text6):
                needs = "network" if "icmp " in text else ""
                self._say(text6 if text6 and self._network == IPV6 else text, needs)
            case _:
                self._say(self._statement(each))
        return 1

    def _mask(self, each: Bitwise) -> None:
        held = self._registers.get(each.source)
        if isinstance(held, Field) and not any(each.xor):
            self._registers[each.target] = replace(held, mask=each.mask)
        elif isinstance(held, Field):
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
        if not isinstance(held, Field):
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

    def _range(self, held: Field, first: bytes, last: bytes) -> str:
        if held.swapped and sys.byteorder == "little":
            first, last = first[::-1], last[::-1]
        return between(first, last, held.kind, self._devices)

    def _comparison(self, held: Field, each: Compare) -> str:
        if held.mask and any(held.mask):
            return self._under_mask(held, each)
        parts = self._adjacent(held, each.data)
        if parts and each.op is Op.EQ:
            return parts
        data = each.data[::-1] if held.swapped and sys.byteorder == "little" else each.data
        return f"{held.said} {_SIGNS[each.op]}{value(data, held.kind, self._devices)}"

    def _adjacent(self, held: Field, data: bytes) -> str:
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

    def _named(self, base: str, offset: int, size: int) -> Field | None:
        layer = {"nh": Base.NETWORK, "th": Base.TRANSPORT}.get(base)
        if layer is None:
            return None
        found = loaded(Payload(layer, offset, size), self._network, self._transport)
        return None if found.said.startswith("@") else found

    def _under_mask(self, held: Field, each: Compare) -> str:
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

    def _restricts(self, held: Field, each: Compare) -> bool:
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
            self._network = ETHERTYPES.get(found, found)
            self._pending["network"] = said
        elif held.said in ("ip protocol", "ip6 nexthdr"):
            self._transport = each.data[0]
            self._say(said, held.needs)
        else:
            return False
        return True

    def _among(self, each: Among) -> None:
        held = self._registers.get(each.word)
        field = held if isinstance(held, Field) else Field("?", Type.NUMBER)
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
        kinds = [field.kind for field in fields]
        content = elements(where, kinds, self._devices) if where and where.anonymous else f"@{each.set}"
        if each.target is None:
            self._say(f"{said} {'!= ' * each.inverted}{content}", fields[-1].needs if fields else "")
            return
        if each.target == 0:
            self._say(f"{said} vmap {content}", fields[-1].needs if fields else "")
        else:
            self._drop(fields[-1].needs if fields else "")
            self._registers[each.target] = f"{said} map {content}"

    def _drop(self, layer: str) -> None:
        self._pending.pop(layer, None)

    def _fields(self, word: int, where: NftSet | None) -> list[Field]:
        """What the key is made of: one field, or one after another where it is a concatenation."""
        fields: list[Field] = []
        left = (where.key_size if where else 0) or 1
        while left > 0:
            held = self._registers.get(word)
            if not isinstance(held, Field):
                break
            fields.append(held)
            word += (held.width + 3) // 4
            left -= (held.width + 3) & ~3
        return fields

    # Statements

    def _statement(self, each: Expression) -> str:
        match each:
            case SetMeta(key=key, word=word):
                return self._set(meta(key), word)
            case SetCt(key=key, word=word):
                return self._set(tracked(key), word)
            case Nat():
                return self._nat(each)
            case Remember():
                return self._remember(each)
        return _plain(each)

    def _set(self, what: Field, word: int) -> str:
        return f"{what.said} set {self._operand(word, what.kind, 4)}"

    def _operand(self, word: int, kind: Type, size: int) -> str:
        held = self._registers.get(word, "?")
        if isinstance(held, bytes):
            return value(held[:size], kind, self._devices)
        return held.said if isinstance(held, Field) else held

    def _nat(self, each: Nat) -> str:
        family = {IPV4: "ip", IPV6: "ip6"}.get(each.family, "")
        words = [each.kind] + ([family] if family and self._table.family == "inet" and each.address is not None else [])
        target = ""
        if each.address is not None:
            six = each.family == IPV6
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


def _plain(each: Expression) -> str:
    """A statement that stands for itself."""
    match each:
        case Decide():
            return verdict(each.verdict)
        case Passed(text=text) | Limited(text=text) | Reject(text=text) | Maybe(text=text) | Test(text=text):
            return text
        case Elsewhither(text=text):
            return text
        case Notrack():
            return "notrack"
    return "?"
