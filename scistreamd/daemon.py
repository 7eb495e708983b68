"""The composition root: builds the parts, joins them, runs them until a signal."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import resource
import signal
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass

from scistreamd import dataserver, sockets
from scistreamd.config import Settings
from scistreamd.control.server import ControlServer
from scistreamd.errors import Code, ScistreamError
from scistreamd.gate import Gate
from scistreamd.interfaces import Bind, PortsBusy
from scistreamd.keys import TunnelKeys
from scistreamd.manager import Manager
from scistreamd.model import Endpoint, IPAddress
from scistreamd.network import HostNetwork
from scistreamd.process import ProcessLauncher
from scistreamd.runtime import runtime_directory

_STOP_GRACE = 2.0
_CONTROL_KEEPALIVE = 30  # seconds: callers wait on this port for minutes, and may vanish
_log = logging.getLogger("scistreamd.daemon")


@dataclass(frozen=True)
class ControlPort:
    """Where the control port listens and how; ``tls`` is None for plaintext, ``address`` None for every address."""

    address: IPAddress | None
    port: int
    tls: ssl.SSLContext | None


async def run(settings: Settings, control: ControlPort, started: Callable[[Endpoint], None]) -> None:
    """Serve until SIGTERM or SIGINT, then end every tunnel and return.

    ``started`` is called with the listener of the control port when it serves.
    Raises ScistreamError where the control port cannot be had.
    """
    stop = _stop_on_signals()
    with contextlib.ExitStack() as undo:
        any_address = ipaddress.ip_address("::" if sockets.has_ipv6() else "0.0.0.0")
        listener = undo.enter_context(_control_socket(control, any_address))
        runtime = undo.enter_context(runtime_directory())
        network = HostNetwork(settings.times.resolve)
        undo.callback(network.close)
        launcher = ProcessLauncher(runtime, keepalive_idle=settings.tuning.keepalive_idle_seconds)
        gate = Gate(settings, network)
        manager = Manager(settings, gate, TunnelKeys(), lambda kind: launcher, any_address)
        _tell_missing(launcher, settings.default_type)
        server = ControlServer(manager, gate)
        await server.start([listener], control.tls)
        address, port = listener.getsockname()[:2]
        started(Endpoint(ipaddress.ip_address(address), port))
        try:
            await stop.wait()
        finally:
            _log.info("stopping: %d tunnels end", len(manager))
            await server.close(_STOP_GRACE)
            await manager.close()


def _stop_on_signals() -> asyncio.Event:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop


def _control_socket(control: ControlPort, any_address: IPAddress) -> socket.socket:
    endpoint = Endpoint(control.address or any_address, control.port)
    try:
        [listener] = sockets.hold([Bind(endpoint)], _CONTROL_KEEPALIVE)
    except PortsBusy:
        raise ScistreamError(
            Code.FAILED_PRECONDITION,
            f"port: the control port {endpoint} is in use",
            f"`ss -tlpn 'sport = :{control.port}'` shows by whom; --port takes another",
        ) from None
    return listener


def _tell_missing(launcher: ProcessLauncher, default: str) -> None:
    """Say which data servers cannot run here; that of the default type is an error."""
    for server in dataserver.DATA_SERVERS:
        if problem := launcher.missing(server):
            wanted = dataserver.parse_type(default).server is server
            _log.log(logging.ERROR if wanted else logging.INFO, "%s", problem)


def harden_process() -> None:
    """No core dump ever holds a key; as many open files as the system lets us have."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
