"""The front door on D-Bus: parse, ask the gate, call the manager.

What it takes and gives stands in dbus/org.scistream.scistreamd1.xml.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from scistreamd import bus_options, bus_view, introspection, names, options
from scistreamd.bus_calls import Calls, Handler, Trail
from scistreamd.bus_messages import Call, Connection, Reply, Typed
from scistreamd.bus_objects import Objects
from scistreamd.bus_signals import Announcer
from scistreamd.config import Settings
from scistreamd.errors import Code, ScistreamError, invalid
from scistreamd.gate import Grant, Verb
from scistreamd.hop import Finding
from scistreamd.identity import Identity
from scistreamd.interfaces import Counters
from scistreamd.introspection import Interface
from scistreamd.model import Caller, Change, Options, Role, Security, Target, TunnelView, Uid
from scistreamd.portcheck import Look, Socket, overlap

FRONT_DOOR = "D-Bus"
_PROBES_AT_ONCE = 200
_MOST_PORTS = 4096
_MOST_JUDGED = 256  # a big firewall takes 20 ms a port


class Tunnels(Protocol):
    """What the manager does for this front door; see `scistreamd.manager.Manager`."""

    @property
    def free_ports(self) -> int:
        """How many ports of the range no tunnel has."""

    async def create(
        self, grant: Grant, role: Role, targets: tuple[Target, ...], options: Options, uid: Uid | None = None
    ) -> tuple[Uid, TunnelView]:
        """Make a tunnel that is active on return."""

    def tunnels(self) -> tuple[TunnelView, ...]:
        """All tunnels, the oldest first."""

    def find(self, text: str) -> str:
        """The id that an id or a UID names; INVALID_ARGUMENT or NOT_FOUND."""

    def view(self, tunnel_id: str) -> TunnelView:
        """How it looks now, or NOT_FOUND."""

    async def retarget(self, grant: Grant, tunnel_id: str, targets: tuple[Target, ...]) -> TunnelView:
        """Forward to other targets."""

    async def extend(self, grant: Grant, tunnel_id: str, seconds: int) -> TunnelView:
        """Set the lifetime from now on; 0: no end."""

    async def judge_ports(self, ports: Sequence[int]) -> list[tuple[str, str]]:
        """What the firewall does to connections to these ports."""

    async def look_at_ports(self) -> Look:
        """Who has which ports of this host."""

    async def hold_to(self, grant: Grant, tunnel_id: str, rate: int) -> TunnelView:
        """Hold the tunnel to another rate in kB/s, 0: to none."""

    async def test(self, grant: Grant, tunnel_id: str, throughput: float) -> tuple[Finding, ...]:
        """Test the hop to each target."""

    async def test_path(
        self, grant: Grant, uid: Uid, target: Target, security: Security | None, throughput: float
    ) -> Finding:
        """Test the hop to a listener that there is no tunnel to."""

    async def end(self, grant: Grant, tunnel_id: str, drain: float) -> None:
        """Release."""

    def reveal(self, grant: Grant, tunnel_id: str) -> Uid:
        """The UID, for the owner."""

    def watch(self, see: Callable[[Change], None]) -> Callable[[], None]:
        """Tell of every change; returns the way to stop."""


class Authorizes(Protocol):
    """What this front door asks of `scistreamd.gate.Gate`."""

    async def authorize(self, caller: Caller, verb: Verb, owner: str | None = None) -> Grant:
        """Allow the verb, or raise PERMISSION_DENIED."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the operator should see to."""


@dataclass(frozen=True)
class Host:
    """What the daemon lends this front door.

    ``settings``: those in force now. ``busy``: why nothing could listen on a
    port now, or an empty string. ``counters``: what tunnels have carried. ``reload``: reads the configuration again,
    and raises ScistreamError where it is wrong.
    """

    settings: Callable[[], Settings]
    busy: Callable[[int], str]
    counters: Counters
    reload: Callable[[], None]


