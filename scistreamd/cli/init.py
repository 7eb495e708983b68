"""s2cs as process 1 of a container: what that process owes the others.

It is the parent of every process whose own parent has ended, and must wait for
them; and signals that it does not handle never reach it (pid_namespaces(7)).
So process 1 does that alone, and the command runs as its child.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable

_FORWARDED = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT}


def run(command: Callable[[], int]) -> int:
    """Run the command, as a child where this is process 1; its exit status, 128 and the number where a signal ended it.

    Must be called before there is a thread or an event loop. In the child it
    returns as well, with what ``command`` returned.
    """
    if os.getpid() != 1:
        return command()
    watched = _FORWARDED | {signal.SIGCHLD}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    child = os.fork()
    if child == 0:
        # A group of its own: Ctrl-C on a terminal reaches process 1 alone, which hands it on once.
        os.setpgid(0, 0)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return command()
    while True:
        number = signal.sigwait(watched)
        if number != signal.SIGCHLD:
            os.kill(child, number)
        elif (status := _reap(child)) is not None:
            return status


def _reap(child: int) -> int | None:
    """Wait for all that have ended; the exit status of ``child`` where it is among them."""
    ended: int | None = None
    with contextlib.suppress(ChildProcessError):  # none is left
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            if pid == child:
                code = os.waitstatus_to_exitcode(status)
                ended = 128 - code if code < 0 else code
    return ended
