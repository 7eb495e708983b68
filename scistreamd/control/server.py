"""The control port as a whole: the services, the doors to them, and the end of both."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Iterable
from typing import Protocol

from grpclib.health.service import Health
from grpclib.reflection.service import ServerReflection
from grpclib.server import Server

from scistreamd.control.calls import Methods
from scistreamd.control.door import Admission, Door, Ticket
from scistreamd.control.limits import Limits
from scistreamd.control.service import SERVICE, Admits, ControlService, Tunnels
from scistreamd.control.session import Session
from scistreamd.control.tunnels import SERVICE as OWN
from scistreamd.control.tunnels import OwnTunnels, TunnelsService
from scistreamd.model import Caller


class Manages(Tunnels, OwnTunnels, Protocol):
    """What the services of this port need of the manager."""


# These end by themselves soon; a stop lets them. A req waits for minutes, health, reflection and Watch for ever.
_BRIEF = frozenset(
    [f"/{SERVICE}/{name}" for name in ("hello", "update", "release")]
    + [f"/{OWN}/{name}" for name in ("List", "Get", "Extend", "Release")]
)


class ControlServer:
    """Serves scistream.Control, health checking and reflection on bound sockets."""

    def __init__(self, tunnels: Manages, gate: Admits, limits: Limits | None = None) -> None:
        self._tunnels = tunnels
        self._gate = gate
        self._limits = limits or Limits()
        self._admission = Admission(self._limits)
        self._context: ssl.SSLContext | None = None
        self._doors: list[Door] = []
        self._sessions: set[Session] = set()

    @property
    def connections(self) -> int:
        """Open connections, handshakes included."""
        return self._admission.connections

    async def start(self, sockets: Iterable[socket.socket], context: ssl.SSLContext | None) -> None:
        """Accept on every socket; they are bound stream sockets and belong to the server from now on.

        ``context`` is None for plaintext HTTP/2. Raises OSError where one
        cannot listen; then none does, and those taken are closed.
        """
        self._context = context
        # At DEBUG hpack writes out every header, and with them the tokens of callers.
        logging.getLogger("hpack").setLevel(logging.INFO)
        seconds = self._limits.send_seconds
        methods = _methods(
            ControlService(self._tunnels, self._gate, seconds), TunnelsService(self._tunnels, self._gate, seconds)
        )
        for listener in sockets:
            door = Door(
                listener,
                admission=self._admission,
                limits=self._limits,
                context=lambda: self._context,
                protocol=lambda caller, ticket: self._session(methods, caller, ticket),
            )
            self._doors.append(door)
            try:
                door.open()
            except OSError:
                await self.close(0)
                raise

    def replace_context(self, context: ssl.SSLContext) -> None:
        """Use another certificate for new connections; those that exist keep theirs."""
        self._context = context

    def forget_certificates(self) -> None:
        """Take the client certificates that were verified by now for nothing: other CAs may decide from now on.

        Who has no call under way is hung up on, and connects again; calls go on as they began.
        """
        for session in tuple(self._sessions):
            if session.calls.certificate:
                session.calls.certificate = b""
                if not session.calls.tasks:
                    session.hang_up("who may connect has changed")

    async def close(self, grace: float) -> None:
        """Stop: no new connection, UNAVAILABLE for waiting calls, ``grace`` seconds for those at work.

        Returns when no connection and no task is left.
        """
        for door in self._doors:
            await door.close()
        for session in self._sessions:
            session.calls.refuse(brief=False)
        await self._settle(grace)
        for session in self._sessions:
            session.calls.refuse(brief=True)
        await self._settle(self._limits.linger_seconds)
        await self._hang_up()

    async def _settle(self, seconds: float) -> None:
        tasks = self._tasks()
        if tasks:
            await asyncio.wait(tasks, timeout=seconds)

    async def _hang_up(self) -> None:
        tasks, sessions = self._tasks(), tuple(self._sessions)
        for session in sessions:
            session.hang_up("the server stops")
        for session in sessions:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(session.closed.wait(), self._limits.linger_seconds)
            session.abort()
            await session.closed.wait()
        if tasks:
            await asyncio.wait(tasks)

    def _tasks(self) -> set[asyncio.Task[None]]:
        return {task for session in self._sessions for task in session.calls.tasks}

    def _session(self, methods: Methods, caller: Caller, ticket: Ticket) -> Session:
        def gone(session: Session) -> None:
            self._sessions.discard(session)
            ticket.leave()

        return Session(methods, self._limits, caller, came=self._sessions.add, gone=gone)


def _methods(*ours: ControlService | TunnelsService) -> Methods:
    services = ServerReflection.extend([*ours, Health({service: [] for service in ours})])
    handlers = {path: handler for each in services for path, handler in each.__mapping__().items()}
    return Methods(handlers, Server(services), _BRIEF)
