"""Where a UID comes from and goes to, without passing through a process list."""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from scistreamd import files
from scistreamd.cli.options import UsageError
from scistreamd.errors import Code, ScistreamError
from scistreamd.model import Uid

ID_LENGTH = 12
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


def is_id(argument: str) -> bool:
    """Whether it is a tunnel's public id: 12 hex digits."""
    return len(argument) == ID_LENGTH and set(argument) <= set("0123456789abcdef")


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
def kept_in(name: str | None, uid: Uid, *, at_once: bool) -> Iterator[Callable[[], None]]:
    """Keep the UID in a file (0600), which stays as it was when the tunnel does not come to be.

    Gives a function to call when the tunnel stands: it puts the file in its
    place. ``at_once`` is for a tunnel that waits for someone who reads the
    file: it is there now, and goes again with a tunnel that fails. That the
    file can be written is certain before anything is asked of the gateway.
    """
    if name is None:
        yield lambda: None
        return
    path = Path(name)
    known = files.there(path)
    if known and path.is_dir():
        raise ScistreamError(Code.FAILED_PRECONDITION, f"cannot write {path}: it is a directory")
    if known and not path.is_file():  # /dev/null, a pipe, a terminal: nothing to put another file in place of
        if at_once:
            _tell(path, uid)
        yield lambda: None if at_once else _tell(path, uid)
        return
    path = Path(os.path.realpath(path))  # /dev/stdout is a link, and is to stay one
    now = path if at_once else path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    files.write(now, f"{uid.reveal()}\n".encode(), 0o600, replace=True)
    try:
        yield lambda: files.move(now, path)
    except BaseException:
        now.unlink(missing_ok=True)
        raise


def _tell(path: Path, uid: Uid) -> None:
    try:
        path.write_text(f"{uid.reveal()}\n")
    except OSError as error:
        raise ScistreamError(Code.FAILED_PRECONDITION, f"cannot write {path}: {error.strerror}") from None
