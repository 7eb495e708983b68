"""Who must be refused, and what a tap on the hop sees."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Mapping
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from scistreamd import keys
from scistreamd.dataserver.common import CERTIFICATE_NAME
from scistreamd.keys import TunnelKeys
from scistreamd.model import Endpoint, Role, Security, Uid
from scistreamd.plans import LEAF_FILE
from tests.service.dataplane_kit import CHUNK, Field, Handler, connected


def context(directory: Path, files: Mapping[str, bytes] | None, *, server: bool = False) -> ssl.SSLContext:
    """A TLS context with this leaf; as a client it believes every server, so that a refusal is the server's."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname = False
    made.verify_mode = ssl.CERT_NONE
    if files is not None:
        leaf = directory / LEAF_FILE
        leaf.write_bytes(files[LEAF_FILE])
        made.load_cert_chain(leaf)
    return made


def _leaf(uid: Uid, *, usage: Role, name: Role) -> dict[str, bytes]:
    """A leaf under the tunnel's own CA with the key usage of one role and the name of the other."""
    key, issuer = ec.generate_private_key(ec.SECP256R1()), keys.ca_key(uid)
    pattern = keys.leaf_certificate(usage, key, issuer)
    called = CERTIFICATE_NAME[name]
    made = x509.CertificateBuilder(
        issuer_name=pattern.issuer,
        subject_name=x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, called)]),
        public_key=key.public_key(),
        serial_number=x509.random_serial_number(),
        not_valid_before=keys.NOT_BEFORE,
        not_valid_after=keys.NOT_AFTER,
    ).add_extension(x509.SubjectAlternativeName([x509.DNSName(called)]), critical=False)
    for extension in pattern.extensions:
        if not isinstance(extension.value, x509.SubjectAlternativeName):
            made = made.add_extension(extension.value, extension.critical)
    pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    private = key.private_bytes(pem, form, serialization.NoEncryption())
    return {LEAF_FILE: made.sign(issuer, hashes.SHA256()).public_bytes(pem) + private}


def strangers(directory: Path, uid: Uid) -> dict[str, ssl.SSLContext]:
    """Clients whom the inbound gateway of ``uid`` must refuse."""
    ours = TunnelKeys().files(uid, Role.CONS, Security.TLS)
    old = context(directory, ours)
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    return {
        "no certificate": context(directory, None),
        "a certificate of another tunnel": context(
            directory, TunnelKeys().files(Uid.random(), Role.CONS, Security.TLS)
        ),
        "a reflected certificate": context(directory, TunnelKeys().files(uid, Role.PROD, Security.TLS)),
        "a server's certificate in a client's name": context(directory, _leaf(uid, usage=Role.PROD, name=Role.CONS)),
        "TLS 1.2": old,
    }


async def refusal(to: Endpoint, client: ssl.SSLContext) -> str:
    """How a TLS client is refused; an empty string where it gets an answer.

    In TLS 1.3 the client has finished before the server judges it: the alert
    comes with the first read (RFC 8446 4.4.2.4), from nginx a mere end.
    """
    writer = None
    try:
        reader, writer = await asyncio.open_connection(str(to.address), to.port, ssl=client)
        writer.write(b"let me in")
        await writer.drain()
        return "" if await reader.read(CHUNK) else "end of stream"
    except (ssl.SSLError, ConnectionError) as refused:
        return str(refused) or type(refused).__name__
    finally:
        if writer is not None:
            writer.transport.abort()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


class FalseGateway:
    """A TLS server in the place of the inbound gateway: what it gets to read it keeps."""

    def __init__(self) -> None:
        self.connections = 0
        self.read = b""

    async def start(self, scene: Field, tls: ssl.SSLContext) -> Endpoint:
        return await scene.application(self._take_tls(tls))

    def _take_tls(self, tls: ssl.SSLContext) -> Handler:
        async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.connections += 1
            incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            server = tls.wrap_bio(incoming, outgoing, server_side=True)
            while data := await reader.read(CHUNK):
                incoming.write(data)
                with contextlib.suppress(ssl.SSLWantReadError, ssl.SSLError):
                    server.do_handshake()
                    self.read += server.read(CHUNK)
                writer.write(outgoing.read())
                await writer.drain()
                if self.read:
                    return

        return take


def false_gateways(directory: Path, uid: Uid) -> dict[str, ssl.SSLContext]:
    """Servers whom the outbound gateway of ``uid`` must refuse."""
    made = {
        "another tunnel": context(directory, TunnelKeys().files(Uid.random(), Role.PROD, Security.TLS), server=True),
        "a reflected certificate": context(directory, TunnelKeys().files(uid, Role.CONS, Security.TLS), server=True),
        "another name": context(directory, _leaf(uid, usage=Role.PROD, name=Role.CONS), server=True),
        "a client's certificate in a server's name": context(
            directory, _leaf(uid, usage=Role.CONS, name=Role.PROD), server=True
        ),
        "TLS 1.2": context(directory, TunnelKeys().files(uid, Role.PROD, Security.TLS), server=True),
    }
    made["TLS 1.2"].maximum_version = ssl.TLSVersion.TLSv1_2
    return made


class Tap:
    """A relay on the hop between the gateways that keeps all that passes."""

    def __init__(self, after: float = 0) -> None:
        """``after``: seconds that a connection waits for its way onward."""
        self._after = after
        self._relays: set[asyncio.Task[None]] = set()
        self.upward = b""
        self.downward = b""

    async def start(self, scene: Field, onward: Endpoint) -> Endpoint:
        async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._relays.add(task)
            await asyncio.sleep(self._after)
            async with connected(onward) as (inner_reader, inner_writer):
                tasks = [
                    asyncio.create_task(self._copy(reader, inner_writer, "upward")),
                    asyncio.create_task(self._copy(inner_reader, writer, "downward")),
                ]
                await asyncio.gather(*tasks)

        return await scene.application(relay)

    async def ended(self) -> None:
        """Return when all connections so far have ended."""
        await asyncio.gather(*self._relays, return_exceptions=True)

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: str) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(CHUNK):
                setattr(self, way, getattr(self, way) + data)
                writer.write(data)
                await writer.drain()
            writer.write_eof()

    def agreed(self) -> tuple[int, int]:
        """Version and cipher suite as the ServerHello on the wire has them (RFC 8446 4.1.3, RFC 5246 7.4.1.3)."""
        hello = self.downward
        assert hello[0] == 22, "not a handshake record"
        assert hello[5] == 2, "not a ServerHello"
        at = 9 + 2 + 32
        at += 1 + hello[at]
        suite = int.from_bytes(hello[at : at + 2], "big")
        version = int.from_bytes(hello[9:11], "big")
        at += 3
        end = at + 2 + int.from_bytes(hello[at : at + 2], "big")
        at += 2
        while at < end:
            kind, length = int.from_bytes(hello[at : at + 2], "big"), int.from_bytes(hello[at + 2 : at + 4], "big")
            if kind == 43:  # supported_versions
                version = int.from_bytes(hello[at + 4 : at + 6], "big")
            at += 4 + length
        return version, suite


def records(stream: bytes) -> list[int]:
    """The lengths of the TLS records of application data in one direction of a connection (RFC 8446 5.1)."""
    found, at = [], 0
    while at + 5 <= len(stream):
        length = int.from_bytes(stream[at + 3 : at + 5], "big")
        if stream[at] == 23:
            found.append(length)
        at += 5 + length
    return found
