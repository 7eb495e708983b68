"""One provider of logins: its metadata, and what the user client asks of it, by Authlib."""

from __future__ import annotations

import base64
import json
import ssl
import time
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import httpx

from scistreamd.cli import output
from scistreamd.cli.auth.store import GLOBUS, Login, expires
from scistreamd.errors import Code, ScistreamError

with warnings.catch_warnings():
    # Late Authlibs would rather have httpx2, which Debian has not, and insist on saying so: the first import
    # switches their warnings on.
    import authlib.deprecate  # noqa: F401

    warnings.simplefilter("ignore")
    from authlib.integrations.base_client import OAuthError
    from authlib.integrations.httpx_client import OAuth2Client

_SECONDS = 15.0
_DEVICE_GRANT = "urn:ietf:params:oauth:grant-type:device_code"
# What SciStream 1.2's user client is known as at Globus Auth, and where Globus shows its codes.
_GLOBUS_CLIENT = "4787c84e-9c55-4881-b941-cb6720cea11c"
_GLOBUS_REDIRECT = f"{GLOBUS}/v2/web/auth-code"
_GLOBUS = {
    "issuer": GLOBUS,
    "authorization_endpoint": f"{GLOBUS}/v2/oauth2/authorize",
    "token_endpoint": f"{GLOBUS}/v2/oauth2/token",
    "revocation_endpoint": f"{GLOBUS}/v2/oauth2/token/revoke",
    "scopes_supported": ["openid", "email", "profile"],
}


