"""Client certificates and static tokens on the control port; who fails too often; a gateway without any of it."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import signal
import time
import uuid
from pathlib import Path

import grpc
import grpc.aio
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.oidc import SECRET, Provider
from tests.service import gateways
from tests.service.auth_kit import KNOWN, PORTS, UNKNOWN, Said, ask, gateway, oauth2, oidc
from tests.service.gateways import BIN, run
from tests.service.service_kit import Daemon, daemon, listener

__all__ = ["oidc"]  # pytest finds a fixture by its name in the module

EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED


class Authority:
    """A CA that signs client certificates."""

    def __init__(self, home: Path, name: str) -> None:
        self.home = home
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.file = home / f"{name}.pem"
        self.file.write_bytes(pem(self._sign(self.name, self.key, [], ca=True)))

    def _sign(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePrivateKey,
        names: list[x509.GeneralName],
        ca: bool = False,
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.timezone.utc)
        made = x509.CertificateBuilder(
            self.name, subject, key.public_key(), x509.random_serial_number(), now - datetime.timedelta(days=1),
            now + datetime.timedelta(days=1),
        ).add_extension(x509.BasicConstraints(ca, None), critical=True)  # fmt: skip
        if names:
            made = made.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return made.sign(self.key, hashes.SHA256())

    def client(self, name: str, *alternatives: x509.GeneralName) -> tuple[bytes, bytes, int]:
        """Key and certificate as PEM, and the serial number."""
        key = ec.generate_private_key(ec.SECP256R1())
        attributes = [x509.NameAttribute(NameOID.COMMON_NAME, name)] if name else []
        certificate = self._sign(x509.Name(attributes), key, list(alternatives))
        return (
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            ),
            pem(certificate),
            certificate.serial_number,
        )

    def revoke(self, *serials: int) -> Path:
        """A list of revoked certificates."""
        now, day = datetime.datetime.now(datetime.timezone.utc), datetime.timedelta(days=1)
        made = x509.CertificateRevocationListBuilder(self.name, now - day, now + day)
        for serial in serials:
            made = made.add_revoked_certificate(x509.RevokedCertificateBuilder(serial, now - day).build())
        file = self.home / "crl.pem"
        file.write_bytes(made.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
        return file


def pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


async def with_certificate(here: Daemon, client: tuple[bytes, bytes, int]) -> Said:
    credentials = grpc.ssl_channel_credentials(here.certificate.read_bytes(), client[0], client[1])
    async with grpc.aio.secure_channel(f"127.0.0.1:{here.ports[0]}", credentials) as channel:
        return await ask(here, channel=channel)


async def reload(here: Daemon, config: str | None = None) -> None:
    if config is not None:
        here.config.write_text(config)
    told = len(here.said)
    here.process.send_signal(signal.SIGHUP)
    await here.said_anew("READY=1", told)


async def token(home: Path, *words: str) -> str:
    """What s2ctl token prints."""
    status, out, err = await run(BIN / "s2ctl", "token", *words, "--file", home / "tokens", cwd=home)
    assert status == 0, err
    return out.strip()


async def test_client_certificates(tmp_path: Path) -> None:
    """Names of subject and alternatives, another CA, revocation, none at all, and what a reload changes."""
    ours, others = Authority(tmp_path, "ours"), Authority(tmp_path, "others")
    config = PORTS + f'[auth.mtls]\nca = "{ours.file}"\n'
    named = ours.client("detector-7", x509.DNSName("d7.example.org"))
    nameless = ours.client("", x509.RFC822Name("daq@example.org"), x509.IPAddress(ipaddress.ip_address("192.0.2.7")))
    async with gateway(tmp_path, config) as here:
        assert (await with_certificate(here, named)).code is KNOWN
        assert (await with_certificate(here, nameless)).code is KNOWN
        said = await ask(here)
        assert (said.code, said.challenges) == (UNKNOWN, ("mtls",))
        assert (await ask(here, "a-token-that-nobody-asked-for")).code is UNKNOWN
        assert (await with_certificate(here, others.client("detector-7"))).code is grpc.StatusCode.UNAVAILABLE
        revoked = f'{config}crl = "{ours.revoke(named[2])}"\n'
        credentials = grpc.ssl_channel_credentials(here.certificate.read_bytes(), named[0], named[1])
        async with grpc.aio.secure_channel(f"127.0.0.1:{here.ports[0]}", credentials) as before:
            assert (await ask(here, channel=before)).code is KNOWN
            await reload(here, revoked)
            assert (await ask(here, channel=before)).code in (UNKNOWN, grpc.StatusCode.UNAVAILABLE)
        assert (await with_certificate(here, named)).code is grpc.StatusCode.UNAVAILABLE
        assert (await with_certificate(here, nameless)).code is KNOWN
        told = len(here.said)
        here.config.write_text(config.replace(str(ours.file), str(tmp_path / "gone.pem")))
        here.process.send_signal(signal.SIGHUP)
        await here.until(lambda: "not reloaded" in here.status and len(here.said) > told)
        assert (await with_certificate(here, nameless)).code is KNOWN
    assert "release by detector-7 from 127.0.0.1" in here.log
    assert "release by daq@example.org from 127.0.0.1" in here.log


async def test_policies_know_every_name_of_a_certificate(tmp_path: Path) -> None:
    ours = Authority(tmp_path, "ours")
    rule = '[[policy]]\ncertificate = ["d7.example.org", "CN=detector-8"]\n'
    clients = {
        ours.client("detector-7", x509.DNSName("d7.example.org")): grpc.StatusCode.DEADLINE_EXCEEDED,  # waits for hello
        ours.client("detector-8"): grpc.StatusCode.DEADLINE_EXCEEDED,
        ours.client("detector-9", x509.DNSName("d9.example.org")): grpc.StatusCode.PERMISSION_DENIED,
    }
    async with gateway(tmp_path, PORTS + f'[auth.mtls]\nca = "{ours.file}"\n' + rule) as here:
        for client, code in clients.items():
            credentials = grpc.ssl_channel_credentials(here.certificate.read_bytes(), client[0], client[1])
            async with grpc.aio.secure_channel(f"127.0.0.1:{here.ports[0]}", credentials) as channel:
                fields = gateways.encode({1: str(uuid.uuid4()), 2: "PROD", 3: 1})
                seconds = 1 if code is grpc.StatusCode.DEADLINE_EXCEEDED else 60
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await channel.unary_unary("/scistream.Control/req")(fields, timeout=seconds)
                assert caught.value.code() is code


async def test_static_tokens_are_made_listed_and_revoked(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    async with gateway(tmp_path, PORTS + f'[auth.tokens]\nfile = "{file}"\n') as here:
        assert (await ask(here)).challenges == ("token",)
        made, short = (
            await token(tmp_path, "create", "detector-7"),
            await token(tmp_path, "create", "x", "--expires=1s"),
        )
        assert file.stat().st_mode & 0o777 == 0o600
        assert made not in file.read_text()
        assert (await ask(here, made)).code is KNOWN
        assert (await ask(here, made[:-1] + ("a" if made[-1] != "a" else "b"))).code is UNKNOWN
        assert (await ask(here, "scistream_")).code is UNKNOWN
        time.sleep(1.1)
        assert (await ask(here, short)).code is UNKNOWN
        assert "detector-7" in await token(tmp_path, "list")
        assert await token(tmp_path, "revoke", "detector-7") == "Revoked: detector-7. Tunnels that exist go on."
        assert (await ask(here, made)).code is UNKNOWN
        again = await token(tmp_path, "create", "detector-7")
        file.chmod(0o666)
        assert (await ask(here, again)).code is grpc.StatusCode.UNAVAILABLE
        assert "can be written by others" in here.log
        file.chmod(0o600)
        assert (await ask(here, again)).code is KNOWN
    assert "release by detector-7 from 127.0.0.1" in here.log
    assert made not in here.log and again not in here.log


async def test_s2ctl_token_says_what_is_wrong(tmp_path: Path) -> None:
    await token(tmp_path, "create", "a")
    for words, status, hint in (
        (["create", "a"], 6, "s2ctl token revoke a"),
        (["create", "no name"], 3, "such as"),
        (["revoke", "b"], 5, "hint"),
        (["create", "b", "--expires", "soon"], 2, "90m"),
    ):
        code, out, err = await run(BIN / "s2ctl", "token", *words, "--file", tmp_path / "tokens", cwd=tmp_path)
        assert (code, out) == (status, ""), err
        assert hint in err
    many = await asyncio.gather(*(token(tmp_path, "create", f"t{number}") for number in range(5)))
    assert len(set(many)) == 5
    assert (tmp_path / "tokens").read_text().count("\n") == 7


async def test_several_ways_at_once_and_a_reload_that_changes_them(oidc: Provider, tmp_path: Path) -> None:
    ours, file = Authority(tmp_path, "ours"), tmp_path / "tokens"
    static, of_provider = await token(tmp_path, "create", "a"), await oidc.robot_token()
    more = f'[auth.tokens]\nfile = "{file}"\n[auth.mtls]\nca = "{ours.file}"\n'
    client = ours.client("detector")
    async with gateway(tmp_path, oauth2(oidc, tmp_path) + more) as here:
        assert (await ask(here, static)).code is KNOWN
        assert (await ask(here, of_provider)).code is KNOWN
        assert (await with_certificate(here, client)).code is KNOWN
        assert [each.split()[0] for each in (await ask(here)).challenges] == ["token", "oauth2", "mtls"]
        await reload(here, PORTS + more)
        assert (await ask(here, of_provider)).code is UNKNOWN
        assert (await ask(here, static)).code is KNOWN
        # What cannot be had changes nothing.
        whole = oauth2(oidc, tmp_path) + more
        (tmp_path / "secret").chmod(0o644)
        here.config.write_text(whole)
        here.process.send_signal(signal.SIGHUP)
        await here.until(lambda: "open to every user" in here.status)
        assert (await ask(here, static)).code is KNOWN
        assert (await ask(here, of_provider)).code is UNKNOWN
        (tmp_path / "secret").chmod(0o600)
        await reload(here)
        assert (await ask(here, of_provider)).code is KNOWN


async def test_who_fails_too_often_waits_and_nobody_waits_for_him(tmp_path: Path) -> None:
    good = await token(tmp_path, "create", "good")
    late = await token(tmp_path, "create", "late")
    config = PORTS + f'[auth.tokens]\nfile = "{tmp_path / "tokens"}"\n[auth.failures]\nburst = 5\nper_minute = 1\n'
    async with gateway(tmp_path, config) as here:
        assert (await ask(here, good)).code is KNOWN
        guesses = [await ask(here, f"scistream_{number}") for number in range(8)]
        assert [each.code for each in guesses] == [UNKNOWN] * 5 + [EXHAUSTED] * 3
        assert "try again in" in guesses[-1].message
        # Whose credentials were good before is served; who brings none is told what to bring; others wait.
        assert (await ask(here, good)).code is KNOWN
        assert (await ask(here)).code is UNKNOWN
        assert (await ask(here, late)).code is EXHAUSTED
        # Who is known and tries UIDs is slowed down by who they are.
        tries = [await ask(here, good) for _ in range(6)]
        assert tries[-1].code is EXHAUSTED


async def test_health_needs_no_login(tmp_path: Path) -> None:
    await token(tmp_path, "create", "a")
    async with gateway(tmp_path, PORTS + f'[auth.tokens]\nfile = "{tmp_path / "tokens"}"\n') as here:
        address = f"127.0.0.1:{here.ports[0]}"
        status, out, err = await run(
            BIN / "s2uc", "health", "--s2cs", address, "--server-cert", here.certificate, cwd=tmp_path
        )
        assert (status, err) == (0, ""), out


@pytest.mark.parametrize(
    ("lines", "warning"),
    [
        ("require_auth = false", "NO AUTHENTICATION: whoever reaches the control port may use this gateway"),
        ("", "no authentication is configured: requests of other hosts are refused"),
        (
            'require_auth = false\nauth = {tokens = {file = "/nowhere"}}',
            "require_auth = false: callers who prove nothing are served as well",
        ),
        ('auth = {tokens = {file = "/nowhere"}}', ""),
    ],
)
async def test_a_gateway_open_to_others_says_so(tmp_path: Path, lines: str, warning: str) -> None:
    with listener("0.0.0.0") as one:
        async with daemon(tmp_path, lines + PORTS, listeners=[one]) as here:
            assert here.status == "0 tunnels, 10 ports free" + (f"; {warning}" if warning else "")
            if warning:
                await here.until(lambda: f"WARNING {warning}" in here.log)
            else:
                assert "prove nothing" not in here.log and "authentication is" not in here.log
            told = len(here.said)
            here.config.write_text('auth = {tokens = {file = "/nowhere"}}' + PORTS)
            here.process.send_signal(signal.SIGHUP)
            await here.said_anew("STATUS=0 tunnels, 10 ports free", told)


async def test_s2cs_with_a_client_of_the_provider(oidc: Provider, tmp_path: Path) -> None:
    """As the tutorial types it, but for the provider."""
    secret = tmp_path / "secret"
    secret.touch(0o600)
    secret.write_text(SECRET)
    good, other = await oidc.robot_token(), await oidc.robot_token("other")
    common = ("--type=Nginx", "--port-range=28500-28509", f"--issuer={oidc.issuer}", "--client-id", "gateway")
    for address, how in (
        ("127.0.0.2", ("--client-secret", SECRET)),
        ("127.0.0.3", (f"--client-secret-file={secret}",)),
    ):
        async with gateways.gateway(tmp_path, address, *common, *how) as here, here.channel() as channel:
            for text, code in ((good, KNOWN), (other, UNKNOWN), ("INVALID_TOKEN", UNKNOWN)):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await gateways.Deployed(channel, text).release("0" * 32)
                assert caught.value.code() is code
            log = here.log.read_text()
            assert ("every user of this host reads --client-secret" in log) is (len(how) == 2)
            assert f"callers log in at {oidc.issuer} for the scope scistream" in log
            assert SECRET not in log and good not in log


async def test_s2uc_shows_a_token_from_a_file_and_a_client_certificate(tmp_path: Path) -> None:
    ours = Authority(tmp_path, "ours")
    key, certificate, _ = ours.client("detector-7")
    (tmp_path / "d7.pem").write_bytes(certificate)
    (tmp_path / "d7.key").write_bytes(key)
    (tmp_path / "both.pem").write_bytes(certificate + key)
    ways = f'[auth.tokens]\nfile = "{tmp_path / "tokens"}"\n[auth.mtls]\nca = "{ours.file}"\n'
    async with gateway(tmp_path, PORTS + ways) as here:
        made = await token(tmp_path, "create", "robot")
        (tmp_path / "robot").touch(0o600)
        (tmp_path / "robot").write_text(f"{made}\n")
        (tmp_path / "open").write_text(f"{made}\n")
        (tmp_path / "open").chmod(0o644)
        (tmp_path / "two").write_text("one two\n")
        where = ("--s2cs", f"127.0.0.1:{here.ports[0]}", "--server-cert", str(here.certificate))
        for words, status, told in (
            (("--token-file", "robot"), 0, ""),
            (("--token-file", "open"), 0, "chmod 600 open"),
            (("--client-cert", "d7.pem", "--client-key", "d7.key"), 0, ""),
            (("--client-cert", "both.pem"), 0, ""),
            ((), 16, "hint: bring a token of its operator (s2uc --token-file), or show a client certificate"),
            (("--token-file", "two"), 3, "does not hold one token"),
            (("--token-file", "gone"), 5, "cannot read the token"),
            (("--client-cert", "d7.pem"), 3, "--client-key"),
            (("--client-cert", "gone.pem"), 5, "not there"),
            (("--token-file", "robot", "--scope", "x"), 2, "one token goes with a call"),
        ):
            code, out, err = await gateways.s2uc(tmp_path, "list", *where, *words)
            assert (code, told in err) == (status, True), err
            assert made not in out + err
        code, _, err = await gateways.s2uc(tmp_path, "list", *where[:2], "--no-tls", "--token-file", "robot")
        assert (code, "plaintext" in err) == (9, True)
