"""s2ctl as a process of its own: on a terminal, over ssh, watching, waiting, with journal, configuration and agent."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
import termios
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from scistreamd.errors import Code
from scistreamd.model import ChangeKind, Role, State, TunnelView
from tests.service.bus_kit import Client, Door, PrivateBus, connected, door, variant

COMMAND = (sys.executable, "-m", "scistreamd.cli.s2ctl")


@pytest_asyncio.fixture(name="scene")
async def _scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Door]:
    private = PrivateBus(tmp_path)
    await private.start()
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", private.address)
    async with door(private) as made:
        yield made
    await private.stop()


@pytest_asyncio.fixture(name="client")
async def _client(scene: Door) -> AsyncIterator[Client]:
    async with connected(scene.private.address) as made:
        yield made


@pytest.fixture(name="programs")
def _programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory before all others on the PATH."""
    directory = tmp_path / "bin"
    directory.mkdir()
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")
    return directory


def program(directory: Path, name: str, script: str) -> None:
    """A shell script that stands in for a program."""
    (directory / name).write_text(f"#!/bin/sh\n{script}\n")
    (directory / name).chmod(0o755)


@contextlib.asynccontextmanager
async def started(*words: str, **more: Any) -> AsyncIterator[asyncio.subprocess.Process]:
    """s2ctl, ended with the block."""
    process = await asyncio.create_subprocess_exec(
        *COMMAND, *words, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, **more
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def said(*words: str, **more: Any) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of s2ctl."""
    async with started(*words, **more) as process:
        out, err = await process.communicate()
        assert process.returncode is not None
        return process.returncode, out.decode(), err.decode()


async def inbound(client: Client) -> str:
    """A tunnel's id."""
    _, path, _ = await client.manager("CreateInbound", "asa{sv}", ["192.0.2.1:5001"], {})
    return str(path).rpartition("/")[2]


def changed(scene: Door, tunnel_id: str, **values: Any) -> TunnelView:
    return replace(scene.tunnels.view(tunnel_id), **values)


@contextlib.contextmanager
def terminal(columns: int) -> Iterator[tuple[int, int]]:
    """Both ends of a terminal so wide."""
    near, far = pty.openpty()
    subprocess.run(["stty", "cols", str(columns), "rows", "50"], stdin=far, check=True)
    try:
        yield near, far
    finally:
        os.close(near)


async def on_terminal(columns: int, *words: str, **environment: str) -> str:
    """What s2ctl writes on a terminal, whose lines end with carriage returns."""
    with terminal(columns) as (near, far):
        try:
            settings = {**os.environ, "TERM": "xterm", "PAGER": "cat", **environment}
            process = await asyncio.create_subprocess_exec(*COMMAND, *words, stdin=far, stdout=far, env=settings)
        finally:
            os.close(far)
        text = await asyncio.to_thread(drained, near)
        assert await process.wait() == 0
    return text.replace("\r\n", "\n")


def drained(near: int) -> str:
    data = b""
    with contextlib.suppress(OSError):  # EIO: nobody has the other end
        while more := os.read(near, 4096):
            data += more
    return data.decode()


async def test_top_on_a_terminal_until_q(scene: Door, client: Client) -> None:
    """In place on a screen of its own, within its size; afterwards the terminal is as it was."""
    for _ in range(3):
        await inbound(client)
    with terminal(80) as (near, far):
        try:
            before = termios.tcgetattr(far)
            settings = {**os.environ, "TERM": "xterm", "PAGER": "cat"}
            process = await asyncio.create_subprocess_exec(
                *COMMAND, "top", "-d", "0.1", stdin=far, stdout=far, env=settings
            )
            seen = b""
            while seen.count(b"\x1b[H") < 3:
                seen += await asyncio.to_thread(os.read, near, 4096)
            os.write(near, b"q")
            seen += await asyncio.to_thread(os.read, near, 4096)
            assert await process.wait() == 0
            assert termios.tcgetattr(far) == before
        finally:
            os.close(far)
        seen += (await asyncio.to_thread(drained, near)).encode()
    text = seen.decode()
    assert text.startswith("\x1b[?1049h")
    assert text.endswith("\x1b[?1049l")
    screens = text.split("\x1b[H")[1:]
    assert all("3 tunnels, no connections" in each for each in screens)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screens[0])
    assert all(len(line) <= 80 for line in plain.splitlines())


