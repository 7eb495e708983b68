"""What every measurement stands on: started programs that end with it, a scratch directory, ports."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).parent.parent.parent
BIN = Path(sys.executable).parent
INBOUND, OUTBOUND = "127.0.0.1", "127.0.0.2"

_GATEWAYS = 10
_END_SECONDS = 10.0
_START_SECONDS = 20.0
_POLL = 0.002
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class BenchError(Exception):
    """Something that was to be measured did not work; the text says what."""


@dataclass(frozen=True)
class Ports:
    """Where everything listens, from one base on; no two configurations share a port."""

    first: int

    @property
    def iperf3(self) -> int:
        """The server that throughput is measured to."""
        return self.first

    @property
    def echo(self) -> int:
        """The server that round trips are measured to."""
        return self.first + 1

    @property
    def null(self) -> tuple[int, int]:
        """Listeners of the SciStream 1.2 pair, for iperf3 and echo; the same on both addresses."""
        return self.first + 2, self.first + 3

    def check(self) -> None:
        """Raise BenchError where another program has one of the ports that are not picked from a range."""
        numbers = [self.iperf3, self.echo, *self.null, *map(self.control, range(_GATEWAYS))]
        for host in (INBOUND, OUTBOUND):
            for port in numbers:
                if not _free(host, port):
                    raise BenchError(f"{host}:{port} is in use: `ss -tlpn` shows by whom, --first-port takes others")

    def control(self, index: int) -> int:
        """The control port of gateway pair ``index``."""
        return self.first + 10 + index

    def pool(self, index: int, size: int = 100) -> str:
        """The port range of gateway pair ``index``, as s2cs takes it; the same on both addresses."""
        first = self.first + 100 * (index + 1)
        return f"{first}-{first + size - 1}"


class Rig:
    """Starts programs and ends them all; made by `rig`."""

    def __init__(self, undo: contextlib.ExitStack, scratch: Path, ports: Ports) -> None:
        self._undo = undo
        self.scratch = scratch
        self.ports = ports
        self._started = 0

    def start(self, argv: Sequence[str], undo: contextlib.ExitStack | None = None) -> Spawned:
        """Run a program until the rig ends, or until ``undo`` does; its output goes to a file in the scratch."""
        self._started += 1
        log = self.scratch / f"{self._started}-{Path(argv[0]).name}.log"
        child = Spawned(argv, log)
        (undo or self._undo).callback(child.end)
        return child


@contextlib.contextmanager
def rig(first_port: int) -> Iterator[Rig]:
    """A rig whose programs and files are gone when the context ends, also after Ctrl-C or SIGTERM."""
    with contextlib.ExitStack() as undo:
        for number in _SIGNALS:
            undo.callback(signal.signal, number, signal.getsignal(number))
        signal.signal(signal.SIGTERM, _interrupt)
        scratch = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="scistream-bench-")))
        try:
            yield Rig(undo, scratch, Ports(first_port))
        finally:
            # A second Ctrl-C while the programs are being ended would leave some of them behind.
            for number in _SIGNALS:
                signal.signal(number, signal.SIG_IGN)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


class Spawned:
    """A program in a session of its own, so that Ctrl-C reaches it through us, in order."""

    def __init__(self, argv: Sequence[str], log: Path) -> None:
        self.log = log
        self.began = time.perf_counter()
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                list(argv),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.pid = self._process.pid

    def end(self) -> None:
        """SIGTERM, and SIGKILL to the whole session for what does not obey."""
        if self._process.poll() is None:
            self._process.terminate()
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(self.pid, signal.SIGKILL)
            self._process.wait()

    def wait(self, seconds: float) -> None:
        """Wait for its end; BenchError where it does not end in time or fails."""
        try:
            status = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise BenchError(f"{self.log.stem} did not end within {seconds:g} s: {self.last_words()}") from None
        if status:
            raise BenchError(f"{self.log.stem} ended with status {status}: {self.last_words()}")

    def wait_for(self, ready: Callable[[], bool], what: str) -> None:
        """Ask again and again until ``ready``; BenchError with the program's last words where it never is."""
        deadline = time.monotonic() + _START_SECONDS
        while not ready():
            if self._process.poll() is not None:
                raise BenchError(f"{what}: the program ended: {self.last_words()}")
            if time.monotonic() > deadline:
                raise BenchError(f"{what}: not after {_START_SECONDS:g} s: {self.last_words()}")
            time.sleep(_POLL)

    def last_words(self) -> str:
        """The end of its output."""
        return " | ".join(self.log.read_text(errors="replace").splitlines()[-4:])


def program(name: str) -> str:
    """Its path, also where it is among the system's programs that a user's PATH leaves out."""
    path = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if path is None:
        raise BenchError(f"{name} is not installed: `make setup` installs what the benchmarks need")
    return path


def _free(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            return False
    return True


def accepts(host: str, port: int) -> bool:
    """Whether something accepts connections there."""
    with socket.socket() as probe:
        return probe.connect_ex((host, port)) == 0


def run(argv: Sequence[str], seconds: float) -> str:
    """Run a program to its end; returns its stdout. BenchError with its stderr where it fails."""
    try:
        done = subprocess.run(list(argv), capture_output=True, text=True, timeout=seconds, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        raise BenchError(f"{Path(argv[0]).name} did not end within {seconds:g} s") from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip()[-600:]
        raise BenchError(f"{Path(argv[0]).name} {' '.join(argv[1:3])} ended with status {done.returncode}: {said}")
    return done.stdout
