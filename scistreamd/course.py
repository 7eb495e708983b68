"""The steps of a tunnel's life: reserved, greeted, served, changed, failed, ended.

Each step of opening pushes its undo, so a tunnel that does not come about
leaves nothing, and its end is the same undo run later.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from scistreamd import capacity
from scistreamd.books import Books
from scistreamd.config import Settings
from scistreamd.draining import Drains
from scistreamd.errors import Code, ScistreamError, invalid
from scistreamd.flows import Flows
from scistreamd.gate import Grant, Verb
from scistreamd.hoptests import HopTests
from scistreamd.interfaces import Held, KeyMaker, Store, Told
from scistreamd.lifecycle import Event
from scistreamd.model import Answer, Options, Role, State, Target, Uid
from scistreamd.planning import Planner
from scistreamd.plans import Plan
from scistreamd.registry import Registry, no_tunnel
from scistreamd.reservations import Reservations
from scistreamd.rights import Rights
from scistreamd.tunnel import Tunnel

_T = TypeVar("_T")
_log = logging.getLogger("scistreamd.manager")


class Course:
    """What happens to the tunnels of one gateway, in which order."""

    def __init__(
        self,
        planner: Planner,
        store: Store | None,
        keys: KeyMaker,
        rights: Rights,
        *,
        registry: Registry,
        flows: Flows,
        ports: Reservations,
        hops: HopTests,
    ) -> None:
        """``store`` None: no tunnel outlives the daemon."""
        self.settings = planner.settings
        self.planner = planner
        self.books = Books(planner, store)
        self._registry = registry
        self._rights = rights
        self._keys = keys
        self._flows = flows
        self._ports = ports
        self._hops = hops
        self._early: dict[str, set[asyncio.Event]] = {}
        self.drains = Drains(registry, flows)
        self._tasks: set[asyncio.Task[Any]] = set()

    def reconfigure(self, settings: Settings) -> None:
        """Go by other settings from now on; tunnels that exist keep what they were made with."""
        self.settings = settings
        self.planner = replace(self.planner, settings=settings)
        self.books = replace(self.books, planner=self.planner)
        self._ports.change_range(settings.port_range)

    # Opening

    async def reserve(self, grant: Grant, uid: Uid, role: Role, count: int, options: Options) -> Tunnel:
        """Make a tunnel that holds ``count`` listeners and waits for its hello; raises what `Manager.request` does."""
        former = self._registry.of_uid(uid)
        if former is not None and former.state is State.FAILED:
            await self.end(former, "a new request takes its place")
        self.settings.quotas.check(count, self._registry.of_caller(grant.caller), self._registry.pending())
        tunnel = self.planner.tunnel(grant.caller, uid, role, count, options)
        # Which rule counts is known with the targets; until then its options stay as they were asked for.
        rule = self._rights.permit(grant, tunnel, Verb.CREATE)
        tunnel.rate = rule.ceilings.rate_of(tunnel.rate)
        tunnel.ports_within = rule.listeners
        capacity.check(self.settings.capacity, self._reserved_rate(), tunnel.rate)
        self.enter(tunnel)
        try:
            launcher = self.planner.launcher_of(tunnel.type)
            address, told = self.planner.address(tunnel), self.told(tunnel)
            await self._ports.hold(tunnel, launcher, address, told, self.books.save)
        except BaseException:
            await tunnel.undo.aclose()
            raise
        for warning in tunnel.own_warnings:
            _log.warning("%s", warning, extra={"tunnel": tunnel.id})
        self._registry.changed(tunnel)
        for arrived in self._early.get(tunnel.id, ()):
            arrived.set()
        return tunnel

    def enter(self, tunnel: Tunnel) -> None:
        """Let the tunnel be known, with the undo of that and of what it will hold."""
        self._registry.add(tunnel)
        tunnel.undo.callback(self._registry.remove, tunnel)
        # Undone last to first: who may not connect is kept out until nothing listens any more; and what the books tell
        # of and is nowhere is made again, so that they forget it at once.
        tunnel.undo.push_async_callback(self._flows.forget, tunnel)
        tunnel.undo.callback(self.books.delete, tunnel)
        tunnel.undo.push_async_callback(self._ports.let_go, tunnel)

    async def greet(self, uid: Uid, role: Role, entries: tuple[Target, ...]) -> Answer:
        """Take a hello: judge the targets of an inbound tunnel, settle on the ports of an outbound one.

        Ends the wait of `req`. Raises what `Manager.hello` does.
        """
        tunnel = await self._expected(uid)
        return await self.shielded(self._greet(tunnel, role, entries))

    async def _expected(self, uid: Uid) -> Tunnel:
        """The tunnel of a hello; where there is none yet, wait for its req."""
        tunnel = self._registry.of_uid(uid)
        gone = tunnel is None or tunnel.state in (State.FAILED, State.RELEASING)
        if gone or (tunnel and tunnel.held is None):
            arrived = asyncio.Event()
            waiting = self._early.setdefault(uid.id, set())
            waiting.add(arrived)
            try:
                await asyncio.wait_for(arrived.wait(), self.settings.times.early_hello)
            except asyncio.TimeoutError:
                raise no_tunnel("send req first, to this gateway") from None
            finally:
                waiting.discard(arrived)
                if not waiting:
                    self._early.pop(uid.id, None)
        return self._registry.known(uid.id)

    async def _greet(self, tunnel: Tunnel, role: Role, entries: tuple[Target, ...]) -> Answer:
        async with tunnel.busy:
            tunnel.check(Event.HELLO)
            if tunnel.role is Role.PROD:
                await self._check_inbound_hello(tunnel, role, entries)
            else:
                await self.settle(tunnel, [entry.port for entry in entries])
            tunnel.check(Event.HELLO)  # it may have been released while its ports were settled
            tunnel.advance(Event.HELLO)
            self.books.save(tunnel)
        self.limit(tunnel, self.settings.times.update, "no update came in time")
        self._registry.changed(tunnel)
        tunnel.greeted.set_result(tunnel.answer(entries if tunnel.role is Role.PROD else ()))
        return tunnel.answer()

    async def settle(self, tunnel: Tunnel, wished: Sequence[int]) -> None:
        """Give an outbound tunnel the ports wished for where they are to be had; with `exact_ports` it ends else."""
        refused = await self._ports.settle(tunnel, wished[: tunnel.count], self._registry)
        if not refused:
            return
        names = ", ".join(map(str, refused))
        problem = f"local port {names} is not to be had: in use, or outside the range {self.settings.port_range}"
        if tunnel.options.exact_ports:
            ours = {port for each in self._registry for port in each.ports}
            who = await self._ports.who(set(refused) - ours)
            hint = "ask for another, or let the gateway choose" + (f"; {who}" if who else "")
            error = ScistreamError(Code.RESOURCE_EXHAUSTED, problem, hint)
            await self.end(tunnel, problem, error)
            raise error
        _log.info("%s; others are taken", problem, extra={"tunnel": tunnel.id})

    async def _check_inbound_hello(self, tunnel: Tunnel, role: Role, entries: tuple[Target, ...]) -> None:
        if role is not Role.PROD:
            raise invalid("role", "the tunnel's role is PROD, this hello says CONS", "greet it with the role PROD")
        if not entries:
            raise invalid(
                "prod_listeners", "an inbound tunnel needs at least one target", "HOST:PORT of the application"
            )
        # By what its owner may: who says hello needs to know the UID and nothing else.
        owner = Grant(tunnel.owner, Verb.HELLO)
        await self._rights.literal_targets(owner, tunnel, entries)

    # Serving

    async def update(self, grant: Grant, tunnel: Tunnel, targets: tuple[Target, ...]) -> Answer:
        """Start the data server towards the targets, or retarget the running one; raises what `Manager.update` does."""
        async with tunnel.busy:
            tunnel.check(Event.UPDATE)
            spread = tuple(targets[index % len(targets)] for index in range(tunnel.count))
            verb = Verb.CREATE if tunnel.state is State.READY else Verb.UPDATE
            rule, addresses = await self._rights.targets(grant, tunnel, verb, spread)
            tunnel.check(Event.UPDATE)
            before = tunnel.targets, tunnel.addresses, tunnel.options, tunnel.rate
            generation = tunnel.generation
            asked = self.planner.rate(tunnel.options) if tunnel.state is State.READY else tunnel.rate
            self._reserve_rate(tunnel, rule.ceilings.rate_of(asked))
            tunnel.options = rule.ceilings.limit(tunnel.options)
            tunnel.targets, tunnel.addresses = spread, addresses
            try:
                await self._serve(tunnel, self.books.plan(tunnel, tunnel.generation + 1))
            except BaseException:
                tunnel.targets, tunnel.addresses, tunnel.options, tunnel.rate = before
                if tunnel.state is State.ACTIVE:
                    await self._flows.apply(tunnel)
                    if tunnel.generation != generation:  # what the books did not take, the data server must not do
                        await self.run(tunnel, tunnel.holding, self.books.plan(tunnel, tunnel.generation + 1))
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
            await self.run(tunnel, held, plan)
            await self._flows.apply(tunnel)  # only now its data server has a user
            tunnel.advance(Event.UPDATE)
            self.books.save(tunnel)
        except Exception as problem:
            if first and tunnel.state in (State.READY, State.ACTIVE):
                self.fail(tunnel, str(problem))
                await self._ports.let_go(tunnel)
                await self._flows.forget(tunnel)  # nothing of it is open any more, and others may get its ports
            raise
        if first and tunnel.options.lifetime:
            await self.set_lifetime(tunnel, tunnel.options.lifetime)

    async def run(self, tunnel: Tunnel, held: Held, plan: Plan) -> None:
        """Have the tunnel's data server follow the plan; returns when it accepts, raises why it does not."""
        program = tunnel.type.server.render(plan, held.places)
        dialled = {each.address for each in tunnel.answer().listeners if not each.is_wildcard}
        await held.serve(program, self._keys.files(tunnel.uid, tunnel.role, tunnel.security, dialled))
        tunnel.generation = plan.generation

    async def set_lifetime(self, tunnel: Tunnel, seconds: int) -> None:
        """End the tunnel in so many seconds from now on, with or without this daemon; 0: never."""
        await tunnel.holding.limit(seconds)
        tunnel.expires = time.time() + seconds if seconds else 0
        self.books.save(tunnel)
        _log.info(
            "its lifetime is %s", f"{seconds} s from now on" if seconds else "not limited", extra={"tunnel": tunnel.id}
        )
        if seconds:
            self.limit(tunnel, seconds, "its lifetime is over")
        else:
            tunnel.set_timer(None)

    async def hold_to(self, tunnel: Tunnel, rate: int) -> None:
        """Hold the tunnel to another rate in kB/s, 0: to none; raises what `Manager.hold_to` does."""
        async with tunnel.busy:
            if tunnel.state not in (State.READY, State.ACTIVE):
                raise ScistreamError(Code.FAILED_PRECONDITION, f"rate: the tunnel is {tunnel.state.value}")
            if rate == tunnel.rate:
                return
            before = tunnel.rate, tunnel.options
            self._reserve_rate(tunnel, rate)
            tunnel.options = replace(tunnel.options, rate=rate)
            try:
                await self._flows.apply(tunnel)
                await self._tune(tunnel, before[0])
                self.books.save(tunnel)
            except BaseException:
                tunnel.rate, tunnel.options = before
                await self._flows.apply(tunnel)
                await self._tune(tunnel, rate)
                raise
        self._registry.changed(tunnel)
        _log.info("its rate is %s", f"{rate} kB/s" if rate else "not limited", extra={"tunnel": tunnel.id})

    async def _tune(self, tunnel: Tunnel, before: int) -> None:
        """Have a data server that runs take, for new streams, what else depends on the rate, which was ``before``."""
        tuning = [self.planner.tuning(tunnel.options, rate) for rate in (before, tunnel.rate)]
        if tuning[0] != tuning[1] and tunnel.state is State.ACTIVE:
            await self.run(tunnel, tunnel.holding, self.books.plan(tunnel, tunnel.generation + 1))

    def _reserve_rate(self, tunnel: Tunnel, rate: int) -> None:
        """Give the tunnel this rate in kB/s in place of the one that it has, where the capacity has so much."""
        if rate != tunnel.rate:
            capacity.check(self.settings.capacity, self._reserved_rate() - tunnel.rate, rate)
            tunnel.rate = rate

    def _reserved_rate(self) -> int:
        over = (State.FAILED, State.RELEASING)
        return sum(tunnel.rate for tunnel in self._registry if tunnel.state not in over)

    # Failing and ending

    def told(self, tunnel: Tunnel) -> Told:
        """What a launcher tells of the tunnel's data server."""

        def ended(why: str) -> None:
            self.spawn(self.end(tunnel, why))

        return Told(failed=lambda why: self.fail(tunnel, why), ended=ended)

    def fail(self, tunnel: Tunnel, reason: str) -> None:
        """The tunnel carries nothing any more; people get some time to read why."""
        tunnel.advance(Event.FAIL)
        tunnel.result = reason
        _log.error("failed: %s", reason, extra={"tunnel": tunnel.id})
        self.limit(tunnel, self.settings.times.failed_kept, "it failed a while ago")
        self._registry.changed(tunnel)

    def limit(self, tunnel: Tunnel, seconds: float, why: str) -> None:
        """End the tunnel after ``seconds``, in place of the time limit that it had."""
        loop = asyncio.get_running_loop()
        tunnel.set_timer(loop.call_later(seconds, lambda: self.spawn(self.end(tunnel, why))))

    async def end(self, tunnel: Tunnel, why: str, told: ScistreamError | None = None) -> None:
        """Release: everything that opening did is undone when this returns.

        UNAVAILABLE where the daemon stops while a tunnel drains that outlives it: the next one goes on with that.
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
        if tunnel.drain and tunnel.held is not None:
            outlives = self.planner.launcher_of(tunnel.type).outlives
            await self.drains.drain(tunnel, tunnel.held, self.books.save if outlives else None)
        await tunnel.undo.aclose()
        _log.info("ended: %s", why, extra={"tunnel": tunnel.id})

    async def close(self) -> None:
        """End every tunnel that lives with the daemon, and wait for what is under way."""
        self.drains.hurry()
        mortal = [each for each in self._registry if not self.planner.launcher_of(each.type).outlives]
        await asyncio.gather(*(self.end(tunnel, "the daemon stops") for tunnel in mortal))
        for tunnel in self._registry:
            tunnel.set_timer(None)
        while self._tasks:
            await asyncio.wait(self._tasks)
        await self._flows.close()

    def spawn(self, work: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
        """Do a step by itself; `close` waits for it."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def shielded(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Do a step whole, also when its caller goes away in the middle."""
        return await asyncio.shield(self.spawn(work))
