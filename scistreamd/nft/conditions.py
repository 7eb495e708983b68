"""Where a comparison or a look-up holds, for bytes of which some are parts of the peer's address or port."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace

from scistreamd.nft.packet import ALWAYS, NEVER, PERHAPS, Box, Bytes, Field, Known, Part
from scistreamd.nft.program import Compare, Op
from scistreamd.nft.ruleset import Element, NftSet
from scistreamd.nft.spans import Spans

_FEW_BITS = 8


def compares(data: Bytes, comparison: Compare) -> Box | None:
    """Where ``data op constant`` holds; None for NE, which is the contrary of EQ: see `holds_not`."""
    constant = int.from_bytes(comparison.data, "big")
    most = (1 << 8 * len(comparison.data)) - 1
    bounds = {
        Op.LT: (0, constant - 1),
        Op.LE: (0, constant),
        Op.GT: (constant + 1, most),
        Op.GE: (constant, most),
    }
    if comparison.op in bounds:
        return among(data, Spans.of([bounds[comparison.op]]))
    return equals(data, comparison.data) if comparison.op is Op.EQ else None


def equals(data: Bytes, constant: bytes) -> Box:
    """Where the bytes are these."""
    box = ALWAYS
    for byte, wanted in zip(data, constant, strict=True):
        if isinstance(byte, Known):
            if (byte.value ^ wanted) & byte.mask:
                return NEVER
            box &= ALWAYS if byte.mask == 255 else PERHAPS
        elif (wanted ^ byte.xor) & ~byte.mask:
            return NEVER
    for field in Field:
        pairs = zip(data, constant, strict=True)
        parts = [(byte, wanted) for byte, wanted in pairs if isinstance(byte, Part) and byte.field is field]
        box &= _field_equals(field, parts)
    return box


def _field_equals(field: Field, parts: Sequence[tuple[Part, int]]) -> Box:
    """Where a field has these bits; exact where they are its highest ones, as a prefix has them."""
    mask = value = size = 0
    for byte, wanted in parts:
        size = byte.size
        shift = 8 * (size - 1 - byte.index)
        mask |= byte.mask << shift
        value |= ((wanted ^ byte.xor) & byte.mask) << shift
    if not mask:
        return ALWAYS
    free = (1 << 8 * size) - 1 & ~mask
    low = (free ^ free + 1) >> 1
    gaps = free & ~low
    if gaps.bit_count() > _FEW_BITS:
        # At least it is within the longest prefix that the mask has.
        highest = (1 << gaps.bit_length()) - 1
        return replace(_box(field, Spans(((value & ~highest, value | highest),))), sure=False)
    return _box(field, Spans.of((value | gap, value | gap | low) for gap in _subsets(gaps)))


def _subsets(bits: int) -> Iterator[int]:
    """All numbers that have no other bits than these."""
    subset = bits
    while subset:
        yield subset
        subset = subset - 1 & bits
    yield 0


def _box(field: Field, spans: Spans) -> Box:
    return Box(sources=spans) if field is Field.SOURCE else Box(ports=spans)


def among(data: Bytes, spans: Spans) -> Box:
    """Where the bytes, as one big-endian number, are in the set."""
    if all(isinstance(byte, Known) for byte in data):
        return _known_among([byte for byte in data if isinstance(byte, Known)], spans)
    first = data[0]
    if isinstance(first, Part) and data == tuple(Part(first.field, index, first.size) for index in range(len(data))):
        low = 8 * (first.size - len(data))
        if low:
            spans = Spans(tuple((begin << low, (end + 1 << low) - 1) for begin, end in spans.ranges))
        return _box(first.field, spans)
    return PERHAPS


def _known_among(data: Sequence[Known], spans: Spans) -> Box:
    value = int.from_bytes(bytes(byte.value & byte.mask for byte in data), "big")
    free = [bit for bit in range(8 * len(data)) if not data[-1 - bit // 8].mask >> bit % 8 & 1]
    if len(free) > _FEW_BITS:
        return PERHAPS if spans else NEVER
    choices = itertools.product(*((0, 1 << bit) for bit in free))
    held = {value + sum(chosen) in spans for chosen in choices}
    return PERHAPS if len(held) > 1 else ALWAYS if True in held else NEVER


def found(data: Bytes, where: NftSet, elements: Sequence[Element]) -> Iterator[Box]:
    """Where the bytes are the key of one of the elements, as boxes of which no two differ in their sources alone."""
    if not where.is_concatenation:
        if not _mixed(data):
            spans = where.spans if len(elements) == len(where.elements) else _spans(elements)
            yield among(data, spans)
            return
        if any(element.key != element.last for element in elements):
            yield PERHAPS
            return
    sources: dict[tuple[Spans, bool], list[tuple[int, int]]] = {}
    for element in elements:
        box = _matches(data, where, element)
        if box:
            sources.setdefault((box.ports, box.sure), []).extend(box.sources.ranges)
    for (ports, sure), ranges in sources.items():
        yield Box(Spans.of(ranges), ports, sure)


def _spans(elements: Sequence[Element]) -> Spans:
    return Spans.of((int.from_bytes(each.key, "big"), int.from_bytes(each.last, "big")) for each in elements)


def _mixed(data: Bytes) -> bool:
    return len({byte.field if isinstance(byte, Part) else None for byte in data}) > 1


def _matches(data: Bytes, where: NftSet, element: Element) -> Box:
    if not where.is_concatenation:
        return equals(data, element.key)
    box, at = ALWAYS, 0
    for size in where.fields:
        key, last = element.key[at : at + size], element.last[at : at + size]
        part = data[at : at + size]
        if key == last:
            box &= equals(part, key)
        else:
            box &= among(part, Spans(((int.from_bytes(key, "big"), int.from_bytes(last, "big")),)))
        if not box:
            return NEVER
        at += (size + 3) & ~3
    return box
