"""s2uc login, logout and check-auth, with a certified provider and what a browser would do."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx
import pytest

from tests.oidc import Provider, provider
from tests.service.auth_kit import gateway, oauth2
from tests.service.gateways import BIN
from tests.service.service_kit import Daemon, daemon
from tests.service.test_known_gateways import converse, terminal


@pytest.fixture(scope="module")
def oidc() -> Iterator[Provider]:
    """One provider for the tests of a module."""
    here = Provider()
    asyncio.run(here.start())
    yield here
    here.stop()


KEYRING = "PYTHON_KEYRING_BACKEND"
# A backend of the package `keyring`, as each desktop has one; with `locked` beside it nobody gives its password.
RING = """
import json, pathlib
from keyring import backend, errors

class Ring(backend.KeyringBackend):
    priority = 5
    path = pathlib.Path(__file__).with_name("ring.json")

    def _all(self):
        if self.path.with_name("locked").exists():
            raise errors.KeyringLocked("Failed to unlock the collection!")
        return json.loads(self.path.read_text()) if self.path.exists() else {}

    def get_password(self, service, username):
        return self._all().get(f"{service} {username}")

    def set_password(self, service, username, password):
        self.path.write_text(json.dumps({**self._all(), f"{service} {username}": password}))

    def delete_password(self, service, username):
        left = self._all()
        del left[f"{service} {username}"]
        self.path.write_text(json.dumps(left))
