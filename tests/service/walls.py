"""Hosts with real firewalls: firewalld, ufw and Docker of Debian, in a tree of their own, in any network namespace."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from tests.service.arena import Namespace
from tests.system.base import base_tree
from tests.system.tools import call
from tests.system.trees import Trees, digest, mount_overlay

_PACKAGES = "firewalld ufw docker.io iptables"
_INSTALL = f"apt-get update -qq && apt-get install -qq -y --no-install-recommends {_PACKAGES}"
_SECONDS = 120
# What programs expect to be there. All of it is gone with the mount namespace that it is made in.
_FURNISH = """
set -eu
mount -t overlay overlay -o "lowerdir=$LOWER,upperdir=$PLACE/upper,workdir=$PLACE/work" "$PLACE/root"
cd "$PLACE/root"
mount -t proc proc proc; mount -t sysfs sysfs sys; mount --bind /dev dev; mount -t tmpfs tmpfs run
mount --rbind /sys/fs/cgroup sys/fs/cgroup
mkdir -p run/dbus run/lock var/lib/docker; mount -t tmpfs tmpfs var/lib/docker
echo ready
exec sleep infinity
"""


def walls_tree(trees: Trees) -> list[Path]:
    """The layers of such a host, the topmost first; made once a machine (half a minute)."""
    base = base_tree(trees)

    def build(directory: Path) -> None:
        root = directory / "root"
        mount_overlay([base], directory / "tree", directory / "work", root)
        try:
            shutil.copy("/etc/resolv.conf", root / "etc" / "resolv.conf")
            shutil.copytree("/etc/apt/apt.conf.d", root / "etc" / "apt" / "apt.conf.d", dirs_exist_ok=True)
            alone = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
            call([*alone, "chroot", root, "env", "DEBIAN_FRONTEND=noninteractive", "sh", "-c", _INSTALL])
        finally:
            call(["umount", root])

    key = digest(base.name, _INSTALL)
    return [trees.tree("walls", key, "installing firewalld, ufw and Docker for the tests of firewalls", build), base]


class Walls:
    """One such host, with its own processes and mounts, in a network namespace. As a context it ends on the way out."""

    def __init__(self, namespace: Namespace, layers: list[Path], place: Path) -> None:
        self._namespace = namespace
        for name in ("upper", "work", "root"):
            (place / name).mkdir(parents=True)
        environment = {**os.environ, "LOWER": ":".join(map(str, layers)), "PLACE": str(place)}
        words = ["unshare", "--mount", "--propagation=private", "--pid", "--fork", "--kill-child=SIGKILL"]
        self._keeper = namespace.run(
            lambda: subprocess.Popen([*words, "sh", "-c", _FURNISH], env=environment, stdout=subprocess.PIPE, text=True)
        )
        assert self._keeper.stdout is not None
        assert self._keeper.stdout.readline() == "ready\n"
        self._root = place / "root"

    def __enter__(self) -> Walls:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._keeper.send_signal(signal.SIGKILL)
        self._keeper.wait()
        assert self._keeper.stdout is not None
        self._keeper.stdout.close()

    @property
    def bus(self) -> str:
        """The address of the host's system bus, from outside."""
        return f"unix:path=/proc/{self._inside()}/root{self._root}/run/dbus/system_bus_socket"

    def _inside(self) -> int:
        return int(Path(f"/proc/{self._keeper.pid}/task/{self._keeper.pid}/children").read_text().split()[0])

    def _words(self, script: str) -> list[str]:
        enter = ["env", "-u", "DBUS_SYSTEM_BUS_ADDRESS", "nsenter", "-t", str(self._inside()), "--mount", "--pid"]
        return [*enter, "chroot", str(self._root), "sh", "-c", script]

    def run(self, script: str) -> str:
        """Run it in the host's shell; what it printed. AssertionError with its output where it fails."""
        return self._namespace.call(*self._words(script))

    def works(self, script: str) -> bool:
        """Whether it ends well."""
        words = self._words(script)
        return self._namespace.run(lambda: subprocess.run(words, capture_output=True).returncode) == 0

    def start(self, script: str, ready: str) -> None:
        """Run it in the background, until ``ready`` works. It ends with the host."""
        words = self._words(f"{script} >/tmp/log 2>&1 & echo $!")
        self._namespace.run(lambda: subprocess.run(words, check=True, stdout=subprocess.DEVNULL))
        wait_until(lambda: self.works(ready), lambda: self.run("cat /tmp/log"))


def wait_until(held: Callable[[], bool], said: Callable[[], str] = str) -> None:
    """Wait for it; AssertionError with what is ``said`` where it does not come."""
    deadline = time.monotonic() + _SECONDS
    while not held():
        assert time.monotonic() < deadline, said()
        time.sleep(0.1)
