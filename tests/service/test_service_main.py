"""scistreamd as a service: sockets, readiness, status, watchdog, reload, idle exit, both ways to stop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import ssl
import sys
import uuid
from pathlib import Path

import grpc
import pytest

from tests.service.gateways import Deployed, application, run, say
from tests.service.service_kit import Daemon, daemon, listener

CONFIG = """
port_range = "27500-27509"
default_type = "Nginx"
[listen]
inbound = "127.0.0.1"
outbound = "127.0.0.1"
"""
ROOT = Path(__file__).parent.parent.parent
OWN_ADDRESS = "SCISTREAMD_TEST_ADDRESS"  # set where the host has this address beside loopback
SCISTREAMD = [sys.executable, "-m", "scistreamd.service_main"]


async def make_tunnel(here: Daemon, target: str = "127.0.0.1:27599") -> str:
    async with here.channel() as channel:
        uid = str(uuid.uuid4())
        [made] = await Deployed(channel).request(uid, "PROD", 1, [target])
        await Deployed(channel).update(uid, [target], "PROD")
        assert made.startswith("127.0.0.1:275")
    return uid


async def release(here: Daemon, uid: str) -> None:
    async with here.channel() as channel:
        await Deployed(channel).release(uid)


async def shown_certificate(here: Daemon) -> str:
    """What the control port shows now."""
    return await asyncio.to_thread(ssl.get_server_certificate, ("127.0.0.1", here.ports[0]))


async def test_a_life(tmp_path: Path) -> None:
    """READY when it serves, the status as it changes, a stream, and an orderly end on SIGTERM."""
    async with daemon(tmp_path, CONFIG) as here, application(b"got ") as target:
        assert here.said[:2] == ["READY=1", "STATUS=0 tunnels, 10 ports free"]
        uid = str(uuid.uuid4())
        async with here.channel() as channel:
            [inner] = await Deployed(channel).request(uid, "PROD", 1, [target])
            await Deployed(channel).update(uid, [target], "PROD")
            await here.until(lambda: here.status == "1 tunnel, 9 ports free")
            assert inner.startswith("127.0.0.1:2750")
            await Deployed(channel).release(uid)
            await here.until(lambda: here.status == "0 tunnels, 10 ports free")
        here.process.send_signal(signal.SIGTERM)
        assert await here.ended() == 0
        assert here.said[-2:] == ["STOPPING=1", "STATUS=stopping"]
        assert not list((tmp_path / "run").iterdir())
        assert uid not in here.log


async def test_it_makes_a_certificate_once_and_says_its_fingerprint(tmp_path: Path) -> None:
    async with daemon(tmp_path, CONFIG) as here:
        first = here.certificate.read_bytes()
        assert here.certificate.with_suffix(".key").stat().st_mode & 0o777 == 0o600
        assert here.certificate.parent.stat().st_mode & 0o777 == 0o700
        status, out, _ = await run(
            Path(sys.executable).parent / "s2ctl", "cert", "show", here.certificate, cwd=tmp_path
        )
        assert status == 0
        fingerprint = next(line.split(": ")[1] for line in out.splitlines() if "sha256" in line)
        assert here.log.count(fingerprint) == 1
        assert (await shown_certificate(here)).encode() == first
    async with daemon(tmp_path, CONFIG) as here:
        assert here.certificate.read_bytes() == first
        assert here.log.count(fingerprint) == 1


async def test_several_sockets_and_callers_that_came_before_it(tmp_path: Path) -> None:
    with listener() as one, listener("::1") as two:
        early = [socket.create_connection(each.getsockname()[:2]) for each in (one, two)]
        async with daemon(tmp_path, CONFIG, listeners=[one, two]) as here:
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            for each in early:
                with await asyncio.to_thread(context.wrap_socket, each) as secured:
                    assert secured.version() == "TLSv1.3"
            for index, host in enumerate(["127.0.0.1", "[::1]"]):
                async with here.channel(index, host) as channel:
                    with pytest.raises(grpc.aio.AioRpcError) as caught:
                        await Deployed(channel).release(str(uuid.uuid4()))
                    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize(
    ("kind", "words"),
    [("none", "passed no socket"), ("datagram", "is no stream socket"), ("unbound", "does not listen"),
     ("another's", "passed no socket")],
)  # fmt: skip
async def test_sockets_that_cannot_be_served(tmp_path: Path, kind: str, words: str) -> None:
    with contextlib.ExitStack() as undo:
        passed = {
            "none": [],
            "datagram": [undo.enter_context(listener(kind=socket.SOCK_DGRAM))],
            "unbound": [undo.enter_context(socket.socket())],
            "another's": [undo.enter_context(listener())],
        }[kind]
        environment = {"TEST_LISTEN_PID": "1"} if kind == "another's" else {}
        async with daemon(tmp_path, CONFIG, listeners=passed, environment=environment, ready=False) as here:
            assert await here.ended() == 9
            assert words in here.log
            assert "READY=1" not in here.said
            assert words in here.status


async def test_the_watchdog_hears_of_a_daemon_that_works_and_not_of_one_that_hangs(tmp_path: Path) -> None:
    async with daemon(tmp_path, CONFIG, environment={"WATCHDOG_USEC": "200000"}) as here:
        await here.until(lambda: here.said.count("WATCHDOG=1") >= 5)
        here.process.send_signal(signal.SIGSTOP)
        heard, before = -1, here.said.count("WATCHDOG=1")
        while heard != before:  # what it said before it was stopped
            await asyncio.sleep(0.3)
            heard, before = before, here.said.count("WATCHDOG=1")
        await asyncio.sleep(0.6)
        assert here.said.count("WATCHDOG=1") == before
        here.process.send_signal(signal.SIGCONT)
        await here.until(lambda: here.said.count("WATCHDOG=1") > before)


async def test_no_watchdog_where_none_was_asked_for(tmp_path: Path) -> None:
    async with daemon(tmp_path, CONFIG, environment={"WATCHDOG_USEC": "0"}) as here:
        await asyncio.sleep(0.3)
        assert "WATCHDOG=1" not in here.said


async def test_reload_takes_up_configuration_and_certificate_and_drops_no_stream(tmp_path: Path) -> None:
    plain = CONFIG + '[security]\ndefault = "none"\nallowed = ["none"]\n'
    async with daemon(tmp_path, plain) as here, application(b"got ") as target:
        uid = await make_tunnel(here, target)
        reader, writer = await asyncio.open_connection("127.0.0.1", 27500)
        before = await shown_certificate(here)
        pair = (tmp_path / "other.crt", tmp_path / "other.key")
        made = await run(
            Path(sys.executable).parent / "s2ctl", "cert", "create", "--ip", "127.0.0.1", "--out", pair[0], "--key",
            pair[1], cwd=tmp_path,
        )  # fmt: skip
        assert made[0] == 0
        drop_in = tmp_path / "etc" / "scistreamd.toml.d"
        drop_in.mkdir()
        (drop_in / "10-certificate.toml").write_text(
            f'control.certificate = "{pair[0]}"\ncontrol.key = "{pair[1]}"\nport_range = "27500-27504"\n'
            "control.limits.streams = 7\n"
        )
        said = len(here.said)
        here.process.send_signal(signal.SIGHUP)
        await here.said_anew("READY=1", said)
        assert here.said[said] == "RELOADING=1"
        assert here.said[said + 1].startswith("MONOTONIC_USEC=")
        assert here.status == "1 tunnel, 4 ports free"
        assert "control.limits.streams has changed: it is taken up by the next start" in here.log
        assert (await shown_certificate(here)).encode() == pair[0].read_bytes() != before.encode()
        writer.write(b"still here\n")
        assert await reader.readline() == b"got still here\n"
        writer.close()
        assert await say("127.0.0.1:27500") == b"got hello\n"
        async with grpc.aio.secure_channel(
            f"127.0.0.1:{here.ports[0]}", grpc.ssl_channel_credentials(pair[0].read_bytes())
        ) as channel:
            await Deployed(channel).release(uid)


async def test_a_reload_with_an_error_changes_nothing(tmp_path: Path) -> None:
    async with daemon(tmp_path, CONFIG) as here:
        uid = await make_tunnel(here)
        for wrong, words in (
            ("prot_range = '1-2'", "prot_range: no such key"),
            ("port_range = 5", "port_range"),
            ("[", "line 1"),
            ("control.certificate = '/nowhere.crt'\ncontrol.key = '/nowhere.key'", "/nowhere.crt does not exist"),
        ):
            here.config.write_text(wrong)
            said = len(here.said)
            here.process.send_signal(signal.SIGHUP)
            await here.said_anew("READY=1", said)
            assert here.status.startswith("1 tunnel, 9 ports free; not reloaded: ")
            assert words in here.status
            assert words in here.log
        await release(here, uid)
        await here.until(lambda: here.status == "0 tunnels, 10 ports free")
        here.config.write_text(CONFIG)
        here.process.send_signal(signal.SIGHUP)
        await here.until(lambda: "reloaded\n" in here.log)


@pytest.mark.parametrize(
    ("config", "status", "words"),
    [
        ("times.helo = 5", 3, ["scistreamd.toml: times.helo: no such key", "did you mean times.hello?"]),
        ("x = ", 3, ["scistreamd.toml", "line 1"]),
        (
            "control.certificate = '/nowhere.crt'\ncontrol.key = '/nowhere.key'",
            9,
            ["scistreamd.toml: control.certificate: server certificate /nowhere.crt does not exist", "make one"],
        ),
        (
            "control.certificate = '/etc/hostname'\ncontrol.key = '/etc//nowhere.key'",
            9,
            ["scistreamd.toml: control.key: server key /etc/nowhere.key does not exist", "make one"],
        ),
        (
            "[auth.oauth2]\nclient_id = 'c'\nclient_secret_file = '/nowhere'",
            9,
            ["scistreamd.toml: auth.oauth2.client_secret_file: cannot read the client secret /nowhere", "check owner"],
        ),
        (
            "auth.tokens.file = '/etc/passwd'",
            3,
            ["scistreamd.toml: auth.tokens.file: /etc/passwd: line 1 is no token's line", "writes this file"],
        ),
    ],
)
async def test_what_it_does_not_start_with(tmp_path: Path, config: str, status: int, words: list[str]) -> None:
    async with daemon(tmp_path, config, ready=False) as here:
        assert await here.ended() == status
        for word in words:
            assert word in here.log
        assert "READY=1" not in here.said
        assert words[0] in here.status
    checked = await run(*SCISTREAMD, "--check-config", "--config", here.config, cwd=tmp_path)
    assert checked[0] == status
    assert not checked[1]
    for word in words:
        assert word in checked[2]


async def test_check_config_prints_what_results(tmp_path: Path) -> None:
    file = tmp_path / "some.toml"
    file.write_text("times.hello = 7\n")
    status, out, err = await run(*SCISTREAMD, "--check-config", f"--config={file}", cwd=tmp_path)
    assert (status, err) == (0, "")
    assert "[times]\nhello = 7\n" in out
    assert await run(*SCISTREAMD, "--check-config", "-q", f"--config={file}", cwd=tmp_path) == (0, "", "")
    file.write_text(out)
    assert (await run(*SCISTREAMD, "--check_config", f"--config={file}", cwd=tmp_path))[1] == out
    missing = await run(*SCISTREAMD, "--check-config", "--config=missing.toml", cwd=tmp_path)
    assert missing[0] == 5
    assert "hint: " in missing[2]


async def test_usage(tmp_path: Path) -> None:
    assert (await run(*SCISTREAMD, "--version", cwd=tmp_path))[:2] == (0, "scistreamd 2.0.0\n")
    assert (await run(*SCISTREAMD, "--conf", cwd=tmp_path))[0] == 2
    status, out, _ = await run(*SCISTREAMD, "--help", cwd=tmp_path)
    assert status == 0
    assert "--check-config" in out


async def test_idle_exit_waits_for_tunnels_and_callers_and_loses_no_call(tmp_path: Path) -> None:
    """The socket stays open elsewhere, as systemd keeps it: who comes at the end waits for the next daemon."""
    with listener() as mine:
        async with daemon(tmp_path, CONFIG, listeners=[mine]) as here:
            here.config.write_text("idle_exit = 0.4\n" + CONFIG)
            uid = await make_tunnel(here)
            here.process.send_signal(signal.SIGHUP)
            await asyncio.sleep(1.5)
            assert here.process.poll() is None
            await release(here, uid)
            assert await here.ended() == 0
            assert here.said[-2:] == ["STOPPING=1", "STATUS=stopping"]
        early = socket.create_connection(mine.getsockname())
        async with daemon(tmp_path, CONFIG, listeners=[mine]):
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            with await asyncio.to_thread(context.wrap_socket, early) as secured:
                assert secured.version() == "TLSv1.3"


async def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    """An update that waits for a host name holds up the orderly end, and not the other."""
    async with daemon(tmp_path, CONFIG) as here, here.channel() as channel:
        await make_tunnel(here)
        uid = str(uuid.uuid4())
        await Deployed(channel).request(uid, "PROD", 1, ["127.0.0.1:27599"])
        os.kill(here.process.pid, signal.SIGSTOP)
        for number in (signal.SIGTERM, signal.SIGINT):
            here.process.send_signal(number)
        here.process.send_signal(signal.SIGCONT)
        assert await here.ended() == 128 + signal.SIGTERM
        assert "ending at once" in here.log
        assert not list((tmp_path / "run").iterdir())


async def test_only_loopback_is_served_until_the_operator_opens_it(tmp_path: Path) -> None:
    """From an address of the host that is not loopback, reached by one too."""
    own = os.environ.get(OWN_ADDRESS)
    if own is None:
        await again_with_an_address("192.0.2.1")  # RFC 5737: nobody's
        return
    with listener("0.0.0.0") as everywhere:
        async with daemon(tmp_path, CONFIG, listeners=[everywhere]) as here:
            credentials = grpc.ssl_channel_credentials(here.certificate.read_bytes())
            async with grpc.aio.secure_channel(f"{own}:{here.ports[0]}", credentials) as channel:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await Deployed(channel).call("req", {1: str(uuid.uuid4()), 2: "PROD", 3: 1})
                assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
                assert "require_auth = false" in (caught.value.details() or "")
                here.config.write_text("require_auth = false\n" + CONFIG)
                here.process.send_signal(signal.SIGHUP)
                await here.until(lambda: "reloaded" in here.log)
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await Deployed(channel).release(str(uuid.uuid4()))
                assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def again_with_an_address(address: str) -> None:
    """Run the calling test in a network namespace that has this address; root or not, nothing of it is left."""
    root = os.geteuid() == 0
    apart = ["unshare", "--net"] if root else ["unshare", "--user", "--map-root-user", "--net"]
    if not root and (await run(*apart, "true", cwd=Path.cwd()))[0]:
        pytest.skip("this kernel lets no ordinary user make a namespace")
    network = f'ip link set lo up && ip address add {address}/32 dev lo && exec env {OWN_ADDRESS}={address} "$@"'
    test = os.environ["PYTEST_CURRENT_TEST"].split()[0]
    inner = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", test]
    status, out, err = await run(*apart, "sh", "-c", network, "sh", *inner, cwd=ROOT)
    assert status == 0, out + err
    assert "1 passed" in out