"""


@dataclass
class User:
    """Somebody with a home of their own; what s2uc prints is read as it comes."""

    home: Path
    keyring: str = "off"

    @property
    def environment(self) -> dict[str, str]:
        found = {"PATH": os.environ["PATH"], "HOME": str(self.home), "LC_ALL": "C.UTF-8", "PYTHONPATH": str(self.home)}
        return found | ({"SCISTREAM_KEYRING": "off"} if self.keyring == "off" else {KEYRING: self.keyring})

    @property
    def tokens(self) -> Path:
        return self.home / ".local" / "state" / "scistream" / "tokens"

    @property
    def logins(self) -> list[dict[str, str]]:
        found: list[dict[str, str]] = json.loads(self.tokens.read_text())["logins"]
        return found

    @contextlib.asynccontextmanager
    async def started(self, *words: str) -> AsyncIterator[asyncio.subprocess.Process]:
        process = await asyncio.create_subprocess_exec(
            BIN / "s2uc",
            *words,
            cwd=self.home,
            env=self.environment,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            process._transport.close()  # type: ignore[attr-defined]  # else it is closed when it is collected

    async def run(self, *words: str) -> tuple[int, str, str]:
        async with self.started(*words) as process:
            out, err = await asyncio.wait_for(process.communicate(b""), 60)
            return process.returncode or 0, out.decode(), err.decode()

    async def log_in(self, at: Provider, *words: str, name: str = "alice") -> tuple[int, str, str]:
        """Log in with a browser in which ``name`` is logged in."""
        words = ("login", "--issuer", at.issuer, "--client-id", "s2uc", "--no-browser", *words)
        async with self.started(*words) as process:
            if url := await shown_url(process):
                await fetch(await at.browse(url, name))
            out, err = await asyncio.wait_for(process.communicate(), 60)
            return process.returncode or 0, out.decode(), err.decode()


async def shown_url(process: asyncio.subprocess.Process) -> str:
    """The URL that s2uc prints, or nothing where it ends without one."""
    assert process.stdout is not None
    while line := (await asyncio.wait_for(process.stdout.readline(), 30)).decode():
        if "://" in line:
            return line.strip()
    return ""


async def active(at: Provider, token: str) -> bool:
    """Whether the token counts (RFC 7662)."""
    return bool((await at.post("/token/introspection", {"token": token}, "gateway"))["active"])


async def fetch(url: str) -> str:
    async with httpx.AsyncClient(trust_env=False, timeout=60) as http:
        return (await http.get(url)).text


@pytest.fixture
def user(tmp_path: Path) -> User:
    return User(tmp_path)


async def test_in_and_out_again(oidc: Provider, user: User) -> None:
    status, out, err = await user.log_in(oidc, "--scope", "scistream")
    assert (status, err.replace("Paste the code, or the address that the browser ends up at: ", "")) == (0, "\n")
    assert "Logged in as alice@anl.example for scistream" in out
    assert (user.tokens.stat().st_mode & 0o777, user.tokens.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    [login] = user.logins
    secrets = [login["access_token"], login["refresh_token"]]
    assert all(secrets)
    assert not any(secret in out + err for secret in secrets)

    status, out, _ = await user.run("check-auth")
    assert (status, "alice@anl.example" in out, "scistream" in out, oidc.issuer in out) == (0, True, True, True)
    assert re.search(r"for 9min \d+s|for 10min", out)
    assert not any(secret in out for secret in secrets)
    assert login["access_token"] in (await user.run("check-auth", "--show-token"))[1]
    [facts] = json.loads((await user.run("check-auth", "--json"))[1])
    assert (facts["identity"], facts["refreshable"], "access_token" in facts) == ("alice@anl.example", True, False)
    again = await user.run("login", "--issuer", oidc.issuer, "--client-id", "s2uc", "--scope", "scistream")
    assert (again[0], "already logged in" in again[1]) == (0, True)

    assert await active(oidc, secrets[0])
    status, out, err = await user.run("logout")
    assert (status, err) == (0, "")
    assert not await active(oidc, secrets[0])
    assert user.logins == []
    assert (await user.run("check-auth"))[0] == 16
    assert (await user.run("logout"))[1] == "no token stored\n"


async def test_without_standard_input_the_browser_brings_the_code(oidc: Provider, user: User) -> None:
    words = f"exec {BIN / 's2uc'} login --issuer {oidc.issuer} --client-id s2uc --no-browser --scope scistream <&-"
    process = await asyncio.create_subprocess_shell(
        words, cwd=user.home, env=user.environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    await fetch(await oidc.browse(await shown_url(process)))
    _, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, err


async def test_where_there_is_a_keyring_the_tokens_are_in_that(oidc: Provider, user: User) -> None:
    (user.home / "ring.py").write_text(RING)
    ring, locked = user.home / "ring.json", user.home / "locked"
    user.keyring = "ring.Ring"
    assert (await user.log_in(oidc, "--scope", "scistream"))[0] == 0
    assert [(each["access_token"], each["refresh_token"]) for each in user.logins] == [("", "")]
    token = (await user.run("check-auth", "--show-token"))[1].splitlines()[-1]
    assert token in ring.read_text() and await active(oidc, token)
    locked.touch()
    status, _, err = await user.run("check-auth")
    assert (status, "Failed to unlock" in err, "SCISTREAM_KEYRING=off" in err) == (9, True, True)
    locked.unlink()
    user.keyring = "off"
    status, out, _ = await user.run("check-auth")
    assert (status, "keyring that cannot be had here" in out) == (16, True)
    user.keyring = "ring.Ring"
    assert (await user.run("logout"))[0] == 0
    assert (json.loads(ring.read_text()), await active(oidc, token)) == ({}, False)


async def test_a_scope_that_the_provider_does_not_give(oidc: Provider, user: User) -> None:
    status, out, err = await user.log_in(oidc, "--scope", "unheard-of")
    assert (status, "did not give the scope unheard-of" in err) == (0, True), (out, err)


async def test_several_scopes_side_by_side(oidc: Provider, user: User) -> None:
    for scope, name in (("scistream", "alice"), ("other", "bob")):
        assert (await user.log_in(oidc, "--scope", scope, name=name))[0] == 0
    out = (await user.run("check-auth"))[1]
    assert "alice@anl.example" in out
    assert "bob@ornl.example" in out
    assert "alice" not in (await user.run("check-auth", "--scope", "other"))[1]
    assert (await user.run("logout", "--scope", "other"))[0] == 0
    assert [each["scope"] for each in user.logins] == ["scistream"]
    assert (await user.run("check-auth", "--scope", "other"))[0] == 16


async def test_by_paste(oidc: Provider, user: User) -> None:
    words = ("login", "--issuer", oidc.issuer, "--client-id", "s2uc", "--no-browser", "--scope", "scistream")
    for whole in (True, False):
        async with user.started(*words, "--force") as process:
            answer = await oidc.browse(await shown_url(process))
            [code] = parse_qs(urlsplit(answer).query)["code"]
            out, err = await asyncio.wait_for(process.communicate(f"{answer if whole else code}\n".encode()), 60)
            assert (process.returncode, b"Logged in as alice" in out) == (0, True), err


async def test_by_device(oidc: Provider, user: User) -> None:
    words = ("login", "--issuer", oidc.issuer, "--client-id", "s2uc", "--scope", "scistream")
    # Where no browser could be shown it is chosen by itself.
    for more in (("--device",), ("--force",)):
        async with user.started(*words, *more) as process:
            await oidc.approve_device(await shown_url(process), "bob")
            out, err = await asyncio.wait_for(process.communicate(), 60)
            assert (process.returncode, b"Logged in as bob@ornl.example" in out) == (0, True), err


async def test_answers_that_are_none_to_our_question(oidc: Provider, user: User) -> None:
    words = ("login", "--issuer", oidc.issuer, "--client-id", "s2uc", "--no-browser", "--scope", "scistream")
    async with user.started(*words) as process:
        url = await shown_url(process)
        redirect = parse_qs(urlsplit(url).query)["redirect_uri"][0]
        # What else comes by is told so, and the login goes on.
        assert "not what s2uc waits for" in await fetch(redirect)
        assert "not what s2uc waits for" in await fetch(redirect.replace("/callback", "/favicon.ico"))
        await fetch(f"{redirect}?{urlencode({'code': 'x', 'state': 'forged'})}")
        _, err = await asyncio.wait_for(process.communicate(), 60)
        assert (process.returncode, b"not one to this login" in err) == (16, True)
    status, _, said = await user.log_in(oidc, "--scope", "scistream", name="nobody")
    assert (status, "access_denied" in said) == (16, True)
    async with user.started(*words) as process:
        await shown_url(process)
        _, err = await asyncio.wait_for(process.communicate(b"a-wrong-code\n"), 60)
        assert (process.returncode, b"invalid_grant" in err) == (16, True)
    async with user.started(*words) as process:
        await shown_url(process)
        process.send_signal(signal.SIGINT)
        await asyncio.wait_for(process.communicate(), 60)
        assert process.returncode == 130
    assert not user.tokens.exists()


async def test_wrong_words(oidc: Provider, user: User) -> None:
    for words, status, told in (
        (("--issuer", "http://192.0.2.1"), 3, "https"),
        (("--issuer", oidc.issuer), 3, "--client-id"),
        (("--issuer", f"{oidc.issuer}/elsewhere", "--client-id", "s2uc"), 16, "metadata"),
        (("--issuer", "http://127.0.0.1:1", "--client-id", "s2uc"), 14, "does not answer"),
    ):
        code, _, err = await user.run("login", "--scope", "scistream", *words)
        assert (code, told in err) == (status, True), err
    assert (await user.run("login", "--issuer", oidc.issuer))[0] == 3
    user.tokens.parent.mkdir(parents=True)
    user.tokens.write_text('{"version": 1, "logins": [{"access_token": "tok-secret"}], "gateways": {}}')
    code, _, err = await user.run("check-auth")
    assert (code, "tok-secret" in err, "damaged" in err) == (9, False, True)


async def test_logout_where_the_provider_is_gone(user: User, tmp_path: Path) -> None:
    """And before that: both sides find a provider that has no OpenID metadata."""
    async with provider(rfc8414=True) as here:
        assert (await user.log_in(here, "--scope", "scistream"))[0] == 0
        async with guarded(here, tmp_path) as asked:
            status, _, err = await user.run("list", *at(asked), "--scope", "scistream")
            assert status == 0, err
        assert await here.asked("/.well-known/oauth-authorization-server") >= 2
    status, _, err = await user.run("logout")
    assert (status, "not revoked" in err) == (14, True)
    assert user.logins == []


def expire(user: User) -> None:
    raw = json.loads(user.tokens.read_text())
    for each in raw["logins"]:
        each["expires"] = time.time() - 5
    user.tokens.write_text(json.dumps(raw))


@contextlib.asynccontextmanager
async def guarded(oidc: Provider, tmp_path: Path) -> AsyncIterator[Daemon]:
    """A gateway that takes the provider's tokens for the scope `scistream`, and no one without."""
    home = tmp_path / "gateway"
    home.mkdir()
    lines = ('scope = "scistream"', 'client_id = "gateway"', f'client_secret_file = "{home / "secret"}"')
    async with gateway(home, oauth2(oidc, home, *lines, 'login_client_id = "s2uc"')) as here:
        yield here


