"""The capacity of a gateway, given out to tunnels as reservations: their rates, in each direction, never exceed it."""

from __future__ import annotations

import re

from scistreamd.errors import Code, ScistreamError, invalid

_TEXT = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?(k|M|G|T)bit(?:/s)?", re.ASCII)
_KBIT = {"k": 1, "M": 10**3, "G": 10**6, "T": 10**9}
_MOST_KBIT = 10**12
EXPECTED = '"NUMBERunit" as text such as "10Gbit" (kbit, Mbit, Gbit, Tbit a second), or "" for none'


def parse(text: str) -> int:
    """Kilobytes (1000 bytes) a second in each direction, 0 for an empty text; ValueError for anything else."""
    if not text:
        return 0
    found = _TEXT.fullmatch(text)
    if not found:
        raise ValueError
    kbit = float(found[1]) * _KBIT[found[2]]
    if not 8 <= kbit <= _MOST_KBIT:
        raise ValueError
    return int(kbit / 8)


def shown(kilobytes: int) -> str:
    """As `parse` takes it."""
    if not kilobytes:
        return ""
    kbit = kilobytes * 8
    unit = next(unit for unit in ("T", "G", "M", "k") if kbit >= _KBIT[unit])
    return f"{kbit / _KBIT[unit]:.12g}{unit}bit"


def check(capacity: int, reserved: int, asked: int) -> None:
    """Raise where a further tunnel of ``asked`` kB/s is too much beside the ``reserved`` ones; no ``capacity``: never.

    RESOURCE_EXHAUSTED names what is left. INVALID_ARGUMENT where nothing was asked for: a stream without
    a rate could take what others have reserved.
    """
    if not capacity:
        return
    left = max(0, capacity - reserved)
    if not asked:
        raise invalid(
            "rate",
            f"this gateway gives out its capacity ({shown(capacity)}) as reservations, and no rate is named",
            f"name one (s2uc --rate, s2ctl --rate): {left} kB/s are left",
        )
    if asked > left:
        raise ScistreamError(
            Code.RESOURCE_EXHAUSTED,
            f"rate: {asked} kB/s asked for, {left} kB/s are left of this gateway's capacity ({shown(capacity)})",
            "ask for less, or wait until a tunnel is released",
        )
