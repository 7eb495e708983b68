"""The ways to prove to the control port who one is, in the order in which they are asked.

Each is off unless configured (`config.Auth`). Libraries are imported with the
one that needs them, so that a gateway without it starts as fast as ever.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from scistreamd.config import Auth
from scistreamd.errors import Code, ScistreamError
from scistreamd.interfaces import Authenticator

_log = logging.getLogger("scistreamd.authentication")


# Gives the secret of our client at the provider, which settings do not hold; raises ScistreamError where there is none.
Secret = Callable[[Auth], str]


@dataclass(frozen=True)
class Way:
    """One of them: its ``name`` for people, whether it is configured, and how it is made.

    ``make`` raises ScistreamError where its files or its secret cannot be had.
    """

    name: str
    configured: Callable[[Auth], bool]
    make: Callable[[Auth, Secret], Authenticator]


def _jwks(auth: Auth, secret: Secret) -> Authenticator:
    from scistreamd.authenticators.jwks import LocalJwt  # noqa: PLC0415  see above

    return LocalJwt(auth.oauth2)


def _oauth2(auth: Auth, secret: Secret) -> Authenticator:
    from scistreamd.authenticators.oauth2 import Introspection  # noqa: PLC0415  see above

    return Introspection(auth.oauth2, secret(auth))


def _mtls(auth: Auth, secret: Secret) -> Authenticator:
    from scistreamd.authenticators.mtls import ClientCertificates  # noqa: PLC0415  see above

    return ClientCertificates()


def _tokens(auth: Auth, secret: Secret) -> Authenticator:
    from scistreamd.authenticators.tokens import StaticTokens  # noqa: PLC0415  see above

    return StaticTokens(Path(str(auth.tokens)))


AUTHENTICATORS: tuple[Way, ...] = (
    Way("static tokens", lambda auth: auth.tokens is not None, _tokens),
    # Before the next: what can be judged here needs no answer of the provider.
    Way("JWTs of {issuer}", lambda auth: auth.oauth2.judges_jwts, _jwks),
    Way("tokens of {issuer}", lambda auth: bool(auth.oauth2.client_id), _oauth2),
    Way("client certificates", lambda auth: auth.mtls.ca is not None, _mtls),
)


def build(auth: Auth, secret: Secret) -> Sequence[Authenticator]:
    """Those that are configured; ScistreamError where one of them cannot be had."""
    ways = [way for way in AUTHENTICATORS if way.configured(auth)]
    try:
        found = [way.make(auth, secret) for way in ways]
    except ModuleNotFoundError as problem:
        raise ScistreamError(
            Code.FAILED_PRECONDITION,
            f"auth.oauth2 needs Python's {problem.name}",
            "install python3-httpx and python3-jwt",
        ) from None
    if ways:
        names = ", ".join(way.name.format(issuer=auth.oauth2.issuer) for way in ways)
        _log.info("callers prove who they are with %s", names)
    return found
