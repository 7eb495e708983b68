"""The process launcher against real sockets and real children."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import shutil
import signal
import socket
import stat
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from scistreamd import programs
from scistreamd.dataserver import DATA_SERVERS
from scistreamd.errors import Code, ScistreamError
from scistreamd.interfaces import PortsBusy, Told
from scistreamd.model import Endpoint
from scistreamd.plans import Bind, LogSays, Program
from scistreamd.process import ProcessLauncher

LOOPBACK = ipaddress.ip_address("127.0.0.1")
ID = "0123456789ab"

# A data server of a few lines: says ready, answers each connection with the content of its configuration.
ECHO = """
import os, signal, socket, sys
listener = socket.socket(fileno=3)
listener.settimeout(3600)  # it is non-blocking, as inherited sockets may be
config = open(sys.argv[1]).read()
def reload(*_):
    global config
    config = open(sys.argv[1]).read()
    say_ready()
def say_ready():  # not print(): a signal may come in the middle of it
    os.write(1, f"ready {config}\\n".encode())
signal.signal(signal.SIGHUP, reload)
say_ready()
while True:
    connection, _ = listener.accept()
    if config == "die":
        sys.exit("dying as told")
    listen_pid = os.environ["LISTEN_PID"] == str(os.getpid())
    connection.sendall(f"{config} {os.getuid()} {os.environ['LISTEN_FDS']} {listen_pid}".encode())
    connection.close()
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def binds(*ports: int) -> list[Bind]:
    return [Bind(Endpoint(LOOPBACK, port)) for port in ports]


def program(held_config: object, content: str, *, code: str = ECHO, ready: str = "ready") -> Program:
    # A copy of the interpreter's path that the child may use also as another user.
    return Program(
        argv=("python3", "-I", "-S", "-c", code, f"{held_config}/echo.conf"),
        environment={},
        config={"echo.conf": content},
        ready=LogSays(f"{ready} {content}"),
        reload_signal=signal.SIGHUP,
        drain_signal=None,
    )


async def ask(port: int, seconds: float = 60) -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        return (await asyncio.wait_for(reader.read(), seconds)).decode()
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def unexpected(reason: str) -> None:
    raise AssertionError(reason)


never = Told(failed=unexpected, ended=unexpected)


async def test_held_means_held_and_early_connections_wait(runtime: Path) -> None:
    launcher, port = ProcessLauncher(runtime), free_port()
    held = await launcher.hold(ID, binds(port), never)
    for reuse in (0, 1):
        with socket.socket() as rival, pytest.raises(OSError, match="in use"):
            rival.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)
            rival.bind(("0.0.0.0", port))
            rival.listen()
    early = asyncio.create_task(ask(port))
    await asyncio.sleep(0.1)
    assert not early.done()
    await held.serve(program(held.places.config, "first"), {"ca.pem": b"secret"})
    content, uid, fds, listen_pid = (await early).split()
    assert (content, fds, listen_pid) == ("first", "1", "True")
    if os.geteuid() == 0:
        assert 61184 <= int(uid) <= 65519
    secret = Path(held.places.secrets) / "ca.pem"
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert stat.S_IMODE(secret.parent.stat().st_mode) == 0o700
    await held.close()
    assert os.listdir(runtime) == ["lock"]
    await (await launcher.hold(ID, binds(port), never)).close()


async def test_all_or_none(runtime: Path) -> None:
    launcher, one, other = ProcessLauncher(runtime), free_port(), free_port()
    with socket.socket() as rival:
        rival.bind(("127.0.0.1", other))
        rival.listen()
        with pytest.raises(PortsBusy) as caught:
            await launcher.hold(ID, binds(one, other), never)
        assert caught.value.ports == (other,)
    await (await launcher.hold(ID, binds(one, other), never)).close()


