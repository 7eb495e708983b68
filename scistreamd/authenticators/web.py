"""Questions to a provider over HTTP: bounded in time and size, and an answer in JSON or UNAVAILABLE."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import ssl
from collections.abc import Mapping
from typing import Any

import httpx

from scistreamd.errors import Code, ScistreamError

_LARGEST = 1 << 20  # bytes of an answer; metadata and keys are some thousand
_AT_ONCE = 16
_log = logging.getLogger("scistreamd.authentication")
# They log requests, and at DEBUG what goes into them.
for _name in ("httpx", "httpcore"):
    logging.getLogger(_name).setLevel(logging.WARNING)

Claims = Mapping[str, Any]


class Refused(Exception):
    """The provider answered, and said no: how."""


class Web:
    """Asks a provider; every method raises ScistreamError(UNAVAILABLE) where no good answer comes.

    Certificates are checked against the system's CAs. Redirects are not
    followed: a secret goes to the URL that was configured or discovered.
    """

    def __init__(self, timeout: float) -> None:
        """``timeout``: seconds for the whole of one answer."""
        self._timeout = timeout
        self._tls = ssl.create_default_context()
        self._free = asyncio.Semaphore(_AT_ONCE)

    async def get(self, url: str) -> Claims:
        """A JSON object; Refused for another HTTP status than 200, and for a page that is no JSON."""
        return await self._ask("GET", url)

    async def post(self, url: str, fields: Mapping[str, str], user: str, password: str) -> Claims:
        """What a form is answered with, sent with HTTP's Basic authentication; Refused for another status than 200."""
        return await self._ask("POST", url, data=fields, auth=httpx.BasicAuth(user, password))

    async def _ask(self, method: str, url: str, **more: Any) -> Claims:
        try:
            return await asyncio.wait_for(self._exchange(method, url, more), self._timeout)
        except (asyncio.TimeoutError, httpx.TimeoutException):
            reason = f"no answer in {self._timeout:g} s"
        except (httpx.HTTPError, httpx.InvalidURL, ssl.SSLError, OSError) as problem:
            reason = str(problem) or type(problem).__name__
        except ValueError:
            reason = "the answer is not a JSON object"
        _log.error("the provider cannot be asked: %s: %s", url, reason)
        raise unavailable()

    async def _exchange(self, method: str, url: str, more: Mapping[str, Any]) -> Claims:
        # No encoding: what is small when it comes must not grow.
        headers = {"accept": "application/json", "accept-encoding": "identity"}
        async with (
            self._free,
            httpx.AsyncClient(verify=self._tls, timeout=self._timeout) as http,
            http.stream(method, url, headers=headers, **more) as answer,
        ):
            if answer.status_code >= 500 or answer.status_code == 429:
                raise httpx.HTTPError(f"HTTP status {answer.status_code}")
            if answer.status_code != 200:
                raise Refused(f"HTTP status {answer.status_code}")
            content = bytearray()
            async for piece in answer.aiter_bytes():
                content += piece
                if len(content) > _LARGEST:
                    raise httpx.HTTPError("the answer is too long")
        with contextlib.suppress(ValueError):
            if isinstance(found := json.loads(content), dict):
                return found
        if method == "GET":
            # Some show a page for people wherever they have nothing else.
            raise Refused("no JSON object")
        raise ValueError


def unavailable() -> ScistreamError:
    """The answer to a caller about whom the provider could not be asked."""
    return ScistreamError(
        Code.UNAVAILABLE,
        "who you are cannot be checked now: the provider of logins does not answer as it should",
        "try again later; the operator finds the reason in the gateway's log",
    )