async def test_a_terminal_has_colours_and_a_width(scene: Door, client: Client, programs: Path) -> None:
    tunnel = await inbound(client)
    text = await on_terminal(64, "list")
    assert f"{tunnel}  PROD  \x1b[32mactive\x1b[0m" in text
    assert max(len(line.replace("\x1b[32m", "").replace("\x1b[0m", "")) for line in text.splitlines()[1:]) <= 64
    assert "\x1b" not in await on_terminal(64, "list", NO_COLOR="1")
    assert "\x1b" not in await on_terminal(64, "list", TERM="dumb")
    program(programs, "mypager", 'echo "$1 $LESS"; cat')
    shown = await on_terminal(80, "list", SYSTEMD_PAGER="mypager 'a b'")
    assert shown.startswith("a b FRSXMK\n")
    assert tunnel in shown
    assert not (await on_terminal(80, "list", "--no-pager", SYSTEMD_PAGER="mypager")).startswith("FRSXMK")
    assert tunnel in await on_terminal(80, "list", SYSTEMD_PAGER="/nowhere/pager", PATH="/nowhere")


async def test_list_imports_only_what_it_needs(scene: Door) -> None:
    # What a bare interpreter has, such as namespaces that libraries declare in .pth files, is not ours.
    script = "import sys; bare = set(sys.modules); from scistreamd.cli.s2ctl import main; main(['list']); "
    script += "print(*sys.modules.keys() - bare)"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE)
    out, _ = await process.communicate()
    listed, _, modules = out.decode().rstrip().rpartition("\n")
    assert listed == "No tunnels."
    imported = {name for name in modules.split() if "." not in name or name.startswith("scistreamd.")}
    assert not imported & {"cryptography", "grpclib", "google", "h2", "pyroute2", "tomllib"}
    assert not imported & {f"scistreamd.cli.ctl.{name}" for name in ("changing", "configuration", "events", "journal")}


async def test_over_ssh(scene: Door, client: Client, programs: Path, tmp_path: Path) -> None:
    tunnel = await inbound(client)
    address = os.environ["DBUS_SYSTEM_BUS_ADDRESS"]
    log = tmp_path / "ssh.log"
    program(programs, "ssh", f'echo "$@" >> {log}; shift 3; exec "$@" --bus-path={address}')
    bare = {**os.environ, "DBUS_SYSTEM_BUS_ADDRESS": "unix:path=/nowhere"}
    assert await said("-H", "me@gate", "list", "-q", env=bare) == (0, f"{tunnel}\n", "")
    assert log.read_text() == "-xT -- me@gate systemd-stdio-bridge\n"
    program(programs, "ssh", "echo no route >&2; exit 255")
    status, out, err = await said("-H", "me@gate", "list", env=bare)
    assert (status, out) == (Code.UNAVAILABLE.exit_status, "")
    assert "no route\n" in err
    assert "hint: try again; with -H: does ssh reach that host?" in err


async def test_watch(scene: Door, client: Client) -> None:
    async with started("watch", "--json=short") as process:
        assert process.stdout
        lines: list[Any] = []
        while not lines:  # the first tunnels may come before s2ctl listens
            tunnel = await inbound(client)
            with contextlib.suppress(TimeoutError, asyncio.TimeoutError):
                lines.append(json.loads(await asyncio.wait_for(process.stdout.readline(), 1)))
            if not lines:
                await client.manager("Release", "sa{sv}", tunnel, {})
        scene.tunnels.change(ChangeKind.CHANGED, changed(scene, tunnel, state=State.FAILED, result="no"))
        await client.manager("Release", "sa{sv}", tunnel, {})
        wanted = [each async for each in _until_removed(process.stdout, tunnel)]
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 130
    told = [each for each in [*lines, *wanted] if each["id"] == tunnel]
    assert [each["event"] for each in told] == ["added", "changed", "removed"]
    assert told[0]["properties"]["role"] == "PROD"
    assert told[1]["properties"]["result"] == "no"
    assert all(each["time_usec"] > 0 for each in told)


