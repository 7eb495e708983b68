"""A control group of its own for each host.

nspawn makes the groups of its host below the one that it was started in. Hosts that share one share
``payload/system.slice/x.service`` too: the systemd of one then signals the processes of another.
Without systemd as PID 1 of the machine (a container, say) all processes are in the root group.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import time
from collections.abc import Sequence
from pathlib import Path

_SECONDS = 30
_POLL = 0.02


def hierarchies() -> list[Path]:
    """Where systemd keeps its groups on this machine: unified, legacy, or both (cgroups(7))."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(maxsplit=2)
        if kind == "cgroup2" or (kind == "cgroup" and "name=systemd" in options.split(",")):
            found.append(Path(before.split()[4]))
    return found


def starting_in(group: str, argv: Sequence[str]) -> list[str]:
    """The words that run argv in the group, which is made; its processes never ran in any other."""
    places = [hierarchy / group for hierarchy in hierarchies()]
    for place in places:
        place.mkdir(parents=True, exist_ok=True)
    moves = [f"echo $$ >{shlex.quote(str(place / 'cgroup.procs'))} &&" for place in places]
    return ["sh", "-c", f'{" ".join(moves)} exec "$@"', "sh", *argv]


def remove(group: str) -> None:
    """Remove the group with all below it. OSError where processes still run in it after 30 s."""
    deadline = time.monotonic() + _SECONDS
    for hierarchy in hierarchies():
        while (hierarchy / group).exists():
            try:
                _remove_tree(hierarchy / group)
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(_POLL)


def _remove_tree(top: Path) -> None:
    for directory, _, _ in os.walk(top, topdown=False):
        with contextlib.suppress(FileNotFoundError):
            os.rmdir(directory)
