"""The control port's certificate while the daemon runs: renewed, half renewed, near its end."""

from __future__ import annotations

import asyncio
import logging
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from scistreamd.certificate_watch import CertificateWatch, ends, near_end
from scistreamd.control.server import ControlServer
from scistreamd.control.tls import server_context
from tests.service.control_kit import Bench, Doorman


def make(certificate: Path, key: Path, days: int, name: str) -> None:
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", key,
         "-out", certificate, "-days", str(days), "-subj", f"/CN={name}"],
        check=True,
        capture_output=True,
    )  # fmt: skip


async def shown(port: int) -> str:
    return await asyncio.to_thread(ssl.get_server_certificate, ("127.0.0.1", port))


async def until(holds: Callable[[], bool]) -> None:
    while not holds():  # noqa: ASYNC110  (the log tells nobody)
        await asyncio.sleep(0.01)


async def test_renewed_files_are_taken_up_once_they_fit(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    files = tmp_path / "server.crt", tmp_path / "server.key"
    make(*files, 90, "first")
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    server = ControlServer(Bench(), Doorman())
    await server.start([listener], server_context(*files))
    watch = CertificateWatch(lambda: files, lambda: server_context(*files), server.replace_context, look_seconds=0.02)
    task = asyncio.create_task(watch.run())
    try:
        first = await shown(port)
        new = tmp_path / "new.crt", tmp_path / "new.key"
        make(*new, 9, "second")
        # As a renewal writes them: one after the other, and the gateway looks in between.
        shutil.copy(new[1], files[1])
        await until(lambda: "is not taken up" in caplog.text)
        assert await shown(port) == first
        shutil.copy(new[0], files[0])
        await until(lambda: "took up the renewed certificate" in caplog.text)
        assert await shown(port) == new[0].read_text()
        await until(lambda: bool(watch.warning))
        assert watch.warning.startswith("the control port's certificate ends on ")
        assert watch.warning in caplog.text
    finally:
        task.cancel()
        await asyncio.wait([task])
        await server.close(0)


async def test_a_new_list_of_revocations_is_taken_up(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    files = tmp_path / "server.crt", tmp_path / "server.key", tmp_path / "revoked"
    make(*files[:2], 90, "first")
    files[2].write_text("one")
    used: list[ssl.SSLContext] = []
    watch = CertificateWatch(lambda: files, lambda: server_context(*files[:2]), used.append, look_seconds=0.02)
    task = asyncio.create_task(watch.run())
    try:
        await until(lambda: bool(watch._asked._waiters))  # the first look is over
        files[2].write_text("another")
        await until(lambda: bool(used))
        assert f"took up the renewed file for client certificates: {files[2]}" in caplog.text
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_other_files_are_looked_at_at_once(tmp_path: Path) -> None:
    """A reload may name them."""
    make(tmp_path / "a.crt", tmp_path / "a.key", 90, "first")
    make(tmp_path / "b.crt", tmp_path / "b.key", 9, "second")
    first, second = ((tmp_path / f"{name}.crt", tmp_path / f"{name}.key") for name in "ab")
    files, told = [first], asyncio.Event()
    watch = CertificateWatch(
        lambda: files[0], lambda: server_context(*files[0]), lambda context: None, told.set, look_seconds=3600
    )
    task = asyncio.create_task(watch.run())
    try:
        await until(lambda: bool(watch._asked._waiters))  # the first look is over
        assert not watch.warning
        files[0] = second
        watch.look()
        await asyncio.wait_for(told.wait(), 30)
        assert watch.warning.startswith("the control port's certificate ends on ")
    finally:
        task.cancel()
        await asyncio.wait([task])


@pytest.mark.parametrize(("days", "told"), [(31, ""), (29, " ends on "), (-1, " has ended on ")])
def test_what_is_told_of_an_end(days: float, told: str) -> None:
    now = time.time()
    said = near_end(now + days * 86400, now)
    assert told in said
    assert bool(said) is bool(told)


def test_when_a_certificate_ends(tmp_path: Path) -> None:
    make(tmp_path / "a.crt", tmp_path / "a.key", 10, "x")
    assert abs(ends(tmp_path / "a.crt") - time.time() - 10 * 86400) < 60