class Provider:
    """A provider and our client there. Every method raises ScistreamError, naming what the provider said.

    ``metadata`` are those of RFC 8414 or OpenID Connect Discovery 1.0.
    """

    def __init__(self, issuer: str, client_id: str) -> None:
        self.issuer = issuer.rstrip("/")
        self._safe(self.issuer)
        self.client_id = client_id or (_GLOBUS_CLIENT if self.issuer == GLOBUS else "")
        if not self.client_id:
            raise ScistreamError(
                Code.INVALID_ARGUMENT,
                f"client-id: s2uc is not registered at {self.issuer} under a name of its own",
                "the provider's operator registers a public client: --client-id ID",
            )
        self._http = OAuth2Client(
            self.client_id,
            token_endpoint_auth_method="none",  # noqa: S106  (RFC 7591: a public client)
            code_challenge_method="S256",
            timeout=_SECONDS,
            # The system's CAs, as for gateways; httpx has a list of its own.
            verify=ssl.create_default_context(),
        )
        self.metadata = self._discover()

    @property
    def fixed_redirect(self) -> str:
        """Where the provider sends browsers of our client there, if not to this host."""
        return _GLOBUS_REDIRECT if self.client_id == _GLOBUS_CLIENT else ""

    @property
    def device_flow(self) -> bool:
        """Whether RFC 8628 is offered."""
        return bool(self.metadata.get("device_authorization_endpoint"))

    def scopes(self, scope: str) -> str:
        """What to ask for so that there is a name and a refresh token beside the scope itself."""
        offered = self.metadata.get("scopes_supported")
        extra = ["openid", "email", "profile", "offline_access"]
        return " ".join([each for each in extra if not isinstance(offered, list) or each in offered] + [scope])

    def authorization_url(self, login: Login, redirect: str, verifier: str) -> tuple[str, str]:
        """Where the user logs in, and the state that has to come back (RFC 6749, 4.1.1; RFC 7636)."""
        scopes = self.scopes(login.scope)
        more = {"prompt": "consent"} if "offline_access" in scopes.split() else {}
        if self.issuer == GLOBUS:
            # Its way to ask for a refresh token; it knows no scope for that.
            more["access_type"] = "offline"
        url, state = self._http.create_authorization_url(
            self._endpoint("authorization_endpoint"),
            redirect_uri=redirect,
            scope=scopes,
            code_verifier=verifier,
            **more,
            **_resource(login),
        )
        return str(url), str(state)

    def redeem(self, login: Login, code: str, redirect: str, verifier: str) -> Login:
        """The tokens for an authorization code."""
        return self._tokens(
            login,
            grant_type="authorization_code",
            code=code,
            redirect_uri=redirect,
            code_verifier=verifier,
            **_resource(login),
        )

    def start_device(self, login: Login) -> Mapping[str, Any]:
        """Codes for a device without a browser (RFC 8628, 3.2)."""
        fields = {"client_id": self.client_id, "scope": self.scopes(login.scope), **_resource(login)}
        started = self._json("POST", self._endpoint("device_authorization_endpoint"), data=fields)
        if any(not isinstance(started.get(name), str) for name in ("device_code", "user_code", "verification_uri")):
            raise _Said(self.issuer, "no code for a device", "")
        return started

    def finish_device(self, login: Login, started: Mapping[str, Any]) -> Login:
        """Ask until the user has confirmed the code elsewhere, as often as the provider wants it."""
        interval = float(started.get("interval", 5))
        deadline = time.monotonic() + float(started.get("expires_in", 600))
        while time.monotonic() < deadline:
            time.sleep(interval)
            try:
                return self._tokens(login, grant_type=_DEVICE_GRANT, device_code=started["device_code"])
            except _Said as answer:
                if answer.error == "slow_down":
                    interval += 5
                elif answer.error != "authorization_pending":
                    raise
            except ScistreamError as problem:
                if problem.code is not Code.UNAVAILABLE:
                    raise
                # RFC 8628, 3.5: go on, and ask less often.
                output.note("s2uc", f"{problem.message}; asking again")
                interval *= 2
        raise ScistreamError(Code.DEADLINE_EXCEEDED, "nobody confirmed the code in time", "log in again")

    def refresh(self, login: Login) -> Login:
        """New tokens for a refresh token; a provider that rotates it gives another one."""
        return self._tokens(login, grant_type="refresh_token", refresh_token=login.refresh_token)

    def revoke(self, login: Login) -> None:
        """Tell the provider that neither token counts any more (RFC 7009)."""
        for hint in ("refresh_token", "access_token"):
            token = getattr(login, hint)
            if token:
                self._ask(
                    "POST",
                    self._endpoint("revocation_endpoint"),
                    data={"token": token, "token_type_hint": hint, "client_id": self.client_id},
                )

    def _tokens(self, login: Login, **fields: Any) -> Login:
        try:
            token = self._http.fetch_token(self._endpoint("token_endpoint"), **fields)
        except OAuthError as error:
            raise _Said(self.issuer, str(error.error), str(error.description or "")) from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise self._silent(error) from None
        except ValueError:
            raise _Said(self.issuer, "no JSON", "") from None
        found = _of_scope(token, login.scope)
        if not found.get("access_token"):
            raise _Said(self.issuer, "no access token", "")
        _tell_lacking(found, login.scope)
        return replace(
            login,
            access_token=str(found["access_token"]),
            refresh_token=str(found.get("refresh_token") or login.refresh_token),
            expires=expires(found.get("expires_in")),
            identity=_identity(token.get("id_token")) or login.identity,
        )

    def _discover(self) -> Mapping[str, Any]:
        parts = urlsplit(self.issuer)
        places = (
            f"{self.issuer}/.well-known/openid-configuration",
            f"{parts.scheme}://{parts.netloc}/.well-known/oauth-authorization-server{parts.path}",
        )
        for place in places:
            try:
                found = self._json("GET", place)
            except _Said:
                continue
            if str(found.get("issuer", "")).rstrip("/") != self.issuer:
                raise _Said(self.issuer, "its metadata are those of another issuer", "")
            return {**(_GLOBUS if self.issuer == GLOBUS else {}), **found}
        if self.issuer == GLOBUS:
            return _GLOBUS
        raise _Said(self.issuer, "it has no metadata, neither of OpenID Connect nor of RFC 8414", "")

    def _endpoint(self, name: str) -> str:
        url = self.metadata.get(name)
        if not isinstance(url, str) or not url:
            raise _Said(self.issuer, f"it names no {name}", "")
        return self._safe(url)

    def _safe(self, url: str) -> str:
        """Secrets go over TLS, or stay on this host."""
        parts = urlsplit(url)
        if parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in ("127.0.0.1", "::1", "localhost")):
            return url
        raise ScistreamError(Code.INVALID_ARGUMENT, f"issuer: {url!r} is not an https:// URL")

    def _json(self, method: str, url: str, **more: Any) -> Mapping[str, Any]:
        answer = self._ask(method, url, **more)
        try:
            found = answer.json()
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise _Said(self.issuer, "the answer is no JSON object", "")
        return found

    def _ask(self, method: str, url: str, **more: Any) -> httpx.Response:
        try:
            answer = self._http.request(method, url, withhold_token=True, **more)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise self._silent(error) from None
        if answer.status_code >= 500:
            raise ScistreamError(
                Code.UNAVAILABLE, f"{self.issuer} has a problem: HTTP status {answer.status_code}", "try again later"
            )
        if answer.status_code != 200:
            raise _Said(self.issuer, *_error(answer))
        found: httpx.Response = answer
        return found

    def _silent(self, error: Exception) -> ScistreamError:
        reason = str(error) or type(error).__name__
        return ScistreamError(
            Code.UNAVAILABLE, f"{self.issuer} does not answer: {reason}", "check --issuer, or try again later"
        )


