"""What /proc says about processes and the machine: proc(5)."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Usage:
    """CPU seconds, in the program and in the kernel on its behalf."""

    user: float
    system: float

    @property
    def total(self) -> float:
        """Both together."""
        return self.user + self.system

    def __add__(self, other: Usage) -> Usage:
        return Usage(self.user + other.user, self.system + other.system)

    def __sub__(self, other: Usage) -> Usage:
        return Usage(self.user - other.user, self.system - other.system)


def _stat(pid: int) -> list[str]:
    """The fields behind the program's name, which may hold spaces itself: state is [0]."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def usage(pids: Iterable[int]) -> Usage:
    """What these processes used so far, all their threads included.

    Raises FileNotFoundError where one has ended: its figures are gone with it.
    """
    total = Usage(0, 0)
    for pid in pids:
        fields = _stat(pid)
        total += Usage(int(fields[11]) / _TICKS, int(fields[12]) / _TICKS)
    return total


def descendants(pid: int) -> tuple[int, ...]:
    """The children of a process, their children and so on, without the process itself."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                parent = int(_stat(int(entry.name))[1])
            except (FileNotFoundError, ProcessLookupError):
                continue  # ended while we looked
            children.setdefault(parent, []).append(int(entry.name))
    found: list[int] = []
    waiting = [pid]
    while waiting:
        below = children.get(waiting.pop(), [])
        found.extend(below)
        waiting.extend(below)
    return tuple(found)


def _kilobytes(path: str, name: str) -> int:
    """A line ``Name:  123 kB`` (kB is 1024 here), in bytes."""
    for line in Path(path).read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(f"{path} has no line {name}")


def rss(pid: int) -> int:
    """Resident set size in bytes."""
    return _kilobytes(f"/proc/{pid}/status", "VmRSS")


def pss(pids: Iterable[int]) -> int:
    """Proportional set size in bytes: a page that n processes share counts 1/n in each."""
    return sum(_kilobytes(f"/proc/{pid}/smaps_rollup", "Pss") for pid in pids)


def ended_children() -> float:
    """CPU seconds of our own children that have ended and been waited for."""
    times = os.times()
    return times.children_user + times.children_system


@dataclass(frozen=True)
class Machine:
    """CPU seconds of all processors together: not idle (time stolen by the host included), and of that in interrupts.

    Where the kernel accounts interrupts by themselves, loopback's deliveries
    are among them and not among those of any process.
    """

    busy: float
    interrupts: float

    def __sub__(self, other: Machine) -> Machine:
        return Machine(self.busy - other.busy, self.interrupts - other.interrupts)


def machine() -> Machine:
    """What it used since boot."""
    fields = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    _, _, _, idle, iowait, irq, softirq, _ = fields
    return Machine((sum(fields) - idle - iowait) / _TICKS, (irq + softirq) / _TICKS)
