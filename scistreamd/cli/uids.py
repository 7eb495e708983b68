"""Where a UID comes from and goes to, without passing through a process list."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from scistreamd.cli import files
from scistreamd.cli.options import UsageError
from scistreamd.errors import Code, ScistreamError
from scistreamd.model import Uid

_FILE_LIMIT = 4096


def read(argument: str) -> Uid:
    """The UID of an argument: its text, ``-`` for a line of stdin, ``@FILE`` for a file.

    Raises UsageError for text that is no UID, ScistreamError for such a file or stdin.
    """
    if argument == "-":
        return Uid.parse(sys.stdin.readline(_FILE_LIMIT).strip(), "UID on stdin")
    if argument.startswith("@"):
        return Uid.parse(_content(argument[1:]).strip(), f"UID in {argument[1:]}")
    try:
        return Uid.parse(argument, "UID")
    except ScistreamError as error:
        raise UsageError(error.message, error.hint) from None


def is_hidden(argument: str) -> bool:
    """Whether the caller took care not to show the UID, so that we must not either."""
    return argument == "-" or argument.startswith("@")


def _content(name: str) -> str:
    try:
        with Path(name).open(encoding="ascii", errors="replace") as file:
            return file.read(_FILE_LIMIT)
    except OSError as error:
        problem = f"cannot read the UID from {name}: {error.strerror}"
        raise ScistreamError(Code.NOT_FOUND, problem, "name a file that s2uc --uid-file wrote") from None


@contextlib.contextmanager
def kept_in(name: str | None, uid: Uid) -> Iterator[None]:
    """Keep the UID in a file (0600) that goes again when the tunnel does not come to be."""
    if name is None:
        yield
        return
    path = Path(name)
    files.write(path, f"{uid.reveal()}\n".encode(), 0o600, replace=True)
    try:
        yield
    except BaseException:
        path.unlink(missing_ok=True)
        raise
