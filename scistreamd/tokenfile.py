"""The file of static tokens: names and digests, never a token.

One line a token: NAME, SHA-256 of the token in hex, when it was made and when
it ends as seconds since the epoch, ``never`` for no end. SHA-256 is enough,
where passwords need scrypt: a token is 256 random bits, and nobody tries those
out, however fast each try is.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass

from scistreamd.errors import Code, ScistreamError, invalid

# Says what it is where it turns up, to people and to scanners for leaked secrets.
PREFIX = "scistream_"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,127}", re.ASCII)
_LINE = re.compile(r"(\S+) ([0-9a-f]{64}) ([0-9]{1,12}) ([0-9]{1,12}|never)", re.ASCII)
_HEAD = "# Tokens of scistreamd: s2ctl token makes, lists and revokes them.\n"


@dataclass(frozen=True)
class Entry:
    """One token as the file knows it; ``made`` and ``ends`` in seconds since the epoch, None: it has no end."""

    name: str
    digest: str
    made: int
    ends: int | None

    @property
    def id(self) -> str:
        """What tells it from a later token of the same name, and says nothing of the token."""
        return hashlib.sha256(self.digest.encode()).hexdigest()[:12]

    def __str__(self) -> str:
        return f"{self.name} {self.digest} {self.made} {'never' if self.ends is None else self.ends}"


def new(name: str, now: float, seconds: int | None) -> tuple[str, Entry]:
    """A token, to be shown once, and its entry; ``seconds``: how long it is good for."""
    if not _NAME.fullmatch(name):
        raise invalid(
            "name", "letters, digits and . _ @ - alone, at most 128", "such as detector-7 or alice@example.org"
        )
    token = PREFIX + secrets.token_urlsafe(32)
    return token, Entry(name, digest(token), int(now), None if seconds is None else int(now) + seconds)


def digest(token: str) -> str:
    """What the file holds of a token."""
    return hashlib.sha256(token.encode()).hexdigest()


def parse(text: str, file: str) -> tuple[Entry, ...]:
    """The entries; INVALID_ARGUMENT naming file and line."""
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None or not _NAME.fullmatch(match[1]):
            raise ScistreamError(
                Code.INVALID_ARGUMENT, f"{file}: line {number} is no token's line", "s2ctl token writes this file"
            )
        found.append(Entry(match[1], match[2], int(match[3]), None if match[4] == "never" else int(match[4])))
    return tuple(found)


def written(entries: Iterable[Entry]) -> str:
    """The file's text."""
    return _HEAD + "".join(f"{each}\n" for each in entries)
