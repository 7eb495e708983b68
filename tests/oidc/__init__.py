"""A real, certified OpenID provider for tests: npm's oidc-provider on loopback (server.mjs).

::

    async with provider() as here:
        token = await here.robot_token("scistream")              # client credentials
        tokens = await here.user_tokens("alice", "scistream")    # code flow with PKCE; access_token, refresh_token
        await here.revoke(token)
        await here.browse(url, "alice")                          # what a browser would do: the final redirect's URL
        await here.approve_device(verification_uri_complete, "bob")
        here.freeze(); here.thaw(); here.stop(); await here.start()   # slow, down, back on its port with other keys

Its clients: `gateway` (may introspect), `robot` and `short-robot` (client
credentials, secret SECRET), `s2uc` and `short-s2uc` (public, code with PKCE,
device and refresh; redirects to any port of loopback at ``/`` or
``/callback``). Tokens of the short ones live for three seconds. Scopes:
`scistream`, `other`, and Globus's form of it. A resource names the audience;
one with `jwt` in its name gets JWTs. Users: alice, bob, mallory (who claims
Alice's e-mail address, unverified), and nobody, who refuses.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import re
import secrets
import signal
import subprocess
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx

HERE = Path(__file__).parent
SECRET = "the secret of the tests"
REDIRECT = "http://127.0.0.1:9/callback"


class Provider:
    """One running provider; ``clock``: seconds that its clock is ahead of ours.

    ``rfc8414``: it has its metadata where RFC 8414 says, and none where OpenID Connect Discovery does.
    """

    def __init__(self, clock: int = 0, *, rfc8414: bool = False) -> None:
        self.clock = clock
        self.rfc8414 = rfc8414
        self.port = 0
        self.issuer = ""
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        """Start it, on the port that it had before if any; it has other keys, and knows no token, then."""
        environment = {**os.environ, "PORT": str(self.port), "CLOCK_OFFSET": str(self.clock)}
        if self.rfc8414:
            environment["RFC8414"] = "1"
        self._process = subprocess.Popen(
            ["node", str(HERE / "server.mjs")], env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert self._process.stdout is not None
        line = await asyncio.to_thread(self._process.stdout.readline)
        assert line, "the provider does not start: is `npm ci` done in tests/oidc? tests/setup.sh does it"
        self.issuer = line.decode().strip()
        self.port = urlsplit(self.issuer).port or 0

    def stop(self) -> None:
        """End it, if it runs."""
        if self._process is not None:
            assert self._process.stdout is not None
            self._process.kill()
            self._process.wait()
            self._process.stdout.close()
            self._process = None

    def freeze(self) -> None:
        """Let it answer nobody, while its port takes connections."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    async def asked(self, path: str = "/token/introspection") -> int:
        """How often it was asked for this path."""
        async with _http() as http:
            counts: dict[str, int] = (await http.get(f"{self.issuer}/test/counts")).json()
        return counts.get(path, 0)

    async def robot_token(self, scope: str = "scistream", *, resource: str = "", client: str = "robot") -> str:
        """An access token of a machine."""
        fields = {"grant_type": "client_credentials", "scope": scope, **({"resource": resource} if resource else {})}
        return str((await self.post("/token", fields, client))["access_token"])

    async def user_tokens(
        self, user: str = "alice", scope: str = "scistream", *, resource: str = "", client: str = "s2uc"
    ) -> dict[str, Any]:
        """What the token endpoint gives a person's client, by authorization code and PKCE."""
        verifier = secrets.token_urlsafe(48)
        challenge = urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).decode().rstrip("=")
        extra = {"resource": resource} if resource else {}
        query = {
            "client_id": client,
            "response_type": "code",
            "redirect_uri": REDIRECT,
            "scope": f"openid offline_access {scope}",
            "prompt": "consent",
            "code_challenge": challenge,
            "code_challenge_method": "S256",
            **extra,
        }
        answer = await self.browse(f"{self.issuer}/auth?{urlencode(query)}", user)
        [code] = parse_qs(urlsplit(answer).query)["code"]
        fields = {"grant_type": "authorization_code", "code": code, "redirect_uri": REDIRECT, **extra}
        return await self.post("/token", {**fields, "client_id": client, "code_verifier": verifier}, "")

    async def user_token(self, user: str = "alice", scope: str = "scistream", **more: str) -> str:
        """An access token of a person."""
        return str((await self.user_tokens(user, scope, **more))["access_token"])

    async def revoke(self, token: str, client: str = "robot") -> None:
        """Revoke a token of this client (RFC 7009)."""
        public = {"client_id": client} if client.endswith("s2uc") else {}
        await self.post("/token/revocation", {"token": token, **public}, "" if public else client)

    async def browse(self, url: str, user: str = "alice") -> str:
        """Follow the page as a browser in which ``user`` logs in; the URL that it is sent to in the end."""
        async with _http(headers={"x-test-user": user}) as http:
            return await self._follow(http, await http.get(url))

    async def approve_device(self, uri: str, user: str = "alice") -> None:
        """Confirm the code of a device (RFC 8628) as ``user``; ``uri``: verification_uri_complete."""
        async with _http(headers={"x-test-user": user}) as http:
            page = await http.get(uri)
            while form := dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', page.text)):
                page = await http.post(f"{self.issuer}/device", data={**form, "confirm": "yes"})
                while page.is_redirect:
                    page = await http.get(str(page.url.join(page.headers["location"])))
            page.raise_for_status()

    async def _follow(self, http: httpx.AsyncClient, page: httpx.Response) -> str:
        while page.is_redirect:
            target = str(page.url.join(page.headers["location"]))
            if not target.startswith(self.issuer + "/"):
                return target
            page = await http.get(target)
        raise AssertionError(f"{page.status_code} {page.text}")

    async def post(self, path: str, fields: dict[str, str], client: str) -> dict[str, Any]:
        """What the provider answers to a form; ``client`` authenticates with SECRET, empty: a public one."""
        async with _http() as http:
            auth = httpx.BasicAuth(client, SECRET) if client else httpx.Auth()
            answer = await http.post(self.issuer + path, data=fields, auth=auth)
        assert answer.is_success, answer.text
        found: dict[str, Any] = answer.json() if answer.content else {}
        return found


def _http(**more: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(trust_env=False, timeout=60, **more)


@contextlib.asynccontextmanager
async def provider(clock: int = 0, *, rfc8414: bool = False) -> AsyncIterator[Provider]:
    """A provider that runs until the end of the block."""
    here = Provider(clock, rfc8414=rfc8414)
    await here.start()
    try:
        yield here
    finally:
        here.stop()


def claims(jwt: str) -> dict[str, Any]:
    """What stands in a JWT, unchecked."""
    part = jwt.split(".")[1]
    found: dict[str, Any] = json.loads(urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    return found
