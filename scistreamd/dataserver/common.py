"""What the data servers share: names in certificates, time limits, quoting, the order of inherited sockets."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePosixPath

from scistreamd.errors import BugError
from scistreamd.model import Role, Security
from scistreamd.plans import FIRST_FD, Bind, Plan

# Constants, for a stranger who starts a handshake reads them; RFC 6761: `.invalid` is nobody's.
CERTIFICATE_NAME = {Role.PROD: "prod.scistream.invalid", Role.CONS: "cons.scistream.invalid"}

# Cheapest first: AES-128-GCM has hardware help on every server CPU of the last ten years.
CIPHER_SUITES = "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256"

# In milliseconds it must fit 31 bits for HAProxy and poll(2): 24.8 days. Dead peers are TCP keepalive's task.
IDLE_DAYS = 20
IDLE_SECONDS = IDLE_DAYS * 86400

KEEPALIVE_INTERVAL_SECONDS = 15
KEEPALIVE_PROBES = 8

READY_SOCKET = "ready.sock"

# Neither a quote nor an expansion of any of the three configuration languages.
_PLAIN_PATH = re.compile(r"/[A-Za-z0-9/ ._+:=@,~-]*", re.ASCII)


def buffer_bytes(plan: Plan) -> int:
    """How large a buffer is: of HAProxy and nginx it makes a TLS record each time that it is sent.

    HAProxy 2.6 keeps to tune.ssl.maxrecord at the beginning of a stream alone. Without TLS it is a datagram of nginx's.
    """
    small = plan.tuning.record_bytes if plan.security is Security.TLS else 0
    return small or plan.tuning.buffer_bytes


def quoted(path: PurePosixPath) -> str:
    """A path in double quotes, as HAProxy and nginx read it; BugError for one that would need more."""
    return f'"{plain(path)}"'


def plain(path: PurePosixPath) -> str:
    """A path as it is, for Stunnel, which reads to the end of the line."""
    text = str(path)
    if not _PLAIN_PATH.fullmatch(text) or text != text.strip():
        raise BugError(f"{text!r} cannot be written into a data server's configuration")
    return text


def tcp_sockets(plan: Plan) -> Iterator[tuple[int, int, Bind]]:
    """``(index, inherited descriptor, bind)`` for each listener of the plan."""
    fd = FIRST_FD
    for index, bind in enumerate(plan.listeners):
        yield index, fd, bind
        fd += 2 if bind.udp else 1


def socket_count(plan: Plan) -> int:
    """How many sockets are inherited, UDP ones included."""
    return sum(2 if bind.udp else 1 for bind in plan.listeners)
