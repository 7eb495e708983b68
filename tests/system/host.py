"""One host of a lab: how commands run in it, and how it is switched off and on."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType

from tests.system.tools import LabError

ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "USER": "root",
    "LOGNAME": "root",
    "LANG": "C.UTF-8",
    "TERM": "dumb",
}
_SECONDS = 90
_BOOT_SECONDS = 180  # a second where the machine has nothing else to do
_POLL = 0.05


def children(pid: int) -> list[int]:
    """The living children of a process (proc(5)); none where it has ended."""
    found: list[int] = []
    for listed in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found += map(int, listed.read_text().split())
    return found


def bury_adopted() -> None:
    """Wait for the dead of hosts that became our children when a nsenter was killed, as a subreaper's do.

    A host cannot end before. Children that we made ourselves are in our own PID namespace, and left alone.
    """
    depth = _depth(os.getpid())
    for child in children(os.getpid()):
        if _depth(child) > depth:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(child, os.WNOHANG)


def _depth(pid: int) -> int:
    """In how many PID namespaces the process has a number; 0 where it is gone."""
    found = re.search(r"^NSpid:(.*)$", _of(pid, "status"), re.MULTILINE)
    return len(found[1].split()) if found else 0


def _of(pid: int, what: str) -> str:
    try:
        return Path(f"/proc/{pid}/{what}").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


class Running:
    """A command that runs in a host in the background. As a context it is ended on the way out."""

    def __init__(self, argv: Sequence[str], environment: dict[str, str]) -> None:
        self._output = tempfile.TemporaryFile("w+b")  # noqa: SIM115  # closed by stop
        try:
            self.process = subprocess.Popen(
                argv, env=environment, stdin=subprocess.DEVNULL, stdout=self._output, stderr=subprocess.STDOUT
            )
        except BaseException:
            self._output.close()
            raise

    def __enter__(self) -> Running:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop(signal.SIGKILL)

    def output(self) -> str:
        """All that it wrote so far to stdout and stderr."""
        return os.pread(self._output.fileno(), 1 << 24, 0).decode(errors="replace")

    def send(self, number: int) -> None:
        """Send a signal to the command itself; nothing where it has ended."""
        send_inside(self.process, number)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End it by the signal; returns its exit status, or the negative number of the signal that ended it."""
        self.send(number)
        try:
            return self.process.wait(_SECONDS)
        finally:
            self.process.kill()
            self.process.wait()
            self._output.close()


def send_inside(process: subprocess.Popen[bytes] | subprocess.Popen[str], number: int) -> None:
    """Send a signal to the command that nsenter runs: nsenter itself passes none on."""
    if process.poll() is None:
        for inside in children(process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(inside, number)


class Host:
    """A Debian host with systemd as PID 1, found by its keeper's children."""

    def __init__(self, name: str, unshare: int, directory: Path, tell: Callable[[str], None]) -> None:
        self.name = name
        self._unshare = unshare
        self._console = directory / f"{name}.console"
        self._tell = tell

    def leader(self) -> int:
        """The process id of the host's PID 1, in the machine's counting. LabError where the host is off."""
        for leader in self._leaders():
            return leader
        raise LabError(f"{self.name} is not running\n{self.console()}")

    def _leaders(self) -> Iterator[int]:
        for keeper in children(self._unshare):
            for nspawn in children(keeper):
                if f"--machine={self.name}" in _of(nspawn, "cmdline").split("\0"):
                    yield from (each for each in children(nspawn) if _of(each, "comm") == "systemd\n")

    def command(self, argv: Sequence[str], cwd: str = "/root") -> list[str]:
        """The words that run ``argv`` in the host as root. The command dies with the nsenter that runs it."""
        enter = ["nsenter", "-t", str(self.leader()), "-m", "-u", "-i", "-n", "-p", "-C", f"--wdns={cwd}", "--"]
        return [*enter, "setpriv", "--pdeathsig", "KILL", "--", *argv]

    def run(
        self, argv: Sequence[str], *, cwd: str = "/root", timeout: float = _SECONDS, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run to its end. LabError with its output where it fails, unless ``check`` is off; ``timeout`` in seconds."""
        words, pipe = self.command(argv, cwd), subprocess.PIPE
        with subprocess.Popen(
            words, env=ENVIRONMENT, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True
        ) as process:
            try:
                out, err = process.communicate(timeout=timeout)
            except BaseException:
                # Not nsenter: its child would become ours, and a host cannot end while one of its dead is not buried.
                while process.poll() is None:
                    send_inside(process, signal.SIGKILL)
                    time.sleep(_POLL)
                raise
        done = subprocess.CompletedProcess(list(argv), process.returncode, out, err)
        if check and done.returncode:
            said = f"{done.stdout}{done.stderr}"
            raise LabError(f"{self.name}$ {' '.join(argv)}: exit status {done.returncode}\n{said}")
        return done

    def start(self, argv: Sequence[str], *, cwd: str = "/root") -> Running:
        """Run in the background."""
        return Running(self.command(argv, cwd), ENVIRONMENT)

    def write(self, path: str, text: str) -> None:
        """Write a file of the host."""
        subprocess.run(self.command(["tee", "--", path]), input=text, text=True, stdout=subprocess.DEVNULL, check=True)

    def journal(self, *words: str) -> str:
        """The host's journal; ``words`` as journalctl(1) takes them, such as ``-u``, ``scistreamd``.

        All that was sent to journald before is in it.
        """
        self.run(["journalctl", "--sync"])
        return self.run(["journalctl", "--no-pager", "--quiet", *words]).stdout

    def console(self) -> str:
        """The end of what the host wrote on its console."""
        return self._console.read_text(errors="replace")[-4000:] if self._console.exists() else ""

    def wait_until(self, condition: Callable[[], object], what: str, seconds: float = _SECONDS) -> None:
        """Wait until the condition holds. LabError that says what it was, with the journal's end."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise LabError(f"{self.name}: not {what} within {seconds} s\n{self.journal('-n', '30')}")
            time.sleep(_POLL)

    def state(self) -> str:
        """What `systemctl is-system-running` says; "" where the host is off or does not answer yet."""
        try:
            return self.run(["systemctl", "is-system-running"], check=False).stdout.strip()
        except LabError:
            return ""

    def wait_booted(self, unlike: int = 0) -> None:
        """Wait until it has booted, with another PID 1 than ``unlike``. LabError where it is degraded, or late."""
        deadline = time.monotonic() + _BOOT_SECONDS
        while unlike in self._leaders() or self.state() not in {"running", "degraded"}:
            if time.monotonic() > deadline:
                raise LabError(f"{self.name} did not boot within {_BOOT_SECONDS} s\n{self.console()}")
            time.sleep(_POLL)
        if self.state() == "degraded":
            raise LabError(
                f"{self.name} is degraded\n{self.run(['systemctl', 'status', '--failed'], check=False).stdout}"
            )

    def reboot(self) -> None:
        """Reboot in good order; returns when it is up again."""
        before = self.leader()
        self.run(["systemctl", "--no-block", "reboot"])
        self.wait_booted(unlike=before)

    def cut_power(self) -> None:
        """Switch it off at once; returns when nothing of it runs. Its disk stays."""
        os.kill(self.leader(), signal.SIGKILL)
        deadline = time.monotonic() + _SECONDS
        while any(self._leaders()):
            if time.monotonic() > deadline:
                raise LabError(f"{self.name} is not to be switched off")
            time.sleep(_POLL)

    def boot(self) -> None:
        """Switch it on; returns when it is up."""
        self._tell(f"boot {self.name}")
        self.wait_booted()
