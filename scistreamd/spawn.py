"""The last steps of a child before its program runs: `python -I -S spawn.py JSON`.

Runs between fork and exec as a program of its own, since the daemon has
threads and only exec is safe after its fork. It stands alone: standard library
only, nothing of scistreamd. The JSON argument says:

fds     inherited sockets, to become 3, 4, ... in this order (sd_listen_fds(3))
parent  process id of the daemon: if that ends, so does the child
uid     the unprivileged user and group id to become, or null
program the path of the program
preload the path of a library to load into it, or null
argv    its arguments, from its name on

All imports stand at the top: once unprivileged, it may not be allowed to read
Python's own library.
"""

import ctypes
import fcntl
import json
import os
import signal
import sys

_FIRST_FD = 3
_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0):
        raise OSError(ctypes.get_errno(), f"prctl {option}")


def _place(fds: list[int]) -> None:
    """Move the sockets to 3, 4, ...; first out of each other's way."""
    above = max([_FIRST_FD + len(fds), *fds]) + 1
    parked = [fcntl.fcntl(fd, fcntl.F_DUPFD, above) for fd in fds]
    for number, fd in enumerate(parked, _FIRST_FD):
        os.dup2(fd, number)
    os.closerange(_FIRST_FD + len(fds), max([above, *parked]) + 1)


def _preload(path: str) -> None:
    """As a descriptor of a copy: the unprivileged user may not reach the file."""
    original = os.open(path, os.O_RDONLY)
    copy = os.memfd_create("preload", 0)
    os.sendfile(copy, original, 0, os.fstat(original).st_size)
    os.close(original)
    os.environ["LD_PRELOAD"] = f"/proc/self/fd/{copy}"


def _become(uid: int) -> None:
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def main() -> None:
    """Prepare this process and become the program."""
    order = json.loads(sys.argv[1])
    _place(order["fds"])
    if order["preload"] is not None:
        _preload(order["preload"])
    if order["uid"] is not None:
        _become(order["uid"])
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    # After the change of user, which would clear it. TERM, since nginx ends its workers on that only.
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != order["parent"]:
        sys.exit("the daemon is gone")
    for number in (signal.SIGPIPE, signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    os.umask(0o077)
    os.environ["LISTEN_FDS"] = str(len(order["fds"]))
    os.environ["LISTEN_PID"] = str(os.getpid())
    os.execve(order["program"], order["argv"], os.environ)  # noqa: S606  no shell is wanted


if __name__ == "__main__":
    main()
