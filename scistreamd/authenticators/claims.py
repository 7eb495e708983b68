"""What a provider says of a token, judged: by introspection (RFC 7662) and in JWTs (RFC 9068) alike."""

from __future__ import annotations

import hashlib
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from typing import Any

from scistreamd.config import OAuth2
from scistreamd.errors import Code, ScistreamError
from scistreamd.identity import Challenge, Identity

_LONGEST_NAME = 256
_MOST_GROUPS = 1000
_LOGIN = "log in again: s2uc login"

Claims = Mapping[str, Any]


def challenge(settings: OAuth2) -> Challenge:
    """What those without a good token are asked for."""
    public = {
        "issuer": settings.issuer,
        "scope": settings.wanted_scope,
        "audience": settings.audience,
        "client_id": settings.login_client_id,
    }
    return Challenge("oauth2", tuple((name, value) for name, value in public.items() if value))


def refused(message: str, hint: str = _LOGIN) -> ScistreamError:
    """A token that is not good, with what its bearer may know about it."""
    return ScistreamError(Code.UNAUTHENTICATED, message, hint)


def judge(claims: Claims, settings: OAuth2, now: float, certificate: bytes) -> Identity:
    """Who bears a token of which the provider says this; UNAUTHENTICATED where it is not for us.

    ``now``: seconds since the epoch; ``certificate``: that of the connection,
    DER, for tokens that are bound to one (RFC 8705).
    """
    _check_times(claims, settings.leeway, now)
    _check_kind(claims, certificate)
    issuer = claims.get("iss")
    if issuer is not None and str(issuer).rstrip("/") != settings.issuer.rstrip("/"):
        raise refused("this token is of another provider", f"log in at {settings.issuer}: s2uc login")
    if settings.audience and settings.audience not in _list(claims.get("aud")):
        raise refused(f"this token is not for {settings.audience}")
    lacking = set(settings.wanted_scope.split()) - _scopes(claims)
    if lacking:
        scopes = " ".join(sorted(lacking))
        raise refused(f"this token lacks the scope {scopes}", "log in for it: s2uc login")
    return _identity(claims, settings)


def _check_times(claims: Claims, leeway: float, now: float) -> None:
    end, begin = _number(claims, "exp"), _number(claims, "nbf")
    if end is not None and now > end + leeway:
        raise refused("this token has expired")
    if begin is not None and now < begin - leeway:
        raise refused("this token is not valid yet", "compare the clocks of gateway and provider, or wait")


def _check_kind(claims: Claims, certificate: bytes) -> None:
    """Only bearer tokens for access: no ID or refresh token, nothing that is bound to a key that we were not shown."""
    kind = str(claims.get("token_type") or "Bearer").lower()
    bound = claims.get("cnf")
    if isinstance(bound, Mapping) and "x5t#S256" in bound:
        shown = urlsafe_b64encode(hashlib.sha256(certificate).digest()).decode().rstrip("=")
        if not certificate or shown != bound["x5t#S256"]:
            raise refused("this token is bound to a client certificate that was not shown", "connect with it")
    elif bound:
        raise refused("this token is bound to a key; only bearer tokens are taken")
    # What else providers say of it: Keycloak by typ, Ory Hydra and Amazon Cognito by token_use.
    other = str(claims.get("typ", "")).lower() in ("id", "refresh")
    other = other or str(claims.get("token_use") or "access").lower() not in ("access", "access_token")
    if other or kind not in ("bearer", "access_token", "at+jwt"):
        raise refused("this is no access token")


def _identity(claims: Claims, settings: OAuth2) -> Identity:
    subject, client = _name(claims.get("sub")), _name(claims.get("client_id"))
    if not subject and not client:
        raise refused("this token says nothing of whose it is")
    names = [name for claim in settings.user_claims if (name := _claimed(claims, claim))]
    names += [subject or client]
    groups = [each for each in _list(claims.get(settings.groups_claim))[:_MOST_GROUPS] if _name(each)]
    # A machine's token may have no subject; its client's id is another name space than people's.
    key = f"{settings.issuer}#{subject}" if subject else f"{settings.issuer}#client {client}"
    return Identity("oauth2", key, names[0], frozenset(names[1:]), frozenset(groups))


def _claimed(claims: Claims, claim: str) -> str:
    # OpenID Connect Core, 5.1: anybody can have written another's address there.
    if claim == "email" and claims.get("email_verified") in (False, "false"):
        return ""
    return _name(claims.get(claim))


def _name(value: Any) -> str:
    """Text that can stand in a log line and on a screen; empty for all else."""
    good = isinstance(value, str) and value.isprintable() and len(value) <= _LONGEST_NAME
    return value.strip() if good else ""


def _scopes(claims: Claims) -> set[str]:
    """``scope`` as RFC 7662 and RFC 9068 have it, or ``scp`` of providers that are older."""
    return {word for each in (*_list(claims.get("scope")), *_list(claims.get("scp"))) for word in each.split()}


def _list(value: Any) -> list[str]:
    found = value if isinstance(value, list) else [value]
    return [each for each in found if isinstance(each, str)]


def _number(claims: Claims, name: str) -> float | None:
    value = claims.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise refused(f"this token's {name} is no time")
    return value