def at(here: Daemon) -> tuple[str, ...]:
    return "--s2cs", f"127.0.0.1:{here.ports[0]}", "--server-cert", str(here.certificate)


async def test_a_typed_scope_sends_the_token_on_every_verb(oidc: Provider, user: User, tmp_path: Path) -> None:
    async with guarded(oidc, tmp_path) as here:
        ask = ("inbound-request", *at(here), "--receiver-ports", "28599", "--remote-ip", "127.0.0.1")
        status, _, err = await user.run(*ask)
        assert status == 16
        assert f"s2uc login --scope scistream --issuer {oidc.issuer} --client-id s2uc" in err
        status, _, err = await user.run(*ask, "--scope", "scistream")
        assert (status, "s2uc login --scope scistream" in err) == (16, True)

        assert (await user.log_in(oidc, "--scope", "scistream"))[0] == 0
        token = user.logins[0]["access_token"]
        # Logged in is not confirmed for this gateway, and nobody can be asked.
        status, _, err = await user.run(*ask)
        assert (status, "--scope scistream" in err) == (16, True)
        status, out, err = await user.run(*ask, "--scope", "scistream")
        assert status == 0, err
        assert re.search(r"^[0-9a-f-]{36} 127\.0\.0\.1:\d+ \*\*\* PROD$", out, re.MULTILINE)
        assert token not in out + err
        uid = out.splitlines()[1].split()[0]
        for words in (("list",), ("show", uid), ("extend", uid, "1h"), ("release", uid)):
            status, said, err = await user.run(*words, *at(here), "--scope", "scistream")
            assert status == 0, err
            assert token not in said + err
        assert token not in here.log
        assert "by alice@anl.example" in here.log


