"""Streams run on, byte for byte, whatever happens to scistreamd; list, update and release work as before after each."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.system.gateways import (
    APPLICATION,
    DROP_IN,
    OTHER_APPLICATION,
    TYPES,
    field_of,
    restarted,
    shown,
)
from tests.system.host import Host
from tests.system.lab import Lab

pytestmark = pytest.mark.timeout(600)  # the first lab of a machine builds the base tree

# Shuts down scistreamd's connections to the bus: they are duplicated out of it (pidfd_getfd(2), number 438).
_HANG_UP = """
import ctypes, os, socket, sys
pid = int(sys.argv[1])
pidfd, count = os.pidfd_open(pid), 0
for number in map(int, os.listdir(f"/proc/{pid}/fd")):
    if not os.readlink(f"/proc/{pid}/fd/{number}").startswith("socket:"):
        continue
    descriptor = ctypes.CDLL(None, use_errno=True).syscall(438, pidfd, number, 0)
    if descriptor < 0:
        sys.exit(os.strerror(ctypes.get_errno()))
    with socket.socket(fileno=descriptor) as found:
        try:
            mine = found.family == socket.AF_UNIX and found.getpeername() == "/run/dbus/system_bus_socket"
        except OSError:
            continue
        if mine:
            found.shutdown(socket.SHUT_RDWR)
            count += 1
print(count)
"""


def _restart(host: Host) -> None:
    restarted(host, ["systemctl", "restart", "scistreamd"])


def _kill(host: Host) -> None:
    restarted(host, ["systemctl", "kill", "-s", "KILL", "scistreamd"])


def _crash_loop(host: Host) -> None:
    for _ in range(6):  # more than systemd's own limit of starts in a row
        _kill(host)


def _hang(host: Host) -> None:
    """The watchdog ends a daemon that does nothing."""
    host.run(["mkdir", "-p", DROP_IN.rpartition("/")[0]])
    host.write(DROP_IN, "[Service]\nWatchdogSec=5\n")
    host.run(["systemctl", "daemon-reload"])
    _restart(host)
    restarted(host, ["systemctl", "kill", "-s", "STOP", "scistreamd"])
    assert "Watchdog timeout" in host.journal("-u", "scistreamd")
    host.run(["rm", DROP_IN])
    host.run(["systemctl", "daemon-reload"])
    _restart(host)


def _lose_the_bus(host: Host) -> None:
    before = shown(host, "MainPID")
    count = host.run(["python3", "-c", _HANG_UP, before]).stdout.strip()
    assert count == "2", "one connection to be called by, one to PID 1"
    assert shown(host, "MainPID") == before
    host.wait_until(lambda: "connected to D-Bus again" in host.journal("-u", "scistreamd"), "connected again")


def _restart_the_bus(host: Host) -> None:
    """What D-Bus's authors advise against, and Debian 12 gets through: PID 1 and scistreamd connect again."""
    before = shown(host, "MainPID")
    host.run(["systemctl", "restart", "dbus"])
    host.wait_until(lambda: host.run(["s2ctl", "list"], check=False).returncode == 0, "on the bus again")
    assert shown(host, "MainPID") == before


EVENTS: list[Callable[[Host], None]] = [_restart, _kill, _crash_loop, _hang, _lose_the_bus, _restart_the_bus]


def test_streams_of_all_types_run_on(lab: Lab) -> None:
    with field_of(lab) as field, contextlib.ExitStack() as clients:
        for kind in TYPES:
            field.start(kind, clients)
        target = APPLICATION
        for event in EVENTS:
            with ThreadPoolExecutor() as both:
                list(both.map(event, (field.near, field.far)))
            target = OTHER_APPLICATION if target == APPLICATION else APPLICATION
            field.assert_all_goes_on(target)
        field.end()
