"""The part of the suite that depends most on our libraries, with the oldest versions of them that are supported.

`make test-oldest` runs all of tests/core and tests/service like this.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PYTHON = ROOT / ".venv-oldest" / "bin" / "python"
# Keys and certificates (cryptography), the wire (protobuf, grpclib, h2), the bus (dbus-next).
TESTS = [
    *(f"core/test_{name}.py" for name in ("keys", "wire", "introspection")),
    *(f"service/test_control_{name}.py" for name in ("calls", "hostile", "stop", "tls")),
    *(f"service/test_bus{name}.py" for name in ("", "_gateway", "_users", "_polkit")),
    *(f"service/test_{name}.py" for name in ("cert", "metrics", "restore", "s2ctl", "s2uc_legacy")),
]


def versions(python: Path | str) -> dict[str, str]:
    """The distributions that this interpreter has, with their versions."""
    script = "from importlib.metadata import distributions as d\nfor e in d(): print(e.name.lower(), e.version)"
    done = subprocess.run([python, "-c", script], capture_output=True, text=True, check=True)
    return dict(line.split() for line in done.stdout.splitlines())


def oldest() -> dict[str, str]:
    """The versions of tests/oldest.txt."""
    lines = (ROOT / "tests" / "oldest.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


def test_the_oldest_are_those_that_pyproject_allows_and_the_environment_has() -> None:
    text = (ROOT / "pyproject.toml").read_text().partition("dependencies = [")[2].partition("\n]")[0]
    allowed = dict(line.strip(' ",').partition(";")[0].split(">=") for line in text.splitlines() if ">=" in line)
    for name, lowest in allowed.items():
        if name != "tomli":  # Python has its own
            assert f"{oldest()[name]}.".startswith(lowest.strip('"') + "."), name
    here = versions(PYTHON)
    assert {name: here[name.replace("-", "_")] if name not in here else here[name] for name in oldest()} == oldest()
    assert versions(sys.executable)["cryptography"] != oldest()["cryptography"]


@pytest.mark.timeout(600)
def test_the_suite_passes_with_the_oldest_libraries() -> None:
    words = [str(PYTHON), "-m", "pytest", "-q", "-p", "no:cacheprovider", *(f"tests/{each}" for each in TESTS)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
