"""Tests the hop from this gateway to a listener of the inbound one: TCP, TLS, both identities, an answer.

With the keys of the tunnel and a name that the inbound data server answers
itself (`dataserver.answer`), so that the application gets no byte. Each test
runs in a thread: what it learns is in which call of a blocking socket fails.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import ssl
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from scistreamd import icmp
from scistreamd.dataserver.answer import ANSWER_NAME
from scistreamd.hop import Finding, Outcome
from scistreamd.interfaces import KeyMaker
from scistreamd.model import Endpoint, Role, Security, Uid
from scistreamd.pathrate import NotOurs, Talk
from scistreamd.plans import CA_FILE, LEAF_FILE
from scistreamd.pskhello import client_hello, is_server_hello

# X509_V_ERR_HOSTNAME_MISMATCH: the chain is good, the name that answers tests is not in the certificate.
_HOSTNAME_MISMATCH = 62

# A measurement that breaks off goes on for so long at least; with so many bytes answered it may break off again.
_LEAST_SECONDS, _MUCH = 0.3, 32 << 20

# tcp(7), connect(2), icmp(7): a firewall that rejects says so by one of these.
_REJECTED = (errno.EHOSTUNREACH, errno.EACCES, errno.EPERM, errno.ENETUNREACH, errno.ENOPROTOOPT)

_FIREWALL = (
    "a firewall on the way or there drops it: at the inbound gateway `s2ctl status` of the tunnel warns of its own"
    " firewall; check allow-from, and what is between the sites"
)
_UID = "give both gateways the same UID, and the listener that belongs to it"
_SECURITY = "make both tunnels with the same --security; SciStream 1.2 peers have none (HAProxy, nginx) or psk-null"


@dataclass
class _Stop(Exception):
    """The test is over, with this finding."""

    outcome: Outcome
    message: str
    hint: str = ""


def _plain() -> _Stop:
    return _Stop(
        Outcome.UNPROVED,
        "TCP connects; security is none, so nothing can prove who is there",
        "the application behind it has seen a connection without a byte",
    )


@dataclass(frozen=True)
class _Task:
    """What to test; see `interfaces.PathTester`."""

    files: Mapping[str, bytes]
    security: Security
    listener: Endpoint
    seconds: float
    throughput: float


class PathTest:
    """`interfaces.PathTester` of this host."""

    def __init__(self, keys: KeyMaker) -> None:
        self._keys = keys

    async def test(
        self, uid: Uid, security: Security, listener: Endpoint, seconds: float, throughput: float
    ) -> Finding:
        """See `interfaces.PathTester`."""
        task = _Task(self._keys.files(uid, Role.CONS, security), security, listener, seconds, throughput)
        parts = [await self._once(task)]
        while throughput and _goes_on(parts):
            left = throughput - sum(map(_took, parts))
            parts.append(await self._once(replace(task, throughput=max(_LEAST_SECONDS, left))))
        return _joined(parts)

    async def _once(self, task: _Task) -> Finding:
        listener = task.listener
        with socket.socket(socket.AF_INET6 if listener.address.version == 6 else socket.AF_INET) as line:
            thread = asyncio.ensure_future(asyncio.to_thread(_test, line, task))
            try:
                return await asyncio.shield(thread)
            except asyncio.CancelledError:
                with contextlib.suppress(OSError):
                    line.shutdown(socket.SHUT_RDWR)  # it wakes the thread
                await asyncio.wait([thread])
                raise


def _goes_on(parts: Sequence[Finding]) -> bool:
    """Whether a measurement that broke off is worth going on with, on another connection.

    HAProxy 2.6 refuses one request in 200 000: 400, and a reset. One that it reads into an empty buffer of its, with as
    much behind it as fits there, it takes for empty (h1_parse_msg_hdrs, where the data end with the buffer). A fault
    of the path that comes only with much data comes again soon.
    """
    broke = parts[-1].rtt_usec and parts[-1].outcome in (Outcome.ODD, Outcome.RESET)
    return bool(broke) and sum(each.sent_bytes < _MUCH for each in parts) <= 1


def _took(part: Finding) -> float:
    return part.sent_bytes / part.throughput if part.throughput else 0.0


def _joined(parts: Sequence[Finding]) -> Finding:
    last = parts[-1]
    if len(parts) == 1 and last.outcome is Outcome.OK:
        return last
    if last.outcome is not Outcome.OK:
        return replace(last, sent_bytes=0, throughput=0)
    sent, took = sum(each.sent_bytes for each in parts), sum(map(_took, parts))
    return replace(last, sent_bytes=sent, throughput=round(sent / took) if took else 0)


def _test(line: socket.socket, task: _Task) -> Finding:
    measured: dict[str, int] = {}  # what came before a failure is told as well
    try:
        _steps(line, task, measured)
        end = _Stop(Outcome.OK, "TCP, TLS 1.3, both gateways' identity and the inbound data server's answer are fine")
    except _Stop as stop:
        end = stop
    except OSError as problem:
        end = _Stop(Outcome.ODD, f"the test fails on this gateway: {problem}")
    return Finding(task.listener, end.outcome, end.message, end.hint, **measured)


def _steps(line: socket.socket, task: _Task, measured: dict[str, int]) -> None:
    """Test step by step into the fields of a `Finding`; _Stop where it ends early."""
    began = time.monotonic()
    deadline = began + task.seconds
    _connect(line, task.listener, task.seconds)
    measured["connect_usec"] = _usec(began)
    if task.security is not Security.TLS:
        raise _greeted(line, deadline) if task.security is Security.PSK_NULL else _plain()
    began = time.monotonic()
    with _handshaken(line, task.files, deadline) as tls:
        measured["handshake_usec"] = _usec(began)
        talk = Talk(tls, deadline)
        with _judged("after the TLS handshake"):
            answers = talk.ask()
        measured["rtt_usec"] = max(1, round(answers.seconds * 1_000_000))
        if task.throughput:
            try:
                with _judged("while throughput was measured"):
                    talk.pour(answers.body, task.throughput)
            finally:
                rate = round(talk.taken / talk.took) if talk.took else 0
                measured.update(sent_bytes=talk.taken, throughput=rate)


def _usec(began: float) -> int:
    return max(1, round((time.monotonic() - began) * 1_000_000))


def _connect(line: socket.socket, listener: Endpoint, seconds: float) -> None:
    line.settimeout(seconds)
    icmp.keep(line, True)
    try:
        line.connect((str(listener.address), listener.port))
    except TimeoutError:
        raise _Stop(Outcome.FILTERED, f"filtered: nothing answers TCP within {seconds:g} s", _FIREWALL) from None
    except OSError as problem:
        raise _of_connect(problem, listener, icmp.heard(line)) from None
    icmp.keep(line, False)


def _of_connect(problem: OSError, listener: Endpoint, told: icmp.Message | None) -> Exception:
    """What a connect that failed at once says; ``told``: the ICMP message about it."""
    said = problem.strerror or str(problem)
    if isinstance(problem, ConnectionResetError):
        return _reset("while TCP connected")
    if problem.errno in (errno.ENETUNREACH, errno.EADDRNOTAVAIL) or (told is not None and told.unreachable):
        return _Stop(
            Outcome.UNREACHABLE,
            f"unreachable: {said}" + (f", says {told.sender}" if told is not None else ""),
            f"is the address right, and its host up? `ip route get {listener.address}` on this gateway shows the way",
        )
    if told is not None:
        # TCP refuses by a reset: a refusal by ICMP is a firewall's, as of `reject` in iptables and nftables.
        return _Stop(Outcome.FILTERED, f"filtered: {told.sender} rejects it with {said!r}", _FIREWALL)
    if isinstance(problem, ConnectionRefusedError):
        return _Stop(
            Outcome.REFUSED,
            "refused: nothing listens there",
            "is the inbound tunnel still there (s2ctl list on its gateway), and is this its listener? allow-from"
            " without this gateway, and a firewall that answers by a reset, look the same",
        )
    if problem.errno in _REJECTED:
        return _Stop(Outcome.FILTERED, f"filtered: rejected with {said!r}", _FIREWALL)
    return problem


def _reset(when: str) -> _Stop:
    return _Stop(
        Outcome.RESET,
        f"reset: the connection was ended {when}",
        "something between the gateways, allow-from of the inbound tunnel, security none there with an application"
        " that hangs up, or a data server that has just ended; the inbound gateway's `s2ctl logs` of the tunnel tells"
        " of those it refused",
    )


@contextlib.contextmanager
def _handshaken(line: socket.socket, files: Mapping[str, bytes], deadline: float) -> Iterator[ssl.SSLSocket]:
    """The TLS connection; its closing leaves ``line`` to its owner."""
    context = _context(files)
    with line.dup() as own:
        own.settimeout(max(0.1, deadline - time.monotonic()))
        with _judged("during the TLS handshake"):
            tls = context.wrap_socket(own, server_hostname=ANSWER_NAME)
        with tls:
            yield tls


def _context(files: Mapping[str, bytes]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(cadata=files[CA_FILE].decode("ascii"))
    # OpenSSL's ssl module takes a private key from a file alone: this one is in no file system.
    descriptor = os.memfd_create("leaf", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, files[LEAF_FILE])
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)
    return context


@contextlib.contextmanager
def _judged(when: str) -> Iterator[None]:
    """What failures of TLS say about the peer."""
    try:
        yield
    except ssl.SSLCertVerificationError as problem:
        if problem.verify_code == _HOSTNAME_MISMATCH:
            raise _Stop(
                Outcome.NO_ANSWERER,
                "TCP, TLS and the UID are fine, but this listener's gateway does not answer tests",
                "it is of an earlier version; a stream through the tunnel shows more",
            ) from None
        raise _Stop(
            Outcome.WRONG_UID, "wrong UID: the gateway there has a certificate of another tunnel", _UID
        ) from None
    except TimeoutError:
        raise _Stop(
            Outcome.SILENT,
            f"silent: TCP connects, but nothing answered {when}",
            "the inbound tunnel still waits for its update, or has another security mode (none: plain)",
        ) from None
    except ssl.SSLError as problem:
        raise _of_tls(problem, when) from None
    except ConnectionError:
        raise _reset(when) from None
    except NotOurs:
        raise _Stop(Outcome.ODD, "what answers is not the data server of a SciStream gateway", _UID) from None


# RFC 8446, section 6.2; OpenSSL's names.
_REFUSES_US = ("UNKNOWN_CA", "BAD_CERTIFICATE", "CERTIFICATE_UNKNOWN", "CERTIFICATE_REQUIRED", "DECRYPT_ERROR",
               "CERTIFICATE_REVOKED", "CERTIFICATE_EXPIRED", "ACCESS_DENIED")  # fmt: skip
_SPEAKS_OTHER = ("PROTOCOL_VERSION", "HANDSHAKE_FAILURE", "UNSUPPORTED_PROTOCOL", "INSUFFICIENT_SECURITY",
                 "NO_PROTOCOLS_AVAILABLE", "WRONG_SSL_VERSION")  # fmt: skip
_NOT_TLS = ("WRONG_VERSION_NUMBER", "UNEXPECTED_MESSAGE", "RECORD_LAYER_FAILURE", "HTTP_REQUEST", "PACKET_LENGTH")


def _of_tls(problem: ssl.SSLError, when: str) -> _Stop:
    reason = (problem.reason or "").upper()
    if isinstance(problem, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return _reset(when)
    if any(word in reason for word in _REFUSES_US):
        return _Stop(Outcome.WRONG_UID, "wrong UID: the gateway there refuses this one's certificate", _UID)
    if any(word in reason for word in _SPEAKS_OTHER):
        return _Stop(
            Outcome.OTHER_SECURITY,
            "other security mode: TLS is spoken there, but not 1.3 (psk-null, or a SciStream 1.2 Stunnel)",
            _SECURITY,
        )
    if any(word in reason for word in _NOT_TLS):
        return _Stop(
            Outcome.OTHER_SECURITY, "other security mode: what answers there is not TLS (none: plain)", _SECURITY
        )
    return _Stop(Outcome.ODD, f"TLS fails {when}: {reason or problem}", _SECURITY)


def _greeted(line: socket.socket, deadline: float) -> _Stop:
    """Say hello as a psk-null gateway does; what comes back shows the mode, not the key."""
    line.settimeout(max(0.1, deadline - time.monotonic()))
    with _judged("the TLS 1.2 greeting"):
        line.sendall(client_hello())
        answer = line.recv(4096)
        if not answer:
            raise ConnectionResetError
    if is_server_hello(answer):
        return _Stop(
            Outcome.UNPROVED,
            "TCP connects, and psk-null is spoken there; whether the UID is the same, the first stream shows",
        )
    return _Stop(Outcome.OTHER_SECURITY, "other security mode: psk-null is not spoken there", _SECURITY)
