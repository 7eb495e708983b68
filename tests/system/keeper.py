"""The keeper of one lab: PID 1 of a PID namespace, in a mount namespace of its own.

All that a lab is made of hangs on this process. The overlays, the tmpfs that holds what hosts write, and the
named network namespaces are mounts in its mount namespace; the hosts run in its PID namespace. So when it
ends, however it ends, the kernel ends the hosts and takes mounts, namespaces and veth pairs away. What is
left then is a directory and empty control groups, which the keeper removes when it can and the next start of
a lab when it could not.

It ends when its standard input is closed, which a dead owner does too, and on SIGTERM. Lines that it reads:

    stay            the owner goes, the lab stays
    boot HOST       start a host that was powered off

It writes ``say TEXT`` while it works, then ``ready`` or ``failed TEXT`` (as a JSON string), and nothing after.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import selectors
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import NoReturn

from tests.system import cgroups, wires
from tests.system.base import base_tree, minimal_tree
from tests.system.project import project_layers
from tests.system.tools import LabError, call, lock
from tests.system.trees import Trees, home, mount_overlay

_REBOOT = 133  # systemd-nspawn(1), exit status
_POLL_SECONDS = 0.3
_POLL_END_SECONDS = 0.02
_HOST_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "TERM": "dumb"}


def group(lab: str) -> str:
    """The control group of a lab of this name, below the root of each hierarchy."""
    return f"scistream-lab-{lab}"


class Keeper:
    """Builds the lab in a thread, and serves its owner meanwhile and afterwards."""

    def __init__(self, directory: Path, *, bare: bool) -> None:
        self._directory = directory
        self._bare = bare
        self._group = group(directory.name)
        self._trees = Trees(home(), lambda text: self._tell(f"say {text}"))
        self._hosts: dict[str, subprocess.Popen[bytes]] = {}
        self._starting = threading.Lock()
        self._stays = False

    def serve(self) -> NoReturn:
        """Work until the owner goes."""
        asked, wakeup = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wakeup)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, _leave_to_the_loop)
        threading.Thread(target=self._make, daemon=True).start()
        with selectors.DefaultSelector() as selector:
            selector.register(asked, selectors.EVENT_READ)
            selector.register(0, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select(_POLL_SECONDS):
                    if key.fd == asked:
                        self._end()
                    if not self._obey(os.read(0, 65536)):
                        selector.unregister(0)
                self._boot_again()

    def _obey(self, data: bytes) -> bool:
        """Do what the owner wrote, a whole line at a time as it writes them; False at the end of its lines."""
        if not data and not self._stays:
            self._end()
        for line in data.decode().splitlines():
            match line.split():
                case ["stay"]:
                    self._stays = True
                case ["boot", host]:
                    self._boot(host)
                case _:
                    raise ValueError(f"the owner wrote {line!r}")
        return bool(data)

    def _tell(self, line: str) -> None:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    def _make(self) -> None:
        try:
            resolver = Path("/etc/resolv.conf").read_text()
            layers = self._layers()
            # The machine's own /run is none of the lab's business, and the lab's names are none of the machine's.
            call(["mount", "-t", "tmpfs", "tmpfs", "/run"])
            call(["mount", "-t", "tmpfs", "-o", "size=4g", "tmpfs", self._hosts_directory()])
            (self._hosts_directory() / "vagrant").mkdir()
            wires.connect()
            for host in wires.HOSTS:
                self._furnish(host, layers, resolver)
                self._boot(host)
        except (LabError, OSError) as error:
            self._tell(f"failed {json.dumps(str(error))}")
            return
        self._tell("ready")

    def _layers(self) -> list[Path]:
        """What the hosts' file systems are made of, the topmost first."""
        if self._bare:
            return [minimal_tree(self._trees)]
        base = base_tree(self._trees)
        return [*project_layers(self._trees, base, self._group), base]

    def _hosts_directory(self) -> Path:
        directory = self._directory / "hosts"
        directory.mkdir(exist_ok=True)
        return directory

    def _furnish(self, host: str, layers: list[Path], resolver: str) -> None:
        """Mount the host's file system, with what differs from host to host."""
        place = self._hosts_directory() / host
        mount_overlay(layers, place / "upper", place / "work", place / "root")
        root = place / "root"
        (root / "etc" / "hostname").write_text(f"{host}\n")
        (root / "etc" / "hosts").write_text(wires.names(host))
        (root / "etc" / "resolv.conf").write_text(resolver)
        (root / "root" / "vagrant").symlink_to("/vagrant")

    def _boot(self, host: str) -> None:
        words = ["systemd-nspawn", "-D", str(self._hosts_directory() / host / "root"), "--register=no", "--keep-unit"]
        words += ["--resolv-conf=off", "--capability=CAP_NET_ADMIN", f"--machine={host}"]
        words += [f"--network-namespace-path={wires.namespace(host)}"]
        words += [f"--bind={self._hosts_directory() / 'vagrant'}:/vagrant", "--boot"]
        with self._starting, (self._directory / f"{host}.console").open("ab") as console:
            self._hosts[host] = subprocess.Popen(
                cgroups.starting_in(f"{self._group}/{host}", words),
                env=_HOST_ENVIRONMENT,
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
            )

    def _boot_again(self) -> None:
        """Start the hosts again that ended for a reboot, which ``--keep-unit`` leaves to us."""
        with self._starting:
            rebooting = [host for host, process in self._hosts.items() if process.poll() == _REBOOT]
        for host in rebooting:
            self._boot(host)

    def _end(self) -> NoReturn:
        """End every process of the lab, then remove what the kernel would leave."""
        try:
            self._starting.acquire()  # for good: no host starts any more
            while _others_live():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(-1, signal.SIGKILL)
                time.sleep(_POLL_END_SECONDS)
            hosts = self._hosts_directory()
            if hosts.is_mount():
                call(["umount", "--lazy", hosts])
            cgroups.remove(self._group)
            self._remove_directory()
        except BaseException:
            sys.excepthook(*sys.exc_info())
            sys.stderr.flush()
            os._exit(1)
        os._exit(0)

    def _remove_directory(self) -> None:
        """All of it at once for those who look, and alone, for a start of another lab removes such leftovers too."""
        alone = lock(self._directory.parent / ".lock", fcntl.LOCK_EX)
        assert alone is not None
        with alone:
            hidden = self._directory.with_name(f".{self._directory.name}")
            self._directory.rename(hidden)
            shutil.rmtree(hidden)


def _others_live() -> bool:
    """Whether any other process of this PID namespace lives.

    The dead are not buried here: the building thread would miss the status of a program that was killed, take it
    for a success, and keep a half tree.
    """
    for status in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if status.parent.name != "1" and not re.search(r"^State:\s[ZX]", status.read_text(), re.MULTILINE):
                return True
    return False


def _leave_to_the_loop(number: int, frame: FrameType | None) -> None:
    """A signal is a byte in the wake-up pipe: the end takes locks, which a handler must not."""


def main() -> NoReturn:
    """``python -m tests.system.keeper DIRECTORY LOCK [bare]``: the lab's directory, and the descriptor of its lock."""
    os.set_inheritable(int(sys.argv[2]), False)
    os.umask(0o022)
    Keeper(Path(sys.argv[1]), bare="bare" in sys.argv[3:]).serve()


if __name__ == "__main__":
    main()
