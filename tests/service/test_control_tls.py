"""The control port over TLS: versions, ALPN, stuck handshakes, another certificate while it runs, bad files."""

from __future__ import annotations

import asyncio
import datetime
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from cryptography import x509

from scistreamd import validity
from scistreamd.control.tls import server_context
from scistreamd.controlcert import ensure
from scistreamd.errors import Code, ScistreamError

from .control_kit import Port, Raw, control_port, framed, new_uid, release, request, still_serves, until


def make(directory: Path, name: str) -> tuple[Path, Path]:
    """A certificate for localhost and its key, as the tutorial's openssl lines make them."""
    certificate, key = directory / f"{name}.crt", directory / f"{name}.key"
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    names = ["-subj", f"/CN={name}", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    subprocess.run(
        ["openssl", "req", "-x509", *curve, *names, "-out", certificate, "-keyout", key],
        check=True,
        capture_output=True,
    )
    return certificate, key


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make(tmp_path_factory.mktemp("control"), "server")


def client(certificate: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=certificate)
    context.set_alpn_protocols(["h2"])
    return context


@asynccontextmanager
async def tls_port(pair: tuple[Path, Path], **limits: Any) -> AsyncIterator[Port]:
    async with control_port(server_context(*pair), **limits) as port:
        yield port


def test_one_that_is_made_by_itself_is_valid_as_long_as_scanners_find_right(tmp_path: Path) -> None:
    made = x509.load_pem_x509_certificate(ensure(tmp_path)[0].read_bytes())
    whole = validity.ends(made) - validity.begins(made)
    assert datetime.timedelta(days=700) < whole <= datetime.timedelta(days=825)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_both_versions_with_alpn(pair: tuple[Path, Path], version: ssl.TLSVersion) -> None:
    context = client(pair[0])
    context.minimum_version = context.maximum_version = version
    async with tls_port(pair) as port, Raw.to(port, context) as raw:
        assert (await raw.exchange("/scistream.Control/release", release(new_uid())))[0] == 0
        tls: ssl.SSLObject = raw.writer.get_extra_info("ssl_object")
        assert tls.selected_alpn_protocol() == "h2"
        assert tls.compression() is None


async def test_older_versions_are_refused(pair: tuple[Path, Path]) -> None:
    context = client(pair[0])
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning):
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    async with tls_port(pair) as port:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            async with Raw.to(port, context):
                pass
        await still_serves(port, client(pair[0]))


async def test_grpcio_with_the_certificate_as_its_root(pair: tuple[Path, Path]) -> None:
    credentials = grpc.ssl_channel_credentials(pair[0].read_bytes())
    async with (
        control_port(server_context(*pair), foreign=True) as port,
        grpc.aio.secure_channel(port.address, credentials) as channel,
    ):
        method = channel.unary_unary("/scistream.Control/release")
        assert await method(release(new_uid()), metadata=(("authorization", "INVALID_TOKEN"),)) == b""


@pytest.mark.parametrize("says", [b"", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc"], ids=["silence", "half a hello"])
async def test_a_stuck_handshake_costs_one_socket_and_times_out(pair: tuple[Path, Path], says: bytes) -> None:
    async with tls_port(pair, handshake_seconds=2) as port:
        reader, writer = await asyncio.open_connection(port.host, port.number)
        writer.write(says)
        await until(lambda: port.server.connections == 1)
        await still_serves(port, client(pair[0]))
        assert await _end_of(reader)
        await until(lambda: port.server.connections == 0)
        writer.transport.abort()


async def test_plaintext_on_the_tls_port_is_closed(pair: tuple[Path, Path]) -> None:
    async with tls_port(pair) as port:
        reader, writer = await asyncio.open_connection(port.host, port.number)
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        assert await _end_of(reader)
        writer.transport.abort()
        await until(lambda: port.server.connections == 0)
        await still_serves(port, client(pair[0]))


async def test_tls_without_http2_is_closed(pair: tuple[Path, Path]) -> None:
    async with tls_port(pair, first_request_seconds=0.4) as port, Raw.to(port, client(pair[0]), preface=False) as raw:
        assert await _end_of(raw.reader)
        await until(lambda: port.server.connections == 0)


async def test_stuck_handshakes_count_as_connections(pair: tuple[Path, Path]) -> None:
    async with tls_port(pair, connections_per_peer=2) as port:
        peers = [await asyncio.open_connection(port.host, port.number) for _ in range(3)]
        await until(lambda: port.server.connections == 2)
        assert await _end_of(peers[2][0])
        for _, writer in peers:
            writer.transport.abort()
        await until(lambda: port.server.connections == 0)


async def test_dropped_tcp_under_tls_frees_the_ports(pair: tuple[Path, Path]) -> None:
    async with tls_port(pair) as port, Raw.to(port, client(pair[0])) as raw:
        raw.send(raw.call("/scistream.Control/req"), framed(request(new_uid())))
        await until(lambda: len(port.bench.waiting) == 1)
        raw.writer.transport.abort()
        await until(lambda: len(port.bench.freed) == 1)


async def test_another_certificate_for_new_connections(pair: tuple[Path, Path], tmp_path: Path) -> None:
    other = make(tmp_path, "other")
    async with tls_port(pair) as port, Raw.to(port, client(pair[0])) as old:
        port.server.replace_context(server_context(*other))
        await still_serves(port, client(other[0]))
        assert (await old.exchange("/scistream.Control/release", release(new_uid())))[0] == 0
        with pytest.raises(ssl.SSLCertVerificationError):
            await still_serves(port, client(pair[0]))


async def _end_of(reader: asyncio.StreamReader) -> bool:
    try:
        while await reader.read(65536):
            pass
    except (ConnectionError, ssl.SSLError):
        return True
    return True


def test_what_is_wrong_with_the_files_is_told(pair: tuple[Path, Path], tmp_path: Path) -> None:
    certificate, key = pair
    missing, junk, locked = tmp_path / "none.crt", tmp_path / "junk.crt", tmp_path / "locked.key"
    junk.write_text("no certificate")
    subprocess.run(
        ["openssl", "pkey", "-in", key, "-aes256", "-passout", "pass:x", "-out", locked],
        check=True,
        capture_output=True,
    )
    other = make(tmp_path, "other")[1]
    for files, message, hint in [
        ((missing, key), "none.crt does not exist", "s2ctl cert create --ip ADDRESS"),
        ((certificate, missing), "none.crt does not exist", "s2ctl cert create --ip ADDRESS"),
        ((certificate, other), "is not the key of", "s2ctl cert create"),
        ((junk, key), "no PEM certificate and key", "s2ctl cert create"),
        ((certificate, locked), "is encrypted", "without a passphrase"),
        ((tmp_path, key), "cannot be read", "owner and mode"),
    ]:
        with pytest.raises(ScistreamError) as caught:
            server_context(*files)
        assert caught.value.code is Code.FAILED_PRECONDITION
        assert message in caught.value.message and hint in caught.value.hint
