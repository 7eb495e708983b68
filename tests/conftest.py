"""What every test shares: nothing that a test module started outlives it."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

_PR_SET_CHILD_SUBREAPER = 36
_ROOT = Path(__file__).parent.parent

# The same examples each time, and however slow the machine is; `make fuzz` looks for others.
settings.register_profile("tests", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")


def children() -> dict[int, str]:
    """Our living children by process id, with their command lines (proc(5))."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rpartition(") ")[2].split()[:2]
            if int(parent) == os.getpid() and state != "Z":
                found[int(stat.parent.name)] = (stat.parent / "cmdline").read_text().replace("\0", " ")
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


@pytest.fixture(scope="session", autouse=True)
def _adopt_orphans() -> None:
    """Make orphans of our children our children, so that a daemon's leftovers are seen."""
    assert ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What runs meanwhile is judged last."""
    items.sort(key=lambda item: item.get_closest_marker("meanwhile") is not None)


@pytest.fixture(scope="session", autouse=True)
def meanwhile(request: pytest.FixtureRequest, _adopt_orphans: None) -> Iterator[dict[str, subprocess.Popen[str]]]:
    """The programs, by module, that tests name with the mark `meanwhile`: they begin with the first test of all."""
    marks = [item.get_closest_marker("meanwhile") for item in request.session.items]
    modules = {mark.args[0] for mark in marks if mark is not None}
    words = [sys.executable, "-W", "error", "-m"]
    programs = {
        module: subprocess.Popen(
            [*words, module], cwd=_ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for module in modules
    }
    yield programs
    for program in programs.values():
        with program:
            program.terminate()


@pytest.fixture(scope="module", autouse=True)
def _no_process_is_left() -> Iterator[None]:
    before = children()
    yield
    deadline = time.monotonic() + 30
    while (left := children().keys() - before.keys()) and time.monotonic() < deadline:
        time.sleep(0.05)
    named = [children().get(pid, "gone") for pid in left]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left, f"processes left running: {named}"
