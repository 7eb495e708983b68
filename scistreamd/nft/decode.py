"""From what netlink says of tables, chains, sets and rules to `ruleset` types (nf_tables.h)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from scistreamd.nft.attributes import Attributes, entries, number, signed, table, text
from scistreamd.nft.expressions import data_of, expression
from scistreamd.nft.program import Verdict
from scistreamd.nft.ruleset import BaseHook, Chain, Element, Hook, NftSet, Rule, Table

FAMILIES = {1: "inet", 2: "ip", 3: "arp", 5: "netdev", 7: "bridge", 10: "ip6"}
_HOOKS = (Hook.PREROUTING, Hook.INPUT, Hook.FORWARD, Hook.OUTPUT, Hook.POSTROUTING, Hook.INGRESS)
_DEVICE_HOOKS = (Hook.INGRESS, Hook.EGRESS)
_DORMANT, _ANONYMOUS, _INTERVAL = 1, 1, 4
_END, _CATCHALL = 1, 2
_COMMENT = 0


@dataclass(frozen=True)
class Message:
    """One message of a dump: ``family`` as nft has it, the attributes by number."""

    family: str
    attributes: Attributes

    def name(self, attribute: int) -> str:
        """An attribute that is text."""
        return text(self.attributes[attribute])


@dataclass(frozen=True)
class Dump:
    """What the kernel told of a network namespace; ``elements`` by family, table and set."""

    tables: Sequence[Message]
    chains: Sequence[Message]
    rules: Sequence[Message]
    sets: Sequence[Message]
    elements: dict[tuple[str, str, str], list[Attributes]]


def tables(dump: Dump) -> tuple[Table, ...]:
    """The tables with all that is in them, in the kernel's order."""
    found = {(each.family, each.name(1)): _table(each) for each in dump.tables}
    rules: dict[tuple[str, str, str], list[Rule]] = {}
    for message in dump.rules:
        rules.setdefault((message.family, message.name(1), message.name(2)), []).append(_rule(message))
    chains: dict[tuple[str, str], dict[str, Chain]] = {}
    for message in dump.chains:
        chain = _chain(message)
        key = message.family, message.name(1)
        chains.setdefault(key, {})[chain.name] = replace(chain, rules=tuple(rules.get((*key, chain.name), ())))
    sets: dict[tuple[str, str], dict[str, NftSet]] = {}
    for message in dump.sets:
        key = message.family, message.name(1)
        made = _set(message, dump.elements.get((*key, message.name(2)), []))
        sets.setdefault(key, {})[made.name] = made
    return tuple(replace(each, chains=chains.get(key, {}), sets=sets.get(key, {})) for key, each in found.items())


def _table(message: Message) -> Table:
    return Table(message.family, message.name(1), dormant=bool(number(message.attributes.get(2)) & _DORMANT))


def _chain(message: Message) -> Chain:
    attributes = message.attributes
    policy = "drop" if number(attributes.get(5), default=1) == 0 else "accept"
    base = None
    if 4 in attributes:
        hook = table(attributes[4])
        devices = [text(hook[3])] if 3 in hook else []
        devices += [text(each) for each in entries(hook.get(4, b""))]
        hooks = _DEVICE_HOOKS if message.family == "netdev" else _HOOKS
        kind = text(attributes.get(7, b"filter"))
        base = BaseHook(hooks[number(hook[1])], signed(hook[2]), kind, tuple(dict.fromkeys(devices)))
    return Chain(text(attributes[3]), base=base, policy=policy)


def _rule(message: Message) -> Rule:
    attributes = message.attributes
    made = tuple(part for each in entries(attributes.get(4, b"")) for part in expression(table(each), message.family))
    return Rule(number(attributes[3]), made, _comment(attributes.get(7, b"")))


def _comment(notes: bytes) -> str:
    """The comment among the notes of a rule: type, length, value of a byte each, as libnftnl writes them."""
    at = 0
    while at + 2 <= len(notes):
        kind, length = notes[at], notes[at + 1]
        if kind == _COMMENT:
            return text(notes[at + 2 : at + 2 + length])
        at += 2 + length
    return ""


def _set(message: Message, listed: Sequence[Attributes]) -> NftSet:
    attributes = message.attributes
    flags = number(attributes.get(3))
    description = table(attributes.get(9, b""))
    fields = tuple(number(table(each)[1]) for each in entries(description.get(2, b"")))
    made = NftSet(
        name=text(attributes[2]),
        key_type=number(attributes.get(4)),
        key_size=number(attributes.get(5)),
        data_type=number(attributes.get(6)),
        fields=fields,
        anonymous=bool(flags & _ANONYMOUS),
    )
    catchall = [_element(each, b"") for each in listed if number(each.get(3)) & _CATCHALL]
    keyed = [each for each in listed if 1 in each]
    ranges = flags & _INTERVAL and not made.is_concatenation
    elements = _ranges(keyed, made.key_size) if ranges else [_element(each, _key(each, 1)) for each in keyed]
    return replace(made, elements=tuple(elements), catchall=catchall[0] if catchall else None)


def _key(element: Attributes, attribute: int) -> bytes:
    return table(element[attribute])[1]


def _element(element: Attributes, key: bytes) -> Element:
    limits = [element[7]] if 7 in element else entries(element.get(11, b""))
    value: bytes | Verdict | None = data_of(element[2]) if 2 in element else None
    last = _key(element, 10) if 10 in element else key
    return Element(key, last, value, tuple(part for each in limits for part in expression(table(each), "")))


def _ranges(listed: Sequence[Attributes], size: int) -> list[Element]:
    """Ranges from their ends: the kernel lists the first key of each and, flagged, the first key after it."""
    marks = sorted(
        ((_key(each, 1), not number(each.get(3)) & _END, each) for each in listed), key=lambda mark: mark[:2]
    )
    found: list[Element] = []
    begin: Attributes | None = None
    for key, begins, element in marks:
        if begin is not None:
            found.append(replace(_element(begin, _key(begin, 1)), last=_before(key)))
        begin = element if begins else None
    if begin is not None:
        found.append(replace(_element(begin, _key(begin, 1)), last=b"\xff" * size))
    return found


def _before(key: bytes) -> bytes:
    return (int.from_bytes(key, "big") - 1).to_bytes(len(key), "big")
