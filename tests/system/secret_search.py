"""Runs on a host of the lab as root: where do these secrets stand? One line a place; standard library alone.

/root/needles has one secret a line, in any case of letters. Looked at: the journal, arguments and environments of
processes, what D-Bus and systemd say of us, and files; those that only root can reach are told as ``root FILE``.
"""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

_NAME = "org.scistream.scistreamd1"
_OBJECTS = ["busctl", "call", _NAME, "/org/scistream/scistreamd1", "org.freedesktop.DBus.ObjectManager"]
_COMMANDS = {
    "journal": ["journalctl", "--output=export", "--all", "--no-pager"],
    "bus": [*_OBJECTS, "GetManagedObjects"],
    "units": ["systemctl", "show", "--all", "scistream*"],
    "status": ["systemctl", "status", "--no-pager", "--full", "scistream*"],
    "sockets": ["ss", "-axptun"],
}
_TREES = ("/etc", "/run", "/tmp", "/var", "/home", "/srv", "/opt", "/dev/shm", "/root")
# The journal's files are searched through journalctl; the needles and who plants them are the test's own.
_OURS = ("/run/log/journal", "/var/log/journal", "/root/needles", "/root/secrets.json")


def places(needles: list[bytes]) -> Iterator[str]:
    """Every place that holds one of them."""
    subprocess.run(["journalctl", "--sync"], check=True)
    for name, command in _COMMANDS.items():
        said = subprocess.run(command, capture_output=True, check=False)
        if _holds(said.stdout + said.stderr, needles):
            yield name
    for what in ("cmdline", "environ"):
        for path in Path("/proc").glob(f"[0-9]*/{what}"):
            if _holds(_content(path), needles):
                yield f"{what} of {_content(path.parent / 'comm').decode().strip()}"
    for tree in _TREES:
        yield from _files(tree, needles)


def _files(tree: str, needles: list[bytes]) -> Iterator[str]:
    for directory, inner, names in os.walk(tree):
        inner[:] = [each for each in inner if not f"{directory}/{each}".startswith(_OURS)]
        for name in names:
            path = Path(directory, name)
            named = _holds(str(path).encode(), needles)
            if not str(path).startswith(_OURS) and (named or (_is_file(path) and _holds(_content(path), needles))):
                yield f"{'world' if _for_all(path) or named else 'root'} {path}"


def _is_file(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def _for_all(path: Path) -> bool:
    """Whether others may read it: the file, and each directory on the way."""
    return bool(path.stat().st_mode & 0o004) and all(each.stat().st_mode & 0o001 for each in path.parents)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # it has ended meanwhile
        return b""


def _holds(where: bytes, needles: list[bytes]) -> bool:
    lower = where.lower()
    return any(each in lower for each in needles)


if __name__ == "__main__":
    for place in sorted(set(places([each.encode() for each in Path("/root/needles").read_text().lower().split()]))):
        print(place)