class _Said(ScistreamError):
    """The provider's no."""

    def __init__(self, issuer: str, error: str, description: str) -> None:
        more = f" ({description})" if description else ""
        super().__init__(Code.UNAUTHENTICATED, f"{issuer} says: {error}{more}", "log in again: s2uc login")
        self.error = error


def _error(answer: httpx.Response) -> tuple[str, str]:
    """What an answer says went wrong, and its description (RFC 6749, 5.2); its status where it says nothing."""
    try:
        said = answer.json()
    except ValueError:
        said = None
    if not isinstance(said, dict) or not isinstance(said.get("error"), str):
        return f"HTTP status {answer.status_code}", ""
    return said["error"], str(said.get("error_description") or "")


def _of_scope(token: Mapping[str, Any], scope: str) -> Mapping[str, Any]:
    """The token for a scope: Globus gives one for each service, the others beside the first as ``other_tokens``."""
    others = token.get("other_tokens")
    for each in (token, *(others if isinstance(others, list) else ())):
        if isinstance(each, Mapping) and set(scope.split()) <= _granted(each):
            return each
    return token


def _tell_lacking(token: Mapping[str, Any], scope: str) -> None:
    """RFC 6749, 5.1: a provider that gives other scopes than it was asked for says which."""
    lacking = set(scope.split()) - _granted(token)
    if "scope" in token and lacking:
        output.note(
            "s2uc",
            f"the provider did not give the scope {' '.join(sorted(lacking))}, so gateways that want it will not "
            "take this token; ask their operator for the scope's name",
        )


def _granted(token: Mapping[str, Any]) -> set[str]:
    return set(str(token.get("scope") or "").split())


def _resource(login: Login) -> dict[str, str]:
    """RFC 8707: whom the token is for, where the gateway names itself."""
    return {"resource": login.audience} if login.audience else {}


def _identity(id_token: object) -> str:
    """Who logged in, out of an ID token that came straight from the provider (OpenID Connect Core, 3.1.3.7)."""
    if not isinstance(id_token, str) or id_token.count(".") != 2:
        return ""
    part = id_token.split(".")[1]
    try:
        claims = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
        return str(claims.get("preferred_username") or claims.get("email") or claims.get("sub") or "")
    except (ValueError, AttributeError):
        return ""
