"""The composition root: builds the parts of a gateway, joins them, runs them until a signal.

`s2cs` and `scistreamd` share it: `Gateway` is what both serve, `run` the
whole life of s2cs; that of scistreamd is in `service`.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import os
import resource
import signal
import socket
import ssl
import sys
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from scistreamd import dataserver, portcheck, sockets
from scistreamd.certificate_watch import CertificateWatch, Files
from scistreamd.config import Settings
from scistreamd.control.server import ControlServer
from scistreamd.dataserver import DataServerType
from scistreamd.errors import Code, ScistreamError
from scistreamd.gate import Gate
from scistreamd.interfaces import (
    Authenticator,
    Authority,
    CounterBooks,
    Counters,
    Launcher,
    Passing,
    PortsBusy,
    Store,
    Traffic,
)
from scistreamd.kernel import kernel_traffic
from scistreamd.keys import TunnelKeys
from scistreamd.manager import Manager
from scistreamd.meter import Meter
from scistreamd.model import Endpoint, IPAddress, State
from scistreamd.network import HostNetwork, dialable, own_addresses
from scistreamd.pathtest import PathTest
from scistreamd.plans import Bind
from scistreamd.portview import PortView
from scistreamd.process import ProcessLauncher
from scistreamd.runtime import runtime_directory
from scistreamd.sockdiag import SockDiag

_STOP_GRACE = 2.0
_CONTROL_KEEPALIVE = 30  # seconds: callers wait on this port for minutes, and may vanish
_log = logging.getLogger("scistreamd.daemon")


class FrontDoor(Protocol):
    """A way in beside the control port, such as D-Bus."""

    async def open(self) -> None:
        """Be there for callers, who wait until `serve`. ScistreamError where it cannot be."""

    def serve(self) -> None:
        """Answer: all tunnels of the daemon before are known by now."""

    async def close(self) -> None:
        """Take no new call, let those that came finish, and be gone."""

    def settings_changed(self) -> None:
        """Tell those who watch of what a reload has changed."""


@dataclass(frozen=True)
class Plugged:
    """What a host has beyond the parts that every gateway has; this is where it is plugged in.

    ``launcher`` runs the data server types that need not be children of the
    daemon, and ``store`` keeps the books of those tunnels; ``authority``
    decides about users of this host; ``traffic`` is what the kernel's network does
    for tunnels, in the order of asking; ``counter_books`` keep what is counted of tunnels
    that outlive the daemon; ``authenticators``: the ways to prove who one is, for these settings;
    ``doors`` are built once the manager is there.
    """

    launcher: Launcher | None = None
    store: Store | None = None
    authority: Authority | None = None
    traffic: Sequence[Traffic] = ()
    counter_books: CounterBooks | None = None
    authenticators: Callable[[Settings], Sequence[Authenticator]] = lambda settings: ()
    doors: Sequence[Callable[[Manager, Gate, Counters], FrontDoor]] = ()


class Gateway:
    """The parts of one gateway, joined: manager, gate, launchers, control port, further front doors."""

    def __init__(self, settings: Settings, runtime: Path, any_address: IPAddress, plugged: Plugged) -> None:
        """``runtime``: a directory of ours for keys and control sockets; ``any_address``: the widest wildcard.

        Raises ScistreamError where a configured authenticator cannot be had.
        """
        self.settings = settings
        self._network = HostNetwork(settings.times.resolve)
        self._any_address = any_address
        self.ports = PortView()
        self._process = ProcessLauncher(runtime, keepalive_idle=settings.tuning.keepalive_idle_seconds)
        self._plugged = plugged
        self.gate = Gate(settings, self._network, plugged.authority, plugged.authenticators(settings))
        keys = TunnelKeys()
        self.manager = Manager(
            settings,
            self.gate,
            keys,
            self._launcher_of,
            any_address,
            store=plugged.store,
            traffic=plugged.traffic,
            view=self.ports,
            tester=PathTest(keys),
            dialable=dialable,
            own_addresses=own_addresses,
        )
        self.server = ControlServer(self.manager, self.gate, settings.control.limits)
        passing = next((part for part in plugged.traffic if isinstance(part, Passing)), None)
        self.meter = Meter(self.manager, SockDiag(), plugged.counter_books, passing)
        self._doors = [make(self.manager, self.gate, self.meter) for make in plugged.doors]

    def _launcher_of(self, kind: DataServerType) -> Launcher:
        return self._process if kind.subprocess or self._plugged.launcher is None else self._plugged.launcher

    async def start(self, listeners: Sequence[socket.socket], tls: ssl.SSLContext | None) -> None:
        """Go on with the tunnels of the daemon before, then serve on ``listeners``, which are ours from now on."""
        self._tell_missing()
        self.gate.public = any(_is_public(each) for each in listeners)
        self.gate.control_ports = frozenset(_port(each) for each in listeners)
        # First: to a caller whose call has started us, the bus says after 25 s without our name that we are not there.
        for door in self._doors:
            await door.open()
        await self.manager.restore()
        await self._tell_ports()
        self.meter.start()
        await self.server.start(listeners, tls)
        for door in self._doors:
            door.serve()

    async def close(self) -> None:
        """Serve nobody any more, and end the tunnels that end with the daemon."""
        self.manager.hurry()  # else the doors wait for callers who wait for a drain
        for door in self._doors:
            await door.close()
        await self.server.close(_STOP_GRACE)
        await self.manager.close()
        self.meter.stop()
        self.ports.close()
        self._network.close()

    def reconfigure(self, settings: Settings) -> None:
        """Go by other settings from now on, but for those that need a restart (`configfile.needs_restart`).

        Raises ScistreamError where a configured authenticator cannot be had; then nothing has changed.
        """
        authenticators = self._plugged.authenticators(settings)
        if self.settings.auth.mtls.ca is not None:
            self.server.forget_certificates()
        self.settings = settings
        self._network.resolve_seconds = settings.times.resolve
        self.gate.reconfigure(settings, authenticators)
        self.manager.reconfigure(settings)
        for door in self._doors:
            door.settings_changed()

    @property
    def status(self) -> str:
        """One line for people: how many tunnels and free ports there are, and what an operator should see to."""
        tunnels, free = len(self.manager), self.manager.free_ports
        line = f"{tunnels} tunnel{'s' * (tunnels != 1)}, {free} port{'s' * (free != 1)} free"
        return "; ".join([line, *self.gate.warnings])

    def warn_of_certificate(self, warning: str) -> None:
        """Say in status and properties that the control port's certificate needs care; empty: not any more."""
        self.gate.beware = (warning,) if warning else ()
        for door in self._doors:
            door.settings_changed()

    @property
    def idle(self) -> bool:
        """Whether nobody would miss the daemon: none is connected, and every tunnel runs on without it."""
        shown = self.manager.tunnels()
        return (
            self.server.connections == 0
            and len(shown) == len(self.manager)
            # With a rate it needs us: to shape an interface that a peer comes in by for the first time.
            and all(each.state is State.ACTIVE and self._outlives(each.type) and not each.rate for each in shown)
        )

    def _outlives(self, type_name: str) -> bool:
        return self._launcher_of(dataserver.parse_type(type_name)).outlives

    async def _tell_ports(self) -> None:
        """Say what is in the way of the whole range, and which addresses are not there."""
        look = await self.ports.look(programs=True)
        settings = self.settings
        ours = {each.port for view in self.manager.tunnels() for each in view.listeners}
        for line in portcheck.findings(look, settings.port_range, settings.listen_inbound or self._any_address, ours):
            _log.warning("%s", line)
        given = [("listen.inbound", settings.listen_inbound), ("listen.outbound", settings.listen_outbound)]
        for line in portcheck.absent(look, given):
            _log.error("%s", line)
        if look.unseen:
            _log.info("ports %s: not seen: %s", settings.port_range, "; ".join(look.unseen))

    def _tell_missing(self) -> None:
        """Say which data servers cannot run here, or lack something; that of the default type is an error."""
        default = dataserver.parse_type(self.settings.default_type)
        launcher = self._launcher_of(default)
        for server in dataserver.DATA_SERVERS:
            if problem := launcher.missing(server) or launcher.lacking(server):
                _log.log(logging.ERROR if server is default.server else logging.INFO, "%s", problem)


