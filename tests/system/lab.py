"""A lab: the tutorial's four hosts, each a Debian with systemd as PID 1, made in seconds and gone without a trace."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

from tests.system import cgroups, wires
from tests.system.host import Host, bury_adopted, children
from tests.system.keeper import group
from tests.system.tools import LabError, lock
from tests.system.trees import home

_ROOT = Path(__file__).parent.parent.parent
_SECONDS = 90
_POLL = 0.05


class Lab:
    """A lab that is up; ``lab["producer"]`` is a host. As a context it ends on the way out."""

    def __init__(self, name: str, unshare: int, keeper: subprocess.Popen[str] | None = None) -> None:
        self.name = name
        self._keeper = keeper
        self._unshare = unshare
        self._directory = _labs() / name
        self._hosts = {host: Host(host, unshare, self._directory, self._tell) for host in wires.HOSTS}

    @classmethod
    def start(cls, name: str, say: Callable[[str], None], *, bare: bool = False) -> Lab:
        """Make a lab of that name, after removing what dead ones left. It ends with this process, however that ends.

        The first one of a machine builds the base tree, which takes a minute; ``say`` gets what the user waits for.
        ``bare``: hosts with a minimal Debian, and nothing of this project.
        LabError where the name is taken, or with what went wrong.
        """
        if os.geteuid() != 0:
            raise LabError("the lab needs root, for namespaces and mounts")
        process = _start_keeper(name, bare=bare)
        lab = cls(name, process.pid, process)
        try:
            lab._wait_ready(say)
            for host in lab._hosts.values():
                host.wait_booted()
        except BaseException:
            lab.stop()
            raise
        return lab

    @classmethod
    def attach(cls, name: str) -> Lab | None:
        """The lab of that name that another process made, if it is up."""
        directory = _labs() / name
        with _alone():
            return cls(name, int((directory / "pid").read_text())) if _alive(directory) else None

    def __enter__(self) -> Lab:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def __getitem__(self, host: str) -> Host:
        return self._hosts[host]

    def hosts(self) -> list[Host]:
        """All hosts, from producer to consumer."""
        return list(self._hosts.values())

    def stay(self) -> None:
        """Let the lab outlive this process, until somebody attaches and stops it."""
        self._tell("stay")

    def stop(self) -> None:
        """End the lab; returns when nothing of it is left. LabError with the keeper's log where something is."""
        if self._keeper is not None and self._keeper.stdin is not None and self._keeper.stdout is not None:
            with contextlib.suppress(BrokenPipeError):
                self._keeper.stdin.close()
            self._wait_ended(self._keeper)
            self._keeper.stdout.close()
        else:
            for keeper in children(self._unshare):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(keeper, signal.SIGTERM)
            self._wait_dead()
        if self._directory.exists():
            raise LabError(f"the lab {self.name} did not end well\n{self._log()}")

    def _wait_ended(self, keeper: subprocess.Popen[str]) -> None:
        deadline = time.monotonic() + _SECONDS
        while keeper.poll() is None:
            if time.monotonic() > deadline:
                raise LabError(f"the lab {self.name} does not end\n{self._log()}")
            bury_adopted()
            time.sleep(_POLL)

    def _wait_dead(self) -> None:
        deadline = time.monotonic() + _SECONDS
        while children(self._unshare) or _alive(self._directory):
            if time.monotonic() > deadline:
                raise LabError(f"the lab {self.name} does not end\n{self._log()}")
            time.sleep(_POLL)

    def _tell(self, line: str) -> None:
        if self._keeper is None or self._keeper.stdin is None:
            raise LabError("only the process that made a lab commands its keeper")
        self._keeper.stdin.write(line + "\n")
        self._keeper.stdin.flush()

    def _wait_ready(self, say: Callable[[str], None]) -> None:
        assert self._keeper is not None and self._keeper.stdout is not None
        for line in self._keeper.stdout:
            word, _, text = line.strip().partition(" ")
            if word == "say":
                say(text)
            elif word == "ready":
                return
            else:
                raise LabError(json.loads(text))
        raise LabError(f"the lab's keeper ended\n{self._log()}")

    def _log(self) -> str:
        log = self._directory / "keeper.log"
        return log.read_text() if log.exists() else ""


def _labs() -> Path:
    return home() / "labs"


def _alone() -> IO[bytes]:
    """Whoever holds this sees labs wholly there or not at all."""
    _labs().mkdir(parents=True, exist_ok=True)
    held = lock(_labs() / ".lock", fcntl.LOCK_EX)
    assert held is not None
    return held


def _alive(directory: Path) -> bool:
    """Whether the keeper of the lab, or the unshare around it, holds its lock."""
    try:
        # Not made here, or it would turn up in a directory that its keeper is removing.
        with (directory / "lock").open("rb") as held:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _start_keeper(name: str, *, bare: bool) -> subprocess.Popen[str]:
    with _alone():
        _sweep()
        directory = _labs() / name
        if directory.exists():
            raise LabError(f"the lab {name} is up already")
        directory.mkdir()
        held = lock(directory / "lock", fcntl.LOCK_EX)
        assert held is not None
        with held, (directory / "keeper.log").open("ab") as log:
            process = _unshared(directory, held.fileno(), log.fileno(), bare=bare)
        (directory / "pid").write_text(f"{process.pid}\n")
    return process


def _unshared(directory: Path, lock_number: int, log: int, *, bare: bool) -> subprocess.Popen[str]:
    """The keeper in its namespaces. unshare holds the lock too: it ends when the last process of the lab has."""
    words = ["unshare", "--mount", "--pid", "--fork", "--kill-child=SIGKILL", "--mount-proc"]
    words += [sys.executable, "-m", "tests.system.keeper", str(directory), str(lock_number)]
    words += ["bare"] if bare else []
    return subprocess.Popen(
        words,
        cwd=_ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        pass_fds=[lock_number],
        start_new_session=True,
    )


def _sweep() -> None:
    """Remove what labs left whose keepers had no time to."""
    for directory in _labs().iterdir():
        if directory.is_dir() and not _alive(directory):
            cgroups.remove(group(directory.name))
            shutil.rmtree(directory)
