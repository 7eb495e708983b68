"""Bearer tokens, checked by asking the provider: OAuth 2.0 Token Introspection (RFC 7662)."""

from __future__ import annotations

import hashlib
import logging
import re
import time
from collections import OrderedDict
from urllib.parse import quote_plus

from scistreamd.authenticators import claims as judging
from scistreamd.authenticators.flights import Flights
from scistreamd.authenticators.metadata import Metadata
from scistreamd.authenticators.web import Claims, Refused, Web, unavailable
from scistreamd.config import GLOBUS, OAuth2
from scistreamd.identity import Challenge, Credentials, Identity

# RFC 6750, 2.1; longer ones than any provider makes are not asked about.
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]{1,8192}=*", re.ASCII)
_REMEMBERED = 4096
_log = logging.getLogger("scistreamd.authentication")


class Introspection:
    """Asks the provider about each token, and remembers for a short time what it said."""

    def __init__(self, settings: OAuth2, secret: str) -> None:
        """``secret``: of our client at the provider."""
        self._settings = settings
        self._web = Web(settings.timeout)
        self._metadata = Metadata(settings.issuer, self._web)
        # RFC 6749, 2.3.1 wants id and secret form-encoded; Globus takes them as they are.
        encode = str if settings.issuer == GLOBUS else quote_plus
        self._user, self._password = encode(settings.client_id), encode(secret)
        self._good, self._bad = _Memory(), _Memory()
        self._flights: Flights[Claims] = Flights()

    @property
    def challenge(self) -> Challenge:
        """Issuer and scope to log in for."""
        return judging.challenge(self._settings)

    async def identify(self, credentials: Credentials) -> Identity | None:
        """Who bears the token, by the provider's word; see `interfaces.Authenticator`."""
        token = credentials.token
        if not token:
            return None
        if not _TOKEN.fullmatch(token):
            raise judging.refused("this is no token")
        digest = hashlib.sha256(token.encode()).digest()
        said = self._good.get(digest)
        if said is None:
            said = self._bad.get(digest)
        if said is None:
            said = await self._flights.join(digest, lambda: self._ask(digest, token))
        if said.get("active") is not True:
            raise judging.refused("this token is not valid: it has expired, was revoked, or is of another provider")
        self._check_clocks(said)
        return judging.judge(said, self._settings, time.time(), credentials.certificate)

    def _check_clocks(self, said: Claims) -> None:
        """A provider that calls a token active which has ended by our clock has another time than we have."""
        end = said.get("exp")
        if isinstance(end, int | float) and time.time() > end + self._settings.leeway:
            _log.warning("the clocks of %s and of this gateway differ: compare them", self._settings.issuer)
            raise judging.refused(
                "this token has expired by the gateway's clock, and not by its provider's",
                "the operator compares the clocks of gateway and provider",
            )

    async def _ask(self, digest: bytes, token: str) -> Claims:
        settings = self._settings
        url = await self._metadata.endpoint("introspection_endpoint", settings.introspection_endpoint)
        fields = {"token": token, "token_type_hint": "access_token"}
        try:
            said = await self._web.post(url, fields, self._user, self._password)
        except Refused as refusal:
            _log.error(
                "the provider refuses this gateway: %s: %s (check auth.oauth2.client_id and its secret)", url, refusal
            )
            raise unavailable() from None
        if said.get("active") is True:
            self._good.put(digest, said, self._lasts(said))
        else:
            self._bad.put(digest, {"active": False}, settings.negative_cache)
        return said

    def _lasts(self, said: Claims) -> float:
        end = said.get("exp")
        left = end - time.time() if isinstance(end, int | float) else self._settings.cache
        return max(0.0, min(self._settings.cache, left))


class _Memory:
    """What was said of tokens, by their digests, each for its time; the oldest goes when there are too many."""

    def __init__(self) -> None:
        self._said: OrderedDict[bytes, tuple[float, Claims]] = OrderedDict()

    def get(self, digest: bytes) -> Claims | None:
        until, said = self._said.get(digest, (0.0, None))
        if said is not None and time.monotonic() >= until:
            del self._said[digest]
            return None
        return said

    def put(self, digest: bytes, said: Claims, seconds: float) -> None:
        if seconds > 0:
            self._said[digest] = (time.monotonic() + seconds, said)
        while len(self._said) > _REMEMBERED:
            self._said.popitem(last=False)
