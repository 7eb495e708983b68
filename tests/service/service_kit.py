"""scistreamd as systemd runs it: a real process with passed sockets, a notify socket, directories of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import grpc.aio

# Runs between us and the daemon, as systemd's child does: sockets to 3 and up, then exec keeps the process id.
_LAUNCHER = """
import os, sys
count, argv = int(sys.argv[1]), sys.argv[2:]
fds = [int(fd) for fd in os.environ.pop("TEST_FDS").split()]
above = [os.dup2(fd, 100 + index) for index, fd in enumerate(fds)]
for index, fd in enumerate(above):
    os.dup2(fd, 3 + index)
os.closerange(3 + len(fds), 200)
os.environ["LISTEN_FDS"] = str(count)
os.environ["LISTEN_PID"] = os.environ.pop("TEST_LISTEN_PID", str(os.getpid()))
if "WATCHDOG_USEC" in os.environ:
    os.environ["WATCHDOG_PID"] = str(os.getpid())
os.execv(argv[0], argv)
"""


@dataclass
class Daemon:
    """A running scistreamd and what it has told its service manager."""

    process: subprocess.Popen[bytes]
    home: Path
    ports: list[int]
    said: list[str] = field(default_factory=list)

    @property
    def config(self) -> Path:
        return self.home / "etc" / "scistreamd.toml"

    @property
    def certificate(self) -> Path:
        return self.home / "state" / "control" / "server.crt"

    @property
    def log(self) -> str:
        return (self.home / "log").read_text()

    @property
    def status(self) -> str:
        """The status line that counts."""
        return next((each.removeprefix("STATUS=") for each in reversed(self.said) if each.startswith("STATUS=")), "")

    def channel(self, index: int = 0, host: str = "127.0.0.1") -> grpc.aio.Channel:
        credentials = grpc.ssl_channel_credentials(self.certificate.read_bytes())
        return grpc.aio.secure_channel(f"{host}:{self.ports[index]}", credentials)

    async def until(self, happened: Callable[[], bool]) -> None:
        """Wait for something that the daemon does; fails with its log where it does not come in 60 s."""
        for _ in range(3000):
            if happened():
                return
            await asyncio.sleep(0.02)
        raise AssertionError(f"{self.said}\n{self.log}")

    async def said_anew(self, line: str, after: int) -> None:
        """Wait for the line among what was said after the first ``after`` ones."""
        await self.until(lambda: line in self.said[after:])

    async def ended(self) -> int:
        """Its exit status."""
        await self.until(lambda: self.process.poll() is not None)
        for _ in range(2):
            await asyncio.sleep(0)  # what it has said is heard in a turn of the event loop
        return self.process.returncode


def listener(address: str = "127.0.0.1", kind: socket.SocketKind = socket.SOCK_STREAM) -> socket.socket:
    """A socket as a .socket unit has it."""
    bound = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind)
    bound.bind((address, 0))
    if kind == socket.SOCK_STREAM:
        bound.listen()
    return bound


def _all_of(notify: socket.socket) -> Iterator[str]:
    """The lines of all messages that wait in the socket."""
    with contextlib.suppress(BlockingIOError):
        while True:
            yield from notify.recv(65536).decode().split("\n")


@contextlib.asynccontextmanager
async def daemon(
    home: Path,
    config: str = "",
    *,
    listeners: list[socket.socket] | None = None,
    environment: Mapping[str, str] | None = None,
    ready: bool = True,
) -> AsyncIterator[Daemon]:
    """scistreamd on ``listeners`` (one on 127.0.0.1 where none are given), which stay the caller's to close."""
    for name in ("etc", "state", "run"):
        (home / name).mkdir(exist_ok=True)
    (home / "etc" / "scistreamd.toml").write_text(config)
    with contextlib.ExitStack() as undo:
        passed = [undo.enter_context(listener())] if listeners is None else listeners
        notify = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        notify.bind(str(home / "notify"))
        notify.setblocking(False)
        undo.callback((home / "notify").unlink)
        argv = [sys.executable, "-m", "scistreamd.service_main"]
        process = subprocess.Popen(
            [sys.executable, "-c", _LAUNCHER, str(len(passed)), *argv],
            env={
                **os.environ,
                "TEST_FDS": " ".join(str(each.fileno()) for each in passed),
                "NOTIFY_SOCKET": str(home / "notify"),
                "CONFIGURATION_DIRECTORY": str(home / "etc"),
                "STATE_DIRECTORY": str(home / "state"),
                "RUNTIME_DIRECTORY": str(home / "run"),
                **(environment or {}),
            },
            pass_fds=[each.fileno() for each in passed],
            stdout=subprocess.DEVNULL,
            stderr=undo.enter_context((home / "log").open("ab")),
        )
        made = Daemon(process, home, [each.getsockname()[1] for each in passed])
        loop = asyncio.get_running_loop()
        loop.add_reader(notify, lambda: made.said.extend(_all_of(notify)))
        undo.callback(loop.remove_reader, notify)
        try:
            if ready:
                await made.until(lambda: "READY=1" in made.said or process.poll() is not None)
                assert process.poll() is None, made.log
            yield made
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                await made.ended()
        assert "Traceback" not in made.log, made.log
