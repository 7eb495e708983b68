"""Static tokens, whose digests stand in a file that is read again when it changes."""

from __future__ import annotations

import hmac
import logging
import os
import time
from pathlib import Path

from scistreamd import tokenfile
from scistreamd.errors import Code, ScistreamError
from scistreamd.identity import Challenge, Credentials, Identity

_log = logging.getLogger("scistreamd.authentication")
_REFUSED = "this token is not valid: it is unknown here, has expired, or was revoked"


class StaticTokens:
    """Knows the tokens of one file; others that are not of its form are not its business."""

    def __init__(self, path: Path) -> None:
        """FAILED_PRECONDITION or INVALID_ARGUMENT where the file is there and cannot be used; missing, it is empty."""
        self._path = path
        self._seen: tuple[int, ...] | None = None
        self._entries: tuple[tokenfile.Entry, ...] = ()
        self._read()

    @property
    def challenge(self) -> Challenge:
        """A token that the operator has made."""
        return Challenge("token")

    async def identify(self, credentials: Credentials) -> Identity | None:
        """Whose token this is; UNAVAILABLE where the file cannot be used any more."""
        if not credentials.token.startswith(tokenfile.PREFIX):
            return None
        try:
            self._read()
        except ScistreamError as problem:
            _log.error("%s", problem)
            raise ScistreamError(
                Code.UNAVAILABLE, "who you are cannot be checked now", "the operator finds the reason in the log"
            ) from None
        wanted = tokenfile.digest(credentials.token)
        # All of them, each in the same time: how long it takes says nothing of the file.
        found = [each for each in self._entries if hmac.compare_digest(each.digest, wanted)]
        if not found or (found[0].ends is not None and time.time() >= found[0].ends):
            raise ScistreamError(Code.UNAUTHENTICATED, _REFUSED, "the operator makes another: s2ctl token create")
        return Identity("token", found[0].id, found[0].name)

    def _read(self) -> None:
        try:
            status = self._path.stat()
            now = (status.st_ino, status.st_mtime_ns, status.st_size, status.st_mode)
            if now == self._seen:
                return
            self._check(status)
            self._entries = tokenfile.parse(self._path.read_text(encoding="utf-8"), str(self._path))
            self._seen = now
        except FileNotFoundError:
            self._entries, self._seen = (), None
        except (OSError, UnicodeDecodeError) as problem:
            reason = problem.strerror if isinstance(problem, OSError) else "it is not UTF-8"
            raise ScistreamError(
                Code.FAILED_PRECONDITION, f"cannot read the tokens {self._path}: {reason}", "check owner and mode"
            ) from None

    def _check(self, status: os.stat_result) -> None:
        if status.st_mode & 0o022 or status.st_uid not in (0, os.geteuid()):
            raise ScistreamError(
                Code.FAILED_PRECONDITION,
                f"the tokens {self._path} can be written by others",
                f"chmod 600 {self._path}, owned by the user that scistreamd runs as",
            )
