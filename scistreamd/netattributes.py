"""Attributes of netlink(7) messages, from bytes and back.

What pyroute2 does too; here where there are thousands of them, or so few that loading it takes longer.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator


def attribute(kind: int, payload: bytes) -> bytes:
    """One attribute, padded."""
    return struct.pack("=HH", 4 + len(payload), kind) + payload + bytes(-len(payload) % 4)


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The attributes that follow each other in ``data``, by number."""
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        yield kind & 0x3FFF, data[4:length]
        data = data[max(4, length + 3 & ~3) :]
