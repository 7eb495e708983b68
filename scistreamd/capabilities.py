"""Which capabilities and which user ids this process has (capabilities(7), user_namespaces(7), proc(5))."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

_NUMBERS = {"CAP_CHOWN": 0, "CAP_DAC_OVERRIDE": 1, "CAP_KILL": 5, "CAP_SETGID": 6, "CAP_SETUID": 7}
# What root needs to run a child as another user: become that user, give it its files, reach into them, end it.
FOR_CHILDREN = tuple(_NUMBERS)


def lacking(wanted: tuple[str, ...] = FOR_CHILDREN) -> list[str]:
    """Those of the wanted capabilities that are not effective."""
    status = Path("/proc/self/status").read_text()
    effective = int(next(line for line in status.splitlines() if line.startswith("CapEff:")).split()[1], 16)
    return [name for name in wanted if not effective >> _NUMBERS[name] & 1]


def mapped(ids: Iterable[int]) -> list[int]:
    """Those of the ids that are both a user's and a group's here; a user namespace may have root alone."""
    known = [_ranges(Path("/proc/self") / name) for name in ("uid_map", "gid_map")]
    return [each for each in ids if all(any(each in some for some in ranges) for ranges in known)]


def _ranges(table: Path) -> list[range]:
    """The ids inside: each line is the first of them, the first outside, and how many."""
    lines = [[int(word) for word in line.split()] for line in table.read_text().splitlines()]
    return [range(first, first + count) for first, _, count in lines]
