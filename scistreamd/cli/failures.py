"""Why a gateway could not be reached or said no, in words a person can act on."""

from __future__ import annotations

import asyncio
import errno
import re
import socket
import ssl
from collections.abc import Mapping, Sequence
from typing import Any

from scistreamd.cli.trust import NotHttp2, NotPinned, Trust
from scistreamd.errors import Code, ScistreamError
from scistreamd.model import Target

# X509_V_ERR_HOSTNAME_MISMATCH and X509_V_ERR_IP_ADDRESS_MISMATCH of x509_vfy.h.
NAME_MISMATCH = (62, 64)
_NOT_YET_VALID, _EXPIRED = OUT_OF_DATE = (9, 10)

_UNKNOWN = 2
_STATUS = {code.grpc_status: code for code in Code}
_ERRNO = re.compile(r"\[Errno ([0-9]+)\]")
_PLAIN_REASONS = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNEXPECTED_MESSAGE", "RECORD_LAYER_FAILURE")
_TRY_PLAIN = "if the gateway runs without TLS (s2cs --ssl=False), say --no-tls"
_TRY_TLS = "if the gateway wants TLS, leave --no-tls out"
_IS_IT_S2CS = "is this the control port of s2cs? --s2cs HOST:PORT names it"

_HINTS = {
    Code.UNAUTHENTICATED: "the gateway asks for a token: s2uc login --scope ID, as its operator says",
    Code.UNIMPLEMENTED: "the gateway cannot do this: leave the option out, or ask its operator",
}


class Refused(ScistreamError):
    """The gateway's no. ``unknown`` tells the status that only a SciStream 1.2 server uses."""

    def __init__(self, code: Code, message: str, hint: str, *, unknown: bool, challenges: Sequence[str] = ()) -> None:
        super().__init__(code, message, hint, challenges)
        self.unknown = unknown


def of_status(status: int, message: str, call: str, hint: str = "", challenges: Sequence[str] = ()) -> Refused:
    """The failure behind a gRPC status (grpc/statuscodes); message, hint and challenges are the server's."""
    if hint and status in _STATUS:
        # Our gateways repeat the hint at the end of the message, for clients that show nothing else.
        said = message.removesuffix(f" ({hint})")
        return Refused(_STATUS[status], said, hint, unknown=False, challenges=challenges)
    said = message or f"the gateway refused {call} without a reason (gRPC status {status})"
    if status == _UNKNOWN and "entry not found" in message:
        hint = "was the UID copied whole, and is this the gateway of that tunnel?"
        return Refused(Code.NOT_FOUND, f"the gateway knows no such tunnel: {said}", hint, unknown=True)
    if status == _UNKNOWN and "Entry already found" in message:
        return Refused(Code.ALREADY_EXISTS, said, "release the tunnel of this UID first", unknown=True)
    code = _STATUS.get(status, Code.INTERNAL)
    hint = "the gateway's log may say more" if status == _UNKNOWN else _HINTS.get(code, "")
    return Refused(code, said, hint, unknown=status == _UNKNOWN)


def of_connection(error: Exception, address: Target, trust: Trust | None) -> ScistreamError:
    """The failure to connect to ``address``, or to agree on TLS with it."""
    if isinstance(error, ssl.SSLCertVerificationError | NotPinned):
        return _of_certificate(error, address, trust)
    if isinstance(error, NotHttp2):
        return _unavailable(f"{address} speaks TLS but not HTTP/2", _IS_IT_S2CS)
    if isinstance(error, ssl.SSLError):
        return _of_tls(error, address)
    if isinstance(error, socket.gaierror):
        return _unavailable(f"no address is known for {address.host}", "check the name after --s2cs")
    return _of_socket(error, address, trust)


