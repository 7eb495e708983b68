"""s2uc says what is wrong with a gateway that it cannot reach, understand or believe."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from scistreamd.cli import s2ctl
from tests.service.s2uc_support import FIRST_PORT, SECONDS, Paper, Result, arun, environment, served

UID = "0e9c1b0e-70a9-4c1f-9e56-0f9c9a4e6f11"
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture(name="home")
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _certificate(*names: str, out: str = "server") -> ssl.SSLContext:
    """Make OUT.crt and OUT.key in the working directory, and a server's settings with them."""
    assert s2ctl.main(["cert", "create", f"--out={out}.crt", f"--key={out}.key", "--force", *names]) == 0
    return _server(out)


def _server(out: str, *protocols: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(f"{out}.crt", f"{out}.key")
    context.set_alpn_protocols(list(protocols or ("h2",)))
    return context


@contextlib.asynccontextmanager
async def listening(handler: Handler, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """A server of another kind."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            await handler(reader, writer)
        writer.close()

    for port in range(FIRST_PORT, FIRST_PORT + 1000):
        try:
            server = await asyncio.start_server(serve, "127.0.0.1", port, ssl=tls)
        except OSError:
            continue
        async with server:
            yield port
        return


async def _release(home: Path, port: int, *words: str) -> Result:
    return await arun("release", UID, f"--s2cs=127.0.0.1:{port}", *words, cwd=home)


def _says(result: Result, text: str, hint: str) -> None:
    message, advice = result.err.splitlines()[-2:]
    assert (result.status, result.out) == (14, "")
    assert message.startswith("s2uc: ")
    assert text in message
    assert advice.startswith("hint: ")
    assert hint in advice
    assert UID not in result.err


async def _http1(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(100)
    writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
    await writer.drain()


async def _hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(100)


async def test_nobody_listens(home: Path) -> None:
    _says(await _release(home, FIRST_PORT + 999), "refuses connections", "does s2cs run there?")


async def test_no_such_name(home: Path) -> None:
    result = await arun("release", UID, "--s2cs=nowhere.invalid:5000", cwd=home)
    _says(result, "no address is known for nowhere.invalid", "--s2cs")


async def test_tls_to_a_plaintext_gateway(home: Path) -> None:
    async with served(Paper()) as paper:
        result = await _release(home, paper.port)
    _says(result, "TLS", "--no-tls")


async def test_plaintext_to_a_tls_gateway(home: Path) -> None:
    async with served(Paper(), _certificate("--ip=127.0.0.1")) as paper:
        result = await _release(home, paper.port, "--no-tls")
    _says(result, "ended the connection", "leave --no-tls out")


@pytest.mark.parametrize("handler", [_http1, _hang_up])
@pytest.mark.parametrize("option", ["--no-tls=True", "--no-tls=False"])
async def test_another_kind_of_server(home: Path, handler: Handler, option: str) -> None:
    async with listening(handler) as port:
        result = await _release(home, port, option)
    _says(result, f"127.0.0.1:{port}", "--no-tls")


async def _silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


@pytest.mark.parametrize("option", ["--no-tls=True", "--no-tls=False"])
async def test_a_silent_server_ends_our_patience(home: Path, option: str) -> None:
    async with listening(_silent) as port:
        result = await _release(home, port, option, "--timeout=1")
    assert (result.status, result.out) == (4, "")
    assert result.err == "s2uc: release took more than 1 s\nhint: --timeout allows more\n"


@pytest.mark.parametrize("option", ["--no-tls=True", "--no-tls=False"])
async def test_ctrl_c_while_a_server_is_silent(home: Path, option: str) -> None:
    spoken = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        spoken.set()
        await reader.read()

    async with listening(silent) as port:
        words = ("release", UID, f"--s2cs=127.0.0.1:{port}", option)
        result = await arun(*words, cwd=home, interrupt=spoken.wait)
    assert (result.status, result.out, result.err) == (130, "", "")


_LOOKS_UP_FOR_EVER = """
import socket, sys, threading
def look_up(*_, **__):
    print("looking up", flush=True)
    threading.Event().wait()
socket.getaddrinfo = look_up
from scistreamd.cli.s2uc import main
sys.exit(main())
"""


async def test_ctrl_c_while_a_name_is_looked_up(home: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", "-c", _LOOKS_UP_FOR_EVER, "release", UID, "--s2cs=gateway.example.org"),
        cwd=home,
        env=environment(),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        assert await asyncio.wait_for(process.stdout.readline(), SECONDS) == b"looking up\n"
        process.send_signal(signal.SIGINT)
        out, err = await asyncio.wait_for(process.communicate(), SECONDS)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert (process.returncode, out, err) == (130, b"", b"")


async def test_plaintext_to_another_host_is_told(home: Path) -> None:
    result = await arun("release", UID, "--s2cs=nowhere.invalid", "--no-tls", cwd=home)
    assert result.status == 14
    assert "without TLS everybody on the way reads the UID" in result.err


async def test_tls_without_http2(home: Path) -> None:
    _certificate("--ip=127.0.0.1")
    async with listening(_hang_up, _server("server", "http/1.1")) as port:
        result = await _release(home, port)
    _says(result, "speaks TLS but not HTTP/2", "--s2cs")


async def test_old_tls_is_refused(home: Path) -> None:
    context = _certificate("--ip=127.0.0.1")
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning):
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    async with served(Paper(), context) as paper:
        result = await _release(home, paper.port)
    # Whether the server's alert or its reset comes through first is the server's affair.
    _says(result, f"127.0.0.1:{paper.port}", "")
    assert paper.calls == []


async def test_a_pinned_certificate_may_bear_another_name(home: Path) -> None:
    async with served(Paper(), _certificate("--ip=192.168.30.10", "--dns=gate.example")) as paper:
        result = await _release(home, paper.port)
    assert (result.status, result.out) == (0, "Release completed\n")
    assert result.err == (
        f"s2uc: note: the certificate of 127.0.0.1:{paper.port} names gate.example, 192.168.30.10; "
        "it is accepted because it is exactly one of server.crt\n"
    )


async def test_a_certificate_of_the_tutorial_and_of_the_pinned_ca(home: Path) -> None:
    _make_ca_and_leaf(home)
    async with served(Paper(), _server("leaf")) as paper:
        trusted = await _release(home, paper.port, "--server_cert", "ca.crt")
        # The name does not fit, and the CA's certificate is not the one that is shown.
        other = await arun("release", UID, f"--s2cs=127.0.0.2:{paper.port}", "--server_cert=ca.crt", cwd=home)
    assert (trusted.status, trusted.err) == (0, "")
    assert other.status == 14
    async with served(Paper(), _server("wrong")) as paper:
        wrong = await _release(home, paper.port, "--server-cert=ca.crt")
    _says(wrong, "names another host, and is none of ca.crt", "dial the name")


def _make_ca_and_leaf(home: Path) -> None:
    """A CA of openssl's making, a leaf for 127.0.0.1 and one for another host."""
    new = "openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=ca -keyout ca.key -out ca.crt -days 90"
    _openssl(home, new)
    for name, address in (("leaf", "127.0.0.1"), ("wrong", "192.168.30.10")):
        (home / "ext").write_text(f"subjectAltName=IP:{address}\n")
        _openssl(home, f"openssl req -newkey rsa:2048 -nodes -subj /CN={name} -keyout {name}.key -out {name}.csr")
        sign = f"openssl x509 -req -in {name}.csr -CA ca.crt -CAkey ca.key -CAcreateserial -extfile ext -days 90"
        _openssl(home, f"{sign} -out {name}.crt")


def _openssl(home: Path, line: str) -> None:
    subprocess.run(line.split(), cwd=home, check=True, capture_output=True, env=dict(os.environ))


async def test_an_impostor_of_the_same_name_is_refused(home: Path) -> None:
    _certificate("--ip=127.0.0.1")
    async with served(Paper(), _certificate("--ip=127.0.0.1", out="impostor")) as paper:
        result = await _release(home, paper.port)
    _says(result, "is not trusted by server.crt", "--server-cert FILE")


async def test_without_a_file_the_systems_cas_decide(home: Path) -> None:
    async with served(Paper(), _certificate("--ip=127.0.0.1", out="other")) as paper:
        result = await _release(home, paper.port)
    _says(result, "is not trusted by the system's CAs", "--server-cert FILE")


async def test_a_file_that_is_named_must_be_there(home: Path) -> None:
    result = await _release(home, FIRST_PORT, "--server_cert=server.crt")
    assert (result.status, result.out) == (5, "")
    assert result.err.startswith("s2uc: server certificate server.crt is not there\nhint: ")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\x00",
        b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        b"-----BEGIN CERTIFICATE-----",
    ],
)
async def test_a_file_that_is_no_certificate(home: Path, content: bytes) -> None:
    Path("server.crt").write_bytes(content)
    result = await _release(home, FIRST_PORT)
    assert (result.status, result.out) == (3, "")
    assert "server.crt holds" in result.err
