"""The tunnel manager: the only place that orders the steps of a tunnel's life.

Each step of opening pushes its undo, so a tunnel that does not come about
leaves nothing, and release is the same undo run later. Front doors bring a
`Grant`; the world is reached through `interfaces` alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from scistreamd import capacity
from scistreamd.books import Books, is_worth_keeping, remaining
from scistreamd.config import Settings
from scistreamd.dataserver import DataServerType
from scistreamd.errors import Code, ScistreamError, invalid
from scistreamd.flows import Flows
from scistreamd.gate import Gate, Grant, Verb
from scistreamd.hop import Finding
from scistreamd.hoptests import HopTests
from scistreamd.interfaces import (
    EndedMeanwhile,
    Held,
    KeyMaker,
    Launcher,
    PathTester,
    Plan,
    PortsBusy,
    PortView,
    Store,
    Told,
    Traffic,
)
from scistreamd.legs import Way
from scistreamd.lifecycle import Event
from scistreamd.model import (
    Answer,
    Caller,
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
from scistreamd.rules import Question, Rule
from scistreamd.tunnel import Tunnel

_T = TypeVar("_T")
_log = logging.getLogger("scistreamd.manager")


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
    ) -> None:
        """``launcher_of``, ``any_address``, ``dialable``: as `planning.Planner` has them; ``store`` keeps the books of
        tunnels that outlive the daemon, where a launcher has such; ``traffic``: what the kernel's network can do;
        ``view``: who else has ports; ``tester`` tests hops."""
        self._settings = settings
        self._gate = gate
        self._keys = keys
        self._planner = Planner(settings, gate, launcher_of, any_address, dialable)
        self._books = Books(self._planner, store)
        self._registry = Registry()
        self._flows = Flows(traffic, self._guarded, self._registry.changed)
        self._view = view
        self._hops = HopTests(tester)
        self._ports = Reservations(settings.port_range, self._flows, view)
        self._early: dict[str, set[asyncio.Event]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    # What front doors call

    async def request(self, grant: Grant, uid: Uid, role: Role, count: int, options: Options) -> Answer:
        """`req`: reserve ``count`` listeners, then wait for hello and answer what it settled.

        Cancelling it while it waits frees the ports. Raises ALREADY_EXISTS,
        RESOURCE_EXHAUSTED, DEADLINE_EXCEEDED (no hello), UNIMPLEMENTED,
        PERMISSION_DENIED, FAILED_PRECONDITION or INVALID_ARGUMENT.
        """
        tunnel = await self._reserve(grant, uid, role, count, options)
        seconds = self._settings.times.hello
        try:
            return await asyncio.wait_for(asyncio.shield(tunnel.greeted), seconds)
        except asyncio.TimeoutError:
            await self._end(tunnel, "no hello came")
            raise ScistreamError(
                Code.DEADLINE_EXCEEDED,
                f"no hello for this request within {seconds:g} s; its ports are free again",
                "start the application controller, or s2uc hello, within that time",
            ) from None
        except asyncio.CancelledError:
            await self._shielded(self._end(tunnel, "its caller went away"))
            raise

    async def hello(self, grant: Grant, uid: Uid, role: Role, entries: tuple[Target, ...]) -> Answer:
        """`hello`: bring the targets of an inbound tunnel, or the wished ports of an outbound one.

        One that comes before its `req` waits for it a little. Raises
        NOT_FOUND, FAILED_PRECONDITION, INVALID_ARGUMENT or PERMISSION_DENIED;
        the tunnel then waits on for a better one.
        """
        tunnel = await self._expected(uid)
        async with tunnel.busy:
            tunnel.check(Event.HELLO)
            if tunnel.role is Role.PROD:
                await self._check_inbound_hello(tunnel, role, entries)
            else:
                await self._settle(tunnel, [entry.port for entry in entries])
            tunnel.check(Event.HELLO)  # it may have been released while its ports were settled
            tunnel.advance(Event.HELLO)
            self._books.save(tunnel)
        self._limit(tunnel, self._settings.times.update, "no update came in time")
        self._registry.changed(tunnel)
        answer = tunnel.answer(entries if tunnel.role is Role.PROD else ())
        tunnel.greeted.set_result(answer)
        return tunnel.answer()

    async def update(self, grant: Grant, uid: Uid, role: Role | None, targets: tuple[Target, ...]) -> Answer:
        """`update`: start the data server towards the targets, or retarget the running one.

        Fewer targets than listeners repeat in turn. Returns when the data
        server says that it accepts, else raises its reason; then a new tunnel
        is gone and a running one runs on as it was.
        """
        tunnel = self._owned(grant, uid)
        if role not in (None, tunnel.role):
            raise invalid("role", f"the tunnel's role is {tunnel.role.value}")
        return await self._shielded(self._update(grant, tunnel, targets))

    async def release(self, grant: Grant, uid: Uid, drain: float = 0) -> None:
        """`release`: end the tunnel; its ports are free and its streams closed on return.

        ``drain``: seconds that running streams get to end by themselves.
        """
        await self._release(grant, self._owned(grant, uid), drain)

    # What front doors that know ids call

    async def create(
        self, grant: Grant, role: Role, targets: tuple[Target, ...], options: Options, uid: Uid | None = None
    ) -> tuple[Uid, TunnelView]:
        """Make a tunnel that is active on return, in one step; ``uid`` None: a new random one.

        Raises what `request` and `update` raise, and leaves nothing then.
        """
        made = uid or Uid.random()
        tunnel = await self._shielded(self._create(grant, made, role, targets, options))
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
        await self._shielded(self._update(grant, tunnel, targets))
        return view_of(tunnel)

    async def extend(self, grant: Grant, tunnel_id: str, seconds: int) -> TunnelView:
        """Give an active tunnel a lifetime from now on, 0: no end, in place of the one it had."""
        tunnel = self._registry.known(tunnel_id)
        if tunnel.state is not State.ACTIVE:
            raise ScistreamError(Code.FAILED_PRECONDITION, f"lifetime: the tunnel is {tunnel.state.value}")
        rule = await self._amends(grant, tunnel, lifetime=seconds)
        seconds = rule.ceilings.lifetime_of(seconds)
        await self._shielded(self._set_lifetime(tunnel, seconds))
        self._registry.changed(tunnel)
        return view_of(tunnel)

    async def hold_to(self, grant: Grant, tunnel_id: str, rate: int) -> TunnelView:
        """Hold a tunnel to another rate in kB/s from now on, 0: to none; its streams go on.

        Raises RESOURCE_EXHAUSTED or INVALID_ARGUMENT by the gateway's
        capacity, FAILED_PRECONDITION where the rate cannot be enforced.
        """
        tunnel = self._registry.known(tunnel_id)
        rate = rate or self._settings.rate_default
        rule = await self._amends(grant, tunnel, rate=rate)
        await self._shielded(self._hold_to(tunnel, rule.ceilings.rate_of(rate)))
        return view_of(tunnel)

    async def _amends(
        self, grant: Grant, tunnel: Tunnel, *, rate: int | None = None, lifetime: int | None = None
    ) -> Rule:
        """The rule by which a tunnel may have another rate or lifetime: one that covers its targets, too."""
        asked = self._question(grant, tunnel, Verb.UPDATE)
        asked = replace(
            asked,
            rate=asked.rate if rate is None else rate,
            lifetime=asked.lifetime if lifetime is None else lifetime,
        )
        return await self._gate.judge(grant, asked, dict(zip(tunnel.targets, tunnel.addresses, strict=True)))

    async def test(self, grant: Grant, tunnel_id: str, throughput: float) -> tuple[Finding, ...]:
        """Test the hop of an active outbound tunnel, see `hoptests.HopTests.of_tunnel`."""
        tunnel = self._registry.known(tunnel_id)
        self._gate.permit(grant, self._question(grant, tunnel, Verb.UPDATE))
        found = await self._hops.of_tunnel(tunnel, throughput)
        self._registry.changed(tunnel)
        return found

    async def test_path(
        self, grant: Grant, uid: Uid, target: Target, security: Security | None, throughput: float
    ) -> Finding:
        """Test the hop that an outbound tunnel to ``target`` would have, for whoever may make that tunnel.

        ``security`` None: the gateway's default. Raises what `create` raises for such a target.
        """
        mode = self._gate.security(security, frozenset(Security))
        question = Question(
            Verb.CREATE.value, grant.caller.identity, grant.caller.peer, role=Role.CONS, security=mode, count=1
        )
        _, [addresses] = await self._gate.targets(grant, question, [target])
        return await self._hops.of_path(uid, mode, addresses[0], throughput)

    async def end(self, grant: Grant, tunnel_id: str, drain: float) -> None:
        """As `release`."""
        await self._release(grant, self._registry.known(tunnel_id), drain)

    def reveal(self, grant: Grant, tunnel_id: str) -> Uid:
        """The UID itself, for the owner."""
        tunnel = self._registry.known(tunnel_id)
        self._gate.permit(grant, self._question(grant, tunnel, Verb.REVEAL))
        return tunnel.uid

    def own(self, grant: Grant, *, everyone: bool = False) -> tuple[TunnelView, ...]:
        """The caller's tunnels, the oldest first; ``everyone``: all, and PERMISSION_DENIED but for administrators."""
        if everyone and not self._gate.administers(grant.caller):
            raise ScistreamError(
                Code.PERMISSION_DENIED, "everyone: only administrators see other people's tunnels", "leave it out"
            )
        return tuple(view for view in self.tunnels() if self.owns(grant, view, everyone=everyone))

    def owns(self, grant: Grant, view: TunnelView, *, everyone: bool = False) -> bool:
        """Whether the tunnel is among those that `own` tells of.

        Callers who have proved nothing share what was made from their address.
        """
        if everyone:
            return True
        caller = grant.caller
        return view.principal == caller.principal and (caller.identity is not None or view.peer == caller.peer)

    def own_id(self, grant: Grant, name: str, *, change: bool) -> str:
        """The id of the caller's tunnel that an id or a UID names; NOT_FOUND for every other, there or not.

        To ``change`` one, callers who have proved nothing show that they know its UID.
        """
        tunnel_id, knows_uid = self._registry.parse(name)
        tunnel, caller = self._registry.get(tunnel_id), grant.caller
        mine, administers = self._ours(tunnel, caller)
        near = (caller if tunnel is None else tunnel.owner).peer == caller.peer
        shown = caller.identity is not None or knows_uid or (not change and near)
        if tunnel is not None and tunnel.announced and ((mine and shown) or administers):
            return tunnel_id
        raise no_tunnel("name it by its UID, or log in" if caller.identity is None else "s2uc list shows yours")

    async def look_at_ports(self) -> Look:
        """Who has which ports of this host, programs by name."""
        return await self._view.look(programs=True) if self._view else Look()

    async def judge_ports(self, ports: Sequence[int]) -> list[tuple[str, str]]:
        """What the firewall does to everybody's connections to inbound tunnels there, see `Flows.verdicts`."""
        address = self._settings.listen_inbound or self._planner.any_address
        return await self._flows.verdicts([Endpoint(address, port) for port in ports])

    def watch(self, see: Callable[[Change], None]) -> Callable[[], None]:
        """Call ``see`` with every change of every tunnel; returns the way to stop that."""
        return self._registry.watch(see)

    def reconfigure(self, settings: Settings) -> None:
        """Go by other settings from now on; tunnels that exist keep what they were made with."""
        self._settings = settings
        self._planner = replace(self._planner, settings=settings)
        self._books = replace(self._books, planner=self._planner)
        self._ports.change_range(settings.port_range)

    # What the meter needs

    def ways(self) -> list[Way]:
        """Where connections of each tunnel can be."""
        return [way_of(tunnel) for tunnel in self._registry]

    @property
    def idle_timeout(self) -> float:
        """Seconds without a connection after which an active tunnel ends, 0: never."""
        return self._settings.idle_timeout

    def end_idle(self, used: Callable[[str], float]) -> None:
        """End the active tunnels without a connection for `idle_timeout`; not those with UDP, which nothing counts.

        ``used``: when a connection was open last, seconds since the epoch, 0: never.
        """
        limit = self._settings.idle_timeout
        for tunnel in self._registry:
            last = max(used(tunnel.id), tunnel.created)
            counted = not any(bind.udp for bind in tunnel.binds)
            if limit and counted and tunnel.state is State.ACTIVE and time.time() - last > limit:
                self._spawn(self._end(tunnel, f"it had no connection for {limit:g} s (idle_timeout)"))

    @property
    def free_ports(self) -> int:
        """How many ports of the range no tunnel has."""
        return self._ports.free

    def __len__(self) -> int:
        return len(self._registry)

    async def close(self) -> None:
        """End every tunnel that lives with the daemon, and wait for what is under way."""
        mortal = [each for each in self._registry if not self._planner.launcher_of(each.type).outlives]
        await asyncio.gather(*(self._end(tunnel, "the daemon stops") for tunnel in mortal))
        for tunnel in self._registry:
            tunnel.set_timer(None)
        while self._tasks:
            await asyncio.wait(self._tasks)
        await self._flows.close()

    # Going on where the daemon before stopped

    async def restore(self) -> None:
        """Take over what the books tell of, before any front door opens.

        A tunnel that runs is adopted as it is; one whose data server is gone,
        as after a reboot, is made again with its UID, listeners and targets
        while its lifetime lasts; of all else the rest is cleared away. What
        looks like a tunnel of ours and is in no book is told of and left alone.
        """
        found = [(self._books.tunnel(record), is_worth_keeping(record)) for record in self._books.load()]
        launchers = {self._planner.launcher_of(tunnel.type) for tunnel, _ in found}
        async with contextlib.AsyncExitStack() as surveys:
            for launcher in launchers:
                await surveys.enter_async_context(launcher.survey())
            await asyncio.gather(*(self._restoring(each, self._adopt(each, keep)) for each, keep in found))
        # Before any is made again: those that run keep their rates and their guards meanwhile.
        await self._flows.reconcile(each for each in self._registry if each.held is not None)
        stay = [each for each in self._registry if each.state in (State.READY, State.ACTIVE)]
        await asyncio.gather(*(self._restoring(each, self._go_on(each)) for each in stay))
        for launcher in launchers:
            for stranger in await launcher.strangers([tunnel.id for tunnel in self._registry]):
                _log.warning("%s looks like a tunnel of ours and is in no book; it is left alone", stranger)

    async def _restoring(self, tunnel: Tunnel, step: Coroutine[Any, Any, None]) -> None:
        try:
            await step
        except Exception as problem:
            self._cannot_restore(tunnel, problem)

    async def _adopt(self, tunnel: Tunnel, worth_keeping: bool) -> None:
        launcher = self._planner.launcher_of(tunnel.type)
        program = None
        if tunnel.state is State.ACTIVE:
            plan = self._books.plan(tunnel, tunnel.generation)
            program = tunnel.type.server.render(plan, launcher.places(tunnel.id))
        self._enter(tunnel)
        self._ports.claim(tunnel)
        tunnel.greeted.cancel()  # its req went with the daemon before
        try:
            tunnel.held = await launcher.adopt(tunnel.id, tunnel.binds, program, self._told(tunnel))
        except EndedMeanwhile:
            await self._end(tunnel, "it was stopped on this host, or its time was over, while scistreamd did not run")
            return
        if not worth_keeping or (tunnel.held is None and tunnel.state is State.READY):
            await self._end(tunnel, "it did not outlive the daemon before")

    async def _go_on(self, tunnel: Tunnel) -> None:
        if tunnel.held is None:
            await self._make_again(tunnel, self._planner.launcher_of(tunnel.type))
        if tunnel.state is State.READY:
            self._limit(tunnel, self._settings.times.update, "no update came in time")
        elif tunnel.expires:
            self._limit(tunnel, remaining(tunnel), "its lifetime is over")
        self._registry.changed(tunnel)
        _log.info("goes on", extra={"tunnel": tunnel.id})

    def _cannot_restore(self, tunnel: Tunnel, problem: Exception) -> None:
        """The others go on; but where nothing could be learnt, we start once more, and leave every tunnel alone."""
        if isinstance(problem, ScistreamError) and problem.code is Code.UNAVAILABLE:
            raise problem
        if not isinstance(problem, ScistreamError | PortsBusy):
            _log.error("cannot be restored", exc_info=problem, extra={"tunnel": tunnel.id})
        tunnel.undo.push_async_callback(self._planner.launcher_of(tunnel.type).clear, tunnel.id)
        self._failed(tunnel, f"it could not be restored: {problem}")

    async def _make_again(self, tunnel: Tunnel, launcher: Launcher) -> None:
        await self._flows.apply(tunnel)
        tunnel.held = await launcher.hold(tunnel.id, tunnel.binds, self._told(tunnel))
        await self._run(tunnel, tunnel.held, self._books.plan(tunnel, tunnel.generation))
        await self._flows.apply(tunnel)
        if tunnel.expires:
            await tunnel.held.limit(remaining(tunnel))

    # Opening

    async def _reserve(self, grant: Grant, uid: Uid, role: Role, count: int, options: Options) -> Tunnel:
        former = self._registry.of_uid(uid)
        if former is not None and former.state is State.FAILED:
            await self._end(former, "a new request takes its place")
        self._settings.quotas.check(count, self._registry.of_caller(grant.caller), self._registry.pending())
        tunnel = self._planner.tunnel(grant.caller, uid, role, count, options)
        tunnel.rate = options.rate
        rule = self._gate.permit(grant, self._question(grant, tunnel, Verb.CREATE))
        tunnel.options = rule.ceilings.limit(tunnel.options)
        tunnel.rate = tunnel.options.rate
        tunnel.ports_within = rule.listeners
        capacity.check(self._settings.capacity, self._reserved_rate(), tunnel.rate)
        self._enter(tunnel)
        try:
            launcher = self._planner.launcher_of(tunnel.type)
            await self._ports.hold(tunnel, launcher, self._planner.address(tunnel), self._told(tunnel))
            self._books.save(tunnel)
        except BaseException:
            await tunnel.undo.aclose()
            raise
        for warning in tunnel.own_warnings:
            _log.warning("%s", warning, extra={"tunnel": tunnel.id})
        self._registry.changed(tunnel)
        for arrived in self._early.get(tunnel.id, ()):
            arrived.set()
        return tunnel

    async def _create(
        self, grant: Grant, uid: Uid, role: Role, targets: tuple[Target, ...], options: Options
    ) -> Tunnel:
        tunnel = await self._reserve(grant, uid, role, max(len(targets), len(options.listen)), options)
        try:
            async with tunnel.busy:
                await self._settle(tunnel, [listen.port for listen in options.listen if listen.port])
                tunnel.advance(Event.HELLO)
            tunnel.greeted.set_result(tunnel.answer())
            await self._update(grant, tunnel, targets)
        except ScistreamError as problem:
            await self._end(tunnel, problem.message, problem)
            raise
        return tunnel

    def _enter(self, tunnel: Tunnel) -> None:
        """Let the tunnel be known, with the undo of that and of what it will hold."""
        self._registry.add(tunnel)
        tunnel.undo.callback(self._registry.remove, tunnel)
        tunnel.undo.callback(self._books.delete, tunnel)
        # Undone last to first: who may not connect is kept out until nothing listens any more.
        tunnel.undo.push_async_callback(self._flows.forget, tunnel)
        tunnel.undo.push_async_callback(self._ports.let_go, tunnel)

    def _guarded(self, tunnel: Tunnel) -> bool:
        return self._planner.launcher_of(tunnel.type).filters_sources or tunnel.type.server.filters_sources

    def _owned(self, grant: Grant, uid: Uid) -> Tunnel:
        """The tunnel of a UID where it is the caller's to change; else NOT_FOUND, whether or not there is one."""
        tunnel = self._registry.of_uid(uid)
        mine, administers = self._ours(tunnel, grant.caller)
        if tunnel is None or not (mine or administers):
            raise no_tunnel()
        return tunnel

    def _ours(self, tunnel: Tunnel | None, caller: Caller) -> tuple[bool, bool]:
        """Whether the caller made it, and whether he may change everybody's.

        Takes the same steps whether there is a tunnel or not, so that no clock tells.
        """
        owner = caller if tunnel is None else tunnel.owner
        return owner.principal == caller.principal, self._gate.administers(caller)

    def _question(self, grant: Grant, tunnel: Tunnel, verb: Verb) -> Question:
        """What the caller wants of the tunnel, as policy sees it; the targets are left to the gate."""
        principal = tunnel.owner.principal
        return Question(
            verb.value,
            grant.caller.identity,
            grant.caller.peer,
            role=tunnel.role,
            type=tunnel.type.name,
            security=tunnel.security,
            count=tunnel.count,
            ports=tuple(tunnel.ports),
            rate=tunnel.rate,
            lifetime=tunnel.options.lifetime or 0,
            tunnels=sum(each is not tunnel and each.owner.principal == principal for each in self._registry),
        )

    # Hello

    async def _expected(self, uid: Uid) -> Tunnel:
        """The tunnel of a hello; where there is none yet, wait for its req."""
        tunnel = self._registry.of_uid(uid)
        gone = tunnel is None or tunnel.state in (State.FAILED, State.RELEASING)
        if gone or (tunnel and tunnel.held is None):
            arrived = asyncio.Event()
            waiting = self._early.setdefault(uid.id, set())
            waiting.add(arrived)
            try:
                await asyncio.wait_for(arrived.wait(), self._settings.times.early_hello)
            except asyncio.TimeoutError:
                raise no_tunnel("send req first, to this gateway") from None
            finally:
                waiting.discard(arrived)
                if not waiting:
                    self._early.pop(uid.id, None)
        return self._registry.known(uid.id)

    async def _check_inbound_hello(self, tunnel: Tunnel, role: Role, entries: tuple[Target, ...]) -> None:
        if role is not Role.PROD:
            raise invalid("role", "the tunnel's role is PROD, this hello says CONS")
        if not entries:
            raise invalid("prod_listeners", "an inbound tunnel needs at least one target")
        # By what its owner may: who says hello needs to know the UID and nothing else.
        owner = Grant(tunnel.owner, Verb.HELLO)
        await self._gate.check_literals(owner, self._question(owner, tunnel, Verb.CREATE), entries)

    async def _settle(self, tunnel: Tunnel, wished: Sequence[int]) -> None:
        refused = await self._ports.settle(tunnel, wished[: tunnel.count], self._registry)
        if not refused:
            return
        names = ", ".join(map(str, refused))
        problem = f"local port {names} is not to be had: in use, or outside the range {self._settings.port_range}"
        if tunnel.options.exact_ports:
            error = ScistreamError(Code.RESOURCE_EXHAUSTED, problem, "ask for another, or let the gateway choose")
            await self._end(tunnel, problem, error)
            raise error
        _log.info("%s; others are taken", problem, extra={"tunnel": tunnel.id})

    # Update

    async def _update(self, grant: Grant, tunnel: Tunnel, targets: tuple[Target, ...]) -> Answer:
        async with tunnel.busy:
            tunnel.check(Event.UPDATE)
            spread = tuple(targets[index % len(targets)] for index in range(tunnel.count))
            verb = Verb.CREATE if tunnel.state is State.READY else Verb.UPDATE
            rule, addresses = await self._gate.targets(grant, self._question(grant, tunnel, verb), spread)
            tunnel.check(Event.UPDATE)
            before = tunnel.targets, tunnel.addresses, tunnel.options, tunnel.rate
            generation = tunnel.generation
            tunnel.targets, tunnel.addresses = spread, addresses
            tunnel.options = rule.ceilings.limit(tunnel.options)
            tunnel.rate = rule.ceilings.rate_of(tunnel.rate)
            try:
                await self._serve(tunnel, self._books.plan(tunnel, tunnel.generation + 1))
            except BaseException:
                tunnel.targets, tunnel.addresses, tunnel.options, tunnel.rate = before
                if tunnel.state is State.ACTIVE:
                    await self._flows.apply(tunnel)
                    if tunnel.generation != generation:  # what the books did not take, the data server must not do
                        await self._run(tunnel, tunnel.holding, self._books.plan(tunnel, tunnel.generation + 1))
                raise
            tunnel.hop_warnings = ()
        await self._try_hop(tunnel, tunnel.generation)
        self._registry.changed(tunnel)
        _log.info("forwards to %s", ", ".join(map(str, spread)), extra={"tunnel": tunnel.id})
        return tunnel.answer(spread)

    async def _try_hop(self, tunnel: Tunnel, generation: int) -> None:
        """Not while the tunnel is `busy`: a release does not wait for it."""
        warnings = await self._hops.warnings(tunnel)
        if tunnel.generation == generation:  # else a later update has tried other targets
            tunnel.hop_warnings = warnings
        for warning in warnings:
            _log.warning("%s", warning, extra={"tunnel": tunnel.id})

    async def _serve(self, tunnel: Tunnel, plan: Plan) -> None:
        """Have the data server follow the plan; a first one that fails takes its tunnel with it."""
        held, first = tunnel.holding, tunnel.state is State.READY
        if first:
            tunnel.set_timer(None)
        try:
            await self._flows.apply(tunnel)
            await self._run(tunnel, held, plan)
            await self._flows.apply(tunnel)  # only now its data server has a user
            tunnel.advance(Event.UPDATE)
            self._books.save(tunnel)
        except Exception as problem:
            if first and tunnel.state in (State.READY, State.ACTIVE):
                self._failed(tunnel, str(problem))
                await self._ports.let_go(tunnel)
            raise
        if first and tunnel.options.lifetime:
            await self._set_lifetime(tunnel, tunnel.options.lifetime)

    async def _run(self, tunnel: Tunnel, held: Held, plan: Plan) -> None:
        program = tunnel.type.server.render(plan, held.places)
        await held.serve(program, self._keys.files(tunnel.uid, tunnel.role, tunnel.security))
        tunnel.generation = plan.generation

    async def _set_lifetime(self, tunnel: Tunnel, seconds: int) -> None:
        await tunnel.holding.limit(seconds)
        tunnel.expires = time.time() + seconds if seconds else 0
        self._books.save(tunnel)
        if seconds:
            self._limit(tunnel, seconds, "its lifetime is over")
        else:
            tunnel.set_timer(None)

    async def _hold_to(self, tunnel: Tunnel, rate: int) -> None:
        async with tunnel.busy:
            if tunnel.state not in (State.READY, State.ACTIVE):
                raise ScistreamError(Code.FAILED_PRECONDITION, f"rate: the tunnel is {tunnel.state.value}")
            if rate == tunnel.rate:
                return
            capacity.check(self._settings.capacity, self._reserved_rate() - tunnel.rate, rate)
            before, tunnel.rate = tunnel.rate, rate
            try:
                await self._flows.apply(tunnel)
                self._books.save(tunnel)
            except BaseException:
                tunnel.rate = before
                raise
        self._registry.changed(tunnel)
        _log.info("its rate is %s", f"{rate} kB/s" if rate else "not limited", extra={"tunnel": tunnel.id})

    def _reserved_rate(self) -> int:
        over = (State.FAILED, State.RELEASING)
        return sum(tunnel.rate for tunnel in self._registry if tunnel.state not in over)

    def _told(self, tunnel: Tunnel) -> Told:
        def ended(why: str) -> None:
            self._spawn(self._end(tunnel, why))

        return Told(failed=lambda why: self._failed(tunnel, why), ended=ended)

    def _failed(self, tunnel: Tunnel, reason: str) -> None:
        tunnel.advance(Event.FAIL)
        tunnel.result = reason
        _log.error("failed: %s", reason, extra={"tunnel": tunnel.id})
        self._limit(tunnel, self._settings.times.failed_kept, "it failed a while ago")
        self._registry.changed(tunnel)

    # Ending

    def _limit(self, tunnel: Tunnel, seconds: float, why: str) -> None:
        """End the tunnel after ``seconds``, in place of the time limit that it had."""
        loop = asyncio.get_running_loop()
        tunnel.set_timer(loop.call_later(seconds, lambda: self._spawn(self._end(tunnel, why))))

    async def _release(self, grant: Grant, tunnel: Tunnel, drain: float) -> None:
        if tunnel.state is State.RELEASING:
            raise no_tunnel()
        self._gate.permit(grant, self._question(grant, tunnel, Verb.RELEASE))
        tunnel.drain = drain
        await self._shielded(self._end(tunnel, f"released by {grant.caller}"))

    async def _end(self, tunnel: Tunnel, why: str, told: ScistreamError | None = None) -> None:
        """Release: everything that opening did is undone when this returns.

        ``told`` is what a `req` that still waits is answered with.
        """
        if tunnel.state is State.RELEASING:
            return
        tunnel.advance(Event.RELEASE)
        tunnel.set_timer(None)
        if tunnel.announced:
            self._registry.changed(tunnel)
        if not tunnel.greeted.done():
            tunnel.greeted.set_exception(told or ScistreamError(Code.CANCELLED, f"the tunnel has ended: {why}"))
            tunnel.greeted.exception()  # its req may be gone, and then nobody else looks
        await tunnel.undo.aclose()
        _log.info("ended: %s", why, extra={"tunnel": tunnel.id})

    def _spawn(self, work: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _shielded(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Do a step whole, also when its caller goes away in the middle."""
        return await asyncio.shield(self._spawn(work))
