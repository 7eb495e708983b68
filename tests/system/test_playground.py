"""The lab from the command line, as `make lab`, `make lab-shell` and `make lab-down` call it."""

from __future__ import annotations

import errno
import os
import secrets
import select
import subprocess
import sys
from pathlib import Path

import pytest

from tests.system.lab import Lab

ROOT = Path(__file__).parent.parent.parent
pytestmark = pytest.mark.timeout(600)  # the first lab of a machine builds the base tree


def words(name: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "tests.system", "--name", name, *arguments]


def call(name: str, *arguments: str, typed: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(words(name, *arguments), cwd=ROOT, input=typed, capture_output=True, text=True)


def test_up_and_down_can_be_said_twice() -> None:
    name = f"playground-{os.getpid()}-{secrets.token_hex(2)}"
    try:
        first = call(name, "up")
        assert (first.returncode, first.stderr) == (0, "")
        assert "The lab is up: four hosts with Debian" in first.stdout
        assert "openssl genrsa -out server.key 2048" in first.stdout
        again = call(name, "up")
        assert again.returncode == 0
        assert again.stdout.startswith("\nThe lab is up already.\n")
        shell = call(name, "shell", "consumer", typed="hostname; pwd; shopt login_shell; exit 7\n")
        assert shell.stdout.split() == ["consumer", "/root", "login_shell", "on"]
        assert shell.returncode == 7
    finally:
        down = call(name, "down")
    assert (down.returncode, down.stdout) == (0, "The lab is down.\n")
    assert call(name, "down").stdout == "The lab is not up.\n"


def test_a_shell_needs_a_lab_and_one_of_its_hosts() -> None:
    away = call("nosuchlab", "shell", "producer")
    assert away.returncode == 1
    assert away.stderr == "lab: the lab is not up: `make lab` boots it\n"
    assert call("nosuchlab", "shell", "producer9").returncode == 2


def test_on_a_terminal_the_shell_has_a_prompt_and_a_terminal_of_the_host(lab: Lab) -> None:
    ours, theirs = os.openpty()
    process = subprocess.Popen(
        words(lab.name, "shell", "producers2"), cwd=ROOT, stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    try:
        read_until(ours, "root@producers2:~# ")
        os.write(ours, b"tty; sleep 949\n")
        read_until(ours, "/dev/pts/")
        host = lab["producers2"]
        host.wait_until(lambda: host.run(["pgrep", "-fx", "sleep 949"], check=False).stdout, "asleep")
        os.write(ours, b"\x03")  # Ctrl-C ends the sleep, not the shell
        read_until(ours, "root@producers2:~# ")
        os.write(ours, b"exit\n")
        read_until(ours, None)
        assert process.wait(90) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def read_until(terminal: int, text: str | None) -> str:
    """What the terminal shows up to the text, or to its end."""
    seen = ""
    while text is None or text not in seen:
        ready, _, _ = select.select([terminal], [], [], 90)
        assert ready, f"no more than {seen!r}"
        try:
            seen += os.read(terminal, 4096).decode(errors="replace")
        except OSError as error:
            assert error.errno == errno.EIO
            assert text is None, f"ended with {seen!r}"
            return seen
    return seen
