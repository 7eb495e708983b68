"""A message bus of our own, callers on it, and what stands in for polkit and the manager there."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import pwd
import re
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dbus_next import Message, MessageFlag, MessageType, Variant
from dbus_next.aio import MessageBus

from scistreamd import names
from scistreamd.bus import Bus
from scistreamd.bus_api import BusApi
from scistreamd.bus_door import interface_xml
from scistreamd.bus_needs import Host
from scistreamd.bus_wire import hang_up
from scistreamd.config import Settings
from scistreamd.counts import Counts
from scistreamd.errors import Code, ScistreamError
from scistreamd.gate import Gate, Grant
from scistreamd.hop import Finding, Outcome
from scistreamd.model import (
    Caller,
    Change,
    ChangeKind,
    Endpoint,
    Options,
    PortRange,
    Role,
    Security,
    State,
    Target,
    TunnelView,
    Uid,
    parse_address,
)
from scistreamd.network import HostNetwork
from scistreamd.portcheck import Look

LOOPBACK = ipaddress.ip_address("127.0.0.1")
SETTINGS = Settings(listen_inbound=LOOPBACK, listen_outbound=LOOPBACK, port_range=PortRange(27800, 27809))

_CONFIG = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path={socket}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/>
    <deny own="*"/>
    <deny send_type="method_call"/>
    <allow send_type="signal"/>
    <allow send_type="method_return"/>
    <allow send_type="error"/>
    <allow receive_type="method_call"/>
    <allow receive_type="method_return"/>
    <allow receive_type="error"/>
    <allow receive_type="signal"/>
    <allow send_destination="org.freedesktop.DBus" send_interface="org.freedesktop.DBus"/>
    <allow send_destination="org.freedesktop.DBus" send_interface="org.freedesktop.DBus.Introspectable"/>
    <allow send_destination="org.freedesktop.DBus" send_interface="org.freedesktop.DBus.Properties"/>
  </policy>
  <policy user="{user}">
    <allow own="*"/>
    <allow send_destination="org.freedesktop.DBus" send_interface="org.freedesktop.DBus.Monitoring"/>
  </policy>
  <policy context="default"><allow send_destination="org.freedesktop.PolicyKit1"/></policy>
  <include ignore_missing="yes">/usr/share/dbus-1/system.d/org.freedesktop.PolicyKit1.conf</include>
  <include>{policy}</include>
</busconfig>
"""
# How the front door names the user who runs the tests.
ME = f"{pwd.getpwuid(os.geteuid()).pw_name} from this host by D-Bus"
_POLICY = Path(__file__).parent.parent.parent / "dbus" / f"{names.SERVICE}.conf"


class PrivateBus:
    """A dbus-daemon with the rules of a system bus and our own policy file."""

    def __init__(self, directory: Path) -> None:
        self.socket = directory / "bus"
        self.address = f"unix:path={self.socket}"
        self._config = directory / "bus.conf"
        self._config.write_text(_CONFIG.format(socket=self.socket, user=os.geteuid(), policy=_POLICY))
        self._daemon: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Return when callers can connect."""
        self._daemon = await asyncio.create_subprocess_exec(
            "dbus-daemon",
            f"--config-file={self._config}",
            "--nofork",
            "--nopidfile",
            "--nosyslog",
            "--print-address",
            stdout=asyncio.subprocess.PIPE,
        )
        assert self._daemon.stdout
        assert await self._daemon.stdout.readline()

    async def stop(self) -> None:
        """End it, with all connections."""
        assert self._daemon
        self._daemon.terminate()
        await self._daemon.wait()
        self.socket.unlink(missing_ok=True)


class Refused(Exception):
    """A call that ended with a D-Bus error."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(f"{name}: {text}")
        self.name = name
        self.text = text


