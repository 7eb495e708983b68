"""Gateways that the user has trusted on first use: remembered by key, as ssh remembers hosts.

One JSON file, $XDG_STATE_HOME/scistream/known-gateways (XDG Base Directory
Specification), for its owner alone. A gateway is told by the public key of its
certificate (SHA-256 over SubjectPublicKeyInfo, RFC 5280, section 4.1.2.7), so that a renewed
certificate with the same key is the same gateway. Beside them stands which login a gateway may be sent the token of,
also for those that a file or the system's CAs vouch for.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from scistreamd import files, validity
from scistreamd.cli.trust import HTTP2Only, NotPinned, client_context
from scistreamd.errors import Code, ScistreamError
from scistreamd.model import Target

_FILE = "known-gateways"
_VERSION = 1


@dataclass(frozen=True)
class Known:
    """A gateway as it was when it was trusted.

    ``key`` and ``certificate``: SHA-256 of the public key and of the whole
    certificate, in hex. ``ends``: when the certificate does, in seconds since
    the epoch. ``since``: the day on which it was trusted.
    """

    key: str
    certificate: str
    ends: float
    since: str = field(default_factory=lambda: time.strftime("%Y-%m-%d"))

    @classmethod
    def of(cls, der: bytes) -> Known:
        """What is to be remembered of a certificate."""
        # Imported here: a gateway that is known already is recognised without it.
        from cryptography import x509
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        certificate = x509.load_der_x509_certificate(der)
        key = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return cls(_sha256(key), _sha256(der), validity.ends(certificate).timestamp())

    @property
    def fingerprint(self) -> str:
        """Of the certificate, as ``openssl x509 -fingerprint -sha256`` and scistreamd's log print it."""
        return _colons(self.certificate)


@dataclass(frozen=True)
class Binding:
    """The login that the user confirmed for a gateway, which is known by the SHA-256 of its public key.

    ``certificate``: that of the whole certificate, by which it is recognised sooner.
    """

    key: str
    certificate: str
    issuer: str
    scope: str
    audience: str = ""

    def fits(self, certificate: bytes) -> bool:
        """Whether the certificate (DER) is of the gateway that the login was confirmed for."""
        return _sha256(certificate) == self.certificate or Known.of(certificate).key == self.key


@dataclass
class _Content:
    """What the file holds, by ``HOST:PORT``."""

    gateways: dict[str, Known]
    logins: dict[str, Binding]


class KnownGateways:
    """The file. Every change is made under a lock, and whole."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self.path = state_directory(environment) / _FILE

    def all(self) -> dict[str, Known]:
        """``HOST:PORT`` to gateway; FAILED_PRECONDITION where the file cannot be read or is none of ours."""
        return self._read().gateways

    def get(self, address: Target) -> Known | None:
        """What is known of a gateway."""
        return self.all().get(str(address))

    def remember(self, address: Target, gateway: Known) -> None:
        """Trust it from now on, in place of what was known of it."""
        with self._changed() as content:
            content.gateways[str(address)] = gateway

    def forget(self, name: str) -> None:
        """Know it no more, nor the login that was confirmed for it; NOT_FOUND where it was not known."""
        with self._changed() as content:
            known, bound = content.gateways.pop(name, None), content.logins.pop(name, None)
            if known is None and bound is None:
                raise ScistreamError(Code.NOT_FOUND, f"no gateway {name} is known", "s2uc trust list shows them")

    def logins(self) -> dict[str, Binding]:
        """``HOST:PORT`` to the login that the user confirmed for the gateway; raises as `all`."""
        return self._read().logins

    def bind(self, address: Target, binding: Binding) -> None:
        """Confirm a login for a gateway, in place of another."""
        with self._changed() as content:
            content.logins[str(address)] = binding

    def _read(self) -> _Content:
        try:
            raw = json.loads(self.path.read_text("utf-8"))
            if raw["version"] != _VERSION:
                raise ValueError(f"version {raw['version']!r}")
            return _Content(
                {str(name): Known(**entry) for name, entry in raw["gateways"].items()},
                {str(name): Binding(**entry) for name, entry in raw.get("logins", {}).items()},
            )
        except FileNotFoundError:
            return _Content({}, {})
        except OSError as error:
            raise _unusable(f"cannot read {self.path}: {error.strerror}") from None
        except (ValueError, TypeError, KeyError, AttributeError) as problem:
            raise _unusable(f"{self.path} is damaged: {problem}") from None

    @contextlib.contextmanager
    def _changed(self) -> Iterator[_Content]:
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(self.path.with_name(f".{_FILE}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _unusable(f"cannot write {self.path}: {error.strerror}") from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            content = self._read()
            yield content
            gateways = {name: asdict(each) for name, each in sorted(content.gateways.items())}
            logins = {name: asdict(each) for name, each in sorted(content.logins.items())}
            text = json.dumps({"version": _VERSION, "gateways": gateways, "logins": logins}, indent=2)
            files.write(self.path, f"{text}\n".encode(), 0o600, replace=True)
        finally:
            os.close(lock)


def state_directory(environment: Mapping[str, str]) -> Path:
    """Where the user client keeps what it remembers."""
    base = environment.get("XDG_STATE_HOME", "")
    # The specification has relative paths ignored.
    return (Path(base) if base.startswith("/") else Path.home() / ".local" / "state") / "scistream"


class Stranger(ssl.SSLError):
    """A gateway that nobody vouches for showed this certificate (DER), and was told nothing."""

    def __init__(self, certificate: bytes) -> None:
        super().__init__("the gateway is not known")
        self.certificate = certificate


class KeyChanged(ssl.SSLError):
    """A known gateway showed another key."""

    def __init__(self, shown: Known) -> None:
        super().__init__("the gateway's key has changed")
        self.shown = shown


def ask_who() -> ssl.SSLContext:
    """Settings of a handshake that ends in `Stranger`, before anything is sent."""

    class Asking(HTTP2Only):
        def do_handshake(self) -> None:
            super().do_handshake()
            raise Stranger(self.getpeercert(binary_form=True) or b"")

    return _unverified(Asking)


def recognising(known: Known, renewed: Callable[[Known], None]) -> ssl.SSLContext:
    """Settings that accept this gateway alone; ``renewed`` is told of another certificate with the same key.

    Another key ends the handshake in `KeyChanged`.
    """

    class Recognising(HTTP2Only):
        def do_handshake(self) -> None:
            super().do_handshake()
            der = self.getpeercert(binary_form=True)
            if not der:
                raise NotPinned("the server shows no certificate")
            if _sha256(der) == known.certificate:
                return
            shown = Known.of(der)
            if shown.key != known.key:
                raise KeyChanged(shown)
            renewed(shown)

    return _unverified(Recognising)


def _unverified(checking: type[ssl.SSLObject]) -> ssl.SSLContext:
    context = client_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # the class judges what was shown, inside the handshake
    context.sslobject_class = checking
    return context


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _colons(digest: str) -> str:
    return ":".join(digest[index : index + 2] for index in range(0, len(digest), 2)).upper()


def _unusable(message: str) -> ScistreamError:
    return ScistreamError(Code.FAILED_PRECONDITION, message, "repair it, or remove it and trust your gateways anew")
