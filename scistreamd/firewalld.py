"""Openings in firewalld for tunnels, over its D-Bus interface (firewalld.dbus(5)): runtime rich rules, ours by a mark.

firewalld forgets runtime rules when it is reloaded or restarted; they are made again then. A rule is ours when it
has our priority and one port of the gateway's range, on which no other gateway listens; nothing else is ever
changed.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dbus_next import Message, MessageType

from scistreamd import portview
from scistreamd.bus_wire import Connection, from_wire, hang_up
from scistreamd.closings import Closings
from scistreamd.interfaces import Flow
from scistreamd.model import IPNetwork, PortRange
from scistreamd.nft.host import arrivals

_NAME = "org.fedoraproject.FirewallD1"
_PATH = "/org/fedoraproject/FirewallD1"
_ZONE = f"{_NAME}.zone"
_DBUS, _DBUS_PATH = "org.freedesktop.DBus", "/org/freedesktop/DBus"
_SECONDS = 30.0
_FOREVER = 0
# Our mark: no tool and hardly a person chooses it. Positive, so that it stands behind what an operator refuses by a
# rule, and before what his zone does to everything else.
_PRIORITY = 2626
_OURS = re.compile(rf'^rule priority="{_PRIORITY}" .*port port="(\d+)" protocol="(?:tcp|udp)" accept$')
_MATCHES = (
    f"type='signal',sender='{_NAME}',interface='{_NAME}',member='Reloaded'",
    f"type='signal',sender='{_DBUS}',member='NameOwnerChanged',arg0='{_NAME}'",
)
# Zones that take everything need no opening; sources that an operator put into one that takes nothing get none.
_OPEN, _SHUT = ("ACCEPT",), ("DROP", "%%REJECT%%", "REJECT")

# A rule in a zone.
Rule = tuple[str, str]

_log = logging.getLogger("scistreamd.firewalld")


class FirewalldError(Exception):
    """firewalld, or the bus, refused a call; the message says why."""


class Firewalld:
    """A connection to firewalld, made when it is first needed. Used in one event loop."""

    def __init__(self, ports: PortRange, runtime: Path | None = None) -> None:
        """``ports``: the gateway's range, in which rules with our mark are ours; ``runtime``: where scripts for
        tunnels that outlive the daemon are kept, None: they do not."""
        self.runs = False
        self._ports = ports
        self._closings = Closings(runtime, _closed_by) if runtime is not None else None
        self._bus: Connection | None = None
        self._lock = asyncio.Lock()
        self._flows: dict[str, Flow] = {}
        self._there: dict[str, set[Rule]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self, flow: Flow) -> tuple[str, ...]:
        """Let the flow's peers in, in place of those before; what did not work, for people."""
        async with self._lock:
            self._flows[flow.tunnel_id] = flow
            return await self._told(self._set(flow.tunnel_id, flow))

    async def close_tunnel(self, tunnel_id: str) -> None:
        """Remove what was opened for it."""
        async with self._lock:
            self._flows.pop(tunnel_id, None)
            for problem in await self._told(self._set(tunnel_id, None)):
                _log.warning("%s", problem, extra={"tunnel": tunnel_id})

    async def reconcile(self, flows: Sequence[Flow]) -> tuple[str, ...]:
        """Have openings for these alone, whatever is there from before; what did not work, for people."""
        async with self._lock:
            self._flows = {flow.tunnel_id: flow for flow in flows}
            return await self._told(self._reconcile())

    async def close(self) -> None:
        """Leave the bus; openings stay."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        if self._bus is not None:
            await hang_up(self._bus)

    @staticmethod
    async def _told(work: Any) -> tuple[str, ...]:
        try:
            await work
        except FirewalldError as problem:
            return (f"firewalld: {problem}",)
        return ()

    async def _set(self, tunnel_id: str, flow: Flow | None) -> None:
        """Change the tunnel's rules to what the flow needs, None: no rules."""
        there = self._there.get(tunnel_id, set())
        if flow is None and not there:
            return
        if not await self._present():
            self._there.clear()
            return
        wanted = await self._rules(flow) if flow is not None else set()
        self._keep_scripts({tunnel_id: wanted})
        # Those that are there too: a socket unit that is made anew for other ports ends once, and takes them with it.
        for rule in wanted:
            await self._change("addRichRule", rule)
            self._there.setdefault(tunnel_id, set()).add(rule)
        kept_by_others = set().union(*(rules for each, rules in self._there.items() if each != tunnel_id))
        for rule in there - wanted - kept_by_others:
            await self._change("removeRichRule", rule)
        self._there[tunnel_id] = wanted
        if not wanted:
            del self._there[tunnel_id]

    async def _reconcile(self) -> None:
        self._there.clear()
        if not await self._present():
            return
        wanted = {flow.tunnel_id: await self._rules(flow) for flow in self._flows.values()}
        self._keep_scripts(wanted, alone=True)
        every = set().union(*wanted.values())
        there = await self._ours()
        for rule in await self._leftovers(there - every):
            await self._change("removeRichRule", rule)
        for rule in every - there:
            await self._change("addRichRule", rule)
        self._there = {tunnel_id: rules for tunnel_id, rules in wanted.items() if rules}

    # Rules

    async def _ours(self) -> set[Rule]:
        """The rules with our mark, of any daemon before."""
        [zones] = await self._call(_ZONE, "getZones", "", [])
        found = set()
        for zone in zones:
            [rules] = await self._call(_ZONE, "getRichRules", "s", [zone])
            found |= {(zone, rule) for rule in rules if self._is_ours(rule)}
        return found

    def _is_ours(self, rule: str) -> bool:
        matched = _OURS.match(rule)
        return matched is not None and self._ports.first <= int(matched[1]) <= self._ports.last

    async def _leftovers(self, rules: set[Rule]) -> set[Rule]:
        """Those that no other gateway of this host needs: on its ports somebody listens, and no tunnel of ours."""
        look = await asyncio.to_thread(portview.look, False) if rules else None
        mine = {bind.endpoint.port for flow in self._flows.values() for bind in flow.binds}
        theirs = {each.port for each in look.sockets} - mine if look is not None else set()
        kept = {rule for rule in rules if (matched := _OURS.match(rule[1])) and int(matched[1]) in theirs}
        for zone, rule in sorted(kept):
            _log.info("left alone, for another program listens there: `%s` in zone %s", rule, zone)
        return rules - kept

    async def _rules(self, flow: Flow) -> set[Rule]:
        """What lets the flow's peers in: a rule a port and network in each zone that they come through."""
        found: set[Rule] = set()
        from scistreamd import host_view  # noqa: PLC0415  pyroute2 takes a third of a second

        host = await asyncio.get_running_loop().run_in_executor(None, host_view.look)
        [active] = from_wire(await self._call(_ZONE, "getActiveZones", "", []))
        for bind in flow.binds:
            devices = {each.interface.name for each in arrivals(host, bind.endpoint, flow.allow_from)}
            for zone in await self._zones(devices, active, flow.allow_from):
                found |= {(zone, rule) for rule in rules_for(bind.endpoint.port, flow.allow_from, udp=bind.udp)}
        return found

    async def _zones(
        self, devices: Iterable[str], active: Mapping[str, Mapping[str, Sequence[str]]], allow_from: Sequence[IPNetwork]
    ) -> set[str]:
        """The zones to open in: those of the devices, and those that have networks of ``allow_from`` as sources."""
        by_device = {device: zone for zone, what in active.items() for device in what.get("interfaces", ())}
        [default] = await self._call(_NAME, "getDefaultZone", "", [], path=_PATH)
        zones = {by_device.get(device, default) for device in devices}
        open_ = {zone for zone in zones if await self._target(zone) not in _OPEN}
        by_source = {zone for zone, what in active.items() if _overlap(what.get("sources", ()), allow_from)}
        return open_ | {zone for zone in by_source if await self._target(zone) not in _OPEN + _SHUT}

    async def _target(self, zone: str) -> str:
        [settings] = from_wire(await self._call(_ZONE, "getZoneSettings2", "s", [zone]))
        return str(settings["target"].value) if "target" in settings else "default"

    async def _change(self, member: str, rule: Rule) -> None:
        """Add or remove a rule; that it is so already is fine."""
        zone, text = rule
        arguments: tuple[str, list[Any]] = ("ss", [zone, text])
        if member == "addRichRule":
            arguments = ("ssi", [zone, text, _FOREVER])
        try:
            await self._call(_ZONE, member, *arguments)
        except FirewalldError as problem:
            if not str(problem).startswith(("ALREADY_ENABLED", "NOT_ENABLED")):
                raise

    def _keep_scripts(self, wanted: Mapping[str, set[Rule]], *, alone: bool = False) -> None:
        """Have scripts that undo these rules of tunnels; ``alone``: and for no other tunnels."""
        try:
            if self._closings is not None:
                self._closings.keep(wanted, alone=alone)
        except OSError as problem:
            raise FirewalldError(f"{problem.filename}: {problem.strerror}") from problem

    # The bus

    async def _present(self) -> bool:
        """Whether firewalld runs; it is not started where it does not."""
        self.runs = False
        bus = await self._connected()
        if bus is not None:
            [self.runs] = await self._call(_DBUS, "NameHasOwner", "s", [_NAME], path=_DBUS_PATH, name=_DBUS)
        return self.runs

    async def _connected(self) -> Connection | None:
        """The connection to the system bus, None where there is no bus."""
        if self._bus is not None and self._bus.connected:
            return self._bus
        if self._bus is not None:
            await hang_up(self._bus)
            self._bus = None
        try:
            bus = Connection(None, longest=None)  # the lists of big firewalls are long, and firewalld is trusted
        except OSError:
            return None
        try:
            await bus.connect()
            self._bus = bus
            bus.add_message_handler(self._heard)
            for match in _MATCHES:
                await self._call(_DBUS, "AddMatch", "s", [match], path=_DBUS_PATH, name=_DBUS)
        except (OSError, EOFError, FirewalldError):
            self._bus = None
            await hang_up(bus)
            return None
        return bus

    def _heard(self, message: Message) -> None:
        """A reload, or a new firewalld, has forgotten our rules."""
        reloaded = message.member == "Reloaded" and message.interface == _NAME
        started = message.member == "NameOwnerChanged" and message.body[0] == _NAME and message.body[2]
        if message.message_type is MessageType.SIGNAL and (reloaded or started):
            task = asyncio.create_task(self._again(), name="firewalld reloaded")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _again(self) -> None:
        async with self._lock:
            for problem in await self._told(self._reconcile()):
                _log.warning("%s", problem)

    async def _call(
        self, interface: str, member: str, signature: str, body: list[Any], *, path: str = _PATH, name: str = _NAME
    ) -> list[Any]:
        if self._bus is None:
            raise FirewalldError("the connection to the system bus was lost")
        message = Message(
            destination=name, path=path, interface=interface, member=member, signature=signature, body=body
        )
        try:
            reply = await asyncio.wait_for(self._bus.call(message), _SECONDS)
        except (OSError, EOFError, asyncio.TimeoutError) as problem:
            raise FirewalldError(f"no answer to {member}: {type(problem).__name__}") from problem
        if reply is None:
            raise FirewalldError("the connection to the system bus was lost")
        if reply.message_type is MessageType.ERROR:
            raise FirewalldError(str(reply.body[0]) if reply.body else str(reply.error_name))
        return list(reply.body)


def _closed_by(rule: Rule) -> list[str]:
    return ["busctl", "--auto-start=no", "call", _NAME, _PATH, _ZONE, "removeRichRule", "ss", *rule]


def rules_for(port: int, allow_from: Sequence[IPNetwork], *, udp: bool) -> set[str]:
    """Rich rules, spelt as firewalld lists them (firewalld.richlanguage(5))."""
    sources = [f'family="ipv{each.version}" source address="{each}" ' for each in allow_from] or [""]
    return {
        f'rule priority="{_PRIORITY}" {source}port port="{port}" protocol="{protocol}" accept'
        for source in sources
        for protocol in (("tcp", "udp") if udp else ("tcp",))
    }


def _overlap(sources: Iterable[str], allow_from: Sequence[IPNetwork]) -> bool:
    """Whether one of a zone's sources is in the networks; sources may be MAC addresses and sets, too."""
    for source in sources:
        with contextlib.suppress(ValueError):
            network = ipaddress.ip_network(source, strict=False)
            if any(each.version == network.version and each.overlaps(network) for each in allow_from):
                return True
    return False
