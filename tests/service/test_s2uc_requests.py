"""What s2uc sends, prints and gives back, against a gateway in today's manners."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import signal
import stat
import sys
import uuid
from pathlib import Path

import pytest
from grpclib.const import Status

from tests.service.s2uc_support import Paper, arun, command, environment, served

UID = "0e9c1b0e-70a9-4c1f-9e56-0f9c9a4e6f11"
ID = hashlib.sha256(uuid.UUID(UID).bytes).hexdigest()[:12]
TARGET = "192.168.10.11:5100"


def _to(paper: Paper) -> tuple[str, str]:
    return f"--s2cs=127.0.0.1:{paper.port}", "--no-tls"


async def test_inbound_sends_its_options_with_req_alone(tmp_path: Path) -> None:
    async with served(Paper([f"127.0.0.1:{port}" for port in (5100, 5101, 5102)])) as paper:
        words = (
            "inbound-request --remote-ip ::1 --receiver_ports=5001,5002-5003 --rate 2000 --security TLS --type nginx"
        )
        more = "--lifetime=90m --label=Röntgen% --allow-from=192.0.2.0/24,2001:db8::/32 --allow_from 198.51.100.7"
        result = await arun(*words.split(), *more.split(), *_to(paper), cwd=tmp_path)
    assert (result.status, result.err) == (0, "")
    req = paper.one("req")
    assert (req.fields[2], req.fields[3], req.fields[4]) == (["PROD"], [3], [2000])
    assert uuid.UUID(req.fields[1][0]).version == 4
    assert {key: value for key, value in req.metadata.items() if key.startswith(("scistream-", "auth"))} == {
        "authorization": "INVALID_TOKEN",
        "scistream-type": "nginx",
        "scistream-security": "tls",
        "scistream-lifetime": "5400",
        "scistream-label": "R%C3%B6ntgen%25",
        "scistream-allow-from": "192.0.2.0/24,2001:db8::/32,198.51.100.7/32",
        "scistream-rate-policy": "enforce",
    }
    assert paper.one("hello").fields[2] == ["[::1]:5001", "[::1]:5002", "[::1]:5003"]
    for name in ("hello", "update"):
        assert not [key for key in paper.one(name).metadata if key.startswith("scistream-")]
        assert paper.one(name).metadata["authorization"] == "INVALID_TOKEN"


async def test_inbound_defaults_are_the_deployed_ones(tmp_path: Path) -> None:
    async with served(Paper()) as paper:
        result = await arun("inbound-request", *_to(paper), cwd=tmp_path)
    assert result.status == 0
    ports = (5074, 5075, 5076, 37000, 47000)
    assert paper.one("hello").fields[2] == [f"localhost:{port}" for port in ports]
    assert paper.one("req").fields[3] == [5]
    assert paper.one("req").fields[4] == [10000]


async def test_outbound_without_ports_wishes_for_none(tmp_path: Path) -> None:
    async with served(Paper(["10.0.0.1:5100", "10.0.0.1:5101"], targets=[])) as paper:
        words = ("outbound-request", UID, f"{TARGET},[2001:db8::1]:5101", *_to(paper))
        result = await arun(*words, cwd=tmp_path)
    assert (result.status, result.err) == (0, "")
    assert result.lines[1] == f"{UID} 127.0.0.1:{paper.port} INVALID_TOKEN CONS"
    assert result.lines[-1] == "Listeners: ['10.0.0.1:5100', '10.0.0.1:5101']"
    assert paper.one("req").fields[3] == [2]
    assert paper.one("hello").fields == {1: [UID], 3: ["CONS"]}
    assert paper.one("update").fields == {1: [UID], 2: [TARGET, "[2001:db8::1]:5101"], 3: ["CONS"]}


async def test_exact_port_travels_to_the_gateway(tmp_path: Path) -> None:
    async with served(Paper(["10.0.0.1:5100"])) as paper:
        words = ("outbound_request", "--exact-port", UID, TARGET, "--receiver-ports=5100", *_to(paper))
        assert (await arun(*words, cwd=tmp_path)).status == 0
    assert paper.one("req").metadata["scistream-exact-ports"] == "true"


async def test_a_uid_file_keeps_the_uid_from_the_screen(tmp_path: Path) -> None:
    (tmp_path / "uid").write_text("old")
    async with served(Paper()) as paper:
        first = await arun("inbound-request", "--uid-file=uid", *_to(paper), cwd=tmp_path)
        second = await arun("outbound-request", "@uid", TARGET, *_to(paper), cwd=tmp_path)
    kept = (tmp_path / "uid").read_text()
    assert stat.S_IMODE((tmp_path / "uid").stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["uid"]
    uid = uuid.UUID(kept.strip())
    assert {call.fields[1][0] for call in paper.calls} == {str(uid)}
    for result in (first, second):
        assert result.status == 0
        assert str(uid) not in result.out + result.err
        assert result.lines[1].startswith(hashlib.sha256(uid.bytes).hexdigest()[:12] + " ")


async def test_a_uid_file_stays_as_it_was_when_the_request_fails(tmp_path: Path) -> None:
    refuse = {"req": (Status.RESOURCE_EXHAUSTED, "no free port in 5100-5200 (release a tunnel)")}
    (tmp_path / "uid").write_text(UID)
    async with served(Paper(refuse=refuse)) as paper:
        result = await arun("inbound-request", "--uid-file=uid", *_to(paper), cwd=tmp_path)
        await arun("prod-req", "--uid-file=other", *_to(paper), cwd=tmp_path)
    assert result.status == 8
    assert result.err == "s2uc: no free port in 5100-5200 (release a tunnel)\n"
    # Without it the tunnel before could not be released.
    assert (tmp_path / "uid").read_text() == UID
    assert os.listdir(tmp_path) == ["uid"]


async def test_a_uid_file_that_cannot_be_written_is_told_before_anything_is_asked(tmp_path: Path) -> None:
    async with served(Paper()) as paper:
        result = await arun("inbound-request", "--uid-file=absent/uid", *_to(paper), cwd=tmp_path)
    assert (result.status, result.out, paper.calls) == (9, "", [])
    assert "cannot write" in result.err


async def test_json_is_one_object(tmp_path: Path) -> None:
    async with served(Paper()) as paper:
        result = await arun("outbound-request", UID, TARGET, "--json", *_to(paper), cwd=tmp_path)
    assert json.loads(result.out) == {
        "uid": UID,
        "id": ID,
        "role": "CONS",
        "s2cs": f"127.0.0.1:{paper.port}",
        "listeners": ["127.0.0.1:5100"],
        "targets": [TARGET],
    }


async def test_a_refused_hello_cancels_the_req(tmp_path: Path) -> None:
    async with served(Paper(refuse={"hello": (Status.PERMISSION_DENIED, "target is loopback")})) as paper:
        words = ("outbound-request", UID, TARGET, *_to(paper))
        result = await arun(*words, cwd=tmp_path)
    assert result.status == 7
    assert result.err == "s2uc: target is loopback\n"
    assert "Hello message sent" not in result.out
    assert paper.cancelled == ["req"]
    # The tunnel of a UID that was given may be another's: only what this run made is released.
    assert "release" not in paper.names


async def test_a_failed_update_releases_the_tunnel(tmp_path: Path) -> None:
    reason = f"haproxy did not start for {UID}"
    async with served(Paper(refuse={"update": (Status.FAILED_PRECONDITION, reason)})) as paper:
        result = await arun("inbound-request", "--receiver-ports=5001", *_to(paper), cwd=tmp_path)
    assert result.status == 9
    assert result.err == ("s2uc: note: the tunnel was released again\ns2uc: haproxy did not start for <uid>\n")
    assert "Listeners" not in result.out
    assert paper.names[-1] == "release"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_a_signal_gives_everything_back(tmp_path: Path, number: int) -> None:
    async with served(Paper()) as paper:
        result = await arun("prod-req", *_to(paper), cwd=tmp_path, interrupt=paper.waiting.wait, number=number)
    assert result.status == 128 + number
    assert result.lines[-1] == "waiting for hello message"
    assert result.err == "s2uc: note: the tunnel was released again\n"
    assert paper.cancelled == ["req"]
    assert paper.names == ["req", "release"]


async def test_a_signal_tells_that_the_gateway_has_forgotten_the_request(tmp_path: Path) -> None:
    async with served(Paper(refuse={"release": (Status.NOT_FOUND, "uid: no such tunnel")})) as paper:
        result = await arun("prod-req", *_to(paper), cwd=tmp_path, interrupt=paper.waiting.wait)
    assert (result.status, result.err) == (130, "s2uc: note: the request was withdrawn\n")
    assert paper.names == ["req", "release"]


async def test_a_signal_releases_no_tunnel_that_may_be_anothers(tmp_path: Path) -> None:
    async with served(Paper(silent={"hello"})) as paper:
        words = ("outbound-request", UID, TARGET, *_to(paper))
        result = await arun(*words, cwd=tmp_path, interrupt=paper.waiting.wait)
    assert (result.status, result.err) == (130, "s2uc: note: the request was withdrawn\n")
    assert "release" not in paper.names


async def test_a_signal_that_comes_twice_leaves_no_less_behind(tmp_path: Path) -> None:
    """As Ctrl-C does behind a program that passes it on."""
    async with served(Paper(silent={"release"})) as paper:
        process = await asyncio.create_subprocess_exec(
            *command("prod-req", *_to(paper)), cwd=tmp_path, env=environment(), stderr=asyncio.subprocess.PIPE
        )
        try:
            await asyncio.wait_for(paper.waiting.wait(), 30)
            process.send_signal(signal.SIGINT)
            await asyncio.wait_for(paper.releasing.wait(), 30)
            process.send_signal(signal.SIGINT)
            # A release that is given up at once would have been cancelled by now.
            await asyncio.sleep(0.2)
            assert paper.cancelled == ["req"]
            paper.answering.set()
            _, err = await asyncio.wait_for(process.communicate(), 30)
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    assert (process.returncode, err) == (130, b"s2uc: note: the tunnel was released again\n")


async def test_prod_req_and_hello_meet(tmp_path: Path) -> None:
    async with served(Paper()) as paper:
        process = await asyncio.create_subprocess_exec(
            *command("prod_req", *_to(paper)), cwd=tmp_path, env=environment(), stdout=asyncio.subprocess.PIPE
        )
        try:
            assert process.stdout is not None
            assert await process.stdout.readline() == b"uid; s2cs; access_token; role\n"
            uid = (await process.stdout.readline()).split()[0].decode()
            words = ("hello", uid, "--remote_ip", "192.0.2.7", "--receiver_ports", "5001", *_to(paper))
            hello = await arun(*words, cwd=tmp_path)
            rest, _ = await asyncio.wait_for(process.communicate(), 30)
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    assert hello.lines == [
        "sending for hello message",
        "Hello message sent successfully",
        "Listeners: ['127.0.0.1:5100']",
    ]
    assert process.returncode == 0
    assert rest.decode().splitlines()[-1] == "Listeners: ['127.0.0.1:5100']"
    assert paper.one("update").fields[2] == ["192.0.2.7:5001"]


async def test_uid_from_stdin(tmp_path: Path) -> None:
    async with served(Paper()) as paper:
        process = await asyncio.create_subprocess_exec(
            *command("release", "-", *_to(paper)),
            cwd=tmp_path,
            env=environment(),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        out, _ = await asyncio.wait_for(process.communicate(UID.replace("-", "").encode() + b"\n"), 30)
    assert (process.returncode, out) == (0, b"Release completed\n")
    assert paper.one("release").fields == {1: [UID]}


async def test_patience_ends(tmp_path: Path) -> None:
    async with served(Paper()) as paper:
        result = await arun("prod-req", "--timeout=1", *_to(paper), cwd=tmp_path)
    assert result.status == 4
    assert result.err.splitlines()[-2:] == [
        "s2uc: the request took more than 1 s",
        "hint: --timeout allows more",
    ]
    assert paper.names == ["req", "release"]


async def test_help_loads_no_network_library(tmp_path: Path) -> None:
    code = (
        "import sys; from scistreamd.cli import s2uc\n"
        "assert s2uc.main(['--help']) == 0\n"
        "assert not {'grpclib', 'google.protobuf', 'asyncio', 'ssl', 'cryptography'} & set(sys.modules)\n"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=asyncio.subprocess.DEVNULL)
    assert await process.wait() == 0


async def test_a_result_that_cannot_be_told_is_given_back(tmp_path: Path) -> None:
    async with served(Paper()) as paper:
        with open("/dev/full", "wb") as full:
            process = await asyncio.create_subprocess_exec(
                *command("outbound-request", "--json", UID, TARGET, *_to(paper)),
                cwd=tmp_path,
                env=environment(),
                stdout=full,
                stderr=asyncio.subprocess.PIPE,
            )
        _, err = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 9
    assert b"cannot write the result: No space left on device" in err
    assert paper.names[-1] == "release"


async def _shell(redirection: str, *words: str, cwd: Path) -> tuple[int | None, bytes]:
    """Run s2uc from a shell with this redirection; its status, and what it wrote where it still could."""
    line = f'exec "$@" {redirection}'
    process = await asyncio.create_subprocess_exec(
        *("sh", "-c", line, "sh", *command(*words)),
        cwd=cwd,
        env=environment(),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await asyncio.wait_for(process.communicate(), 30)
    return process.returncode, out


async def test_with_standard_output_closed_no_tunnel_is_made(tmp_path: Path) -> None:
    async with served(Paper()) as paper:
        words = ("inbound-request", "--receiver-ports=5001", *_to(paper))
        assert await _shell(">&-", *words, cwd=tmp_path) == (
            9,
            b"s2uc: cannot write the result: standard output is closed\n",
        )
    assert paper.names == []


async def test_with_standard_error_closed_the_result_stays_as_it_is(tmp_path: Path) -> None:
    async with served(Paper()) as paper:
        words = ("inbound-request", "--mock", "--receiver-ports=5001", *_to(paper))
        status, out = await _shell("2>&-", *words, cwd=tmp_path)
    assert (status, out.splitlines()[0]) == (0, b"uid; s2cs; access_token; role")
    assert b"note" not in out
