"""What a gateway says that it wants to see, in the form of WWW-Authenticate (RFC 9110, section 11.6.1)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_PARAMETER = re.compile(r'([a-z_]{1,32})="([^"\\\x00-\x1f\x7f]{0,500})"', re.ASCII)
_WORD = re.compile(r"[!-~]{1,500}", re.ASCII)
# RFC 6749, 3.3: several scopes stand with spaces between them.
_WORDS = re.compile(r"[!-~]+(?: [!-~]+)*", re.ASCII)


@dataclass(frozen=True)
class Offer:
    """A login that a gateway takes: issuer, scope, and who asks for it there, where it says so."""

    issuer: str
    scope: str
    client_id: str = ""
    audience: str = ""


def offers(challenges: Sequence[str]) -> list[Offer]:
    """The logins among the challenges; what makes no sense is none."""
    found = []
    for challenge in challenges:
        scheme, _, rest = challenge.partition(" ")
        if scheme != "oauth2":
            continue
        values = dict(_PARAMETER.findall(rest))
        named = [values.get(name, "") for name in ("issuer", "scope", "client_id", "audience")]
        one = all(not each or _WORD.fullmatch(each) for each in (named[0], *named[2:]))
        if named[0] and one and _WORDS.fullmatch(named[1]):
            found.append(Offer(named[0].rstrip("/"), *named[1:]))
    return found
