"""How the lab calls programs: argv lists, one error with what the program said."""

from __future__ import annotations

import fcntl
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO


class LabError(Exception):
    """The lab cannot be made or entered; the message says what to do or shows what a program said."""


def call(argv: Sequence[str | Path], env: Mapping[str, str] | None = None) -> str:
    """Run a program to its end; returns what it printed. LabError with all its output where it fails."""
    words = [str(word) for word in argv]
    try:
        done = subprocess.run(
            words, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
    except FileNotFoundError as error:
        raise LabError(f"{words[0]} is not installed: tests/setup.sh installs what the lab needs") from error
    if done.returncode:
        raise LabError(f"{' '.join(words)}: exit status {done.returncode}\n{done.stdout}")
    return done.stdout


def lock(file: Path, how: int) -> IO[bytes] | None:
    """An flock(2) on the file, which is made, until the object is closed; None where LOCK_NB and others hold it."""
    opened = file.open("ab")
    try:
        fcntl.flock(opened, how)
    except BlockingIOError:
        opened.close()
        return None
    except BaseException:
        opened.close()
        raise
    return opened
