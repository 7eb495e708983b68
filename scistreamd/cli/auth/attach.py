"""Which token goes with the calls to a gateway: one that the user typed or confirmed for it, over TLS, or none."""

from __future__ import annotations

import asyncio
import os
import shlex
import stat
import sys
import time
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

from scistreamd import files
from scistreamd.cli import output
from scistreamd.cli.auth.store import GLOBUS, Login, Store, path_of
from scistreamd.cli.challenges import Offer, offers
from scistreamd.cli.confirm import yes
from scistreamd.cli.known import Binding, Known, KnownGateways
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
        self._audience: str = options.audience
        self._file: str | None = options.token_file
        self._certificate: str | None = options.client_cert
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
            return _content(self._file) if self._file else await self._usable(self._typed(certificate))
        # What is typed counts: a login that was confirmed before would be asked about first.
        if certificate is None or self._certificate or not _has_logins():
            return NO_TOKEN
        binding = KnownGateways().logins().get(str(self._address))
        if binding is None or not binding.fits(certificate):
            return NO_TOKEN
        login = Store().find(binding.scope, binding.issuer, binding.audience)
        return NO_TOKEN if login is None else await self._usable(login)

    async def wanted(self, refusal: ScistreamError, certificate: bytes | None, sent: str) -> str:
        """The token for a gateway that has refused ``sent`` and says what it wants; empty where there is none.

        Where the user has a login of that kind it is confirmed once, at a
        terminal, and bound to the gateway's key. Raises UNAUTHENTICATED with what to do.
        """
        found = offers(refusal.challenges)
        if not found or self._refused or self._file:
            return ""
        offer = found[0]
        login = Store().find(offer.scope, offer.issuer, offer.audience or None)
        if login is None or sent == login.access_token:
            raise _log_in(offer, refusal if sent != NO_TOKEN else None, again=login is not None)
        if certificate is None:
            raise ScistreamError(
                Code.UNAUTHENTICATED, f"{self._address} wants a token, and it is not sent in plaintext", "use TLS"
            )
        self._confirm(offer, refusal if sent != NO_TOKEN else None)
        token = await self._usable(login)
        shown = Known.of(certificate)
        bound = Binding(shown.key, shown.certificate, login.issuer, login.scope, login.audience)
        KnownGateways().bind(self._address, bound)
        return token

    def _confirm(self, offer: Offer, refusal: ScistreamError | None) -> None:
        """``refusal``: of the token that was sent, where one was."""
        if not sys.stderr.isatty():
            before = f"{refusal.message}: " if refusal else ""
            raise ScistreamError(
                Code.UNAUTHENTICATED,
                f"{before}{self._address} asks for the token of {offer.scope} at {offer.issuer}, and nobody confirmed "
                "that",
                " ".join(_named(offer)) + " sends it",
            )
        print(
            f"The gateway {self._address} asks for your login\n  at    {offer.issuer}\n  scope {offer.scope}"
            + (f"\n  for   {offer.audience}" if offer.audience else ""),
            file=sys.stderr,
        )
        if not yes("Send the token of that login to this gateway from now on (yes/no)? "):
            self._refused = True
            raise ScistreamError(Code.UNAUTHENTICATED, "no token was sent", "ask the gateway's operator")

    def _typed(self, certificate: bytes) -> Login:
        """The login of ``--scope``: for the typed audience, else for that which was confirmed for this gateway."""
        store, audience = Store(), self._audience
        bound = KnownGateways().logins().get(str(self._address))
        if not audience and bound is not None and bound.fits(certificate):
            audience = bound.audience
        login = store.find(self._scope, self._issuer, audience or None)
        if login is None and not self._audience:
            login = store.find(self._scope, self._issuer)
        if login is None:
            raise ScistreamError(
                Code.UNAUTHENTICATED,
                f"no token stored for scope {self._scope}",
                f"s2uc login {_option('scope', self._scope)}",
            )
        return login

    async def _usable(self, login: Login) -> str:
        """The login's access token, renewed where it has ended."""
        if login.fresh(time.time()):
            return login.access_token
        if login.out_of_reach:
            raise ScistreamError(
                Code.FAILED_PRECONDITION,
                f"the token for {login.scope} is in a keyring that cannot be had here",
                "use the session that you logged in from, or log in again and have it kept in a file: "
                f"SCISTREAM_KEYRING=off {_again(login)}",
            )
        if not login.refresh_token:
            raise ScistreamError(Code.UNAUTHENTICATED, f"the token for {login.scope} has expired", _again(login))
        return (await asyncio.to_thread(_renewed, login)).access_token


def _has_logins() -> bool:
    """Whether there is a file of logins; who has no home that can be looked into has none."""
    return files.there(path_of())


def _content(name: str) -> str:
    """The token in a file: one printable word."""
    try:
        with Path(name).open(encoding="ascii", errors="replace") as file:
            mode = os.fstat(file.fileno()).st_mode
            token = file.read(_LONGEST).strip()
    except OSError as error:
        raise ScistreamError(Code.NOT_FOUND, f"cannot read the token from {name}: {error.strerror}") from None
    if not token.isascii() or not token.isprintable() or " " in token or not token:
        raise invalid("token-file", f"{name} does not hold one token", "a line as s2ctl token create prints it")
    if stat.S_ISREG(mode) and mode & (stat.S_IRGRP | stat.S_IROTH):
        output.note("s2uc", f"others can read the token in {name}: chmod 600 {name}")
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
                raise ScistreamError(
                    problem.code, f"the login for {now.scope} has ended: {problem.message}", _again(now)
                ) from None
            raise
        store.keep(made)
        return made


def _log_in(offer: Offer, refusal: ScistreamError | None, *, again: bool) -> ScistreamError:
    """``refusal``: of the token that was sent, where one was; ``again``: there is a login of this kind."""
    words = ["s2uc login", _option("scope", offer.scope), _option("issuer", offer.issuer)]
    words += [_option("client-id", offer.client_id)] if offer.client_id else []
    words += [_option("audience", offer.audience)] if offer.audience else []
    words += ["--force"] if again else []
    login = f"scope {offer.scope} at {offer.issuer}"
    if refusal is None:
        return ScistreamError(Code.UNAUTHENTICATED, f"the gateway asks for a login: {login}", " ".join(words))
    # What a login does not mend, such as clocks that differ, has a hint of the gateway's own.
    hint = " ".join(words) if "s2uc login" in refusal.hint else refusal.hint
    message = f"the gateway does not take the token of this login: {refusal.message} (it wants {login})"
    return ScistreamError(Code.UNAUTHENTICATED, message, hint)


def _named(offer: Offer) -> list[str]:
    """The options that name this login."""
    audience = [_option("audience", offer.audience)] if offer.audience else []
    return [_option("scope", offer.scope), *audience]


def _again(login: Login) -> str:
    """The command that makes this login anew."""
    words = ["s2uc login", _option("scope", login.name)]
    words += [_option("issuer", login.issuer), _option("client-id", login.client_id)] if login.issuer != GLOBUS else []
    words += [_option("audience", login.audience)] if login.audience else []
    return " ".join(words)


def _option(name: str, value: str) -> str:
    # The value is a stranger's, and the line is made to be pasted into a shell.
    return f"--{name} {shlex.quote(value)}"