async def test_an_address_of_another_host(runtime: Path) -> None:
    foreign = [Bind(Endpoint(ipaddress.ip_address("203.0.113.9"), free_port()))]
    with pytest.raises(ScistreamError, match="not an address of this host") as caught:
        await ProcessLauncher(runtime).hold(ID, foreign, never)
    assert caught.value.code is Code.FAILED_PRECONDITION


async def test_rebind_keeps_what_stays_and_is_whole(runtime: Path) -> None:
    launcher = ProcessLauncher(runtime)
    ports = [free_port() for _ in range(4)]
    held = await launcher.hold(ID, binds(*ports[:2]), never)
    with socket.socket() as rival:
        await held.rebind(binds(ports[2], ports[1]))
        await held.serve(program(held.places.config, "x"), {})
        rival.bind(("127.0.0.1", ports[0]))
        rival.listen()
        with pytest.raises(PortsBusy):
            await held.rebind(binds(ports[3], ports[0]))
    assert (await ask(ports[2])).startswith("x ")
    await held.close()


async def test_retarget_and_restart_with_the_latest(runtime: Path) -> None:
    launcher, port = ProcessLauncher(runtime), free_port()
    held = await launcher.hold(ID, binds(port), never)
    await held.serve(program(held.places.config, "one"), {})
    await held.serve(program(held.places.config, "two"), {})
    assert (await ask(port)).startswith("two ")
    child = held._child
    assert child is not None
    os.kill(child.pid, signal.SIGKILL)
    assert (await ask(port)).startswith("two ")
    assert held._child is not child
    await held.close()


