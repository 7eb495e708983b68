"""The elements of an anonymous set or map, and verdicts, as nft prints them."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence

from scistreamd.nft.program import Verdict
from scistreamd.nft.quote_fields import width
from scistreamd.nft.quote_values import OF_SET, Type, between, value
from scistreamd.nft.ruleset import Element, NftSet


def elements(where: NftSet, kinds: Sequence[Type], devices: Mapping[int, str]) -> str:
    """All of the set in braces; ``kinds`` of the parts of its key, as far as they are known."""
    parts = kinds or [OF_SET.get(where.key_type, Type.NUMBER)]
    shown = [_key(each, where, parts, devices) + _given(each, where, devices) for each in _sorted(where)]
    if where.catchall is not None:
        shown.append(f"*{_given(where.catchall, where, devices)}")
    return f"{{ {', '.join(shown)} }}"


def verdict(what: Verdict) -> str:
    """The verdict with the chain that it leads to."""
    return f"{what.kind} {what.chain}" if what.chain else what.kind


def _key(each: Element, where: NftSet, kinds: Sequence[Type], devices: Mapping[int, str]) -> str:
    parts, at = [], 0
    for kind in kinds:
        size = where.key_size if len(kinds) == 1 else width(kind)
        parts.append(between(each.key[at : at + size], each.last[at : at + size], kind, devices))
        at += (size + 3) & ~3
    return " . ".join(parts)


def _given(each: Element, where: NftSet, devices: Mapping[int, str]) -> str:
    if each.value is None:
        return ""
    if isinstance(each.value, Verdict):
        return f" : {verdict(each.value)}"
    return f" : {value(each.value, OF_SET.get(where.data_type, Type.NUMBER), devices)}"


def _sorted(where: NftSet) -> Iterable[Element]:
    # As nft sorts them: names of devices as numbers in the host's byte order.
    order = sys.byteorder if OF_SET.get(where.key_type) is Type.NAME else "big"
    return sorted(where.elements, key=lambda each: int.from_bytes(each.key, order))
