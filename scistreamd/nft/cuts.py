"""Which listeners' ports a ruleset does not tell apart: a verdict on one holds for all of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from scistreamd.nft.program import (
    Among,
    Base,
    Bitwise,
    Byteorder,
    Compare,
    Ct,
    Expression,
    Immediate,
    Load,
    Lookup,
    Nat,
    Passed,
    Payload,
    Remember,
    SetCt,
    SetMeta,
    Source,
    Test,
)
from scistreamd.nft.ruleset import Element, NftSet, Ruleset, Table

_PORT = slice(2, 4)  # of the header of TCP and UDP
_CT_PORT = 12  # NFT_CT_PROTO_DST


class _Unclear(Exception):
    """A rule does something to the port that is no comparison with constants."""


def cuts(ruleset: Ruleset) -> tuple[int, ...] | None:
    """The ports at which a rule may begin to do something else than to those before, in order; None: cannot be told.

    A few more than there are do no harm: then two ports are judged each for itself.
    """
    found: set[int] = set()
    try:
        for table in ruleset.tables:
            for chain in table.chains.values():
                for rule in chain.rules:
                    found.update(_of_rule(rule.expressions, table))
    except _Unclear:
        return None
    return tuple(sorted(found))


def _of_rule(expressions: Sequence[Expression], table: Table) -> Iterator[int]:
    yield from _compared(expressions, table)
    if any(isinstance(each, Nat) and each.port is not None for each in expressions):
        # The port that it sends to may be the listener's own.
        for each in expressions:
            if isinstance(each, Immediate):
                yield from _numbers(each.data)
            elif isinstance(each, Lookup) and each.set in table.sets:
                values = (element.value for element in _elements(table.sets[each.set]))
                yield from (cut for value in values if isinstance(value, bytes) for cut in _numbers(value))


def _compared(expressions: Iterable[Expression], table: Table) -> Iterator[int]:
    held: set[int] = set()  # words that have the port
    for each in expressions:
        match each:
            case Load(word=word, source=source):
                held -= _words(word, source.size if isinstance(source, Payload) else 1)
                held |= _words(word, _port_bytes(source))
            case Immediate(word=word, data=data):
                held -= _words(word, len(data))
            case Bitwise(source=word) | Byteorder(source=word) | SetMeta(word=word) | SetCt(word=word):
                _refuse(word in held)
            case Compare(word=word, data=data):
                yield from _numbers(data) if held & _words(word, len(data)) else ()
            case Among(word=word, size=size, spans=spans) if held & _words(word, size):
                _refuse(size != 2)
                yield from (cut for first, last in spans.ranges for cut in (first, last + 1))
            case Lookup(set=name, word=word, target=target):
                yield from _keys(table.sets[name], word, held) if name in table.sets else ()
                held -= {target}
            case Remember(set=name, word=word, parts=parts) if not all(isinstance(part, Passed) for part in parts):
                yield from _keys(table.sets[name], word, held)
            case Nat(port=word) if word is not None:
                _refuse(word in held)
            case Test(all=parts):
                yield from _compared(parts, table)


def _refuse(unclear: bool) -> None:
    if unclear:
        raise _Unclear


def _words(word: int, size: int) -> set[int]:
    return set(range(word, word + (size + 3) // 4))


def _port_bytes(source: Source) -> int:
    """How many bytes are loaded where the port is among them, else 0."""
    if isinstance(source, Ct):
        return 2 if source.key == _CT_PORT else 0
    if not isinstance(source, Payload) or source.base is not Base.TRANSPORT:
        return 0
    end = source.offset + source.size
    if source.offset >= _PORT.stop or end <= _PORT.start:
        return 0
    _refuse(source.offset % 2 == 1 or end < _PORT.stop)
    return source.size


def _keys(where: NftSet, word: int, held: set[int]) -> Iterator[int]:
    if held & _words(word, where.key_size):
        for element in _elements(where):
            yield from _numbers(element.key)
            yield from _numbers(element.last)


def _elements(where: NftSet) -> Iterator[Element]:
    yield from where.elements
    if where.catchall is not None:
        yield where.catchall


def _numbers(data: bytes) -> Iterator[int]:
    """Each number that may be a port, and the one after it."""
    for at in range(0, len(data) - 1, 2):
        number = int.from_bytes(data[at : at + 2], "big")
        yield from (number, number + 1)
