"""One listening socket: accepts, counts, does the TLS handshake, hands over to a `Session`.

Connections count from accept on, so that a peer that never starts TLS is
bounded like any other.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
import socket
import ssl
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

from scistreamd.control.limits import Limits
from scistreamd.model import Caller, IPAddress, unmapped

log = logging.getLogger("scistreamd.control")

FRONT_DOOR = "gRPC"

_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_AT_ONCE = 64
_BACKLOG = 512
_PAUSE = 1.0


class Ticket:
    """One counted connection; given back once, however often its end is told."""

    def __init__(self, give_back: Callable[[], None]) -> None:
        self._give_back: Callable[[], None] | None = give_back

    def leave(self) -> None:
        """The connection is closed."""
        give_back, self._give_back = self._give_back, None
        if give_back is not None:
            give_back()


class Admission:
    """Counts connections in all and per peer address, and says once a second how many it refused."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._peers: Counter[IPAddress | None] = Counter()
        self._refused = 0
        self._told_at: float | None = None

    @property
    def connections(self) -> int:
        """How many are open now, handshakes included."""
        return self._peers.total()

    def enter(self, peer: IPAddress | None) -> Ticket | None:
        """Count a connection; None where it is one too many."""
        full = self.connections >= self._limits.connections
        if full or self._peers[peer] >= self._limits.connections_per_peer:
            self._refuse(peer, "in all" if full else "from one address")
            return None
        self._peers[peer] += 1
        return Ticket(lambda: self._leave(peer))

    def _leave(self, peer: IPAddress | None) -> None:
        self._peers[peer] -= 1
        if not self._peers[peer]:
            del self._peers[peer]

    def _refuse(self, peer: IPAddress | None, which: str) -> None:
        self._refused += 1
        now = asyncio.get_running_loop().time()
        if self._told_at is None or now - self._told_at >= 1:
            log.info("refused %d connection(s), lastly from %s: too many %s", self._refused, peer, which)
            self._refused, self._told_at = 0, now


class Door:
    """Accepts on one bound socket and owns it.

    ``context`` gives the TLS context for the next connection, or None for
    plaintext; ``protocol`` builds the protocol for a caller, which gives the
    ticket back when the connection is closed; all doors share ``admission``.
    """

    def __init__(
        self,
        listener: socket.socket,
        *,
        admission: Admission,
        limits: Limits,
        context: Callable[[], ssl.SSLContext | None],
        protocol: Callable[[Caller, Ticket], asyncio.Protocol],
    ) -> None:
        self._listener = listener
        self._admission = admission
        self._limits = limits
        self._context = context
        self._protocol = protocol
        self._loop = asyncio.get_running_loop()
        self._welcomes: set[asyncio.Task[None]] = set()
        self._pause: asyncio.TimerHandle | None = None

    def open(self) -> None:
        """Start to accept."""
        self._listener.setblocking(False)
        self._listener.listen(_BACKLOG)
        self._loop.add_reader(self._listener, self._accept)

    async def close(self) -> None:
        """Accept no more, end the handshakes that are under way, close the socket."""
        if self._pause is not None:
            self._pause.cancel()
        if self._listener.fileno() != -1:
            self._loop.remove_reader(self._listener)
            self._listener.close()
        for task in self._welcomes:
            task.cancel()
        if self._welcomes:
            await asyncio.wait(self._welcomes)

    def _accept(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                connection, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    self._rest(error)
                    return
                # accept(2): an error of that one connection, such as ECONNABORTED or EPROTO.
                log.debug("a connection broke before it was accepted: %s", error)
                continue
            self._admit(connection)

    def _rest(self, error: OSError) -> None:
        log.warning("cannot accept connections for now: %s (raise LimitNOFILE= or the memory limit)", error.strerror)
        self._loop.remove_reader(self._listener)
        self._pause = self._loop.call_later(_PAUSE, self._loop.add_reader, self._listener, self._accept)

    def _admit(self, connection: socket.socket) -> None:
        try:
            caller = _caller(connection)
            _keep_alive(connection)
        except OSError as error:
            log.debug("a connection was gone when it was accepted: %s", error)
            connection.close()
            return
        ticket = self._admission.enter(caller.peer)
        if ticket is None:
            connection.close()
            return
        task = self._loop.create_task(self._welcome(connection, caller, ticket), name="scistreamd control handshake")
        self._welcomes.add(task)
        task.add_done_callback(lambda done: self._welcomed(done, connection, caller, ticket))

    async def _welcome(self, connection: socket.socket, caller: Caller, ticket: Ticket) -> None:
        connection.setblocking(False)
        await self._loop.connect_accepted_socket(
            lambda: self._protocol(caller, ticket), connection, **_tls(self._context(), self._limits)
        )

    def _welcomed(self, task: asyncio.Task[None], connection: socket.socket, caller: Caller, ticket: Ticket) -> None:
        self._welcomes.discard(task)
        if task.cancelled():
            reason = "the server stops"
        elif (error := task.exception()) is None:
            return
        elif isinstance(error, OSError | asyncio.TimeoutError):
            reason = f"{type(error).__name__}: {error}"
        else:
            log.error("the handshake of %s failed by a fault of ours", caller, exc_info=error)
            reason = "internal error"
        log.debug("no connection of %s: %s", caller, reason)
        ticket.leave()
        # asyncio closes the socket with its transport; a task cancelled before its first step never had one.
        connection.close()


def _tls(context: ssl.SSLContext | None, limits: Limits) -> dict[str, Any]:
    if context is None:
        return {}
    options: dict[str, Any] = {"ssl": context, "ssl_handshake_timeout": limits.handshake_seconds}
    if sys.version_info >= (3, 11):
        options["ssl_shutdown_timeout"] = limits.linger_seconds
    return options


def _caller(connection: socket.socket) -> Caller:
    if connection.family == socket.AF_UNIX:
        return Caller(FRONT_DOOR)
    return Caller(FRONT_DOOR, _address(connection.getpeername()[0]), _address(connection.getsockname()[0]))


def _address(text: str) -> IPAddress:
    return unmapped(ipaddress.ip_address(text.partition("%")[0]))


def _keep_alive(connection: socket.socket) -> None:
    """tcp(7): a peer that vanished is found after about a minute, whether we wait for it or write to it."""
    if connection.family == socket.AF_UNIX:
        return
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        (socket.TCP_NODELAY, 1),
        (socket.TCP_KEEPIDLE, 30),
        (socket.TCP_KEEPINTVL, 10),
        (socket.TCP_KEEPCNT, 3),
        (socket.TCP_USER_TIMEOUT, 60_000),
    ):
        connection.setsockopt(socket.IPPROTO_TCP, option, value)
