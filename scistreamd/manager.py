"""The tunnel manager: what front doors call.

They bring a `Grant`; whose a tunnel is and who may do what with it is asked
of `rights`, the steps of a tunnel's life are those of `course`, and the world
is reached through `interfaces` alone.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

from scistreamd.config import Settings
from scistreamd.course import Course
from scistreamd.dataserver import DataServerType
from scistreamd.errors import Code, ScistreamError, invalid
from scistreamd.flows import Flows
from scistreamd.gate import Gate, Grant, Verb
from scistreamd.hop import Finding
from scistreamd.hoptests import HopTests
from scistreamd.interfaces import KeyMaker, Launcher, PathTester, PortView, Store, Traffic
from scistreamd.legs import Way
from scistreamd.lifecycle import Event
from scistreamd.model import (
    Answer,
    Change,
    Endpoint,
    IPAddress,
    Options,
    Role,
    Security,
    State,
    Target,
    TunnelView,
    Uid,
)
from scistreamd.planning import Planner
from scistreamd.portcheck import Look
from scistreamd.registry import Registry, no_tunnel, view_of, way_of
from scistreamd.reservations import Reservations
from scistreamd.restoring import Restoring
from scistreamd.rights import Rights
from scistreamd.tunnel import Tunnel


class Manager:
    """All tunnels of one gateway."""

    def __init__(
        self,
        settings: Settings,
        gate: Gate,
        keys: KeyMaker,
        launcher_of: Callable[[DataServerType], Launcher],
        any_address: IPAddress,
        *,
        store: Store | None = None,
        traffic: Sequence[Traffic] = (),
        view: PortView | None = None,
        tester: PathTester | None = None,
        dialable: Callable[[], IPAddress | None] = lambda: None,
        own_addresses: Callable[[], Sequence[IPAddress]] = tuple,
    ) -> None:
        """``launcher_of``, ``any_address``, ``dialable``, ``own_addresses``: as `planning.Planner` has them; ``store``
        keeps the books of tunnels that outlive the daemon, where a launcher has such; ``traffic``: what the kernel's
        network can do; ``view``: who else has ports; ``tester`` tests hops."""
        self._registry = Registry()
        self._rights = Rights(self._registry, gate)
        self._flows = Flows(traffic, self._guarded, self._registry.changed)
        self._view = view
        self._hops = HopTests(tester)
        self._ports = Reservations(settings.port_range, self._flows, view)
        planner = Planner(settings, gate, launcher_of, any_address, dialable, own_addresses)
        self._course = Course(
            planner,
            store,
            keys,
            self._rights,
            registry=self._registry,
            flows=self._flows,
            ports=self._ports,
            hops=self._hops,
        )

    # What front doors call

    async def request(self, grant: Grant, uid: Uid, role: Role, count: int, options: Options) -> Answer:
        """`req`: reserve ``count`` listeners, then wait for hello and answer what it settled.

        Cancelling it while it waits frees the ports. Raises ALREADY_EXISTS,
        RESOURCE_EXHAUSTED, DEADLINE_EXCEEDED (no hello), UNIMPLEMENTED,
        PERMISSION_DENIED, FAILED_PRECONDITION or INVALID_ARGUMENT.
        """
        tunnel = await self._course.reserve(grant, uid, role, count, options)
        seconds = self._course.settings.times.hello
        try:
            return await asyncio.wait_for(asyncio.shield(tunnel.greeted), seconds)
        except asyncio.TimeoutError:
            await self._course.end(tunnel, "no hello came")
            raise ScistreamError(
                Code.DEADLINE_EXCEEDED,
                f"no hello for this request within {seconds:g} s; its ports are free again",
                "start the application controller, or s2uc hello, within that time",
            ) from None
        except asyncio.CancelledError:
            await self._course.shielded(self._course.end(tunnel, "its caller went away"))
            raise

    async def hello(self, grant: Grant, uid: Uid, role: Role, entries: tuple[Target, ...]) -> Answer:
        """`hello`: bring the targets of an inbound tunnel, or the wished ports of an outbound one.

        One that comes before its `req` waits for it a little. Raises
        NOT_FOUND, FAILED_PRECONDITION, INVALID_ARGUMENT or PERMISSION_DENIED;
        the tunnel then waits on for a better one.
        """
        return await self._course.greet(uid, role, entries)

    async def update(self, grant: Grant, uid: Uid, role: Role | None, targets: tuple[Target, ...]) -> Answer:
        """`update`: start the data server towards the targets, or retarget the running one.

        Fewer targets than listeners repeat in turn. Returns when the data
        server says that it accepts, else raises its reason; then a new tunnel
        is gone and a running one runs on as it was.
        """
        tunnel = self._rights.owned(grant, uid)
        if role not in (None, tunnel.role):
            raise invalid("role", f"the tunnel's role is {tunnel.role.value}", "give that one, or leave it out")
        return await self._course.shielded(self._course.update(grant, tunnel, targets))

    async def release(self, grant: Grant, uid: Uid, drain: float = 0) -> None:
        """`release`: end the tunnel; its ports are free and its streams closed on return.

        ``drain``: seconds that running streams get to end by themselves.
        """
        await self._release(grant, self._rights.owned(grant, uid), drain)

    # What front doors that know ids call

    async def create(
        self, grant: Grant, role: Role, targets: tuple[Target, ...], options: Options, uid: Uid | None = None
    ) -> tuple[Uid, TunnelView]:
        """Make a tunnel that is active on return, in one step; ``uid`` None: a new random one.

        Raises what `request` and `update` raise, and leaves nothing then.
        """
        made = uid or Uid.random()
        tunnel = await self._course.shielded(self._create(grant, made, role, targets, options))
        return made, view_of(tunnel)

    def tunnels(self) -> tuple[TunnelView, ...]:
        """All tunnels, the oldest first."""
        return tuple(view_of(tunnel) for tunnel in self._registry if tunnel.announced)

    def find(self, text: str) -> str:
        """The id of the tunnel that an id or a UID names; INVALID_ARGUMENT or NOT_FOUND."""
        return self._registry.find(text).id

    def view(self, tunnel_id: str) -> TunnelView:
        """How the tunnel looks now, or NOT_FOUND."""
        return view_of(self._registry.known(tunnel_id))

    async def retarget(self, grant: Grant, tunnel_id: str, targets: tuple[Target, ...]) -> TunnelView:
        """As `update`."""
        tunnel = self._registry.known(tunnel_id)
        await self._course.shielded(self._course.update(grant, tunnel, targets))
        return view_of(tunnel)

    async def extend(self, grant: Grant, tunnel_id: str, seconds: int) -> TunnelView:
        """Give an active tunnel a lifetime from now on, 0: no end, in place of the one it had."""
        tunnel = self._registry.known(tunnel_id)
        if tunnel.state is not State.ACTIVE:
            raise ScistreamError(Code.FAILED_PRECONDITION, f"lifetime: the tunnel is {tunnel.state.value}")
        rule = await self._rights.amend(grant, tunnel, lifetime=seconds)
        seconds = rule.ceilings.lifetime_of(seconds)
        await self._course.shielded(self._course.set_lifetime(tunnel, seconds))
        self._registry.changed(tunnel)
        return view_of(tunnel)

    async def hold_to(self, grant: Grant, tunnel_id: str, rate: int) -> TunnelView:
        """Hold a tunnel to another rate in kB/s from now on, 0: to none; its streams go on.

        Raises RESOURCE_EXHAUSTED or INVALID_ARGUMENT by the gateway's
        capacity, FAILED_PRECONDITION where the rate cannot be enforced.
        """
        tunnel = self._registry.known(tunnel_id)
        rule = await self._rights.amend(grant, tunnel, rate=rate)
        rate = rate or self._course.settings.rate_default
        await self._course.shielded(self._course.hold_to(tunnel, rule.ceilings.rate_of(rate)))
        return view_of(tunnel)

    async def test(self, grant: Grant, tunnel_id: str, throughput: float) -> tuple[Finding, ...]:
        """Test the hop of an active outbound tunnel, see `hoptests.HopTests.of_tunnel`."""
        tunnel = self._registry.known(tunnel_id)
        self._rights.permit(grant, tunnel, Verb.UPDATE)
        found = await self._hops.of_tunnel(tunnel, throughput)
        self._registry.changed(tunnel)
        return found

    async def test_path(
        self, grant: Grant, uid: Uid, target: Target, security: Security | None, throughput: float
    ) -> Finding:
        """Test the hop that an outbound tunnel to ``target`` would have, for whoever may make that tunnel.

        ``security`` None: the gateway's default. Raises what `create` raises for such a target.
        """
        mode, address = await self._rights.path(grant, target, security)
        return await self._hops.of_path(uid, mode, address, throughput)

    async def end(self, grant: Grant, tunnel_id: str, drain: float) -> None:
        """As `release`."""
        await self._release(grant, self._registry.known(tunnel_id), drain)

    def reveal(self, grant: Grant, tunnel_id: str) -> Uid:
        """The UID itself, for the owner."""
        tunnel = self._registry.known(tunnel_id)
        self._rights.permit(grant, tunnel, Verb.REVEAL)
        return tunnel.uid

    def own(self, grant: Grant, *, everyone: bool = False) -> tuple[TunnelView, ...]:
        """The caller's tunnels, the oldest first; ``everyone``: all, and PERMISSION_DENIED but for administrators."""
        return self._rights.own(grant, self.tunnels(), everyone=everyone)

    def owns(self, grant: Grant, view: TunnelView) -> bool:
        """Whether the tunnel is the caller's, see `rights.Rights.owns`."""
        return self._rights.owns(grant, view)

    def own_id(self, grant: Grant, name: str, *, change: bool) -> str:
        """The id of the caller's tunnel that an id or a UID names, see `rights.Rights.own_id`."""
        return self._rights.own_id(grant, name, change=change)

    async def look_at_ports(self) -> Look:
        """Who has which ports of this host, programs by name."""
        return await self._view.look(programs=True) if self._view else Look()

    async def judge_ports(self, ports: Sequence[int]) -> list[tuple[str, str]]:
        """What the firewall does to everybody's connections to inbound tunnels there, see `Flows.verdicts`."""
        address = self._course.settings.listen_inbound or self._course.planner.any_address
        return await self._flows.verdicts([Endpoint(address, port) for port in ports])

    def watch(self, see: Callable[[Change], None]) -> Callable[[], None]:
        """Call ``see`` with every change of every tunnel; returns the way to stop that."""
        return self._registry.watch(see)

    def reconfigure(self, settings: Settings) -> None:
        """Go by other settings from now on; tunnels that exist keep what they were made with."""
        self._course.reconfigure(settings)

    # What the meter needs

    def ways(self) -> list[Way]:
        """Where connections of each tunnel can be."""
        return [way_of(tunnel) for tunnel in self._registry]

    @property
    def idle_timeout(self) -> float:
        """Seconds without a connection after which an active tunnel ends, 0: never."""
        return self._course.settings.idle_timeout

    def end_idle(self, used: Callable[[str], float]) -> None:
        """End the active tunnels without a connection for `idle_timeout`; not those with UDP, which has no connections.

        ``used``: when a connection was open last, seconds since the epoch, 0: never.
        """
        limit = self._course.settings.idle_timeout
        for tunnel in self._registry:
            last = max(used(tunnel.id), tunnel.created)
            counted = not any(bind.udp for bind in tunnel.binds)
            if limit and counted and tunnel.state is State.ACTIVE and time.time() - last > limit:
                self._course.spawn(self._course.end(tunnel, f"it had no connection for {limit:g} s (idle_timeout)"))

    @property
    def free_ports(self) -> int:
        """How many ports of the range no tunnel has."""
        return self._ports.free

    def __len__(self) -> int:
        return len(self._registry)

    def pulse(self) -> tuple[int, int]:
        """How many tunnels there are, and how many the books hold: what hangs here hangs for every caller."""
        return len(self.tunnels()), self._course.books.count()

    def hurry(self) -> None:
        """The daemon is about to end: wait for no drain any more."""
        self._course.drains.hurry()

    async def close(self) -> None:
        """End every tunnel that lives with the daemon, and wait for what is under way."""
        await self._course.close()

    async def restore(self) -> None:
        """Take over what the books tell of, before any front door opens; see `restoring.Restoring`."""
        await Restoring(self._course, self._registry, self._flows, self._ports).all()

    async def _create(
        self, grant: Grant, uid: Uid, role: Role, targets: tuple[Target, ...], options: Options
    ) -> Tunnel:
        tunnel = await self._course.reserve(grant, uid, role, max(len(targets), len(options.listen)), options)
        try:
            async with tunnel.busy:
                await self._course.settle(tunnel, [listen.port for listen in options.listen if listen.port])
                tunnel.advance(Event.HELLO)
            tunnel.greeted.set_result(tunnel.answer())
            await self._course.update(grant, tunnel, targets)
        except ScistreamError as problem:
            await self._course.end(tunnel, problem.message, problem)
            raise
        return tunnel

    def _guarded(self, tunnel: Tunnel) -> bool:
        return self._course.planner.launcher_of(tunnel.type).filters_sources or tunnel.type.server.filters_sources

    async def _release(self, grant: Grant, tunnel: Tunnel, drain: float) -> None:
        self._rights.permit(grant, tunnel, Verb.RELEASE)
        if tunnel.state is State.RELEASING:
            if drain or not await self._course.drains.cut_short(tunnel):
                raise no_tunnel()
            return
        tunnel.drain = drain
        await self._course.shielded(self._course.end(tunnel, f"released by {grant.caller}"))
