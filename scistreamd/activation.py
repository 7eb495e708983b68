"""What systemd hands to a service and wants to hear from it: sockets, readiness, status, the watchdog.

sd_listen_fds(3), sd_notify(3), sd_watchdog_enabled(3); the words go out by the sdnotify library.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import MutableMapping
from dataclasses import dataclass

from sdnotify import SystemdNotifier

from scistreamd.errors import Code, ScistreamError

METRICS_NAME = "metrics"  # FileDescriptorName= of scistreamd-metrics.socket
_FIRST_FD = 3
_FAMILIES = (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)


def started_by_systemd(environment: MutableMapping[str, str]) -> bool:
    """Whether the system's service manager started this very process (systemd.exec(5), $SYSTEMD_EXEC_PID)."""
    return environment.get("SYSTEMD_EXEC_PID") == str(os.getpid()) and os.geteuid() == 0


@dataclass(frozen=True)
class Passed:
    """The listening sockets that systemd passed to this process, in order: the control port's, those for metrics."""

    control: tuple[socket.socket, ...] = ()
    metrics: tuple[socket.socket, ...] = ()

    @property
    def every(self) -> tuple[socket.socket, ...]:
        """All of them."""
        return (*self.control, *self.metrics)


def inherited_sockets(environment: MutableMapping[str, str]) -> Passed:
    """The sockets that systemd passed to this process; none where it passed none.

    The variables are taken out of the environment, for they are about this
    process and no child. Raises ScistreamError(FAILED_PRECONDITION) for a
    socket that nothing can be served on; then all are closed.
    """
    process, count = environment.pop("LISTEN_PID", ""), environment.pop("LISTEN_FDS", "")
    names = environment.pop("LISTEN_FDNAMES", "").split(":")
    if process != str(os.getpid()) or not count.isdecimal():
        return Passed()
    passed = []
    for number in range(_FIRST_FD, _FIRST_FD + int(count)):
        os.set_inheritable(number, False)
        passed.append(socket.socket(fileno=number))
    named = list(zip(passed, [*names, *[""] * len(passed)], strict=False))
    for each, name in named:
        if problem := _unfit(each):
            for other in passed:
                other.close()
            raise ScistreamError(
                Code.FAILED_PRECONDITION,
                f"the socket {name or each.fileno()} that systemd passed {problem}",
                "the control port's sockets are ListenStream= lines of scistreamd.socket, with Accept=no",
            )
    return Passed(
        tuple(each for each, name in named if name != METRICS_NAME),
        tuple(each for each, name in named if name == METRICS_NAME),
    )


def _unfit(passed: socket.socket) -> str:
    if passed.family not in _FAMILIES or passed.type != socket.SOCK_STREAM:
        return "is no stream socket"
    if not passed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        return "does not listen"
    return ""


class Notifier:
    """Tells the service manager how the daemon is; where none listens (no NOTIFY_SOCKET) all is silent."""

    def __init__(self, environment: MutableMapping[str, str]) -> None:
        """Connect to the manager's socket; raises OSError where it is named and not there.

        The watchdog's variables are taken out of the environment.
        """
        # debug: else it would swallow every error.
        self._sender = SystemdNotifier(debug=True) if environment.get("NOTIFY_SOCKET") else None
        self.watchdog_seconds = _watchdog(environment)
        self._status = ""

    def close(self) -> None:
        """Give up the connection."""
        if self._sender is not None:
            self._sender.socket.close()
            self._sender = None

    def ready(self, status: str) -> None:
        """The daemon serves, or serves again after `reloading`."""
        self._status = status
        self._tell("READY=1", f"STATUS={status}")

    def status(self, status: str) -> None:
        """One line for `systemctl status`; said once while it stays the same."""
        if status != self._status:
            self._status = status
            self._tell(f"STATUS={status}")

    def reloading(self) -> None:
        """The configuration is read again; `ready` ends it."""
        self._tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}", "STATUS=reading the configuration")

    def stopping(self, status: str) -> None:
        """The daemon ends."""
        self._tell("STOPPING=1", f"STATUS={status}")

    def alive(self) -> None:
        """The watchdog's sign of life."""
        self._tell("WATCHDOG=1")

    def _tell(self, *lines: str) -> None:
        if self._sender is not None:
            # sdnotify writes latin-1; what does not fit would be an exception in the middle of our life.
            self._sender.notify("\n".join(_one_line(line) for line in lines))


def _one_line(text: str) -> str:
    return text.replace("\n", " ").encode("ascii", "backslashreplace").decode()


def _watchdog(environment: MutableMapping[str, str]) -> float | None:
    """Seconds after which the manager misses us; None where it does not watch this process."""
    usec, process = environment.pop("WATCHDOG_USEC", ""), environment.pop("WATCHDOG_PID", "")
    if not usec.isdecimal() or int(usec) == 0 or process not in ("", str(os.getpid())):
        return None
    return int(usec) / 1e6