async def test_logins_for_two_gateways_that_share_a_scope(oidc: Provider, user: User, tmp_path: Path) -> None:
    ours, others = "urn:scistream:jwt:ours", "urn:scistream:jwt:others"
    for audience in (ours, others):
        assert (await user.log_in(oidc, "--scope", "scistream", "--audience", audience))[0] == 0
    out = (await user.run("check-auth"))[1]
    assert ours in out and others in out
    home = tmp_path / "gateway"
    home.mkdir()
    async with gateway(home, oauth2(oidc, home, "no client_id", f'audience = "{ours}"')) as here:
        asked = ("list", *at(here), "--scope", "scistream")
        status, _, err = await user.run(*asked)
        assert (status, f"hint: --scope scistream --audience {ours} sends it" in err) == (16, True), err
        assert (await user.run(*asked, "--audience", ours))[0] == 0


async def test_a_token_never_goes_over_plaintext(oidc: Provider, user: User) -> None:
    assert (await user.log_in(oidc, "--scope", "scistream"))[0] == 0
    listener = socket.create_server(("127.0.0.1", 0))
    with listener:
        words = ("release", str(uuid.uuid4()), "--s2cs", f"127.0.0.1:{listener.getsockname()[1]}", "--no-tls")
        status, _, err = await user.run(*words, "--scope", "scistream")
        assert (status, "plaintext" in err) == (9, True)


