"""The kernel's sockets: listeners that hold their ports."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import socket
import struct
from collections.abc import Sequence

from scistreamd.errors import Code, ScistreamError
from scistreamd.interfaces import PortsBusy
from scistreamd.model import Endpoint
from scistreamd.plans import Bind
from scistreamd.sourcefilter import TAKES_NOTHING, Instruction, packed, takes_from

_SO_ATTACH_FILTER = 26  # socket(7); Python's socket module has no name for it
_BACKLOG = 4096  # the kernel cuts it to net.core.somaxconn


def hold(binds: Sequence[Bind], keepalive_idle: int) -> list[socket.socket]:
    """Bind and listen on all of ``binds``, or on none, in their order.

    A Bind with UDP gives its TCP socket and then its UDP socket. Connections
    wait in the backlog until somebody accepts; those accepted inherit TCP
    keepalive after ``keepalive_idle`` seconds of silence. Of a Bind with
    ``allow_from`` the kernel takes packets of those networks only, where it
    lets us (`can_filter`). Raises PortsBusy, or
    ScistreamError where the address or the port cannot be had at all.
    """
    with contextlib.ExitStack() as undo:
        held = []
        for bind in binds:
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM)[: 2 if bind.udp else 1]:
                held.append(undo.enter_context(_bound(bind.endpoint, kind)))
                if bind.allow_from and can_filter():
                    _filter(held[-1], takes_from(bind.allow_from))
                if kind == socket.SOCK_STREAM:
                    _listen(held[-1], bind.endpoint, keepalive_idle)
        undo.pop_all()
    return held


class Keep:
    """Ports that this process keeps from others until another one, PID 1, listens on them. A context.

    Two sockets may have one port only while neither listens, and only with
    SO_REUSEADDR on both, or with SO_REUSEPORT for good. So what is kept listens until
    `step_aside`; from then on a program without SO_REUSEADDR is still kept out.
    """

    def __init__(self, binds: Sequence[Bind], keepalive_idle: int) -> None:
        """Listen on all, or raise as `hold` does."""
        self._keepalive_idle = keepalive_idle
        self._kept = hold(binds, keepalive_idle)

    def __enter__(self) -> Keep:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, binds: Sequence[Bind]) -> None:
        """Keep these as well; raises as `hold` does."""
        self._kept += hold(binds, self._keepalive_idle)

    def step_aside(self) -> None:
        """Let another process listen on the ports, which stay bound here."""
        for each in self._kept:
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if each.type == socket.SOCK_STREAM:
                each.shutdown(socket.SHUT_RD)  # of a listening socket: it stops listening

    def close(self) -> None:
        """Keep nothing any more."""
        while self._kept:
            self._kept.pop().close()


def _bound(endpoint: Endpoint, kind: socket.SocketKind) -> socket.socket:
    family = socket.AF_INET6 if endpoint.address.version == 6 else socket.AF_INET
    bound = socket.socket(family, kind)
    try:
        if family == socket.AF_INET6:
            # ipv6(7): only the wildcard takes IPv4 along.
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not endpoint.is_wildcard)
        if kind == socket.SOCK_STREAM:
            # Else the closed connections of the tunnel before keep the port for a minute (TIME_WAIT).
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((str(endpoint.address), endpoint.port))
        # nginx leaves inherited sockets as they are: a worker that another one beat to a connection would
        # hang in accept(2), and its streams with it.
        bound.setblocking(False)
    except OSError as problem:
        bound.close()
        raise _explained(problem, endpoint) from problem
    return bound


def _listen(bound: socket.socket, endpoint: Endpoint, keepalive_idle: int) -> None:
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, keepalive_idle)
    try:
        bound.listen(_BACKLOG)
    except OSError as problem:
        raise _explained(problem, endpoint) from problem


def _explained(problem: OSError, endpoint: Endpoint) -> Exception:
    if problem.errno == errno.EADDRINUSE:
        return PortsBusy([endpoint.port], f"{endpoint} is in use by another program")
    if problem.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
        return ScistreamError(
            Code.FAILED_PRECONDITION,
            f"listener {endpoint}: {endpoint.address} is not an address of this host",
            "set the listener address of the gateway (s2cs --listener-ip) to one that `ip address` shows",
        )
    if problem.errno == errno.EACCES:
        return ScistreamError(
            Code.FAILED_PRECONDITION,
            f"listener {endpoint}: this user may not listen on port {endpoint.port}",
            "use a port range above 1023",
        )
    if problem.errno == errno.EMFILE:
        return ScistreamError(Code.RESOURCE_EXHAUSTED, "no more open files", "raise the limit of open files")
    return problem


def deafen(listeners: Sequence[socket.socket]) -> None:
    """Have the kernel drop what would open a new connection; connections that exist go on.

    For a program that cannot stop accepting by itself: a socket filter that
    takes no packet acts on the listening socket alone, whichever process accepts on it.
    """
    for listener in listeners:
        _filter(listener, TAKES_NOTHING)


@functools.cache
def can_filter() -> bool:
    """Whether the kernel lets this process filter its sockets; some let root alone."""
    with socket.socket() as probe:
        try:
            _filter(probe, TAKES_NOTHING)
        except PermissionError:
            return False
    return True


def _filter(bound: socket.socket, program: Sequence[Instruction]) -> None:
    code = packed(program)
    buffer = ctypes.create_string_buffer(code, len(code))
    try:
        bound.setsockopt(
            socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", len(program), ctypes.addressof(buffer))
        )
    except OSError as problem:
        if problem.errno != errno.ENOMEM:
            raise
        raise ScistreamError(
            Code.RESOURCE_EXHAUSTED,
            "allow-from: the kernel has no room for so many networks (net.core.optmem_max)",
            "name larger networks",
        ) from None


def has_ipv6() -> bool:
    """Whether this kernel gives out IPv6 sockets (ipv6.disable=1 takes them away)."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.bind(("::", 0))
    except OSError:
        return False
    return True
