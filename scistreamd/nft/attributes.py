"""Netlink attributes: type, length, value (netlink(7)), taken apart."""

from __future__ import annotations

import struct
from collections.abc import Iterator

_HEADER = struct.Struct("=HH")
# The two highest bits of a type are flags: nested, network byte order.
_TYPE = 0x3FFF

Attributes = dict[int, bytes]


def pairs(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The attributes in order. ValueError where the lengths do not fit."""
    at = 0
    while at + _HEADER.size <= len(data):
        length, kind = _HEADER.unpack_from(data, at)
        if length < _HEADER.size or at + length > len(data):
            raise ValueError("an attribute is longer than what holds it")
        yield kind & _TYPE, data[at + _HEADER.size : at + length]
        at += (length + 3) & ~3


def table(data: bytes) -> Attributes:
    """The attributes by type."""
    return dict(pairs(data))


def entries(data: bytes) -> list[bytes]:
    """The values of a list, whose types say nothing."""
    return [value for _, value in pairs(data)]


def text(data: bytes) -> str:
    """A string that may end in a zero byte."""
    return data.rstrip(b"\0").decode(errors="backslashreplace")


def number(data: bytes | None, default: int = 0) -> int:
    """A big-endian number, as nftables sends all of them; ``default`` where there is none."""
    return default if data is None else int.from_bytes(data, "big")


def signed(data: bytes) -> int:
    """A big-endian number that may be negative."""
    return int.from_bytes(data, "big", signed=True)
