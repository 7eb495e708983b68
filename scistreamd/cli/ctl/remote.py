"""The bus of this host, or of another one over ssh as systemctl(1) -H does it."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import socket
from argparse import Namespace
from collections.abc import Iterator
from typing import TYPE_CHECKING

from scistreamd.cli.ctl import wire
from scistreamd.cli.ctl.bus import Bus
from scistreamd.cli.ctl.wire import Connection
from scistreamd.cli.options import UsageError
from scistreamd.errors import Code, ScistreamError
from scistreamd.model import shown

if TYPE_CHECKING:
    import subprocess

SYSTEM_BUS = "unix:path=/run/dbus/system_bus_socket"
# A person may have to type a password for ssh.
_SSH_SECONDS = 120.0
_END_SECONDS = 5.0
_HOST = re.compile(r"(?P<name>(?:[\w.-]+@)?(?:[\w.-]+|\[[0-9a-f:.%\w]+\]))(?::(?P<port>[0-9]{1,5}))?", re.ASCII)


@contextlib.contextmanager
def bus(options: Namespace, *, interactive: bool = False) -> Iterator[Bus]:
    """The bus that the options -H and --address name; UNAVAILABLE where there is none."""
    if options.host:
        with _over_ssh(options.host) as connection:
            found = Bus(connection, interactive=interactive)
            found.hello(_SSH_SECONDS)
            yield found
        return
    with _local(options.address or os.environ.get("DBUS_SYSTEM_BUS_ADDRESS") or SYSTEM_BUS) as connection:
        found = Bus(connection, interactive=interactive)
        found.hello()
        yield found


def command(host: str, *words: str) -> list[str]:
    """The ssh command line that runs ``words`` on the host, ``[USER@]HOST[:PORT]``."""
    match = _HOST.fullmatch(host)
    if not match or host.startswith("-"):
        raise UsageError(f"host: {shown(host)} is not [USER@]HOST[:PORT]")
    try:
        ssh = shlex.split(os.environ.get("SYSTEMD_SSH") or "ssh")
    except ValueError:
        raise UsageError("$SYSTEMD_SSH: a quote does not end", "it is the program that -H runs: ssh") from None
    port = ["-p", match["port"]] if match["port"] else []
    return [*ssh, "-xT", *port, "--", match["name"].replace("[", "").replace("]", ""), *words]


def _local(address: str) -> Connection:
    try:
        return wire.connect(address)
    except OSError as problem:
        raise ScistreamError(
            Code.UNAVAILABLE,
            f"no bus at {address}: {problem.strerror}",
            "without D-Bus, run a gateway by s2cs and use it by s2uc",
        ) from None


@contextlib.contextmanager
def _over_ssh(host: str) -> Iterator[Connection]:
    """ssh runs systemd-stdio-bridge(1) there, with our connection as its input and output."""
    near, far = socket.socketpair()
    with Connection(near) as connection:
        with far:
            process = _started(command(host, "systemd-stdio-bridge"), far)
        try:
            yield connection
        finally:
            connection.close()
            _ended(process)


def _started(words: list[str], far: socket.socket) -> subprocess.Popen[bytes]:
    import subprocess

    try:
        return subprocess.Popen(words, stdin=far.fileno(), stdout=far.fileno())  # noqa: S603  (the host was checked)
    except OSError as problem:
        message = f"{words[0]} cannot be started: {problem.strerror}"
        raise ScistreamError(Code.UNAVAILABLE, message, "-H needs ssh: apt install openssh-client") from None


def _ended(process: subprocess.Popen[bytes]) -> None:
    """ssh ends when its input does; one that does not is told to."""
    from subprocess import TimeoutExpired

    try:
        process.wait(_END_SECONDS)
    except TimeoutExpired:
        process.terminate()
        process.wait()
