"""Trust on first use, at a real terminal and without one, towards real gateways."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import pty
import re
import shutil
import subprocess
import termios
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pytest

from scistreamd.cli.confirm import ending
from scistreamd.cli.known import Known, KnownGateways
from scistreamd.errors import ScistreamError
from scistreamd.model import Target
from tests.service.gateways import BIN, Gateway, gateway

ADDRESS = "127.0.0.6"
OPTIONS = ("--port-range=26390-26399",)


class Anybody(Protocol):
    """Who runs s2uc."""

    @property
    def home(self) -> Path: ...

    @property
    def environment(self) -> dict[str, str]: ...


@dataclass
class User:
    """Somebody with a home of their own and no server.crt at hand."""

    home: Path

    @property
    def environment(self) -> dict[str, str]:
        return {"PATH": os.environ["PATH"], "HOME": str(self.home), "XDG_STATE_HOME": str(self.home / "state")}

    @property
    def file(self) -> Path:
        return self.home / "state" / "scistream" / "known-gateways"

    def start(self, *words: str, terminal: int | None = None) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [BIN / "s2uc", *words],
            cwd=self.home,
            env=self.environment,
            stdin=terminal if terminal is not None else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=terminal if terminal is not None else subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    async def run(self, *words: str) -> tuple[int, str, str]:
        process = self.start(*words)
        out, err = await asyncio.to_thread(process.communicate, timeout=60)
        return process.returncode, out, err


@pytest.fixture
def user(tmp_path: Path) -> User:
    home = tmp_path / "home"
    home.mkdir()
    return User(home)


def fingerprint(certificate: Path) -> str:
    done = subprocess.run(
        ["openssl", "x509", "-noout", "-fingerprint", "-sha256", "-in", certificate],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip().partition("=")[2]


def asked(at: Gateway) -> tuple[str, ...]:
    return "health", "--s2cs", at.s2cs


def silent(at: Gateway) -> bool:
    """Whether the gateway was sent no call."""
    return "health" not in at.log.read_text().lower() and "hello" not in at.log.read_text()


async def test_without_a_terminal_nobody_is_trusted_silently(tmp_path: Path, user: User) -> None:
    async with gateway(tmp_path, ADDRESS, *OPTIONS) as here:
        right = fingerprint(here.certificate)
        status, out, err = await user.run(*asked(here))
        assert (status, out) == (14, "")
        assert right in err
        assert "--trust-fingerprint" in err
        assert not user.file.exists()
        status, _, err = await user.run(*asked(here), "--trust-fingerprint", right.replace("A", "B").replace("1", "2"))
        assert (status, "not the given one" in err) == (14, True)
        assert not user.file.exists()

        for written in (right, "SHA256:" + right.replace(":", "").lower()):
            user.file.unlink(missing_ok=True)
            assert (await user.run(*asked(here), "--trust-fingerprint", written))[0] == 0
            assert (user.file.stat().st_mode & 0o777, user.file.parent.stat().st_mode & 0o777) == (0o600, 0o700)
        status, out, err = await user.run(*asked(here))
        assert (status, out, err) == (0, f"{here.s2cs}: SERVING\n", "")

        [shown] = json.loads((await user.run("trust", "list", "--json"))[1])
        assert (shown["gateway"], shown["certificate"]) == (here.s2cs, right)
        assert here.s2cs in (await user.run("trust", "list"))[1]
        assert (await user.run("trust", "remove", "127.0.0.7:1"))[0] == 5
        assert (await user.run("trust", "remove", here.s2cs))[0] == 0
        assert (await user.run("trust", "list"))[1] == "No gateways.\n"
        assert (await user.run(*asked(here)))[0] == 14


@pytest.mark.parametrize(
    ("answers", "status"), [(["yes"], 0), (["no"], 14), ([""], 14), (["perhaps", "yes"], 0), (["\x03"], 130)]
)
async def test_at_a_terminal_the_user_is_asked_once(
    tmp_path: Path, user: User, answers: list[str], status: int
) -> None:
    async with gateway(tmp_path, ADDRESS, *OPTIONS) as here:
        with terminal() as (ours, theirs):
            code, said = await asyncio.to_thread(converse, user, ours, theirs, asked(here), answers)
            assert code == status
            assert fingerprint(here.certificate) in said
            assert user.file.exists() is (status == 0)
        if status == 0:
            assert (await user.run(*asked(here)))[0] == 0


async def test_a_changed_key_is_refused_loudly_and_told_nothing(tmp_path: Path, user: User) -> None:
    async with gateway(tmp_path, ADDRESS, *OPTIONS) as here:
        assert (await user.run(*asked(here), "--trust-fingerprint", fingerprint(here.certificate)))[0] == 0
        port = here.port
    shutil.rmtree(tmp_path / ADDRESS)
    # A new pair of the same names, on the same address.
    async with gateway(tmp_path, ADDRESS, *OPTIONS, f"--port={port}") as here:
        assert here.port == port
        for more in ((), ("--trust-fingerprint", fingerprint(here.certificate))):
            words = ("release", "4f8583bc-a4d3-41ee-9fd6-034d1fcbd7c3", "--s2cs", here.s2cs, *more)
            status, _, err = await user.run(*words)
            assert status == 14
            assert "HAS CHANGED" in err
            assert f"s2uc trust remove {here.s2cs}" in err
            assert fingerprint(here.certificate) in err
        assert "release" not in here.log.read_text()
        assert (await user.run("trust", "remove", here.s2cs))[0] == 0
        assert (await user.run(*asked(here), "--trust-fingerprint", fingerprint(here.certificate)))[0] == 0


async def test_another_certificate_for_the_same_key_is_the_same_gateway(tmp_path: Path, user: User) -> None:
    async with gateway(tmp_path, ADDRESS, *OPTIONS) as here:
        assert (await user.run(*asked(here), "--trust-fingerprint", fingerprint(here.certificate)))[0] == 0
        port, home = here.port, here.certificate.parent
    subprocess.run(
        ["openssl", "req", "-x509", "-key", home / "server.key", "-out", home / "server.crt", "-days", "9",
         "-subj", "/CN=renewed"],
        check=True,
        capture_output=True,
    )  # fmt: skip
    async with gateway(tmp_path, ADDRESS, *OPTIONS, f"--port={port}") as here:
        status, _, err = await user.run(*asked(here))
        assert status == 0
        assert "another certificate for the key that you trust" in err
        assert re.search(r"ends in [89] days", err)
        status, _, err = await user.run(*asked(here))
        assert (status, "another certificate" in err, "ends in" in err) == (0, False, True)
        # Also where a file says whom to trust.
        status, _, err = await user.run(*asked(here), "--server-cert", str(here.certificate))
        assert (status, "exactly one of" in err or "ends in" in err) == (0, True)


async def test_a_damaged_file_is_told_and_trusts_nobody(tmp_path: Path, user: User) -> None:
    user.file.parent.mkdir(parents=True)
    for damage in (
        "",
        "[]",
        '{"version": 2, "gateways": {}}',
        '{"version": 1, "gateways": {"a:1": {"key": 5, "x": 1}}}',
    ):
        user.file.write_text(damage)
        status, _, err = await user.run("health", "--s2cs", "127.0.0.1:1")
        assert (status, "known-gateways" in err) == (9, True)


def test_two_at_once_lose_nothing(tmp_path: Path) -> None:
    known = KnownGateways({"XDG_STATE_HOME": str(tmp_path)})
    for number in range(3):
        known.remember(Target("192.0.2.1", 5000 + number), Known("a" * 64, "b" * 64, 1.0, "2026-01-01"))
    assert list(known.all()) == [f"192.0.2.1:{5000 + number}" for number in range(3)]
    known.forget("192.0.2.1:5001")
    with pytest.raises(ScistreamError):
        known.forget("192.0.2.1:5001")
    assert known.get(Target("192.0.2.1", 5002)) == Known("a" * 64, "b" * 64, 1.0, "2026-01-01")


@pytest.mark.parametrize(
    ("days", "told"), [(31, ""), (29, "ends in 29 days"), (0.2, "ends in 1 day"), (-1, "has ended on ")]
)
def test_the_end_of_a_certificate(days: float, told: str) -> None:
    now = time.time()
    said = ending(now + days * 86400, now)
    assert said.startswith(told) if told.endswith(" ") else said == told


@contextlib.contextmanager
def terminal() -> Iterator[tuple[int, int]]:
    ours, theirs = pty.openpty()
    try:
        yield ours, theirs
    finally:
        os.close(ours)
        os.close(theirs)


def converse(user: Anybody, ours: int, theirs: int, words: tuple[str, ...], answers: list[str]) -> tuple[int, str]:
    """Run s2uc at a terminal of its own and type the answers, one a question; its status and what was on screen."""
    process = subprocess.Popen(
        [BIN / "s2uc", *words],
        cwd=user.home,
        env=user.environment,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    screen, waiting = "", list(answers)
    os.set_blocking(ours, False)
    end = time.monotonic() + 60
    while time.monotonic() < end:
        done = process.poll() is not None
        with contextlib.suppress(BlockingIOError):
            while more := os.read(ours, 4096):
                screen += more.decode()
        if waiting and screen.count("yes/no") + screen.count("yes or no") > len(answers) - len(waiting):
            os.write(ours, waiting.pop(0).encode() if waiting[0] == "\x03" else f"{waiting.pop(0)}\n".encode())
        if done:
            return process.returncode, screen
        time.sleep(0.02)
    process.kill()
    process.wait()
    raise AssertionError(f"s2uc does not end: {screen}")
