"""Who a caller is: the authenticators asked in order, and who has failed too often."""

from __future__ import annotations

import hashlib
import ipaddress
import shlex
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace

from scistreamd.config import Settings
from scistreamd.errors import Code, ScistreamError
from scistreamd.identity import Credentials, Identity
from scistreamd.interfaces import Authenticator
from scistreamd.model import Caller, IPAddress
from scistreamd.throttle import Throttle

# Credentials that were good lately: they are not held to what others from the same address do.
_REMEMBERED = 4096
# What counts as a failure of who is known: trying what is not theirs.
_TRYING = (Code.PERMISSION_DENIED, Code.NOT_FOUND)
# And of who is not: many may come from one address, and nobody's right to call is at stake.
_OF_STRANGERS = 0.1
# What callers do to prove who they are, by the scheme of the challenge.
_PROOFS = {
    "token": "bring a token of its operator (s2uc --token-file)",
    "mtls": "show a client certificate (s2uc --client-cert)",
    "oauth2": "log in: s2uc login",
}
_LOGIN = "s2uc login"
_LOGIN_OPTIONS = ("scope", "issuer", "client-id", "audience")


class Identification:
    """Finds out who callers of the control port are."""

    def __init__(self, settings: Settings, authenticators: Sequence[Authenticator]) -> None:
        """``authenticators``: who may vouch for them, in the order in which they are asked."""
        self._authenticators = tuple(authenticators)
        self._throttle = Throttle(settings.auth.failures)
        self._proven: OrderedDict[bytes, None] = OrderedDict()

    @property
    def possible(self) -> bool:
        """Whether there is a way to prove it."""
        return bool(self._authenticators)

    def reconfigure(self, settings: Settings, authenticators: Sequence[Authenticator] | None) -> None:
        """Go by other limits from now on, and ask other authenticators where some are given."""
        self._throttle.limits = settings.auth.failures
        if authenticators is not None:
            self._authenticators = tuple(authenticators)
            self._proven.clear()

    async def identify(self, caller: Caller, credentials: Credentials) -> Caller:
        """The caller with the identity that the first authenticator who knows the credentials vouches for.

        Without credentials, or without authenticators, the caller as it came.
        Raises UNAUTHENTICATED where nobody knows them, UNAVAILABLE where
        nobody does and one could not be asked, and RESOURCE_EXHAUSTED where
        this peer, or who it proves to be, has failed too often lately.
        """
        if not credentials or not self._authenticators:
            self._throttle.check(_stranger(caller), _OF_STRANGERS)
            return caller
        peer, digest = _network(caller.peer), _digest(credentials)
        if digest not in self._proven:
            self._throttle.check(peer)
        try:
            known = replace(caller, identity=await self._identity(credentials))
        except ScistreamError as problem:
            if problem.code is Code.UNAUTHENTICATED:
                self._proven.pop(digest, None)
                self._throttle.fail(peer)
            raise
        self._remember(digest)
        self._throttle.check(known.principal)
        return known

    def failed(self, caller: Caller, code: Code) -> None:
        """A call of this caller has ended so; who tries what is not theirs is slowed down."""
        if code not in _TRYING:
            return
        if caller.identity is not None:
            self._throttle.fail(caller.principal)
        else:
            self._throttle.fail(_stranger(caller), _OF_STRANGERS)

    def _remember(self, digest: bytes) -> None:
        self._proven[digest] = None
        self._proven.move_to_end(digest)
        if len(self._proven) > _REMEMBERED:
            self._proven.popitem(last=False)

    async def _identity(self, credentials: Credentials) -> Identity:
        unavailable: ScistreamError | None = None
        for each in self._authenticators:
            try:
                identity = await each.identify(credentials)
            except ScistreamError as problem:
                if problem.code is Code.UNAUTHENTICATED:
                    raise self.unauthenticated(problem.message, problem.hint) from None
                if problem.code is not Code.UNAVAILABLE:
                    raise
                unavailable = unavailable or problem
                continue
            if identity is not None:
                return identity
        raise unavailable or self.unauthenticated("these credentials are not valid here", self.proofs())

    def proofs(self) -> str:
        """What callers can do, by the ways that are configured."""
        schemes = {each.challenge.scheme for each in self._authenticators}
        return ", or ".join(proof for scheme, proof in _PROOFS.items() if scheme in schemes)

    def _login_options(self) -> str:
        """Which login is wanted, as options of `s2uc login`; empty where there is none."""
        for each in self._authenticators:
            if each.challenge.scheme == "oauth2":
                named = dict(each.challenge.parameters)
                options = ((name, named.get(name.replace("-", "_"))) for name in _LOGIN_OPTIONS)
                return "".join(f" --{name} {shlex.quote(value)}" for name, value in options if value)
        return ""

    def unauthenticated(self, message: str, hint: str) -> ScistreamError:
        """The error of who has not proved who he is, with all challenges; ``hint`` may end with `s2uc login`."""
        # Two may ask for the same, as those of one provider do.
        challenges = list(dict.fromkeys(str(each.challenge) for each in self._authenticators))
        if hint.endswith(_LOGIN):
            # For people whose client shows nothing but the message.
            hint = f"{hint}{self._login_options()}"
        return ScistreamError(Code.UNAUTHENTICATED, message, hint, challenges)


def _network(peer: IPAddress | None) -> str:
    """Whose failures count together: an address, of IPv6 the network that one host usually has."""
    if isinstance(peer, ipaddress.IPv6Address):
        return str(ipaddress.IPv6Network((peer, 64), strict=False))
    return str(peer)


def _stranger(caller: Caller) -> str:
    return f"who has proved nothing at {_network(caller.peer)}"


def _digest(credentials: Credentials) -> bytes:
    return hashlib.sha256(credentials.token.encode() + b"\0" + credentials.certificate).digest()
