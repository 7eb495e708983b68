"""Which capabilities this process has (capabilities(7), proc(5))."""

from __future__ import annotations

from pathlib import Path

_NUMBERS = {"CAP_CHOWN": 0, "CAP_DAC_OVERRIDE": 1, "CAP_KILL": 5, "CAP_SETGID": 6, "CAP_SETUID": 7}
# What root needs to run a child as another user: become that user, give it its files, reach into them, end it.
FOR_CHILDREN = tuple(_NUMBERS)


def lacking(wanted: tuple[str, ...] = FOR_CHILDREN) -> list[str]:
    """Those of the wanted capabilities that are not effective."""
    status = Path("/proc/self/status").read_text()
    effective = int(next(line for line in status.splitlines() if line.startswith("CapEff:")).split()[1], 16)
    return [name for name in wanted if not effective >> _NUMBERS[name] & 1]