def _of_socket(error: Exception, address: Target, trust: Trust | None) -> ScistreamError:
    number = _errno(error)
    if number == errno.ECONNREFUSED:
        return _unavailable(f"{address} refuses connections", f"does s2cs run there? {_IS_IT_S2CS}")
    if number in (errno.ECONNRESET, errno.EPIPE) or isinstance(error, ConnectionError):
        return of_break("connection reset", address, trust)
    if number in (errno.EHOSTUNREACH, errno.ENETUNREACH):
        return _unavailable(f"no route leads to {address}", "check the address after --s2cs")
    if number == errno.ETIMEDOUT or isinstance(error, asyncio.TimeoutError | TimeoutError):
        return _unavailable(f"{address} does not answer", "a firewall may be in between; check --s2cs HOST:PORT")
    return _unavailable(f"cannot connect to {address}: {error}", "check the address after --s2cs")


def of_break(reason: str, address: Target, trust: Trust | None) -> ScistreamError:
    """The connection ended, or made no sense as HTTP/2, before the answer came."""
    hint = f"{_IS_IT_S2CS}; {_TRY_PLAIN if trust else _TRY_TLS}"
    return _unavailable(f"{address} ended the connection without an answer ({reason})", hint)


def of_certificate_break(reason: str, address: Target, certificate: str) -> ScistreamError:
    """As `of_break` on a connection that showed a client certificate: TLS 1.3 refuses one only after the handshake."""
    return _unavailable(
        f"{address} ended the connection without an answer ({reason}); it may not take the certificate {certificate}",
        "does one of the gateway's CAs sign it, is it in date and not revoked? The gateway's operator knows",
    )


def too_late(seconds: float, what: str) -> ScistreamError:
    """Our own patience is at its end."""
    return ScistreamError(Code.DEADLINE_EXCEEDED, f"{what} took more than {seconds:g} s", "--timeout allows more")


def _of_tls(error: ssl.SSLError, address: Target) -> ScistreamError:
    reason = error.reason or str(error)
    if any(plain in reason for plain in _PLAIN_REASONS):
        return _unavailable(f"{address} does not speak TLS", _TRY_PLAIN)
    if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return _unavailable(f"{address} hung up during the TLS handshake", _TRY_PLAIN)
    if "NO_APPLICATION_PROTOCOL" in reason:
        return _unavailable(f"{address} speaks TLS but not HTTP/2", _IS_IT_S2CS)
    return _unavailable(f"{address} and s2uc do not agree on TLS: {reason}", "s2uc speaks TLS 1.2 and 1.3")


def _of_certificate(error: ssl.SSLError, address: Target, trust: Trust | None) -> ScistreamError:
    code = error.verify_code if isinstance(error, ssl.SSLCertVerificationError) else 0
    if code in (_NOT_YET_VALID, _EXPIRED):
        state = "has expired" if code == _EXPIRED else "is not valid yet"
        return _unavailable(f"the certificate of {address} {state}", "renew it on the gateway, and check both clocks")
    if code in NAME_MISMATCH or isinstance(error, NotPinned):
        problem = f"the certificate of {address} names another host, and is none of {trust}"
        return _unavailable(problem, "dial the name that it bears, or get the gateway's own certificate")
    hint = "get server.crt from the gateway's operator and name it: --server-cert FILE"
    return _unavailable(f"the certificate of {address} is not trusted by {trust}", hint)


def _unavailable(message: str, hint: str) -> ScistreamError:
    return ScistreamError(Code.UNAVAILABLE, message, hint)


def _errno(error: Exception) -> int | None:
    """The error number; asyncio gives only text where several addresses failed in several ways."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    numbers = _ERRNO.findall(str(error))
    return int(numbers[-1]) if numbers else None


def names_of(certificate: Mapping[str, Any]) -> str:
    """The names in a certificate as SSLObject.getpeercert() gives it, for people."""
    names = [value for _, value in certificate.get("subjectAltName", ())]
    subject = [value for group in certificate.get("subject", ()) for key, value in group if key == "commonName"]
    return ", ".join(names or subject) or "nobody"
