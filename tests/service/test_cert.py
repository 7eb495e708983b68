"""`s2ctl cert`: what it makes is what openssl, Python and grpcio take, and what it says is what openssl says."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import re
import socket
import ssl
import stat
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from scistreamd.cli import s2ctl

FIRST_PORT = 24100
NAMES = ("--ip", "127.0.0.1", "--ip", "2001:db8::5", "--dns", "Gate.Example", "--dns=*.example.org")


@pytest.fixture(name="home", autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _openssl(*words: str) -> str:
    return subprocess.run(["openssl", *words], check=True, capture_output=True, text=True).stdout


def _create(*words: str) -> int:
    return s2ctl.main(["cert", "create", *words])


def test_openssl_reads_what_was_asked_for() -> None:
    assert _create(*NAMES, "--days", "30") == 0
    text = _openssl("x509", "-in", "server.crt", "-noout", "-text")
    squeezed = re.sub(r"\s+", " ", text)
    for part in (
        "DNS:gate.example, DNS:*.example.org, IP Address:127.0.0.1, IP Address:2001:DB8:0:0:0:0:0:5",
        "X509v3 Basic Constraints: critical CA:FALSE",
        "X509v3 Key Usage: critical Digital Signature",
        "X509v3 Extended Key Usage: TLS Web Server Authentication",
        "NIST CURVE: P-256",
        "Signature Algorithm: ecdsa-with-SHA256",
        "Subject: CN = gate.example",
    ):
        assert part in squeezed
    assert _openssl("verify", "-x509_strict", "-CAfile", "server.crt", "server.crt") == "server.crt: OK\n"
    day = 24 * 3600
    for left, ends in ((29 * day, False), (31 * day, True)):
        check = subprocess.run(
            ["openssl", "x509", "-in", "server.crt", "-noout", "-checkend", str(left)], capture_output=True
        )
        assert (check.returncode != 0) is ends


def test_key_is_private_and_belongs_to_the_certificate() -> None:
    previous = os.umask(0)
    try:
        assert _create(*NAMES) == 0
    finally:
        os.umask(previous)
    assert stat.S_IMODE(os.stat("server.key").st_mode) == 0o600
    assert stat.S_IMODE(os.stat("server.crt").st_mode) == 0o644
    assert sorted(os.listdir()) == ["server.crt", "server.key"]
    public = _openssl("pkey", "-in", "server.key", "-pubout")
    assert public == _openssl("x509", "-in", "server.crt", "-noout", "-pubkey")


def test_nothing_is_overwritten_without_force(capsys: pytest.CaptureFixture[str]) -> None:
    Path("server.key").write_text("precious")
    assert _create("--ip=127.0.0.1") == 6
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines() == [
        "s2ctl: server.key is there already; nothing was written",
        "hint: --force replaces key and certificate",
    ]
    assert os.listdir() == ["server.key"]
    assert _create("--ip=127.0.0.1", "--force") == 0
    assert "PRIVATE KEY" in Path("server.key").read_text()
    assert stat.S_IMODE(os.stat("server.key").st_mode) == 0o600


def test_a_link_is_not_followed() -> None:
    Path("elsewhere").write_text("untouched")
    os.symlink("elsewhere", "server.key")
    assert _create("--ip=127.0.0.1") == 6
    assert _create("--ip=127.0.0.1", "--force") == 0
    assert Path("elsewhere").read_text() == "untouched"
    assert not os.path.islink("server.key")


def test_no_key_without_its_certificate(capsys: pytest.CaptureFixture[str]) -> None:
    assert _create("--ip=127.0.0.1", "--out=absent/server.crt") == 9
    assert "cannot write absent/server.crt" in capsys.readouterr().err
    assert os.listdir() == []


def test_without_names_the_hosts_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert _create() == 0
    capsys.readouterr()
    assert s2ctl.main(["cert", "show", "server.crt", "--json"]) == 0
    (facts,) = json.loads(capsys.readouterr().out)
    assert {"DNS:localhost", "IP:127.0.0.1"} <= set(facts["names"])
    assert f"DNS:{socket.gethostname()}" in facts["names"]
    for name in facts["names"]:
        if name.startswith("IP:"):
            assert not ipaddress.ip_address(name[3:]).is_link_local


def test_show_agrees_with_openssl(capsys: pytest.CaptureFixture[str]) -> None:
    assert _create(*NAMES) == 0
    created = capsys.readouterr().out
    assert s2ctl.main(["cert", "show", "server.crt"]) == 0
    shown = capsys.readouterr().out
    fingerprint = _openssl("x509", "-in", "server.crt", "-noout", "-fingerprint", "-sha256").strip().partition("=")[2]
    assert fingerprint in created
    assert f"sha256: {fingerprint}" in shown
    assert "names: DNS:gate.example, DNS:*.example.org, IP:127.0.0.1, IP:2001:db8::5" in shown
    ends = _openssl("x509", "-in", "server.crt", "-noout", "-enddate", "-dateopt", "iso_8601").strip()
    assert f"not_after: {ends.partition('=')[2].replace(' ', 'T')}" in shown


def test_show_reads_the_tutorials_certificate(capsys: pytest.CaptureFixture[str]) -> None:
    Path("server.conf").write_text(
        "[req]\ndistinguished_name = dn\nx509_extensions = v3_req\nprompt = no\n"
        "[dn]\nCN = 192.168.30.10\n[v3_req]\nsubjectAltName = IP:192.168.30.10\n"
    )
    _openssl("genrsa", "-out", "server.key", "2048")
    _openssl("req", "-new", "-key", "server.key", "-out", "server.csr", "-config", "server.conf")
    sign = "x509 -req -days 365 -in server.csr -signkey server.key -out server.crt -extfile server.conf"
    _openssl(*sign.split(), "-extensions", "v3_req")
    assert s2ctl.main(["cert", "show", "server.crt"]) == 0
    out = capsys.readouterr().out
    assert "subject: CN=192.168.30.10" in out
    assert "names: IP:192.168.30.10" in out


@pytest.mark.parametrize(
    ("words", "status", "text"),
    [
        (["create", "--ip=127.1"], 2, "ip: '127.1' is not an IP address"),
        (["create", "--ip=0.0.0.0"], 2, "no address that a client can dial"),
        (["create", "--dns=192.0.2.1"], 2, "--ip 192.0.2.1"),
        (["create", "--dns=a b"], 2, "dns"),
        (["create", "--days=0"], 2, "--days"),
        (["create", "--out=x", "--key=x"], 3, "one file"),
        (["show", "absent.crt"], 5, "absent.crt is not there"),
        (["show", "/dev/null"], 3, "holds no certificate"),
        (["crate"], 2, "one of: cert create, cert show"),
    ],
)
def test_mistakes_are_told(words: list[str], status: int, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert s2ctl.main(["cert", *words]) == status
    said = capsys.readouterr()
    assert (said.out, text in said.err) == ("", True)
    assert os.listdir() == []


def test_grpcio_and_python_take_it_as_an_anchor() -> None:
    assert _create("--ip=127.0.0.1") == 0
    key, certificate = Path("server.key").read_bytes(), Path("server.crt").read_bytes()
    with ThreadPoolExecutor(max_workers=2) as pool:
        server = grpc.server(pool, options=[("grpc.so_reuseport", 0)])
        echo = {"echo": grpc.unary_unary_rpc_method_handler(lambda data, context: data)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.T", echo),))
        port = _bound(server, grpc.ssl_server_credentials([(key, certificate)]))
        server.start()
        try:
            with grpc.secure_channel(f"127.0.0.1:{port}", grpc.ssl_channel_credentials(certificate)) as channel:
                assert channel.unary_unary("/t.T/echo")(b"hello", timeout=60) == b"hello"
            context = ssl.create_default_context(cafile="server.crt")
            context.set_alpn_protocols(["h2"])
            context.verify_flags |= ssl.VERIFY_X509_STRICT
            with (
                socket.create_connection(("127.0.0.1", port), 10) as plain,
                context.wrap_socket(plain, server_hostname="127.0.0.1") as secure,
            ):
                assert secure.version() == "TLSv1.3"
        finally:
            server.stop(None).wait()


def _bound(server: grpc.Server, credentials: grpc.ServerCredentials) -> int:
    for port in range(FIRST_PORT, FIRST_PORT + 100):
        with contextlib.suppress(RuntimeError):
            return int(server.add_secure_port(f"127.0.0.1:{port}", credentials))
    raise AssertionError("no free port")
