"""A lab's end: nothing of it outlives its owner, and labs side by side leave each other alone."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.system import cgroups
from tests.system.host import children
from tests.system.keeper import group
from tests.system.lab import Lab
from tests.system.tools import LabError
from tests.system.trees import home
from tests.system.wires import HOSTS

pytestmark = pytest.mark.timeout(600)  # the first lab of a machine builds the base tree

ROOT = Path(__file__).parent.parent.parent
_OWNER = """
import signal, sys
from tests.system.lab import Lab
lab = Lab.start(sys.argv[1], say=lambda text: None)
print("up", flush=True)
signal.pause()
"""


class Owner:
    """Another process that owns a lab of its own beside the one of these tests."""

    def __init__(self) -> None:
        self.name = f"other-{os.getpid()}-{secrets.token_hex(2)}"
        self.directory = home() / "labs" / self.name
        self.process = subprocess.Popen(
            [sys.executable, "-c", _OWNER, self.name], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "up\n"
        self.unshare = int((self.directory / "pid").read_text())
        self.processes = list(descendants(self.unshare))

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def ended(self) -> bool:
        """Whether its unshare has ended, which is our child where it lost its parent."""
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.unshare, os.WNOHANG)
        return not Path(f"/proc/{self.unshare}").exists()

    def groups(self) -> list[Path]:
        places = [hierarchy / group(self.name) for hierarchy in cgroups.hierarchies()]
        return [place for place in places if place.exists()]


def descendants(pid: int) -> Iterator[int]:
    for child in children(pid):
        yield child
        yield from descendants(child)


def network_namespaces(pids: list[int]) -> set[str]:
    return {os.readlink(f"/proc/{pid}/ns/net") for pid in pids if Path(f"/proc/{pid}/ns/net").is_symlink()}


def all_network_namespaces() -> set[str]:
    found = set()
    for link in Path("/proc").glob("[0-9]*/ns/net"):
        try:
            found.add(os.readlink(link))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 90
    while not condition():
        assert time.monotonic() < deadline, f"not {what}"
        time.sleep(0.05)


@pytest.fixture
def owner() -> Iterator[Owner]:
    made = Owner()
    try:
        yield made
    finally:
        made.kill()
        until(made.ended, "ended")


def test_two_labs_side_by_side_know_nothing_of_each_other(lab: Lab, owner: Owner) -> None:
    other = Lab.attach(owner.name)
    assert other is not None
    other["producer"].write("/root/mine", "")
    assert lab["producer"].run(["ls", "/root"]).stdout == "vagrant\n"
    assert all(host.state() == "running" for host in [*lab.hosts(), *other.hosts()])
    with pytest.raises(LabError, match="is up already"):
        Lab.start(owner.name, say=print)


def test_nothing_is_left_when_the_owner_is_killed(lab: Lab, owner: Owner) -> None:
    mine = network_namespaces([host.leader() for host in lab.hosts()])
    theirs = network_namespaces(owner.processes) - network_namespaces([os.getpid()])
    assert len(theirs) == len(HOSTS)
    owner.kill()
    until(lambda: not owner.directory.exists(), "removed its directory")
    until(owner.ended, "ended")
    assert not [pid for pid in owner.processes if Path(f"/proc/{pid}").exists()]
    assert owner.groups() == []
    assert not theirs & all_network_namespaces()
    assert owner.name not in Path("/proc/self/mountinfo").read_text()
    assert mine <= all_network_namespaces()
    assert all(host.state() == "running" for host in lab.hosts())


def test_the_kernel_ends_a_lab_whose_keeper_is_killed_and_the_next_start_removes_the_rest(owner: Owner) -> None:
    keeper = children(owner.unshare)[0]
    os.kill(keeper, signal.SIGKILL)
    until(lambda: not [pid for pid in owner.processes if Path(f"/proc/{pid}").exists()], "ended")
    assert owner.directory.exists()
    assert owner.groups()
    owner.kill()
    next_one = Owner()
    try:
        assert not owner.directory.exists()
        assert owner.groups() == []
    finally:
        next_one.kill()
        until(next_one.ended, "ended")
        assert not next_one.directory.exists()


def test_a_lab_that_stays_outlives_its_owner_until_it_is_stopped() -> None:
    name = f"stays-{os.getpid()}-{secrets.token_hex(2)}"
    script = "import sys; from tests.system.lab import Lab; Lab.start(sys.argv[1], say=lambda text: None).stay()"
    subprocess.run([sys.executable, "-W", "ignore", "-c", script, name], cwd=ROOT, check=True)
    found = Lab.attach(name)
    assert found is not None
    try:
        assert all(host.state() == "running" for host in found.hosts())
    finally:
        found.stop()
    assert Lab.attach(name) is None
    assert not (home() / "labs" / name).exists()