@dataclass(frozen=True)
class ControlPort:
    """Where the control port listens and how; ``address`` None is every address.

    ``certificate``: certificate and key, with what makes TLS settings of them; None is plaintext.
    """

    address: IPAddress | None
    port: int
    certificate: tuple[Files, Callable[[Path, Path], ssl.SSLContext]] | None


class Stop:
    """SIGTERM or SIGINT: the first asks for an orderly end, the second ends it where it is."""

    def __init__(self) -> None:
        """Watch for the signals, for the task that makes this."""
        self.asked = asyncio.Event()
        self._task = asyncio.current_task()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._signal)

    def _signal(self) -> None:
        if not self.asked.is_set():
            self.asked.set()
        elif self._task is not None:
            _log.warning("told to end again: ending at once")
            self._task.cancel()


async def run(
    settings: Settings,
    control: ControlPort,
    authenticators: Callable[[Settings], Sequence[Authenticator]],
    started: Callable[[Endpoint], None],
) -> None:
    """The life of s2cs: serve until SIGTERM or SIGINT, then end every tunnel and return.

    ``started`` is called with the listener of the control port when it serves.
    Raises ScistreamError where the control port cannot be had.
    """
    stop = Stop()
    async with contextlib.AsyncExitStack() as undo:
        tls = control.certificate and control.certificate[1](*control.certificate[0])
        listener = undo.enter_context(_control_socket(control))
        runtime = undo.enter_context(runtime_directory())
        traffic = await undo.enter_async_context(kernel_traffic(settings, lasting=False))
        gateway = Gateway(settings, runtime, any_address(), Plugged(traffic=traffic, authenticators=authenticators))
        # SciStream's example for containers: client, gateway and application on one host, the gateway without options.
        gateway.gate.for_own_host = control.address is None
        try:
            await gateway.start([listener], tls)
            address, port = listener.getsockname()[:2]
            started(Endpoint(ipaddress.ip_address(address), port))
            await _serve_until(stop, gateway, control)
        finally:
            _log.info("stopping: %d tunnels end", len(gateway.manager))
            await gateway.close()