async def _until_removed(stream: asyncio.StreamReader, tunnel: str) -> AsyncIterator[Any]:
    while True:
        event = json.loads(await stream.readline())
        yield event
        if (event["event"], event["id"]) == ("removed", tunnel):
            return


async def test_wait_until_the_end(scene: Door, client: Client) -> None:
    for fails in (False, True):
        async with started("inbound", "192.0.2.1:1", "--wait", "-q") as process:
            assert process.stdout
            assert process.stderr
            tunnel = (await process.stdout.readline()).decode().strip()
            if fails:
                view = changed(scene, tunnel, state=State.FAILED, result="haproxy crashed")
                scene.tunnels.change(ChangeKind.CHANGED, view)
                assert await process.wait() == Code.FAILED_PRECONDITION.exit_status
                assert f"tunnel {tunnel} failed: haproxy crashed" in (await process.stderr.read()).decode()
            else:
                await client.manager("Release", "sa{sv}", tunnel, {})
                assert await process.wait() == 0


async def test_logs(scene: Door, client: Client, programs: Path) -> None:
    tunnel = await inbound(client)
    matches = f"TUNNEL_ID={tunnel} + UNIT=scistream-{tunnel}.service + UNIT=scistream-{tunnel}.socket"
    program(programs, "journalctl", 'echo "$@"')
    assert await said("logs", tunnel[:5]) == (0, f"--output=short-iso {matches}\n", "")
    assert (await said("logs", tunnel, "-f", "-n", "5"))[1] == f"--output=short-iso --follow --lines=5 {matches}\n"
    # A tunnel that has ended, and no bus at all.
    gone = {**os.environ, "DBUS_SYSTEM_BUS_ADDRESS": "unix:path=/nowhere"}
    assert (await said("logs", tunnel, "--json=short", env=gone))[1] == f"--output=json {matches}\n"
    assert matches in (await said("status", tunnel))[1]
    status, _, err = await said("logs", tunnel, env={**os.environ, "PATH": "/nowhere"})
    assert status == Code.UNAVAILABLE.exit_status
    assert err.startswith("s2ctl: there is no journalctl here\nhint: without a journal")
    program(programs, "journalctl", "echo broken >&2; exit 1")
    assert "(no log lines: broken)" in (await said("status", tunnel))[1]


async def test_any_locale(scene: Door, client: Client) -> None:
    _, path, _ = await client.manager("CreateInbound", "asa{sv}", ["192.0.2.1:1"], {"label": variant("s", "Ströme")})
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii"}
    status, out, err = await said("status", "Ströme", "-n0", env=ascii_only)
    assert (status, err) == (0, "")
    assert out.startswith(f"* {path.rpartition('/')[2]} - Str?me\n")


async def test_configuration(tmp_path: Path) -> None:
    file = tmp_path / "scistreamd.toml"
    file.write_text('port_range = "5100-5110"\n')
    assert await said("config", "check", "--config", str(file)) == (0, "The configuration is valid.\n", "")
    status, out, _ = await said("config", "show", "--config", str(file), "--json=short")
    assert (status, json.loads(out)["port_range"]) == (0, "5100-5110")
    assert 'port_range = "5100-5110"' in (await said("config", "show", "--config", str(file)))[1]
    file.write_text("port_rnge = 1\n")
    status, out, err = await said("config", "check", "--config", str(file))
    assert (status, out) == (Code.INVALID_ARGUMENT.exit_status, "")
    assert "port_rnge" in err


async def test_outbound_keeps_its_role(scene: Door) -> None:
    status, out, _ = await said(
        "outbound", "-", "192.0.2.1:5100", "-q", stdin=_line("1" * 8 + "-2222-4333-8444-555555555555")
    )
    assert status == 0
    (view,) = scene.tunnels.tunnels()
    assert (view.id, view.role) == (out.strip(), Role.CONS)


def _line(text: str) -> int:
    """A pipe with one line in it."""
    reader, writer = os.pipe()
    os.write(writer, f"{text}\n".encode())
    os.close(writer)
    return reader
