"""testssl.sh against the control port and against a tunnel of each data server type: no finding above LOW.

`make test` runs the checks of QUICK, which take seconds; `make testssl` (TESTSSL=whole) runs all there are.
"""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import json
import os
import ssl
import subprocess
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from scistreamd.control.tls import server_context
from scistreamd.controlcert import ensure
from scistreamd.keys import TunnelKeys
from scistreamd.model import Role, Security, Uid
from scistreamd.plans import CA_FILE, LEAF_FILE
from scistreamd.process import ProcessLauncher
from tests.service.control_kit import bound, control_port
from tests.service.dataplane_kit import TYPES, Field, echo, field

WHOLE = os.environ.get("TESTSSL") == "whole"
# A tunnel has no cipher but those of TLS 1.3; the control port's are tried by category.
QUICK = ["--protocols"]
ABOVE_LOW = {"MEDIUM", "HIGH", "CRITICAL", "FATAL"}
# What the whole scan finds above LOW, no more and no less, and why nothing is done about it: docs/security.md.
OF_TUNNELS = {"cert_revocation", "cert_validityPeriod"}
OF_SELF_SIGNED = {"cert_chain_of_trust", "cert_revocation"}


async def scan(directory: Path, where: str, *words: str) -> dict[str, tuple[str, str]]:
    """What testssl.sh finds: id to severity and text."""
    out = directory / "found.json"
    argv = ["--warnings", "off", "--quiet", "--color", "0", "--nodns", "min", "--jsonfile", str(out), *words]
    process = await asyncio.create_subprocess_exec(
        "testssl",
        *argv,
        *([] if WHOLE else QUICK),
        where,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    found = {each["id"]: (each["severity"], each["finding"]) for each in json.loads(out.read_text())}
    assert "scanProblem" not in found, said.decode()
    return found


def bad(found: dict[str, tuple[str, str]]) -> dict[str, tuple[str, str]]:
    """What is above LOW."""
    return {name: what for name, what in found.items() if what[0] in ABOVE_LOW}


def issued(directory: Path) -> tuple[Path, Path, Path]:
    """A CA of an operator, and a certificate and key for 127.0.0.1 under it, as PEM files."""
    now = datetime.datetime.now(datetime.timezone.utc)
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    names = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]) for name in ("An Operator's CA", "localhost")]
    made = []
    for index in range(2):
        builder = x509.CertificateBuilder(
            names[0], names[index], keys[index].public_key(), x509.random_serial_number(),
            now - datetime.timedelta(hours=1), now + datetime.timedelta(days=90),
        ).add_extension(x509.BasicConstraints(index == 0, None), True)  # fmt: skip
        if index:
            alternatives = [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("localhost")]
            points = [x509.DistributionPoint([x509.UniformResourceIdentifier("http://crl.invalid/crl")], *[None] * 3)]
            builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), False)
            builder = builder.add_extension(x509.CRLDistributionPoints(points), False)
        made.append(builder.sign(keys[0], hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    paths = directory / "ca.pem", directory / "server.crt", directory / "server.key"
    plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    contents = *made, keys[1].private_bytes(serialization.Encoding.PEM, *plain)
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    return paths


@pytest.mark.parametrize("own", [False, True] if WHOLE else [False], ids=["of a CA", "self-signed"][: 1 + WHOLE])
async def test_the_control_port(tmp_path: Path, own: bool) -> None:
    ca, certificate, key = issued(tmp_path)
    if own:
        certificate, key = ensure(tmp_path / "control")
    async with control_port(server_context(certificate, key)) as port:
        found = await scan(tmp_path, port.address, "--add-ca", str(ca), *([] if WHOLE else ["--std"]))
    assert bad(found).keys() == (OF_SELF_SIGNED if own else set())
    # Deployed clients are grpcio, old ones with TLS 1.2.
    assert {found["TLS1_2"][1], found["TLS1_3"][1]} <= {"offered", "offered with final"}
    assert found["TLS1_1"][1] == "not offered"


def with_certificate(directory: Path, uid: Uid) -> list[str]:
    """Options by which testssl.sh shows the certificate that the listener wants, and knows its CA."""
    for name, content in TunnelKeys().files(uid, Role.CONS, Security.TLS).items():
        (directory / name).write_bytes(content)
    wrapper = directory / "openssl"
    shown = f'case $1 in s_client) shift; exec /usr/bin/openssl s_client -cert {directory / LEAF_FILE} "$@";; esac'
    wrapper.write_text(f'#!/bin/sh\n{shown}\nexec /usr/bin/openssl "$@"\n')
    wrapper.chmod(0o755)
    return ["--openssl", str(wrapper), "--add-ca", str(directory / CA_FILE)]


async def test_a_tunnel_of_each_type(tmp_path: Path, runtime: Path) -> None:
    async with field(ProcessLauncher(runtime)) as scene:
        await asyncio.gather(*(_check(scene, tmp_path / kind, kind) for kind in TYPES))


async def _check(scene: Field, home: Path, kind: str) -> None:
    home.mkdir()
    uid, target = Uid.random(), await scene.application(echo)
    gateway = await scene.gateway(kind, Role.PROD, target, uid=uid)
    found = await scan(home, str(gateway.listeners[0]), *with_certificate(home, uid))
    assert bad(found).keys() == (OF_TUNNELS if WHOLE else set()), kind
    assert found["TLS1_3"][1] in {"offered", "offered with final"}, kind
    assert found["TLS1_2"][1] == found["TLS1_1"][1] == "not offered", kind


async def test_the_scan_finds_a_weak_server(tmp_path: Path) -> None:
    """Else it would prove nothing."""
    _, certificate, key = issued(tmp_path)
    weak = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    weak.load_cert_chain(certificate, key)
    weak.maximum_version = ssl.TLSVersion.TLSv1_2
    weak.set_ciphers("NULL:AES128-SHA:ECDHE-ECDSA-AES128-SHA:@SECLEVEL=0")

    async def close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    listener = bound()
    server = await asyncio.start_server(close, sock=listener, ssl=weak)
    async with server:
        found = await scan(tmp_path, f"127.0.0.1:{listener.getsockname()[1]}", *([] if WHOLE else ["--std"]))
    assert "cipherlist_NULL" in bad(found)