class BusApi:
    """Answers calls on the bus and tells it of changes."""

    def __init__(self, bus: Connection, tunnels: Tunnels, gate: Authorizes, host: Host, xml: str) -> None:
        """``xml``: the text of dbus/org.scistream.scistreamd1.xml."""
        self._bus = bus
        self._tunnels = tunnels
        self._gate = gate
        self._host = host
        interfaces = introspection.interfaces(xml)
        self._objects = Objects(interfaces, self._gateway, tunnels.view, tunnels.tunnels, host.counters)
        self._announcer = Announcer(bus, self._gateway)
        self._calls = Calls(self._table(), self._interfaces_at, self._who)
        self._unwatch: Callable[[], None] | None = None

    def start(self) -> None:
        """Tell of changes from now on."""
        self._announcer.start(self._tunnels.tunnels())
        self._unwatch = self._tunnels.watch(self._announcer.see)

    def stop(self) -> None:
        """Tell of nothing more."""
        if self._unwatch:
            self._unwatch()
            self._unwatch = None
        self._announcer.stop()

    def settings_changed(self) -> None:
        """Tell of the gateway's properties after a reload."""
        self._announcer.gateway_changed()

    async def answer(self, call: Call) -> Reply:
        """Do what the call asks for; raises CallError alone."""
        return await self._calls.answer(call)

    def _table(self) -> dict[tuple[str, str], Handler]:
        return {
            (names.INTROSPECTABLE, "Introspect"): self._introspect,
            (names.PROPERTIES, "Get"): self._get,
            (names.PROPERTIES, "GetAll"): self._get_all,
            (names.PROPERTIES, "Set"): self._set,
            (names.OBJECT_MANAGER, "GetManagedObjects"): self._managed,
            (names.MANAGER, "CreateInbound"): self._create_inbound,
            (names.MANAGER, "CreateOutbound"): self._create_outbound,
            (names.MANAGER, "Release"): self._release_named,
            (names.MANAGER, "GetTunnel"): self._get_tunnel,
            (names.MANAGER, "ListTunnels"): self._list,
            (names.MANAGER, "ListCounters"): self._list_counters,
            (names.MANAGER, "CheckPorts"): self._check_ports,
            (names.MANAGER, "Reload"): self._reload,
            (names.MANAGER, "TestPath"): self._test_path,
            (names.TUNNEL, "Update"): self._update,
            (names.TUNNEL, "Release"): self._release,
            (names.TUNNEL, "GetCounters"): self._get_counters,
            (names.TUNNEL, "GetUid"): self._get_uid,
            (names.TUNNEL, "Test"): self._test,
        }

    def _interfaces_at(self, call: Call) -> Mapping[str, Interface]:
        if call.interface == names.TUNNEL and (tunnel_id := names.tunnel_id(call.path)):
            self._tunnels.view(tunnel_id)  # NOT_FOUND says more than that there is no object
        return self._objects.at(call.path)

    def _gateway(self) -> bus_view.Properties:
        settings, tunnels = self._host.settings(), self._announcer.tunnels
        return bus_view.manager(settings, self._tunnels.free_ports, tunnels, self._gate.warnings)

    async def _caller(self, call: Call, trail: Trail) -> Caller:
        caller = await self._person(call)
        trail.who = str(caller)
        return caller

    async def _person(self, call: Call) -> Caller:
        user = await self._bus.user_of(call.sender)
        return Caller(
            FRONT_DOOR,
            identity=Identity("local", str(user.number), user.name),
            user=user.number,
            bus_name=call.sender,
            interactive=call.interactive,
        )

    async def _who(self, call: Call) -> str:
        return str(await self._person(call))

    async def _allowed(self, call: Call, trail: Trail, verb: Verb, tunnel_id: str = "") -> Grant:
        """The grant for a verb, on a tunnel where one is named."""
        trail.asked, trail.tunnel = True, tunnel_id or trail.tunnel
        caller = await self._caller(call, trail)
        owner = self._tunnels.view(tunnel_id).principal if tunnel_id else None
        grant = await self._gate.authorize(caller, verb, owner)
        trail.decided = lambda: grant.decided.rule
        if not tunnel_id:
            return grant
        if self._tunnels.view(tunnel_id).principal != owner:
            # Asking for a password takes minutes: the UID may have another owner's tunnel by now.
            raise ScistreamError(Code.NOT_FOUND, f"tunnel {tunnel_id} has ended, and another took its place")
        return grant

    # The standard interfaces

    async def _introspect(self, call: Call, trail: Trail) -> tuple[Any, ...]:
        return (self._objects.introspect(call.path),)

    async def _get(self, call: Call, trail: Trail) -> tuple[Any, ...]:
        return (self._objects.get(call.path, *call.body),)

    async def _get_all(self, call: Call, trail: Trail) -> tuple[Any, ...]:
        return (self._objects.all(call.path, *call.body),)

    async def _set(self, call: Call, trail: Trail) -> tuple[Any, ...]:
        self._objects.set(call.path, *call.body[:2])
        return ()

    async def _managed(self, call: Call, trail: Trail) -> tuple[Any, ...]:
        return (self._objects.managed(),)

    # Manager

    async def _create_inbound(self, call: Call, trail: Trail) -> tuple[Any, ...]:
        entries, given = call.body
        trail.asked = True
        targets = options.targets(entries, "targets", empty=False)
        asked, wanted = bus_options.creation(given, bus_options.INBOUND)
        trail.tunnel = asked.id if asked else trail.tunnel
        grant = await self._allowed(call, trail, Verb.CREATE)
        uid, view = await self._tunnels.create(grant, Role.PROD, targets, wanted, asked)
        trail.tunnel = view.id
        return uid.reveal(), names.tunnel_path(view.id), bus_view.listeners(view)

    async def _create_outbound(self, call: Call, trail: Trail) -> tuple[Any, ...]:
        text, entries, given = call.body
        trail.asked = True
        uid = Uid.parse(text)
        trail.tunnel = uid.id
        targets = options.targets(entries, "remote_listeners", empty=False)
        _, wanted = bus_options.creation(given, bus_options.OUTBOUND)
        grant = await self._allowed(call, trail, Verb.CREATE)
        _, view = await self._tunnels.create(grant, Role.CONS, targets, wanted, uid)
        return names.tunnel_path(view.id), bus_view.listeners(view)

    async def _release_named(self, call: Call, trail: Trail) -> tuple[Any, ...]:
        text, given = call.body
        trail.asked = True
        drain = bus_options.drain(given)
        try:
            uid = Uid.parse(text)
        except ScistreamError:
            tunnel_id = self._tunnels.find(text)
        else:
            tunnel_id = await self._found_by_uid(call, trail, uid)
        return await self._end(call, trail, tunnel_id, drain)

    async def _found_by_uid(self, call: Call, trail: Trail, uid: Uid) -> str:
        """The id of the tunnel of a UID, for who may end it; for others as if there were none, by the same steps.

        Nobody is asked for a password on this way: who would be names it by its id, which is public.
        """
        trail.tunnel = uid.id
        caller = await self._caller(call, trail)
        view = next((each for each in self._tunnels.tunnels() if each.id == uid.id), None)
        try:
            if view is None or view.principal != caller.principal:
                await self._gate.authorize(replace(caller, interactive=False), Verb.RELEASE, "")
        except ScistreamError as problem:
            if problem.code is not Code.PERMISSION_DENIED:
                raise
            view = None
        if view is None:
            raise ScistreamError(
                Code.NOT_FOUND,
                "uid: no such tunnel on this gateway",
                "it was never made here, or has ended; that of somebody else is named by its id",
            )
        return view.id

    async def _get_tunnel(self, call: Call, trail: Trail) -> tuple[Any, ...]:
        return (names.tunnel_path(self._tunnels.find(call.body[0])),)

    async def _list(self, call: Call, trail: Trail) -> tuple[Any, ...]:
        return ([bus_view.row(view) for view in self._tunnels.tunnels()],)

    async def _list_counters(self, call: Call, trail: Trail) -> tuple[Any, ...]:
        found = self._host.counters.all()
        known = [view.id for view in self._tunnels.tunnels() if view.id in found]
        return ([bus_view.counts_row(tunnel_id, found[tunnel_id]) for tunnel_id in known],)

    async def _check_ports(self, call: Call, trail: Trail) -> tuple[Any, ...]:
        taken = {each.port: view.id for view in self._tunnels.tunnels() for each in view.listeners}
        ports = call.body[0] or list(self._host.settings().port_range)
        if len(call.body[0]) > _MOST_PORTS:
            raise invalid("ports", f"{len(ports)} entries, at most {_MOST_PORTS} are taken", "ask several times")
        look = await self._tunnels.look_at_ports()
        sockets, warning = look.by_port(), overlap(look, self._host.settings().port_range)
        asked = [port for port in ports if port][:_MOST_JUDGED]
        judged = dict(zip(asked, await self._tunnels.judge_ports(asked), strict=False))
        answers = []
        for index, port in enumerate(ports):
            if index % _PROBES_AT_ONCE == _PROBES_AT_ONCE - 1:
                await asyncio.sleep(0)  # others wait for the event loop, too
            answer = self._check_port(port, taken.get(port, ""), sockets.get(port, []), warning)
            answers.append(_with_firewall(answer, *judged.get(port, ("", ""))))
        return (answers,)

    def _check_port(self, port: int, tunnel_id: str, there: Sequence[Socket], warning: str) -> dict[str, Typed]:
        settings = self._host.settings()
        if port == 0:
            raise invalid("ports", "0 is no port", "from 1 to 65535")
        inside = port in settings.port_range
        used = f"tunnel {tunnel_id} listens on it" if tunnel_id else self._host.busy(port)
        if used and there and not tunnel_id:
            used = str(next((each for each in there if each.protocol == "tcp"), there[0]))
        reason = used or ("" if inside else f"outside the range {settings.port_range}")
        return {
            "port": Typed("q", port),
            "in-range": Typed("b", inside),
            "free": Typed("b", not used),
            "reason": Typed("s", reason),
            "sockets": Typed("as", [str(each) for each in there]),
            "warnings": Typed("as", [warning] if warning and inside else []),
        }

    async def _reload(self, call: Call, trail: Trail) -> tuple[Any, ...]:
        await self._allowed(call, trail, Verb.RELOAD)
        self._host.reload()
        self.settings_changed()
        return ()

    async def _test_path(self, call: Call, trail: Trail) -> tuple[Any, ...]:
        text, entry, given = call.body
        trail.asked = True
        uid = Uid.parse(text)
        trail.tunnel = uid.id
        listener = Target.parse(entry, "listener")
        security, seconds = bus_options.path(given)
        grant = await self._allowed(call, trail, Verb.CREATE)
        found = await self._tunnels.test_path(grant, uid, listener, security, seconds)
        return (bus_view.finding(found),)

    # Tunnel

    async def _update(self, call: Call, trail: Trail) -> tuple[Any, ...]:
        entries, given = call.body
        tunnel_id = self._id(call, trail)
        targets = options.targets(entries, "targets", empty=True)
        change = bus_options.amendment(given)
        if not targets and not given:
            raise invalid("targets", "empty, and no option to change", "at least one HOST:PORT, or rate, or lifetime")
        grant = await self._allowed(call, trail, Verb.UPDATE, tunnel_id)
        before = self._tunnels.view(tunnel_id).rate
        if change.rate is not None:
            await self._tunnels.hold_to(grant, tunnel_id, change.rate)
        if targets:
            try:
                await self._tunnels.retarget(grant, tunnel_id, targets)
            except ScistreamError:
                if change.rate is not None:
                    await self._tunnels.hold_to(grant, tunnel_id, before)
                raise
        if change.lifetime is not None:
            await self._tunnels.extend(grant, tunnel_id, change.lifetime)
        return ()

    async def _release(self, call: Call, trail: Trail) -> tuple[Any, ...]:
        tunnel_id = self._id(call, trail)
        return await self._end(call, trail, tunnel_id, bus_options.drain(call.body[0]))

    async def _end(self, call: Call, trail: Trail, tunnel_id: str, drain: int) -> tuple[Any, ...]:
        grant = await self._allowed(call, trail, Verb.RELEASE, tunnel_id)
        await self._tunnels.end(grant, tunnel_id, drain)
        return ()

    async def _get_counters(self, call: Call, trail: Trail) -> tuple[Any, ...]:
        return (bus_view.counts_told(self._host.counters.counts(names.tunnel_id(call.path) or "")),)

    async def _get_uid(self, call: Call, trail: Trail) -> tuple[Any, ...]:
        tunnel_id = self._id(call, trail)
        grant = await self._allowed(call, trail, Verb.REVEAL, tunnel_id)
        return (self._tunnels.reveal(grant, tunnel_id).reveal(),)

    async def _test(self, call: Call, trail: Trail) -> tuple[Any, ...]:
        tunnel_id = self._id(call, trail)
        seconds = bus_options.throughput(call.body[0])
        grant = await self._allowed(call, trail, Verb.UPDATE, tunnel_id)
        return ([bus_view.finding(each) for each in await self._tunnels.test(grant, tunnel_id, seconds)],)

    def _id(self, call: Call, trail: Trail) -> str:
        """The tunnel whose object is called; the object is known to be there."""
        trail.asked, trail.tunnel = True, names.tunnel_id(call.path) or "-"
        return trail.tunnel


def _with_firewall(answer: dict[str, Typed], verdict: str, said: str) -> dict[str, Typed]:
    """An answer of CheckPorts with what the firewall does; an empty verdict where nobody looked."""
    warnings = [*answer["warnings"].value, *([said] if said else [])]
    return answer | {"firewall": Typed("s", verdict), "warnings": Typed("as", warnings)}
