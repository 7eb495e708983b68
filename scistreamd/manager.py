"""The tunnel manager: the only place that orders the steps of a tunnel's life.

Each step of opening pushes its undo, so a tunnel that does not come about
leaves nothing, and release is the same undo run later. Front doors bring a
`Grant`; the world is reached through `interfaces` alone.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from scistreamd import dataserver
from scistreamd.config import Settings
from scistreamd.dataserver import DataServerType
from scistreamd.errors import Code, ScistreamError, invalid
from scistreamd.gate import Gate, Grant
from scistreamd.interfaces import KeyMaker, Launcher, Plan, Told
from scistreamd.lifecycle import Event
from scistreamd.model import Answer, Caller, IPAddress, Options, Role, State, Target, Uid
from scistreamd.reservations import Reservations
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
    ) -> None:
        """``launcher_of`` says which launcher runs a data server type; ``any_address``
        is the wildcard that inbound listeners bind where no address is set."""
        self._settings = settings
        self._gate = gate
        self._keys = keys
        self._launcher_of = launcher_of
        self._any_address = any_address
        self._ports = Reservations(settings.port_range)
        self._tunnels: dict[str, Tunnel] = {}
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
                await self._check_inbound_hello(role, entries)
            else:
                await self._settle(tunnel, entries)
            tunnel.check(Event.HELLO)  # it may have been released while its ports were settled
            tunnel.advance(Event.HELLO)
        self._limit(tunnel, self._settings.times.update, "no update came in time")
        answer = tunnel.answer(entries if tunnel.role is Role.PROD else ())
        tunnel.greeted.set_result(answer)
        return tunnel.answer()

    async def update(self, grant: Grant, uid: Uid, role: Role | None, targets: tuple[Target, ...]) -> Answer:
        """`update`: start the data server towards the targets, or retarget the running one.

        Fewer targets than listeners repeat in turn. Returns when the data
        server says that it accepts, else raises its reason; then a new tunnel
        is gone and a running one runs on as it was.
        """
        tunnel = self._known(uid)
        if role not in (None, tunnel.role):
            raise invalid("role", f"the tunnel's role is {tunnel.role.value}")
        return await self._shielded(self._update(tunnel, targets))

    async def release(self, grant: Grant, uid: Uid, drain: float = 0) -> None:
        """`release`: end the tunnel; its ports are free and its streams closed on return.

        ``drain``: seconds that running streams get to end by themselves.
        """
        tunnel = self._known(uid)
        if tunnel.state is State.RELEASING:
            raise _no_tunnel()
        tunnel.drain = drain
        await self._shielded(self._end(tunnel, f"released by {grant.caller}"))

    @property
    def free_ports(self) -> int:
        """How many ports of the range no tunnel has."""
        return self._ports.free

    def __len__(self) -> int:
        return len(self._tunnels)

    async def close(self) -> None:
        """End every tunnel that lives with the daemon, and wait for what is under way."""
        await asyncio.gather(*(self._end(tunnel, "the daemon stops") for tunnel in list(self._tunnels.values())))
        while self._tasks:
            await asyncio.wait(self._tasks)

    # Opening

    async def _reserve(self, grant: Grant, uid: Uid, role: Role, count: int, options: Options) -> Tunnel:
        self._check_free(uid)
        kind, launcher = self._type(options)
        of_peer = sum(tunnel.owner.peer == grant.caller.peer for tunnel in self._tunnels.values())
        pending = sum(tunnel.state in (State.PENDING, State.READY) for tunnel in self._tunnels.values())
        self._settings.quotas.check(count, of_peer, pending)
        tunnel = Tunnel(
            uid,
            role,
            count,
            options,
            kind,
            self._gate.security(options.security, kind.server.securities),
            grant.caller,
            self._shown_host(grant.caller),
            asyncio.get_running_loop().create_future(),
        )
        if uid.warning:
            tunnel.warnings += (uid.warning,)
        self._tunnels[tunnel.id] = tunnel
        tunnel.undo.callback(self._tunnels.pop, tunnel.id)
        tunnel.undo.push_async_callback(self._ports.let_go, tunnel)
        try:
            address = self._listen_address(role, grant.caller)
            await self._ports.hold(tunnel, launcher, address, self._told(tunnel))
        except BaseException:
            await tunnel.undo.aclose()
            raise
        for warning in tunnel.warnings:
            _log.warning("%s", warning, extra={"tunnel": tunnel.id})
        for arrived in self._early.get(tunnel.id, ()):
            arrived.set()
        return tunnel

    def _check_free(self, uid: Uid) -> None:
        former = self._tunnels.get(uid.id)
        if former is not None:
            raise ScistreamError(
                Code.ALREADY_EXISTS,
                f"uid: tunnel {uid.id} exists and is {former.state.value}",
                "use a new UID, or release that tunnel first",
            )

    def _type(self, options: Options) -> tuple[DataServerType, Launcher]:
        if options.rate:
            raise _unimplemented("rate", "leave the rate out, or 0, which means no limit")
        if options.allow_from:
            raise _unimplemented("allow-from", "leave it out, and restrict the ports by the host's firewall")
        kind = dataserver.parse_type(options.data_server or self._settings.default_type)
        launcher = self._launcher_of(kind)
        if problem := launcher.missing(kind.server):
            raise ScistreamError(Code.FAILED_PRECONDITION, problem, "or ask for another data server type")
        return kind, launcher

    def _shown_host(self, caller: Caller) -> IPAddress:
        return self._settings.advertise or caller.reached or self._any_address

    def _listen_address(self, role: Role, caller: Caller) -> IPAddress:
        if role is Role.PROD:
            return self._settings.listen_inbound or self._any_address
        configured = self._settings.listen_outbound
        if configured is not None and not configured.is_unspecified:
            return configured
        if caller.reached is None:
            raise ScistreamError(
                Code.FAILED_PRECONDITION,
                "listen: an outbound listener is not encrypted and never binds every address",
                "set listen.outbound to the address that the application dials",
            )
        return caller.reached

    # Hello

    async def _expected(self, uid: Uid) -> Tunnel:
        """The tunnel of a hello; where there is none yet, wait for its req."""
        if uid.id not in self._tunnels or self._tunnels[uid.id].held is None:
            arrived = asyncio.Event()
            waiting = self._early.setdefault(uid.id, set())
            waiting.add(arrived)
            try:
                await asyncio.wait_for(arrived.wait(), self._settings.times.early_hello)
            except asyncio.TimeoutError:
                raise _no_tunnel("send req first, to this gateway") from None
            finally:
                waiting.discard(arrived)
                if not waiting:
                    self._early.pop(uid.id, None)
        return self._known(uid)

    async def _check_inbound_hello(self, role: Role, entries: tuple[Target, ...]) -> None:
        if role is not Role.PROD:
            raise invalid("role", "the tunnel's role is PROD, this hello says CONS")
        if not entries:
            raise invalid("prod_listeners", "an inbound tunnel needs at least one target")
        await self._gate.check_literals(entries)

    async def _settle(self, tunnel: Tunnel, wishes: tuple[Target, ...]) -> None:
        wished = [wish.port for wish in wishes[: tunnel.count]]
        refused = await self._ports.settle(tunnel, wished, self._tunnels.values())
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

    async def _update(self, tunnel: Tunnel, targets: tuple[Target, ...]) -> Answer:
        async with tunnel.busy:
            tunnel.check(Event.UPDATE)
            spread = tuple(targets[index % len(targets)] for index in range(tunnel.count))
            addresses = await self._gate.addresses(spread)
            tunnel.check(Event.UPDATE)
            plan = Plan(
                tunnel.id,
                tunnel.role,
                tunnel.security,
                tunnel.binds,
                addresses,
                tunnel.generation + 1,
                self._settings.tuning,
            )
            await self._serve(tunnel, plan)
            tunnel.generation, tunnel.targets = plan.generation, spread
        _log.info("forwards to %s", ", ".join(map(str, spread)), extra={"tunnel": tunnel.id})
        return tunnel.answer(spread)

    async def _serve(self, tunnel: Tunnel, plan: Plan) -> None:
        """Have the data server follow the plan; a first one that fails takes its tunnel with it."""
        held, first = tunnel.holding, tunnel.state is State.READY
        if first:
            tunnel.set_timer(None)
        try:
            program = tunnel.type.server.render(plan, held.places)
            await held.serve(program, self._keys.files(tunnel.uid, tunnel.role, tunnel.security))
            tunnel.advance(Event.UPDATE)
        except Exception as problem:
            if first and tunnel.state is State.READY:
                self._failed(tunnel, str(problem))
                await self._ports.let_go(tunnel)
            raise
        if first and tunnel.options.lifetime:
            self._limit(tunnel, tunnel.options.lifetime, "its lifetime is over")

    def _told(self, tunnel: Tunnel) -> Told:
        def ended(why: str) -> None:
            self._spawn(self._end(tunnel, why))

        return Told(failed=lambda why: self._failed(tunnel, why), ended=ended)

    def _failed(self, tunnel: Tunnel, reason: str) -> None:
        tunnel.advance(Event.FAIL)
        tunnel.result = reason
        _log.error("failed: %s", reason, extra={"tunnel": tunnel.id})
        self._limit(tunnel, self._settings.times.failed_kept, "it failed a while ago")

    # Ending

    def _limit(self, tunnel: Tunnel, seconds: float, why: str) -> None:
        """End the tunnel after ``seconds``, in place of the time limit that it had."""
        loop = asyncio.get_running_loop()
        tunnel.set_timer(loop.call_later(seconds, lambda: self._spawn(self._end(tunnel, why))))

    async def _end(self, tunnel: Tunnel, why: str, told: ScistreamError | None = None) -> None:
        """Release: everything that opening did is undone when this returns.

        ``told`` is what a `req` that still waits is answered with.
        """
        if tunnel.state is State.RELEASING:
            return
        tunnel.advance(Event.RELEASE)
        tunnel.set_timer(None)
        if not tunnel.greeted.done():
            tunnel.greeted.set_exception(told or ScistreamError(Code.CANCELLED, f"the tunnel has ended: {why}"))
            tunnel.greeted.exception()  # its req may be gone, and then nobody else looks
        await tunnel.undo.aclose()
        _log.info("ended: %s", why, extra={"tunnel": tunnel.id})

    def _known(self, uid: Uid) -> Tunnel:
        tunnel = self._tunnels.get(uid.id)
        if tunnel is None:
            raise _no_tunnel()
        return tunnel

    def _spawn(self, work: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _shielded(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Do a step whole, also when its caller goes away in the middle."""
        return await asyncio.shield(self._spawn(work))


def _no_tunnel(hint: str = "it was never made here, or has ended") -> ScistreamError:
    return ScistreamError(Code.NOT_FOUND, "uid: no such tunnel on this gateway", hint)


def _unimplemented(name: str, hint: str) -> ScistreamError:
    return ScistreamError(Code.UNIMPLEMENTED, f"{name}: this version cannot enforce it", hint)