@dataclass
class Client:
    """One connection of a caller, with the signals that it has heard."""

    connection: MessageBus
    heard: list[Message] = field(default_factory=list)

    async def raw(
        self, path: str, interface: str | None, member: str, signature: str = "", *body: Any, flags: int = 0
    ) -> Any:
        """Call, and return the values; Refused where it ends with an error."""
        message = Message(
            names.SERVICE, path, interface, member, signature=signature, body=list(body), flags=MessageFlag(flags)
        )
        reply = await asyncio.wait_for(self.connection.call(message), 60)
        assert reply is not None
        if reply.message_type is MessageType.ERROR:
            assert reply.signature == "s"
            raise Refused(reply.error_name or "", reply.body[0])
        return reply.body

    async def manager(self, member: str, signature: str = "", *body: Any, flags: int = 0) -> Any:
        """A method of the manager."""
        return await self.raw(names.ROOT, names.MANAGER, member, signature, *body, flags=flags)

    async def tunnel(self, path: str, member: str, signature: str = "", *body: Any, flags: int = 0) -> Any:
        """A method of a tunnel."""
        return await self.raw(path, names.TUNNEL, member, signature, *body, flags=flags)

    async def properties(self, path: str, interface: str) -> dict[str, Any]:
        """All properties of an interface, without their types."""
        [found] = await self.raw(path, names.PROPERTIES, "GetAll", "s", interface)
        return {name: each.value for name, each in found.items()}

    async def has_owner(self, name: str) -> bool:
        """Whether somebody has the name on the bus."""
        daemon = "org.freedesktop.DBus"
        message = Message(daemon, "/org/freedesktop/DBus", daemon, "NameHasOwner", signature="s", body=[name])
        reply = await self.connection.call(message)
        assert reply
        return bool(reply.body[0])

    async def listen(self) -> None:
        """Hear every signal of ours from now on."""

        def hear(message: Message) -> None:
            if message.message_type is MessageType.SIGNAL and (message.path or "").startswith(names.ROOT):
                self.heard.append(message)

        self.connection.add_message_handler(hear)
        rule = f"type='signal',path_namespace='{names.ROOT}'"
        daemon = "org.freedesktop.DBus"
        match = Message(daemon, "/org/freedesktop/DBus", daemon, "AddMatch", signature="s", body=[rule])
        reply = await self.connection.call(match)
        assert reply and reply.message_type is MessageType.METHOD_RETURN

    async def hears(self, member: str, count: int = 1) -> list[Message]:
        """Wait for signals of one name."""
        await until(lambda: len(self.told(member)) >= count)
        return self.told(member)

    def told(self, member: str) -> list[Message]:
        """The signals of one name that were heard until now."""
        return [each for each in self.heard if each.member == member]


@contextlib.asynccontextmanager
async def connected(address: str) -> AsyncIterator[Client]:
    """A caller on the bus."""
    connection = await MessageBus(bus_address=address).connect()
    try:
        yield Client(connection)
    finally:
        await hang_up(connection)


def variant(signature: str, value: Any) -> Variant:
    """An option's value."""
    return Variant(signature, value)


def finding(listener: Endpoint) -> Finding:
    """Port 5999 is filtered, others are fine."""
    if listener.port == 5999:
        return Finding(listener, Outcome.FILTERED, "filtered: no answer", "ask for an open port")
    return Finding(listener, Outcome.OK, "fine", "", 150, 2500, 300, 5_000_000, 1_000_000)


