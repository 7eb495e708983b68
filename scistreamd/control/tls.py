"""The TLS context of the control port."""

from __future__ import annotations

import ssl
from pathlib import Path

from scistreamd.config import Mtls
from scistreamd.errors import Code, ScistreamError

# TLS 1.2: forward secrecy and AEAD alone (RFC 9325, 4.2); TLS 1.3 has nothing else.
_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
_MAKE = "make one: s2ctl cert create --ip ADDRESS, or with openssl"


def server_context(certificate: Path, key: Path, clients: Mtls | None = None) -> ssl.SSLContext:
    """TLS 1.2 and 1.3 with ALPN h2, for a certificate chain and its key, both PEM.

    ``clients``: whose certificates clients may show; none has to. Raises
    ScistreamError(FAILED_PRECONDITION) where a file is missing, unreadable,
    encrypted, no PEM, or where the key is not the certificate's.
    """
    _readable(certificate, "server certificate")
    _readable(key, "server key")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_CIPHERS)
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    context.set_alpn_protocols(["h2"])
    _load(context, certificate, key)
    if clients is not None and clients.ca is not None:
        _verify_clients(context, clients)
    return context


def _verify_clients(context: ssl.SSLContext, clients: Mtls) -> None:
    """Ask for a certificate, take none as well, and refuse the handshake of a bad one."""
    context.verify_mode = ssl.CERT_OPTIONAL
    for path, what in ((clients.ca, "CA of client certificates"), (clients.crl, "list of revoked client certificates")):
        if path is None:
            continue
        _readable(Path(path), what)
        try:
            context.load_verify_locations(path)
        except ssl.SSLError as error:
            raise _unfit(f"{what} {path} is not PEM: {error.reason or error}", "auth.mtls takes PEM files") from None
    if not context.get_ca_certs():
        raise _unfit(f"{clients.ca} holds no CA certificate", "auth.mtls.ca names those who sign client certificates")
    if clients.crl is not None:
        if not context.cert_store_stats()["crl"]:
            raise _unfit(f"{clients.crl} holds no certificate revocation list", "openssl ca -gencrl makes one")
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF


def _load(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    def no_password() -> str:
        raise _unfit(f"server key {key} is encrypted", "give one without a passphrase, mode 0600")

    try:
        context.load_cert_chain(certificate, key, password=no_password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise _unfit(f"server key {key} is not the key of {certificate}", _MAKE) from None
        reason = f": {error.reason}" if error.reason else ""
        raise _unfit(f"{certificate} and {key} are no PEM certificate and key{reason}", _MAKE) from None


def _readable(path: Path, what: str) -> None:
    try:
        with path.open("rb"):
            return
    except FileNotFoundError:
        raise _unfit(f"{what} {path} does not exist", _MAKE) from None
    except OSError as error:
        raise _unfit(f"{what} {path} cannot be read: {error.strerror}", "check its owner and mode") from None


def _unfit(message: str, hint: str) -> ScistreamError:
    return ScistreamError(Code.FAILED_PRECONDITION, message, hint)