async def test_an_update_while_it_is_started_again(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One data server runs afterwards, not two."""
    monkeypatch.setattr("scistreamd.process_held._RESTART_SECONDS", 0.5)
    launcher, port = ProcessLauncher(runtime), free_port()
    held = await launcher.hold(ID, binds(port), never)
    await held.serve(program(held.places.config, "one"), {})
    assert held._child is not None
    os.kill(held._child.pid, signal.SIGKILL)
    await held._child.wait()
    await asyncio.sleep(0.05)
    await held.serve(program(held.places.config, "two"), {})
    await asyncio.sleep(0.6)
    assert [await ask(port) for _ in range(3)] == [await ask(port)] * 3
    assert (await ask(port)).startswith("two ")
    await held.close()


async def test_a_reload_that_fails_leaves_the_configuration_before(runtime: Path) -> None:
    launcher, port = ProcessLauncher(runtime), free_port()
    held = await launcher.hold(ID, binds(port), never)
    await held.serve(program(held.places.config, "one"), {})
    launcher.start_seconds = 0.5
    with pytest.raises(ScistreamError, match="not ready within"):
        await held.serve(program(held.places.config, "two", ready="never"), {})
    assert (Path(held.places.config) / "echo.conf").read_text() == "one"
    await held.close()


@pytest.mark.parametrize(
    ("code", "reason"),
    [("raise SystemExit('no such directive in line 7')", "no such directive in line 7"), ("pass", "it said nothing")],
)
async def test_one_that_cannot_start_says_why_and_leaves_the_port_held(runtime: Path, code: str, reason: str) -> None:
    launcher, port = ProcessLauncher(runtime), free_port()
    held = await launcher.hold(ID, binds(port), never)
    with pytest.raises(ScistreamError, match=reason) as caught:
        await held.serve(program(held.places.config, "x", code=code), {})
    assert caught.value.code is Code.FAILED_PRECONDITION
    with socket.socket() as rival, pytest.raises(OSError, match="in use"):
        rival.bind(("127.0.0.1", port))
    await held.close()


async def test_a_program_that_is_gone(runtime: Path) -> None:
    held = await ProcessLauncher(runtime).hold(ID, binds(free_port()), never)
    missing = program(held.places.config, "x")
    with pytest.raises(ScistreamError, match="nosuchproxy is not installed"):
        await held.serve(Program(("nosuchproxy",), {}, {}, missing.ready, 1, None), {})
    await held.close()


async def test_one_that_keeps_dying_is_told_of(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scistreamd.process_held._RESTART_SECONDS", 0.01)
    reasons: asyncio.Queue[str] = asyncio.Queue()
    port = free_port()
    held = await ProcessLauncher(runtime).hold(ID, binds(port), Told(reasons.put_nowait, unexpected))
    await held.serve(program(held.places.config, "die"), {})
    while reasons.empty():
        with contextlib.suppress(OSError, asyncio.TimeoutError):
            await ask(port, 0.5)
    assert "dying as told" in await reasons.get()
    await held.close()


async def test_output_is_read_however_much_comes(runtime: Path) -> None:
    chatter = "import time; print('y' * 5_000_000); print('ready x', flush=True); time.sleep(60)"
    held = await ProcessLauncher(runtime).hold(ID, binds(free_port()), never)
    await held.serve(program(held.places.config, "x", code=chatter), {})
    await held.close()


async def test_a_library_is_loaded_from_where_the_data_servers_user_cannot_reach(
    runtime: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as a tree in root's home; and it is loaded into the data server alone."""
    built = programs.library("stunnel_poll")
    assert built, "tests/setup.sh builds it"
    hidden = tmp_path / "hidden"
    hidden.mkdir(mode=0o700)
    shutil.copy(built, hidden / "stunnel_poll.so")
    (hidden / "stunnel_poll.so").chmod(0o600)
    monkeypatch.setattr(programs, "_LIBRARIES", (hidden,))
    tells = "import time; print('loaded', 'memfd:preload' in open('/proc/self/maps').read(), flush=True)"
    launcher = ProcessLauncher(runtime)
    for library, loaded in (("stunnel_poll", True), ("", False)):
        held = await launcher.hold(ID, binds(free_port()), never)
        plain = program(held.places.config, "x", code=tells + "; time.sleep(60)")
        await held.serve(replace(plain, library=library, ready=LogSays(f"loaded {loaded}")), {})
        await held.close()


async def test_what_a_data_server_lacks_is_told(runtime: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launcher = ProcessLauncher(runtime)
    assert [launcher.lacking(server) for server in DATA_SERVERS] == ["", "", ""]
    monkeypatch.setattr(programs, "_LIBRARIES", (tmp_path,))
    lacks = {server.name: launcher.lacking(server) for server in DATA_SERVERS}
    assert lacks.pop("Stunnel").startswith(
        "Stunnel may lose the last kilobytes of a stream: the library stunnel_poll.so"
    )
    assert set(lacks.values()) == {""}


async def test_release_in_the_middle_of_a_start(runtime: Path) -> None:
    slow = "import time; time.sleep(60)"
    held = await ProcessLauncher(runtime).hold(ID, binds(free_port()), never)
    starting = asyncio.create_task(held.serve(program(held.places.config, "x", code=slow), {}))
    await asyncio.sleep(0.2)
    await held.close()
    with pytest.raises(ScistreamError, match=r"released|ended at start"):
        await starting


async def test_children_end_with_the_daemon(runtime: Path) -> None:
    """Also when it is killed and can do nothing about it."""
    code = f"""
import asyncio, ipaddress
from pathlib import Path
from scistreamd.process import ProcessLauncher
from tests.service import test_process as t
async def main():
    held = await ProcessLauncher(Path({str(runtime)!r})).hold(t.ID, t.binds(t.free_port()), t.never)
    await held.serve(t.program(held.places.config, "x"), {{}})
    print(held._child.pid, flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""
    daemon = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE)
    assert daemon.stdout is not None
    child = int(await daemon.stdout.readline())
    daemon.kill()
    await daemon.wait()
    pidfd = os.pidfd_open(child)
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(pidfd, ended.set)
    await asyncio.wait_for(ended.wait(), 60)
    asyncio.get_running_loop().remove_reader(pidfd)
    os.close(pidfd)
    os.waitpid(child, 0)  # ours as its subreaper; it has ended