async def _serve_until(stop: Stop, gateway: Gateway, control: ControlPort) -> None:
    if control.certificate is None:
        await stop.asked.wait()
        return
    files, load = control.certificate
    watch = CertificateWatch(lambda: files, lambda: load(*files), gateway.server.replace_context)
    watching = asyncio.create_task(watch.run())
    stopping = asyncio.create_task(stop.asked.wait())
    try:
        done, _ = await asyncio.wait([watching, stopping], return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        watching.cancel()
        stopping.cancel()
        await asyncio.wait([watching, stopping])


def run_to_its_end(life: Coroutine[Any, Any, None]) -> int:
    """Run a daemon's life; its exit status, 0 for an orderly end. Does not return where it was told to hurry."""
    try:
        asyncio.run(life)
    except asyncio.CancelledError:
        sys.stdout.flush()
        logging.shutdown()
        # Not sys.exit(): it would wait for lookups that no name server answers.
        os._exit(128 + signal.SIGTERM)
    return 0


def _is_public(listener: socket.socket) -> bool:
    """Whether other hosts can reach it."""
    if listener.family == socket.AF_UNIX:
        return False
    return not ipaddress.ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback


def _port(listener: socket.socket) -> int:
    """Its port; 0 of a UNIX socket."""
    return 0 if listener.family == socket.AF_UNIX else int(listener.getsockname()[1])


def any_address() -> IPAddress:
    """The wildcard that takes every address of this host."""
    return ipaddress.ip_address("::" if sockets.has_ipv6() else "0.0.0.0")


def _control_socket(control: ControlPort) -> socket.socket:
    endpoint = Endpoint(control.address or any_address(), control.port)
    try:
        [listener] = sockets.hold([Bind(endpoint)], _CONTROL_KEEPALIVE)
    except PortsBusy:
        raise ScistreamError(
            Code.FAILED_PRECONDITION,
            f"port: the control port {endpoint} is in use",
            f"`ss -tlpn 'sport = :{control.port}'` shows by whom (systemd: scistreamd); --port takes another",
        ) from None
    return listener


def harden_process() -> None:
    """No core dump ever holds a key; as many open files as the system lets us have."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
