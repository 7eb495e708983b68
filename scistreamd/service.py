"""The life of scistreamd under systemd: readiness, status, watchdog, reload, idle exit, two-stage end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import ssl
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

from scistreamd import configfile, logs
from scistreamd.activation import Notifier
from scistreamd.certificate_watch import CertificateWatch, Files
from scistreamd.config import Settings
from scistreamd.daemon import Gateway, Plugged, Stop, any_address
from scistreamd.errors import ScistreamError
from scistreamd.model import Change
from scistreamd.runtime import runtime_directory

# What is read at start and at each reload: the settings, and the control port's certificate.
Load = Callable[[], tuple[Settings, ssl.SSLContext]]
# Given the reload that front doors may offer: what this host has, until the daemon ends.
Plug = Callable[[Settings, Callable[[], None]], AbstractAsyncContextManager[Plugged]]

_LONGEST_NAP = 15.0  # seconds between two looks whether there is anything to do
_log = logging.getLogger("scistreamd.service")


class Service:
    """One run of the daemon."""

    def __init__(
        self,
        load: Load,
        certificate: Callable[[Settings], Files],
        listeners: Sequence[socket.socket],
        notifier: Notifier,
        plug: Plug,
    ) -> None:
        """``listeners``: the control port's sockets as systemd passed them; ``load`` raises ScistreamError.

        ``certificate``: where certificate and key of the control port are.
        """
        self._load = load
        self._certificate = certificate
        self._listeners = listeners
        self._notifier = notifier
        self._plug = plug
        self._telling = False
        self._ending = False
        self._watch: CertificateWatch | None = None

    async def run(self) -> None:
        """Serve until a signal, or until there was nothing to do for ``idle_exit`` seconds."""
        stop = Stop()
        settings, tls = self._load()
        logs.set_level(settings.log_level)
        async with self._plug(settings, self.reload) as plugged:
            with runtime_directory() as runtime:
                await self._run(Gateway(settings, runtime, any_address(), plugged), tls, stop)

    async def _run(self, gateway: Gateway, tls: ssl.SSLContext, stop: Stop) -> None:
        self._gateway = gateway
        try:
            await gateway.start(self._listeners, tls)
            await self._serve(stop)
        finally:
            await self._close()

    async def _close(self) -> None:
        self._notifier.stopping("stopping")
        _log.info("stopping: %s", self._gateway.status)
        await self._gateway.close()

    async def _serve(self, stop: Stop) -> None:
        """Return when it is time to end; what goes on beside serving ends the service where it fails."""
        loop = asyncio.get_running_loop()
        unwatch = self._gateway.manager.watch(self._changed)
        loop.add_signal_handler(signal.SIGHUP, self._reload_by_signal)
        self._watch = watch = CertificateWatch(
            self._files,
            lambda: self._load()[1],
            self._renewed,
            lambda: self._warn(watch.warning),
        )
        works: list[Coroutine[Any, Any, Any]] = [stop.asked.wait(), self._until_idle(), watch.run()]
        if self._notifier.watchdog_seconds is not None:
            works.append(self._show_life(self._notifier.watchdog_seconds / 2))
        tasks = [asyncio.create_task(work) for work in works]
        self._notifier.ready(self._gateway.status)
        _log.info("serves: %s", self._gateway.status)
        self._warn_of_callers()
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            self._ending = True
            unwatch()
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    # The files of the control port

    def _files(self) -> Files:
        """What goes into the TLS settings by the settings in force."""
        settings = self._gateway.settings
        clients = (settings.auth.mtls.ca, settings.auth.mtls.crl)
        return *self._certificate(settings), *(Path(each) for each in clients if each is not None)

    def _renewed(self, context: ssl.SSLContext) -> None:
        self._gateway.server.replace_context(context)
        if self._gateway.settings.auth.mtls.ca is not None:
            self._gateway.server.forget_certificates()

    # Status

    def _changed(self, change: Change) -> None:
        """Renew the status line, once for all changes of one turn of the event loop."""
        if not self._telling:
            self._telling = True
            asyncio.get_running_loop().call_soon(self._tell)

    def _warn_of_callers(self) -> None:
        for warning in self._gateway.gate.warnings:
            _log.warning("%s; docs/authentication.md says what can be done about it", warning)

    def _warn(self, warning: str) -> None:
        self._gateway.warn_of_certificate(warning)
        self._tell()

    def _tell(self) -> None:
        self._telling = False
        self._notifier.status(self._gateway.status)

    # Watchdog

    async def _show_life(self, interval: float) -> None:
        """Tell the watchdog that we live, each time only after a round trip through event loop, manager and store."""
        near, far = socket.socketpair()
        with near, far:
            near.setblocking(False)
            far.setblocking(False)
            while True:
                await self._round_trip(near, far)
                self._notifier.alive()
                await asyncio.sleep(interval)

    async def _round_trip(self, near: socket.socket, far: socket.socket) -> None:
        """What a caller's bytes do: in by the event loop's selector, through manager and store, and back."""
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(near, b"?")
        await loop.sock_recv(far, 1)
        await loop.sock_sendall(far, str(self._gateway.manager.pulse()).encode())
        await loop.sock_recv(near, 64)

    # Reload

    def reload(self) -> None:
        """Read configuration and certificate again and go by them; tunnels and connections go on.

        Raises ScistreamError where something is wrong with them; then the
        configuration before stays, and the status says so.
        """
        self._notifier.reloading()
        before = self._gateway.settings
        try:
            settings, tls = self._load()
            self._gateway.reconfigure(settings)
        except Exception as error:
            _log.error("not reloaded, the configuration before stays: %s", error)
            reason = error.message if isinstance(error, ScistreamError) else "internal error"
            self._notifier.ready(f"{self._gateway.status}; not reloaded: {reason}")
            raise
        self._gateway.server.replace_context(tls)
        logs.set_level(settings.log_level)
        for name in configfile.needs_restart(before, settings):
            _log.warning("%s has changed: it is taken up by the next start", name)
        self._warn_of_callers()
        if self._watch is not None:
            self._watch.look()
        _log.info("reloaded")
        self._notifier.ready(self._gateway.status)

    def _reload_by_signal(self) -> None:
        if self._ending:
            return
        with contextlib.suppress(ScistreamError):  # logged and in the status; a signal has nobody to answer to
            self.reload()

    # Idle exit

    async def _until_idle(self) -> None:
        """Return when there was nothing to do for ``idle_exit`` seconds; the socket starts us again."""
        loop = asyncio.get_running_loop()
        busy_at = loop.time()
        while True:
            limit = self._gateway.settings.idle_exit
            await asyncio.sleep(min(limit / 4, _LONGEST_NAP) if limit else _LONGEST_NAP)
            if not limit or not self._gateway.idle:
                busy_at = loop.time()
            elif loop.time() - busy_at >= limit:
                _log.info("nothing to do for %g s: ending; the next caller starts scistreamd again", limit)
                return
