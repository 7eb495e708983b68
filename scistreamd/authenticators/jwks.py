"""JWT access tokens (RFC 9068), validated here with the keys that the provider publishes (RFC 7517)."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jwt

from scistreamd.authenticators import claims as judging
from scistreamd.authenticators.flights import Flights
from scistreamd.authenticators.metadata import Metadata
from scistreamd.authenticators.web import Claims, Refused, Web, unavailable
from scistreamd.config import OAuth2
from scistreamd.identity import Challenge, Credentials, Identity

_FRESH = 3600.0  # seconds for which keys count
_REFETCH = 5.0  # seconds between two fetches because of a key that is not among them
_LONGEST = 16384
_MOST_KEYS = 50
_KEY_TYPES = {"RS": "RSA", "PS": "RSA", "ES": "EC", "Ed": "OKP"}
_TYPES = ("at+jwt", "application/at+jwt", "jwt")
_log = logging.getLogger("scistreamd.authentication")


class LocalJwt:
    """Judges JWTs of one issuer; other tokens are not its business."""

    def __init__(self, settings: OAuth2) -> None:
        self._settings = settings
        self._web = Web(settings.timeout)
        self._metadata = Metadata(settings.issuer, self._web)
        self._keys: Sequence[Mapping[str, Any]] = []
        self._fetched_at: float | None = None
        self._flights: Flights[None] = Flights()

    @property
    def challenge(self) -> Challenge:
        """Issuer, scope and audience to log in for."""
        return judging.challenge(self._settings)

    async def identify(self, credentials: Credentials) -> Identity | None:
        """Who bears the JWT, by the provider's signature; see `interfaces.Authenticator`."""
        token = credentials.token
        if token.count(".") != 2 or len(token) > _LONGEST:
            return None
        try:
            header = jwt.get_unverified_header(token)
            claimed = jwt.decode(token, options={"verify_signature": False})
        except (jwt.PyJWTError, ValueError, TypeError):
            return None
        if str(claimed.get("iss", "")).rstrip("/") != self._settings.issuer.rstrip("/"):
            return None
        return judging.judge(await self._verified(token, header), self._settings, time.time(), credentials.certificate)

    async def _verified(self, token: str, header: Mapping[str, Any]) -> Claims:
        """The claims under a good signature."""
        algorithm = header.get("alg")
        if algorithm not in self._settings.algorithms:
            raise judging.refused("this token's signature is of a kind that is not taken here")
        if str(header.get("typ") or "JWT").lower() not in _TYPES or "crit" in header:
            raise judging.refused("this is no access token")
        for key in await self._candidates(str(algorithm), header.get("kid")):
            try:
                found: Claims = jwt.decode(token, key, algorithms=[str(algorithm)], options=_signature_alone())
            except (jwt.PyJWTError, ValueError, TypeError):
                continue
            if found.get("exp") is None:
                raise judging.refused("this token never expires")
            if "nonce" in found or "at_hash" in found:
                raise judging.refused("this is no access token")
            return found
        raise judging.refused("this token is not signed by its provider")

    async def _candidates(self, algorithm: str, kid: Any) -> list[Any]:
        """Keys that may have made such a signature; an unknown one makes us look for new keys, but not often."""
        now = time.monotonic()
        if self._fetched_at is None or now - self._fetched_at >= _FRESH:
            await self._flights.join("keys", self._fetch)
        found = self._fitting(algorithm, kid)
        if not found and self._fetched_at is not None and time.monotonic() - self._fetched_at >= _REFETCH:
            await self._flights.join("keys", self._fetch)
            found = self._fitting(algorithm, kid)
        return found

    def _fitting(self, algorithm: str, kid: Any) -> list[Any]:
        fitting = []
        for key in self._keys:
            if key.get("kty") != _KEY_TYPES[algorithm[:2]] or key.get("alg", algorithm) != algorithm:
                continue
            if key.get("use", "sig") != "sig" or (kid is not None and key.get("kid") != kid):
                continue
            try:
                fitting.append(jwt.PyJWK(dict(key), algorithm=algorithm).key)
            except (jwt.PyJWTError, ValueError, TypeError) as problem:
                _log.warning("a key of %s cannot be used: %s", self._settings.issuer, problem)
        return fitting

    async def _fetch(self) -> None:
        url = await self._metadata.endpoint("jwks_uri", self._settings.jwks_uri)
        try:
            keys = (await self._web.get(url)).get("keys")
        except Refused as refusal:
            _log.error("the provider's keys cannot be had: %s: %s", url, refusal)
            raise unavailable() from None
        if not isinstance(keys, list):
            _log.error("%s has no keys", url)
            raise unavailable()
        self._keys = [key for key in keys if isinstance(key, dict)][:_MOST_KEYS]
        self._fetched_at = time.monotonic()


def _signature_alone() -> Any:
    """Options of PyJWT: `judging` judges times, issuer and audience for both kinds of tokens."""
    return {f"verify_{claim}": False for claim in ("exp", "nbf", "iat", "aud", "iss", "sub", "jti")}
