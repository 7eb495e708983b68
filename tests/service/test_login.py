"""s2uc login, logout and check-auth, with a certified provider and what a browser would do."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx
import pytest

from tests.oidc import Provider, provider
from tests.service.gateways import BIN


@pytest.fixture(scope="module")
def oidc() -> Iterator[Provider]:
    """One provider for the tests of a module."""
    here = Provider()
    asyncio.run(here.start())
    yield here
    here.stop()


@dataclass
class User:
    """Somebody with a home of their own; what s2uc prints is read as it comes."""

    home: Path

    @property
    def environment(self) -> dict[str, str]:
        return {"PATH": os.environ["PATH"], "HOME": str(self.home), "SCISTREAM_KEYRING": "off", "LC_ALL": "C.UTF-8"}

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
    async with httpx.AsyncClient(trust_env=False) as http:
        return (await http.get(url)).text


@pytest.fixture
def user(tmp_path: Path) -> User:
    return User(tmp_path)


async def test_in_and_out_again(oidc: Provider, user: User) -> None:
    status, out, err = await user.log_in(oidc, "--scope", "scistream")
    assert (status, err.replace("Paste the code, or the address that the browser ends up at: ", "")) == (0, "")
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


async def test_logout_where_the_provider_is_gone(user: User) -> None:
    async with provider() as here:
        assert (await user.log_in(here, "--scope", "scistream"))[0] == 0
    status, _, err = await user.run("logout")
    assert (status, "not revoked" in err) == (14, True)
    assert user.logins == []


def expire(user: User) -> None:
    raw = json.loads(user.tokens.read_text())
    for each in raw["logins"]:
        each["expires"] = time.time() - 5
    user.tokens.write_text(json.dumps(raw))
