"""The tokens of the user's logins, by issuer and scope; `known` has which gateway may be sent them.

``tokens`` in $XDG_STATE_HOME/scistream (XDG Base Directory Specification), for
its owner alone. Where the package ``keyring`` is there and finds a keyring that works, the secrets are in that
and the file says what there is; $SCISTREAM_KEYRING=off leaves keyrings alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from scistreamd import files
from scistreamd.cli.known import state_directory
from scistreamd.errors import Code, ScistreamError

GLOBUS = "https://auth.globus.org"
_FILE = "tokens"
_VERSION = 1
_SERVICE = "scistream"
_SECRETS = ("access_token", "refresh_token")
# A token is renewed before it ends: it has to arrive while it counts.
_MARGIN = 60


def path_of(environment: Mapping[str, str] = os.environ) -> Path:
    """Where the file is."""
    return state_directory(environment) / _FILE


@dataclass(frozen=True)
class Login:
    """One login: the tokens for one scope at one issuer, and for one audience where the gateway names itself.

    ``name`` is what the user typed for the scope. ``expires``: when the access
    token does, in seconds since the epoch, 0: not known. ``identity``: who has
    logged in, as the provider says. ``in_keyring``: the tokens are there, and not in the file.
    """

    issuer: str
    scope: str
    name: str
    client_id: str
    access_token: str = field(repr=False, default="")
    refresh_token: str = field(repr=False, default="")
    expires: float = 0
    identity: str = ""
    audience: str = ""
    in_keyring: bool = False

    @property
    def out_of_reach(self) -> bool:
        """Whether there are tokens, in a keyring that cannot be had here."""
        return self.in_keyring and not (self.access_token or self.refresh_token)

    def meant(self, scope: str) -> bool:
        """Whether a user who types this means its scope: as it was typed before, or in full, or Globus's short form."""
        return scope in (self.name, self.scope) or full_scope(scope, self.issuer) == self.scope

    def fresh(self, now: float) -> bool:
        """Whether the access token can be sent as it is."""
        return bool(self.access_token) and (not self.expires or self.expires > now + _MARGIN)


class Store:
    """The file and, where there is one, the keyring."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self.path = path_of(environment)
        self._keyring = _keyring(environment)

    def logins(self) -> list[Login]:
        """All of them, with their secrets; FAILED_PRECONDITION where the file is not to be read, or none of ours."""
        return [self._with_secrets(Login(**entry)) for entry in self._read()["logins"]]

    def find(self, scope: str, issuer: str = "", audience: str | None = None) -> Login | None:
        """The login that the user means by a scope, as it was typed or in full: the last one, whatever its audience.

        ``audience``: the one that it must have; None: any.
        """
        found = [each for each in self.logins() if each.meant(scope) and (not issuer or each.issuer == issuer)]
        issuers = {each.issuer for each in found}
        if len(issuers) > 1:
            several = ", ".join(sorted(issuers))
            raise ScistreamError(Code.INVALID_ARGUMENT, f"scope: logged in at several issuers: {several}", "--issuer")
        fitting = [each for each in found if audience in (None, each.audience)]
        return fitting[-1] if fitting else None

    def keep(self, login: Login) -> None:
        """Put a login in the place of the one for the same scope and audience at the same issuer."""
        with self.locked():
            raw = self._read()
            raw["logins"] = [each for each in raw["logins"] if not _same(each, login)]
            raw["logins"].append(asdict(self._without_secrets(login)))
            self._write(raw)

    def forget(self, login: Login) -> None:
        """Have it no more."""
        with self.locked():
            raw = self._read()
            raw["logins"] = [each for each in raw["logins"] if not _same(each, login)]
            self._write(raw)
        if self._keyring is not None and self._asked("get_password", _account(login)) is not None:
            self._asked("delete_password", _account(login))

    def locked(self) -> contextlib.AbstractContextManager[None]:
        """Nobody else changes the file meanwhile."""
        return self._alone("lock")

    def locked_for(self, login: Login) -> contextlib.AbstractContextManager[None]:
        """Nobody else renews this login meanwhile."""
        return self._alone(hashlib.sha256(_account(login).encode()).hexdigest()[:16])

    @contextlib.contextmanager
    def _alone(self, name: str) -> Iterator[None]:
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(self.path.with_name(f".{_FILE}.{name}"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _unusable(f"cannot write {self.path}: {error.strerror}") from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _read(self) -> dict[str, Any]:
        try:
            raw = json.loads(self.path.read_text("utf-8"))
            if raw["version"] != _VERSION:
                raise ValueError(f"version {raw['version']!r}")
            for entry in raw["logins"]:
                Login(**entry)
        except FileNotFoundError:
            return {"version": _VERSION, "logins": []}
        except OSError as error:
            raise _unusable(f"cannot read {self.path}: {error.strerror}") from None
        except (ValueError, TypeError, KeyError, AttributeError) as problem:
            # Not the text itself: it holds tokens.
            raise _unusable(f"{self.path} is damaged ({type(problem).__name__})") from None
        found: dict[str, Any] = raw
        return found

    def _write(self, raw: Mapping[str, Any]) -> None:
        files.write(self.path, f"{json.dumps(raw, indent=2)}\n".encode(), 0o600, replace=True)

    def _without_secrets(self, login: Login) -> Login:
        if self._keyring is None:
            return replace(login, in_keyring=False)
        secrets = {name: getattr(login, name) for name in _SECRETS}
        self._asked("set_password", _account(login), json.dumps(secrets))
        return replace(login, access_token="", refresh_token="", in_keyring=any(secrets.values()))

    def _with_secrets(self, login: Login) -> Login:
        if login.access_token or self._keyring is None:
            return login
        kept = self._asked("get_password", _account(login))
        return replace(login, **json.loads(kept)) if kept else login

    def _asked(self, method: str, *arguments: str) -> Any:
        """What the keyring answers; FAILED_PRECONDITION where it is locked, or nobody there answers."""
        try:
            return getattr(self._keyring, method)(_SERVICE, *arguments)
        except Exception as problem:  # each of its backends raises errors of its own
            reason = str(problem) or type(problem).__name__
            raise ScistreamError(
                Code.FAILED_PRECONDITION,
                f"the keyring cannot be used: {reason}",
                "unlock it, or log in again with SCISTREAM_KEYRING=off, which keeps tokens in a file",
            ) from None


def full_scope(name: str, issuer: str) -> str:
    """The scope that a name stands for: Globus names a gateway's by the id of its client."""
    return f"{GLOBUS}/scopes/{name}/scistream" if issuer == GLOBUS and "/" not in name else name


def expires(seconds: object) -> float:
    """When a token ends that lives for so long from now; 0 where the provider did not say."""
    return time.time() + float(seconds) if isinstance(seconds, int | float | str) and seconds else 0


def _same(entry: Mapping[str, Any], login: Login) -> bool:
    return (entry["issuer"], entry["scope"], entry["audience"]) == (login.issuer, login.scope, login.audience)


def _account(login: Login) -> str:
    return " ".join(each for each in (login.issuer, login.scope, login.audience) if each)


def _keyring(environment: Mapping[str, str]) -> Any:
    if environment.get("SCISTREAM_KEYRING", "").lower() == "off":
        return None
    try:
        import keyring
    except ImportError:
        return None
    # Its own measure: below 1 a backend works nowhere, or only where it is asked for by name.
    return keyring if keyring.get_keyring().priority >= 1 else None


def _unusable(message: str) -> ScistreamError:
    return ScistreamError(Code.FAILED_PRECONDITION, message, "repair it, or remove it and log in again")
