"""s2cs as process 1 of a PID namespace, as in a container: signals, exit status, orphans, health."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent
ADDRESS = "127.0.0.6"
PORT = 26890
# unshare itself stays outside, and hands the exit status of process 1 on.
_NAMESPACE = ["unshare", *([] if os.geteuid() == 0 else ["--user", "--map-root-user"]), "--pid", "--fork"]
_NAMESPACE += ["--mount-proc", "--kill-child"]

if subprocess.run([*_NAMESPACE, "true"], stderr=subprocess.DEVNULL).returncode:
    pytest.skip("PID namespaces are not permitted here, as in a chroot or most containers", allow_module_level=True)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    subprocess.run([BIN / "s2ctl", "cert", "create", "--ip", "192.0.2.7"], cwd=tmp_path, check=True)
    return tmp_path


@contextmanager
def s2cs(home: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A running one, and the id out here of its process 1."""
    words = [*_NAMESPACE, str(BIN / "s2cs"), f"--listener-ip={ADDRESS}", f"--port={PORT}", *options]
    with subprocess.Popen(words, cwd=home, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert "Server started" in process.stdout.readline()
            yield process, _only_child(process.pid)
        finally:
            process.kill()


def _only_child(pid: int) -> int:
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text())


def inside(first: int, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run in the namespaces of the process 1 that is ``first`` out here."""
    enter = ["nsenter", "-t", str(first), "-p", "-m", *([] if os.geteuid() == 0 else ["-U", "--preserve-credentials"])]
    return subprocess.run([*enter, "--", *words], capture_output=True, text=True, timeout=90, cwd="/")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_its_tunnels_and_status_0(home: Path, number: signal.Signals) -> None:
    with s2cs(home, "--type=Haproxy", "--port-range=26891-26892") as (process, first):
        asked = ["inbound-request", "--s2cs", f"{ADDRESS}:{PORT}", "--remote-ip=127.0.0.1", "--receiver-ports=26893"]
        subprocess.run([BIN / "s2uc", *asked], cwd=home, check=True, capture_output=True)
        assert "haproxy" in inside(first, "ps", "-eo", "comm").stdout
        os.kill(first, number)
        assert process.wait(90) == 0


def test_an_end_that_is_not_orderly_is_told(home: Path) -> None:
    with s2cs(home) as (process, first):
        inside(first, "kill", "-KILL", str(_second(first)))
        assert process.wait(90) == 128 + 9


def _second(first: int) -> int:
    """The id, inside, of the s2cs that serves."""
    status = Path(f"/proc/{_only_child(first)}/status").read_text()
    [line] = [line for line in status.splitlines() if line.startswith("NSpid:")]
    return int(line.split()[-1])


def test_orphans_are_waited_for(home: Path) -> None:
    with s2cs(home) as (_, first):
        # Its parent ends at once; when it ends itself, process 1 is its parent.
        script = "sleep 0.2 & echo $!; exec >&-; exit 0"
        orphan = inside(first, "sh", "-c", script).stdout.strip()
        assert inside(first, "sh", "-c", f"while [ -e /proc/{orphan} ]; do sleep 0.05; done").returncode == 0
        assert "Z" not in inside(first, "ps", "-eo", "stat=").stdout


def test_usage_errors_have_their_status(home: Path) -> None:
    done = subprocess.run([*_NAMESPACE, BIN / "s2cs", "--type=S2DS"], cwd=home, capture_output=True, text=True)
    assert done.returncode == 2
    done = subprocess.run([*_NAMESPACE, BIN / "s2cs", "--server-crt=no"], cwd=home, capture_output=True, text=True)
    assert done.returncode == 9
    assert "s2ctl cert create" in done.stderr


def test_the_healthcheck_finds_port_and_certificate_by_itself(home: Path) -> None:
    check = [sys.executable, "-m", "scistreamd.cli.healthcheck"]
    with s2cs(home) as (_, first):
        asked = inside(first, *check)
        assert (asked.returncode, asked.stdout) == (0, f"{ADDRESS}:{PORT}: SERVING\n")
    with s2cs(home, "--ssl=False") as (_, first):
        assert inside(first, *check).returncode == 0
    none = subprocess.run([*_NAMESPACE, *check], capture_output=True, text=True, cwd="/")
    assert (none.returncode, none.stderr) == (1, "no s2cs runs here\n")
