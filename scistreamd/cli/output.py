"""What the command line tools say on stderr: failures with a hint, and notes.

Standard output is for results alone.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from pathlib import Path
from typing import NoReturn

from scistreamd.errors import Code, ScistreamError
from scistreamd.options import PUBLIC

_UID = re.compile(
    rf"(?P<public>{PUBLIC})|\b(?:[0-9a-f]{{32}}|[0-9a-f]{{8}}(?:-[0-9a-f]{{4}}){{3}}-[0-9a-f]{{12}})\b",
    re.ASCII | re.IGNORECASE,
)
_NOTES = {"wanted": True}  # a command line tool has one user
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f]")


def harmless(text: str) -> str:
    """Text of another's making, fit for a terminal and a log: no UID, no control character."""
    return printable(_UID.sub(lambda found: found["public"] or "<uid>", text))


def printable(text: str) -> str:
    """Text of another's making, on one line and without control characters."""
    return _CONTROL.sub("?", text.replace("\n", " "))


def result(line: str) -> None:
    """Print a line of the result at once; FAILED_PRECONDITION where it cannot be written (a full disk, ``>&-``).

    A BrokenPipeError goes through: nobody is there to be told.
    """
    if sys.stdout is None:
        raise ScistreamError(Code.FAILED_PRECONDITION, "cannot write the result: standard output is closed")
    try:
        print(line, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        abandon_stdout()
        raise ScistreamError(Code.FAILED_PRECONDITION, f"cannot write the result: {error.strerror}") from None


def closed_stderr_is_silent() -> None:
    """Where standard error is closed (``2>&-``) nothing is said: else print() would say it on standard output."""
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115  until we end


def abandon_stdout() -> None:
    """Drop what could not be written; else the interpreter tries, and fails, again at exit (Python on SIGPIPE)."""
    descriptor = os.open(os.devnull, os.O_WRONLY)
    os.dup2(descriptor, sys.stdout.fileno())
    os.close(descriptor)


def end(status: int) -> NoReturn:
    """End this process at once, whatever its threads do; what was said is written."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            with contextlib.suppress(OSError):  # nobody reads it
                stream.flush()
    os._exit(status)


def failure(program: str, message: str, hint: str = "") -> None:
    """Say what went wrong, and on a line of its own what to do about it."""
    print(f"{program}: {harmless(message)}", file=sys.stderr)
    if hint:
        print(f"hint: {harmless(hint)}", file=sys.stderr)


def notes(*, wanted: bool) -> None:
    """Whether notes are said from now on."""
    _NOTES["wanted"] = wanted


def note(program: str, message: str) -> None:
    """Say something that the user should know and that is no failure, where notes are wanted."""
    if not _NOTES["wanted"]:
        return
    print(f"{program}: note: {harmless(message)}", file=sys.stderr, flush=True)
