"""Proofs that something is there, or is gone: ports, processes, keys."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path

from tests.demo.addresses import parse


@dataclass(frozen=True)
class Process:
    """A process, with its start time so that its number cannot be another's (proc(5), stat)."""

    pid: int
    started: str
    program: str

    def runs(self) -> bool:
        """Whether it is still there; a zombie is not."""
        return read(self.pid) == self

    def __str__(self) -> str:
        return f"{self.program} {self.pid}"


def read(pid: int) -> Process | None:
    """The process with this number, or None where there is none but a zombie."""
    try:
        head, _, tail = Path(f"/proc/{pid}/stat").read_text().rpartition(")")
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = tail.split()
    return None if fields[0] == "Z" else Process(pid, fields[19], head.partition("(")[2])


def descendants(pid: int) -> list[Process]:
    """Every process below ``pid``: the data servers of a gateway and their workers."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except FileNotFoundError:
        return []
    found = []
    for child in map(int, children):
        process = read(child)
        found += [process, *descendants(child)] if process else []
    return found


def why_not_free(listener: str) -> str:
    """Why nobody else could listen there now, or an empty string.

    SO_REUSEADDR, which `create_server` sets, passes over connections in
    TIME_WAIT and over nothing else (socket(7)).
    """
    try:
        socket.create_server(parse(listener)).close()
    except OSError as problem:
        return str(problem)
    return ""


def key_files(directory: Path) -> list[Path]:
    """Files that hold a private key or a pre-shared one, below a gateway's runtime directory."""
    return sorted(path for path in directory.rglob("secrets/*") if path.is_file())


def whereabouts(secret: str, directory: Path) -> list[str]:
    """Where a UID can be read: process lists, and names and logs below ``directory``."""
    forms = [secret.encode(), secret.replace("-", "").encode()]
    found = [
        f"the command line of process {path.parent.name}"
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if _holds(path, forms)
    ]
    found += [f"the log {path.name}" for path in directory.glob("*.log") if _holds(path, forms)]
    names = [path for path in directory.rglob("*") if any(form in path.name.encode() for form in forms)]
    return found + [f"the name of {path}" for path in names]


def _holds(path: Path, forms: list[bytes]) -> bool:
    try:
        content = path.read_bytes()
    except (FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
        return False
    return any(form in content for form in forms)