class Tunnels:
    """A manager without ports and data servers, for what the front door itself does.

    ``pause``: what `create` waits for.
    """

    def __init__(self) -> None:
        self.look = Look()
        self.views: dict[str, TunnelView] = {}
        self.uids: dict[str, Uid] = {}
        self.calls: list[tuple[Any, ...]] = []
        self.watchers: list[Callable[[Change], None]] = []
        self.pause = asyncio.Event()
        self.pause.set()

    @property
    def free_ports(self) -> int:
        return 10 - sum(len(view.listeners) for view in self.views.values())

    async def create(
        self, grant: Grant, role: Role, targets: tuple[Target, ...], options: Options, uid: Uid | None = None
    ) -> tuple[Uid, TunnelView]:
        self.calls.append(("create", grant, role, targets, options, uid))
        await self.pause.wait()
        made = uid or Uid.random()
        if made.id in self.views:
            raise ScistreamError(Code.ALREADY_EXISTS, f"uid: tunnel {made.id} exists", "use a new UID")
        used = {each.port for view in self.views.values() for each in view.listeners}
        ports = [port for port in SETTINGS.port_range if port not in used][: len(targets)]
        if len(ports) < len(targets):
            raise ScistreamError(Code.RESOURCE_EXHAUSTED, "num_conn: no free port in 27800-27809", "release a tunnel")
        view = TunnelView(
            made.id,
            options.label,
            role,
            State.ACTIVE,
            "Haproxy",
            Security.TLS,
            tuple(Endpoint(LOOPBACK, port) for port in ports),
            targets,
            options.rate,
            "",
            str(grant.caller),
            grant.caller.principal,
            grant.caller.peer,
            1_700_000_000_000_000,
            0,
            "",
            ("beware",),
        )
        self.uids[made.id] = made
        self.change(ChangeKind.ADDED, view)
        return made, view

    def change(self, kind: ChangeKind, view: TunnelView) -> None:
        """Keep the view, or forget it, and tell the watchers."""
        if kind is ChangeKind.REMOVED:
            del self.views[view.id]
        else:
            self.views[view.id] = view
        for see in self.watchers:
            see(Change(kind, view))

    def tunnels(self) -> tuple[TunnelView, ...]:
        return tuple(self.views.values())

    def find(self, text: str) -> str:
        return self.view(text if re.fullmatch("[0-9a-f]{12}", text) else Uid.parse(text).id).id

    def view(self, tunnel_id: str) -> TunnelView:
        if tunnel_id not in self.views:
            raise ScistreamError(Code.NOT_FOUND, "uid: no such tunnel on this gateway", "it has ended")
        return self.views[tunnel_id]

    async def retarget(self, grant: Grant, tunnel_id: str, targets: tuple[Target, ...]) -> TunnelView:
        self.calls.append(("retarget", grant, tunnel_id, targets))
        self.change(ChangeKind.CHANGED, replace(self.view(tunnel_id), targets=targets))
        return self.view(tunnel_id)

    async def extend(self, grant: Grant, tunnel_id: str, seconds: int) -> TunnelView:
        self.calls.append(("extend", grant, tunnel_id, seconds))
        self.change(ChangeKind.CHANGED, replace(self.view(tunnel_id), expires_usec=seconds * 1_000_000))
        return self.view(tunnel_id)

    async def judge_ports(self, ports: Sequence[int]) -> list[tuple[str, str]]:
        return []

    async def look_at_ports(self) -> Look:
        return self.look

    async def hold_to(self, grant: Grant, tunnel_id: str, rate: int) -> TunnelView:
        self.calls.append(("hold_to", grant, tunnel_id, rate))
        self.change(ChangeKind.CHANGED, replace(self.view(tunnel_id), rate=rate))
        return self.view(tunnel_id)

    async def test(self, grant: Grant, tunnel_id: str, throughput: float) -> tuple[Finding, ...]:
        self.calls.append(("test", grant, tunnel_id, throughput))
        return tuple(finding(Endpoint(parse_address(each.host), each.port)) for each in self.view(tunnel_id).targets)

    async def test_path(
        self, grant: Grant, uid: Uid, target: Target, security: Security | None, throughput: float
    ) -> Finding:
        self.calls.append(("test_path", grant, uid, target, security, throughput))
        return finding(Endpoint(parse_address(target.host), target.port))

    async def end(self, grant: Grant, tunnel_id: str, drain: float) -> None:
        self.calls.append(("end", grant, tunnel_id, drain))
        self.change(ChangeKind.REMOVED, replace(self.view(tunnel_id), state=State.RELEASING))

    def reveal(self, grant: Grant, tunnel_id: str) -> Uid:
        self.calls.append(("reveal", grant, tunnel_id))
        return self.uids[self.view(tunnel_id).id]

    def watch(self, see: Callable[[Change], None]) -> Callable[[], None]:
        self.watchers.append(see)
        return lambda: self.watchers.remove(see)


class Judge:
    """An authority that lets everybody do everything, and remembers."""

    def __init__(self) -> None:
        self.asked: list[tuple[Caller, str, bool]] = []

    async def check(self, caller: Caller, verb: str, *, own: bool) -> None:
        self.asked.append((caller, verb, own))


class Counted:
    """What a meter would say; ``problem`` where it sees nothing."""

    def __init__(self, tunnels: Tunnels) -> None:
        self.tunnels = tunnels
        self.values: dict[str, Counts] = {}
        self.problem: ScistreamError | None = None

    def counts(self, tunnel_id: str) -> Counts:
        if self.problem:
            raise self.problem
        return self.values.get(tunnel_id, Counts())

    def all(self) -> dict[str, Counts]:
        return {tunnel_id: self.counts(tunnel_id) for tunnel_id in self.tunnels.views}


@dataclass
class Door:
    """The front door on a bus of its own."""

    bus: Bus
    api: BusApi
    tunnels: Tunnels
    private: PrivateBus
    counted: Counted
    settings: Settings = SETTINGS
    busy: dict[int, str] = field(default_factory=dict)
    reloads: int = 0


@contextlib.asynccontextmanager
async def door(private: PrivateBus) -> AsyncIterator[Door]:
    """Ours on the bus, over a manager that is `Tunnels`."""
    tunnels, bus = Tunnels(), Bus(private.address)
    network = HostNetwork(1)
    counted = Counted(tunnels)
    made: Door

    def reload() -> None:
        made.reloads += 1
        made.settings = replace(made.settings, default_type="Nginx")

    host = Host(lambda: made.settings, lambda port: made.busy.get(port, ""), counted, reload)
    api = BusApi(bus, tunnels, Gate(SETTINGS, network, Judge()), host, interface_xml())
    made = Door(bus, api, tunnels, private, counted)
    made.api.start()
    try:
        await bus.serve(made.api.answer)
        yield made
    finally:
        made.api.stop()
        await bus.close()
        network.close()


async def until(true: Callable[[], object]) -> None:
    """Wait for what happens elsewhere; the test's own time limit ends a wait in vain."""
    while not true():  # noqa: ASYNC110  (dbus-next and the daemon offer no event to wait for)
        await asyncio.sleep(0.01)
