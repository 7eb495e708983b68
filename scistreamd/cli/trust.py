"""Whom the user client believes: a certificate file as anchor and as pin, or the system's CAs; `known` has the rest.

A file's certificates are trust anchors, whatever they say of being a CA, and
the host name is checked. A gateway whose name does not fit may still show
exactly one of these certificates: `Trust.pinned` makes the TLS settings that
accept that, and nothing else, on a connection of its own, so that the
connection which is used is the one that was verified.
"""

from __future__ import annotations

import ssl
from pathlib import Path

from scistreamd import files
from scistreamd.errors import Code, ScistreamError, invalid

DEFAULT_FILE = "server.crt"

_GET_ONE = (
    "copy it from the gateway (`s2ctl cert create` made it there), or leave --server-cert out for the system's CAs"
)
_PEM_END = "-----END CERTIFICATE-----"
_PEM_BEGIN = "-----BEGIN CERTIFICATE-----"
_PROTOCOL = "h2"


class NotHttp2(ssl.SSLError):
    """The handshake is done, but the other side did not choose HTTP/2 (RFC 7301)."""


class NotPinned(ssl.SSLError):
    """The other side shows a certificate that is not in the file."""


class Trust:
    """What to verify a gateway with. ``path`` is None where the system's CAs decide."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._pins = frozenset(_certificates(path)) if path else frozenset()

    @classmethod
    def of_option(cls, server_cert: str | None) -> Trust:
        """The file that was named, which must be there; else ``server.crt`` where there is one."""
        if server_cert is not None:
            return cls(Path(server_cert))
        default = Path(DEFAULT_FILE)
        return cls(default if files.there(default) else None)

    def __str__(self) -> str:
        return str(self.path) if self.path else "the system's CAs"

    def verified(self) -> ssl.SSLContext:
        """Settings that check the chain and the host name."""
        context = self._context()
        context.sslobject_class = HTTP2Only
        return context

    def pinned(self) -> ssl.SSLContext:
        """Settings that accept a certificate of the file, whatever names it bears, and no other."""
        context = self._context()
        context.check_hostname = False
        context.sslobject_class = _pinned_to(self._pins)
        return context

    def _context(self) -> ssl.SSLContext:
        context = client_context()
        if self.path is None:
            context.load_default_certs()
            return context
        # An anchor need not be a root: X509_VERIFY_PARAM_set_flags(3).
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        context.load_verify_locations(cadata=b"".join(self._pins))
        return context


def client_context() -> ssl.SSLContext:
    """What every connection to a gateway has in common."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols([_PROTOCOL])
    return context


def show_certificate(context: ssl.SSLContext, certificate: str, key: str | None) -> None:
    """Have the connection show a client certificate; NOT_FOUND, INVALID_ARGUMENT where the files are none."""

    def no_password() -> str:
        raise invalid("client-key", f"{key or certificate} is encrypted", "give one without a passphrase, mode 0600")

    try:
        context.load_cert_chain(certificate, key, password=no_password)
    except FileNotFoundError:
        raise ScistreamError(Code.NOT_FOUND, f"client-cert: {certificate} or its key is not there") from None
    except ssl.SSLError as error:
        problem = f"{certificate} is no PEM certificate with its key" + (f": {error.reason}" if error.reason else "")
        raise invalid("client-cert", problem, "--client-key names the file of the key") from None
    except OSError as error:
        raise ScistreamError(Code.NOT_FOUND, f"client-cert: {certificate}: {error.strerror}") from None


class HTTP2Only(ssl.SSLObject):
    """Refuses a server without HTTP/2 inside the handshake, before anything is sent."""

    def do_handshake(self) -> None:
        """As `ssl.SSLObject` has it; raises NotHttp2."""
        super().do_handshake()
        if self.selected_alpn_protocol() != _PROTOCOL:
            raise NotHttp2("the server did not choose HTTP/2")


def _pinned_to(pins: frozenset[bytes]) -> type[ssl.SSLObject]:
    class Pinned(HTTP2Only):
        def do_handshake(self) -> None:
            super().do_handshake()
            if self.getpeercert(binary_form=True) not in pins:
                raise NotPinned("the server shows another certificate")

    return Pinned


def _certificates(path: Path) -> list[bytes]:
    """The certificates of a PEM file, as DER (RFC 7468)."""
    try:
        text = path.read_text("ascii", "replace")
    except FileNotFoundError:
        raise ScistreamError(Code.NOT_FOUND, f"server certificate {path} is not there", _GET_ONE) from None
    except OSError as error:
        raise ScistreamError(Code.FAILED_PRECONDITION, f"cannot read {path}: {error.strerror}") from None
    blocks = [block.partition(_PEM_END) for block in text.split(_PEM_BEGIN)[1:]]
    try:
        found = [ssl.PEM_cert_to_DER_cert(f"{_PEM_BEGIN}{body}{end}\n") for body, end, _ in blocks]
        if found:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=b"".join(found))
    except ValueError:
        raise invalid("server-cert", f"{path} holds a damaged certificate", _GET_ONE) from None
    except ssl.SSLError:
        raise invalid("server-cert", f"{path} holds something else than certificates", _GET_ONE) from None
    if not found:
        raise invalid("server-cert", f"{path} holds no certificate in PEM form", _GET_ONE)
    return found
