"""Where the demo plays: a directory, programs that were started, and what the audience reads."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
_COMMANDS = Path(sys.executable).parent
_START_SECONDS = 60
_END_SECONDS = 30
_RUN_SECONDS = 100
_POLL = 0.02


_LAST_LINES = 12


class StepFailed(Exception):
    """A step did not come out as it must; the text says how."""


class Running:
    """A program in the background, in a process group of its own, its output in a file."""

    def __init__(self, name: str, process: subprocess.Popen[str], log: Path) -> None:
        self.name = name
        self.process = process
        self._log = log

    def output(self) -> str:
        """All that it wrote so far, to stdout and stderr."""
        return self._log.read_text(errors="replace")

    def expect(self, pattern: str, seconds: float = _START_SECONDS) -> re.Match[str]:
        """Wait until its output matches; StepFailed where it ends or the time is over before."""
        deadline = time.monotonic() + seconds
        while True:
            ended = self.process.poll() is not None
            if found := re.search(pattern, self.output(), re.MULTILINE):
                return found
            if ended or time.monotonic() > deadline:
                what = "ended" if ended else f"did not say {pattern!r} within {seconds:g} s"
                raise StepFailed(f"the {self.name} {what}")
            time.sleep(_POLL)

    def end(self, number: int = signal.SIGTERM) -> int:
        """Ask it to end and return its exit status, negative for a signal; kill what does not."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.wait()

    def wait(self, seconds: float = _END_SECONDS) -> int:
        """Its exit status once it has ended; StepFailed where it does not in time."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise StepFailed(f"the {self.name} did not end within {seconds:g} s and was killed") from None

    def kill(self) -> None:
        """End the whole group at once."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def close(self) -> None:
        """End it in order if it still runs, else by force; nothing of it is left."""
        if self.process.stdin:
            self.process.stdin.close()
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(_END_SECONDS)
        self.kill()


class Stage:
    """Runs commands as a user types them and prints them; everything ends with it."""

    def __init__(self) -> None:
        self._undo = ExitStack()
        self._started: list[Running] = []
        self._colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        # On tmpfs where there is one: the gateways' keys will be in it.
        shared = Path("/dev/shm")
        base = shared if os.access(shared, os.W_OK | os.X_OK) else None
        self.directory = Path(tempfile.mkdtemp(prefix="scistream-demo-", dir=base))
        self._undo.callback(shutil.rmtree, self.directory)
        # The data servers of a gateway that root starts run as other users: they pass through.
        self.directory.chmod(0o711)

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def heading(self, text: str) -> None:
        """The title of a step."""
        print(f"\n\033[1m{text}\033[0m" if self._colour else f"\n{text}", flush=True)

    def say(self, text: str) -> None:
        """What came out, indented below its command."""
        for line in text.splitlines():
            print(f"    {line}", flush=True)

    def command(self, argv: Sequence[str], ending: str = "") -> None:
        """Show a command as a user types it."""
        words = ["python" if word == sys.executable else word for word in argv]
        print(f"  $ {shlex.join(words)}{ending}", flush=True)

    def run(self, *argv: str, status: int = 0) -> str:
        """Run to the end, show command and output, return the output; StepFailed for another status."""
        self.command(argv)
        try:
            done = subprocess.run(
                argv,
                cwd=self.directory,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                timeout=_RUN_SECONDS,
                start_new_session=True,
            )
        except (OSError, subprocess.TimeoutExpired) as problem:
            raise StepFailed(f"{argv[0]}: {problem}") from None
        self.say(done.stdout)
        if done.returncode != status:
            raise StepFailed(f"{argv[0]} ended with exit status {done.returncode}, expected was {status}")
        return done.stdout

    def start(self, name: str, *argv: str, more: Mapping[str, str] | None = None) -> Running:
        """Start in the background and show the command; it ends with the stage."""
        self.command(argv, " &")
        log = self.directory / f"{name}.log"
        try:
            with log.open("w") as output:
                process = subprocess.Popen(
                    argv,
                    cwd=self.directory,
                    env={**self._environment(), **(more or {})},
                    stdin=subprocess.PIPE,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    text=True,
                    start_new_session=True,
                )
        except OSError as problem:
            raise StepFailed(f"{argv[0]}: {problem}") from None
        running = Running(name, process, log)
        self._started.append(running)
        self._undo.callback(running.close)
        return running

    def last_words(self) -> str:
        """The end of what each background program wrote, for a report of a failure."""
        texts = [(each.name, each.output().splitlines()[-_LAST_LINES:]) for each in self._started]
        return "\n".join(f"--- {name}\n" + "\n".join(lines) for name, lines in texts if lines)

    def _environment(self) -> dict[str, str]:
        """That of a user who has the tools in PATH."""
        return {
            **os.environ,
            "PATH": f"{_COMMANDS}:{os.environ.get('PATH', '/usr/bin:/bin')}",
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            "LC_ALL": "C.UTF-8",
        }