async def test_at_a_terminal_the_gateways_wish_is_confirmed_once(oidc: Provider, user: User, tmp_path: Path) -> None:
    async with guarded(oidc, tmp_path) as here:
        assert (await user.log_in(oidc, "--scope", "scistream"))[0] == 0
        for answer, status in (("no", 16), ("yes", 0)):
            code, screen = await asyncio.to_thread(typed, user, ("list", "--no-pager", *at(here)), [answer])
            assert (code, oidc.issuer in screen, "scistream" in screen) == (status, True, True)
        assert (await user.run("list", *at(here)))[0] == 0
        assert "scistream" in (await user.run("check-auth", "--ip", "127.0.0.1"))[1]
        certificate, key = here.certificate, here.certificate.with_name("server.key")
        certificate.unlink()
        key.unlink()
    # Another gateway on the same address gets no token that was confirmed for the one before.
    again = tmp_path / "again"
    again.mkdir()
    config = oauth2(oidc, again, 'scope = "scistream"')
    with listener_on(here.ports[0]) as bound:
        async with daemon(again, config, listeners=[bound]) as other:
            status, _, err = await user.run("list", *at(other))
            assert (status, "nobody confirmed that" in err) == (16, True)
            assert "INVALID_TOKEN" not in err


async def test_tokens_are_renewed_and_rotated_once_by_many_at_a_time(
    oidc: Provider, user: User, tmp_path: Path
) -> None:
    async with guarded(oidc, tmp_path) as here:
        assert (await user.log_in(oidc, "--scope", "scistream"))[0] == 0
        former = user.logins[0]
        expire(user)
        asked = ("list", *at(here), "--scope", "scistream")
        before = await oidc.asked("/token")
        found = await asyncio.gather(*(user.run(*asked) for _ in range(4)))
        assert [status for status, _, _ in found] == [0] * 4, found
        assert await oidc.asked("/token") - before == 1
        assert user.logins[0]["refresh_token"] != former["refresh_token"]
        assert user.logins[0]["access_token"] != former["access_token"]

        assert (await user.run("check-auth"))[0] == 0
        # The provider has ended the login: the user is told to log in again, and the dead tokens go.
        await oidc.revoke(user.logins[0]["refresh_token"], "s2uc")
        expire(user)
        status, _, err = await user.run(*asked)
        assert (status, "s2uc login --scope scistream" in err) == (16, True)
        assert user.logins[0]["refresh_token"] == ""
        status, out, _ = await user.run("check-auth")
        assert (status, "login ended as alice@anl.example" in out) == (16, True)


async def test_a_token_that_the_gateway_does_not_take(oidc: Provider, user: User, tmp_path: Path) -> None:
    async with guarded(oidc, tmp_path) as here:
        assert (await user.log_in(oidc, "--scope", "scistream"))[0] == 0
        await oidc.revoke(user.logins[0]["access_token"], "s2uc")
        status, _, err = await user.run("list", *at(here), "--scope", "scistream")
        assert (status, "was revoked" in err, "--force" in err) == (16, True, True)
        # Another login than the gateway wants: both are named, and which of them would go.
        assert (await user.log_in(oidc, "--scope", "other"))[0] == 0
        status, _, err = await user.run("list", *at(here), "--scope", "other")
        assert (status, "lacks the scope scistream" in err, "hint: --scope scistream" in err) == (16, True, True)


@contextlib.contextmanager
def listener_on(port: int) -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", port)) as bound:
        yield bound


def typed(user: User, words: tuple[str, ...], answers: list[str]) -> tuple[int, str]:
    with terminal() as (ours, theirs):
        return converse(user, ours, theirs, words, answers)
