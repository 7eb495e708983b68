"""Asking the user of a terminal for the password that polkit wants, by polkit's own agent.

pkttyagent(1): as systemctl(1) does it, for the time of one command.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
from argparse import Namespace
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import subprocess

_READY_SECONDS = 5.0
_END_SECONDS = 5.0


def may_ask(options: Namespace) -> bool:
    """Whether a password may be asked for: on a terminal, of somebody who is not root."""
    return not options.no_ask_password and os.geteuid() != 0 and sys.stdin.isatty()


@contextlib.contextmanager
def agent(options: Namespace, wanted: bool) -> Iterator[None]:
    """An agent for this process, where one is wanted and can work: beside its own system bus.

    Without pkttyagent polkit uses the desktop's agent, or refuses, which is then the answer.
    """
    if not wanted or options.host or options.address:
        yield
        return
    import subprocess

    ready, told = os.pipe()
    words = ["pkttyagent", "--fallback", "--notify-fd", str(told), "--process", str(os.getpid())]
    try:
        process = subprocess.Popen(words, pass_fds=[told])  # noqa: S603
    except OSError:
        process = None
    finally:
        os.close(told)
    try:
        if process:
            select.select([ready], [], [], _READY_SECONDS)  # it closes its end when it has registered, or fails
        yield
    finally:
        os.close(ready)
        if process:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM makes it give the terminal back as it was."""
    from subprocess import TimeoutExpired

    process.terminate()
    try:
        process.wait(_END_SECONDS)
    except TimeoutExpired:
        process.kill()
        process.wait()
