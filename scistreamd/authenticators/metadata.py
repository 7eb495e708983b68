"""What a provider says of itself: OpenID Connect Discovery 1.0 and RFC 8414."""

from __future__ import annotations

import logging
import time
from urllib.parse import urlsplit

from scistreamd.authenticators.flights import Flights
from scistreamd.authenticators.web import Claims, Refused, Web, unavailable
from scistreamd.config import GLOBUS

_FRESH = 3600.0  # seconds for which metadata count
# What Globus Auth's metadata have been without (docs.globus.org/api/auth/reference).
_GLOBUS = {
    "introspection_endpoint": f"{GLOBUS}/v2/oauth2/token/introspect",
    "jwks_uri": f"{GLOBUS}/jwk.json",
}
_log = logging.getLogger("scistreamd.authentication")


class Metadata:
    """The metadata of one issuer, asked for when they are needed."""

    def __init__(self, issuer: str, web: Web) -> None:
        self._issuer = issuer
        self._web = web
        self._found: Claims = {}
        self._until = 0.0
        self._flights: Flights[Claims] = Flights()

    async def endpoint(self, name: str, configured: str = "") -> str:
        """A URL among the metadata, such as ``jwks_uri``; UNAVAILABLE where it cannot be had."""
        if configured:
            return configured
        if time.monotonic() >= self._until:
            await self._flights.join(self._issuer, self._fetch)
        url = self._found.get(name) or (_GLOBUS.get(name) if self._issuer == GLOBUS else None)
        if isinstance(url, str) and self._safe(url):
            return url
        _log.error("the metadata of %s name no usable %s: set auth.oauth2.%s", self._issuer, name, name)
        raise unavailable()

    async def _fetch(self) -> Claims:
        found = await self._first()
        if str(found.get("issuer", "")).rstrip("/") != self._issuer.rstrip("/"):
            _log.error("the metadata of %s are those of another issuer: %r", self._issuer, found.get("issuer"))
            raise unavailable()
        self._found, self._until = found, time.monotonic() + _FRESH
        return found

    async def _first(self) -> Claims:
        parts = urlsplit(self._issuer)
        path = parts.path.rstrip("/")
        places = (
            f"{self._issuer.rstrip('/')}/.well-known/openid-configuration",
            f"{parts.scheme}://{parts.netloc}/.well-known/oauth-authorization-server{path}",
        )
        for place in places:
            try:
                return await self._web.get(place)
            except Refused as refusal:
                _log.debug("%s: %s", place, refusal)
        _log.error("%s has no metadata, neither of OpenID Connect nor of RFC 8414", self._issuer)
        raise unavailable()

    def _safe(self, url: str) -> bool:
        # http stays on this host: only an issuer that is on it may name such a URL.
        return url.startswith("https://") or (
            self._issuer.startswith("http://") and urlsplit(url).netloc == urlsplit(self._issuer).netloc
        )
