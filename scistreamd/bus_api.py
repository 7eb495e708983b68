"""The front door on D-Bus: parse, ask the gate, call the manager.

What it takes and gives stands in dbus/org.scistream.scistreamd1.xml.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from scistreamd import bus_options, bus_ports, bus_view, introspection, names, options
from scistreamd.bus_calls import Calls, Handler, Trail
from scistreamd.bus_messages import Call, Connection, Reply
from scistreamd.bus_needs import Authorizes, Host, Tunnels
from scistreamd.bus_objects import Objects
from scistreamd.bus_signals import Announcer
from scistreamd.errors import Code, ScistreamError, invalid
from scistreamd.gate import Grant, Verb
from scistreamd.identity import Identity
from scistreamd.introspection import Interface
from scistreamd.model import Caller, Role, Target, Uid

FRONT_DOOR = "D-Bus"


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
        return (await bus_ports.check(call.body[0], self._tunnels, self._host),)

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
