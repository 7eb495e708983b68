"""One child process: started without threads or shell, its output read, its end awaited."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from scistreamd import spawn

_KEPT_LINES = 40
_LONGEST_LINE = 2048
_CHUNK = 65536
# Bounded: in a container without an init, dead workers stay in the process table as zombies.
_SWEEPS = 200
_SWEEP_SECONDS = 0.005


@dataclass(eq=False)
class Watch:
    """Counts the lines of a child's output that hold ``text``, from its making on."""

    text: str
    count: int = 0


class Child:
    """A running program in a process group of its own.

    ``say`` is called with each line that it writes to stdout or stderr.
    """

    def __init__(
        self,
        program: str,
        argv: Sequence[str],
        *,
        fds: Sequence[int],
        uid: int | None,
        cwd: str,
        environment: Mapping[str, str],
        preload: Path | None = None,
        say: Callable[[str], None],
    ) -> None:
        """Start the executable at the path ``program``; raises OSError where the system cannot.

        ``preload``: a library for it alone (ld.so(8), LD_PRELOAD), which its user need not be able to reach.
        What keeps it from running from then on is told on its output.
        """
        order = {"fds": list(fds), "parent": os.getpid(), "uid": uid, "program": program, "argv": list(argv)}
        order["preload"] = str(preload) if preload else None
        self._process = subprocess.Popen(  # noqa: S603  argv list, no shell
            [sys.executable, "-I", "-S", spawn.__file__, json.dumps(order)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=tuple(fds),
            cwd=cwd,
            env=dict(environment),
            start_new_session=True,
        )
        self._say = say
        self._swept = False
        self._rest = b""
        self.lines: collections.deque[str] = collections.deque(maxlen=_KEPT_LINES)
        self._watches: list[Watch] = []
        self._loop = asyncio.get_running_loop()
        self._exited: asyncio.Future[int] = self._loop.create_future()
        self._watch()

    def _watch(self) -> None:
        assert self._process.stdout is not None  # noqa: S101  PIPE was asked for
        self._output = self._process.stdout.fileno()
        os.set_blocking(self._output, False)
        self._pidfd = os.pidfd_open(self._process.pid)
        self._loop.add_reader(self._output, self._read)
        self._loop.add_reader(self._pidfd, self._reap)

    @property
    def pid(self) -> int:
        """Its process id, and that of its group."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return not self._exited.done()

    def watch(self, text: str) -> Watch:
        """Count lines that hold ``text`` from now on, until `unwatch`."""
        made = Watch(text)
        self._watches.append(made)
        return made

    def unwatch(self, watch: Watch) -> None:
        """Count no more."""
        self._watches.remove(watch)

    async def wait(self) -> int:
        """Its exit status, negative for a signal, once it has ended."""
        return await asyncio.shield(self._exited)

    def signal(self, number: int) -> None:
        """Send a signal to the main process; nothing happens where it has ended."""
        with contextlib.suppress(ProcessLookupError):
            if self.running:
                signal.pidfd_send_signal(self._pidfd, number)

    async def end(self, grace: float) -> None:
        """SIGTERM to the whole group, SIGKILL after ``grace`` seconds; return when none of it is left."""
        if self._swept:
            return  # its process id may be another program's by now
        self._signal_group(signal.SIGTERM)
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self.wait(), grace)
        await self._sweep()
        await self.wait()
        self._swept = True

    async def _sweep(self) -> None:
        """Kill what is left of the group, also after a clean end: workers would keep the ports."""
        for _ in range(_SWEEPS):
            if not self._signal_group(signal.SIGKILL):
                return
            await asyncio.sleep(_SWEEP_SECONDS)

    def _signal_group(self, number: int) -> bool:
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:
            return False
        return True

    def _read(self) -> None:
        try:
            data = os.read(self._output, _CHUNK)
        except BlockingIOError:
            return
        if not data:
            self._stop_reading()
            return
        *lines, rest = (self._rest + data).split(b"\n")
        if len(rest) > _LONGEST_LINE:
            lines.append(rest)
            rest = b""
        self._rest = rest
        for line in lines:
            self._take(line)

    def _take(self, line: bytes) -> None:
        text = line[:_LONGEST_LINE].decode("utf-8", "backslashreplace").strip()
        if text:
            self.lines.append(text)
            for watch in self._watches:
                watch.count += watch.text in text
            self._say(text)

    def _stop_reading(self) -> None:
        if self._output >= 0 and self._process.stdout is not None:
            self._loop.remove_reader(self._output)
            self._output = -1
            self._process.stdout.close()
            if self._rest:
                self._take(self._rest)
                self._rest = b""

    def _reap(self) -> None:
        status = self._process.poll()
        if status is None:
            return
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        if self._output >= 0:
            self._read()
        self._stop_reading()
        self._exited.set_result(status)
