"""Which token goes with the calls to a gateway: one that the user typed or confirmed for it, over TLS, or none."""

from __future__ import annotations

import asyncio
import hashlib
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from scistreamd.cli.auth.store import Binding, Login, Store, full_scope, path_of
from scistreamd.cli.challenges import Offer, offers
from scistreamd.cli.known import Known, yes
from scistreamd.cli.options import UsageError
from scistreamd.errors import Code, ScistreamError, invalid
from scistreamd.model import Target

NO_TOKEN = "INVALID_TOKEN"  # noqa: S105 - it stands for having none
_LONGEST = 16384


class Tokens:
    """Gives the calls to one gateway their token; ``certificate`` is what it showed, DER, None in plaintext."""

    def __init__(self, options: Namespace, address: Target) -> None:
        self._scope: str = options.scope
        self._issuer: str = (options.issuer or "").rstrip("/")
        self._file: str | None = options.token_file
        if self._file and self._scope:
            raise UsageError("--token-file and --scope: one token goes with a call", "leave one of them out")
        self._address = address
        self._refused = False

    async def first(self, certificate: bytes | None) -> str:
        """The token to begin with; `NO_TOKEN` where none was typed, and none confirmed before."""
        if self._scope or self._file:
            if certificate is None:
                raise ScistreamError(
                    Code.FAILED_PRECONDITION,
                    f"{'scope' if self._scope else 'token-file'}: a token is not sent in plaintext",
                    "leave --no-tls out, or the token where the gateway asks for none",
                )
            return _content(self._file) if self._file else await self._usable(self._typed())
        if certificate is None or not _has_logins():
            return NO_TOKEN
        binding = Store().binding(str(self._address))
        if binding is None or not _is(binding, certificate):
            return NO_TOKEN
        login = Store().find(binding.scope, binding.issuer)
        return NO_TOKEN if login is None else await self._usable(login)

    async def wanted(self, challenges: Sequence[str], certificate: bytes | None, sent: str) -> str:
        """The token for a gateway that has refused ``sent`` and says what it wants; empty where there is none.

        Where the user has a login of that kind it is confirmed once, at a
        terminal, and bound to the gateway's key. Raises UNAUTHENTICATED with what to do.
        """
        found = offers(challenges)
        if not found or self._refused:
            return ""
        offer = found[0]
        login = Store().find(offer.scope, offer.issuer)
        if login is None or sent == login.access_token:
            raise _log_in(offer, again=login is not None)
        if certificate is None:
            raise ScistreamError(
                Code.UNAUTHENTICATED, f"{self._address} wants a token, and it is not sent in plaintext", "use TLS"
            )
        self._confirm(offer)
        token = await self._usable(login)
        shown = Known.of(certificate)
        Store().bind(str(self._address), Binding(shown.key, shown.certificate, offer.issuer, offer.scope))
        return token

    def _confirm(self, offer: Offer) -> None:
        if not sys.stderr.isatty():
            raise ScistreamError(
                Code.UNAUTHENTICATED,
                f"{self._address} asks for the token of {offer.scope} at {offer.issuer}, and nobody confirmed that",
                f"--scope {offer.scope} sends it",
            )
        print(
            f"The gateway {self._address} asks for your login\n  at    {offer.issuer}\n  scope {offer.scope}",
            file=sys.stderr,
        )
        if not yes("Send the token of that login to this gateway from now on (yes/no)? "):
            self._refused = True
            raise ScistreamError(Code.UNAUTHENTICATED, "no token was sent", "ask the gateway's operator")

    def _typed(self) -> Login:
        store = Store()
        login = store.find(self._scope, self._issuer)
        if login is None and self._issuer:
            login = store.find(full_scope(self._scope, self._issuer), self._issuer)
        if login is None:
            raise ScistreamError(
                Code.UNAUTHENTICATED, f"no token stored for scope {self._scope}", f"s2uc login --scope {self._scope}"
            )
        return login

    async def _usable(self, login: Login) -> str:
        """The login's access token, renewed where it has ended."""
        if login.fresh(time.time()):
            return login.access_token
        if not login.refresh_token:
            raise ScistreamError(
                Code.UNAUTHENTICATED, f"the token for {login.scope} has expired", f"s2uc login --scope {login.name}"
            )
        return (await asyncio.to_thread(_renewed, login)).access_token


def _has_logins() -> bool:
    """Whether there is a file of logins; who has no home that can be looked into has none."""
    try:
        return path_of().exists()
    except PermissionError:
        return False


def _content(name: str) -> str:
    """The token in a file: one printable word."""
    try:
        with Path(name).open(encoding="ascii", errors="replace") as file:
            token = file.read(_LONGEST).strip()
    except OSError as error:
        raise ScistreamError(Code.NOT_FOUND, f"cannot read the token from {name}: {error.strerror}") from None
    if not token.isascii() or not token.isprintable() or " " in token or not token:
        raise invalid("token-file", f"{name} does not hold one token", "a line as s2ctl token create prints it")
    return token


def _renewed(login: Login) -> Login:
    """Use the refresh token, once, whoever else wants to at the same time: a provider takes it but once."""
    store = Store()
    with store.locked_for(login):
        now = store.find(login.scope, login.issuer) or login
        if now.fresh(time.time()):
            return now
        # Imported here: it takes a quarter of a second.
        from scistreamd.cli.auth.provider import Provider

        try:
            made = Provider(now.issuer, now.client_id).refresh(now)
        except ScistreamError as problem:
            if problem.code is Code.UNAUTHENTICATED:
                store.keep(replace(now, access_token="", refresh_token=""))
                hint = f"s2uc login --scope {now.name}"
                raise ScistreamError(
                    problem.code, f"the login for {now.scope} has ended: {problem.message}", hint
                ) from None
            raise
        store.keep(made)
        return made


def _is(binding: Binding, certificate: bytes) -> bool:
    """Whether the certificate is of the gateway that the login was confirmed for."""
    if hashlib.sha256(certificate).hexdigest() == binding.certificate:
        return True
    return Known.of(certificate).key == binding.key


def _log_in(offer: Offer, *, again: bool) -> ScistreamError:
    words = ["s2uc login", f"--scope {offer.scope}", f"--issuer {offer.issuer}"]
    words += [f"--client-id {offer.client_id}"] if offer.client_id else []
    words += [f"--audience {offer.audience}"] if offer.audience else []
    words += ["--force"] if again else []
    what = "does not take the token of this login" if again else "asks for a login"
    return ScistreamError(
        Code.UNAUTHENTICATED, f"the gateway {what}: scope {offer.scope} at {offer.issuer}", " ".join(words)
    )
