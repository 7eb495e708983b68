"""Which tunnel holds which ports: reserved all or nothing, settled for outbound tunnels at hello."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace

from scistreamd.errors import Code, ScistreamError
from scistreamd.flows import Flows
from scistreamd.interfaces import Launcher, PortsBusy, PortView, Told
from scistreamd.model import Endpoint, IPAddress, PortRange, Role, State
from scistreamd.plans import Bind
from scistreamd.ports import Pool
from scistreamd.tunnel import Tunnel

_NAMED = 3  # programs in one message

_log = logging.getLogger("scistreamd.reservations")


class Reservations:
    """The ports of one gateway, in its tunnels' hands."""

    def __init__(self, ports: PortRange, flows: Flows, view: PortView | None) -> None:
        """``flows``: told of listeners before they are held, so that nobody connects who may not; ``view``
        tells who has the ports that are passed over."""
        self._pool = Pool(ports)
        self._flows = flows
        self._view = view
        # Taken from the pool, and in no tunnel's list of listeners yet.
        self._moving: set[int] = set()
        self._moved = asyncio.Event()
        self._settling = asyncio.Lock()

    @property
    def free(self) -> int:
        """How many ports of the range no tunnel has."""
        return self._pool.free

    def change_range(self, ports: PortRange) -> None:
        """Reserve from another range; what is held outside of it stays held."""
        self._pool.change_range(ports)

    async def hold(
        self, tunnel: Tunnel, launcher: Launcher, address: IPAddress, told: Told, note: Callable[[Tunnel], None]
    ) -> None:
        """Hold listeners for the tunnel on ``address``; another program's port is passed over.

        ``note`` is called before anything is held, so that a crash leaves nothing that no book tells of.

        Ports that its options name come first: they need not be changed at hello then.

        Raises RESOURCE_EXHAUSTED and holds nothing where there are not enough.
        """
        udp = tunnel.security in tunnel.type.server.udp_securities

        async def hold(ports: list[int]) -> None:
            binds = tuple(Bind(Endpoint(address, port), udp, tunnel.options.allow_from) for port in ports)
            await self._flows.apply(tunnel, binds=binds)
            tunnel.binds = binds
            note(tunnel)
            tunnel.held = await launcher.hold(tunnel.id, binds, told)
            tunnel.reserved = True

        busy = await self._in_use(address, udp=udp)
        try:
            wished = [each.port for each in tunnel.options.listen if each.port]
            await self._with_ports(tunnel.count, hold, tunnel.ports_within, busy, wished)
        except ScistreamError as problem:
            if problem.code is not Code.RESOURCE_EXHAUSTED or not busy:
                raise
            raise ScistreamError(problem.code, problem.message, f"{problem.hint}; {await self.who(busy)}") from None

    async def _in_use(self, address: IPAddress, *, udp: bool) -> set[int]:
        """The free ports of the pool that others have."""
        if self._view is None:
            return set()
        sockets = (await self._view.look(programs=False)).by_port()
        return {
            port
            for port in self._pool.free_ports()
            if any(each.takes(address) and (udp or each.protocol == "tcp") for each in sockets.get(port, ()))
        }

    async def who(self, ports: set[int]) -> str:
        """Which programs have these ports, for people; the first few, as far as it can be seen."""
        if self._view is None:
            return ""
        sockets = (await self._view.look(programs=True)).by_port()
        return ", ".join(str(sockets[port][0]) for port in sorted(ports)[:_NAMED] if port in sockets)

    def claim(self, tunnel: Tunnel) -> None:
        """Count the ports of a tunnel of the daemon before as given out, also where the range is another by now."""
        tunnel.reserved = True
        self._pool.occupy(tunnel.ports)

    async def let_go(self, tunnel: Tunnel) -> None:
        """End the tunnel's data server and free its ports; a second time it does nothing."""
        held, tunnel.held = tunnel.held, None
        if held is not None:
            await held.close()
        if tunnel.reserved:
            tunnel.reserved = False
            self._pool.give_back(tunnel.ports)

    async def settle(self, tunnel: Tunnel, wished: Sequence[int], others: Iterable[Tunnel]) -> list[int]:
        """Give an outbound tunnel the ports that it wishes for, in their order, where they are to be had.

        Returns the wishes that were not granted. ``others`` are all tunnels:
        what one of them holds and has not settled on yet changes hands.
        """
        granted: set[int] = set()
        refused = []
        # One after the other: in the middle of another's settling nobody knows which ports that one keeps.
        async with self._settling:
            for index, port in enumerate(wished):
                await self._rested(port)
                if port not in granted and await self._grant(tunnel, index, port, others):
                    granted.add(port)
                else:
                    refused.append(port)
        return refused

    async def _rested(self, port: int) -> None:
        """Wait while a request that is just being made has taken the port, perhaps to pass it over."""
        while port in self._moving:
            await self._moved.wait()

    async def _grant(self, tunnel: Tunnel, index: int, port: int, others: Iterable[Tunnel]) -> bool:
        """Make ``port`` the tunnel's listener number ``index``; False where it cannot be had."""
        if tunnel.ports_within is not None and port not in tunnel.ports_within:
            return False
        ports = tunnel.ports
        if port in ports:
            ports[ports.index(port)], ports[index] = ports[index], port
            await self._rebind(tunnel, ports)
            return True
        if not self._pool.claim(port) and not await self._take_over(port, others):
            return False
        former, ports[index] = ports[index], port
        try:
            await self._rebind(tunnel, ports)
        except PortsBusy:
            self._pool.give_back([port])
            return False
        self._pool.give_back([former])
        return True

    async def _take_over(self, port: int, others: Iterable[Tunnel]) -> bool:
        """Take a port from an outbound request that has not settled on it, and give that one another."""
        unsettled = (each for each in others if each.role is Role.CONS and each.state is State.PENDING)
        holder = next((each for each in unsettled if port in each.ports), None)
        if holder is None or holder.held is None:
            return False
        ports = holder.ports

        async def swap(replacement: list[int]) -> None:
            await self._rebind(holder, [replacement[0] if each == port else each for each in ports])

        try:
            await self._with_ports(1, swap, holder.ports_within)
        except ScistreamError:
            return False  # no other port is free: the holder keeps this one
        return True

    async def _with_ports(
        self,
        count: int,
        use: Callable[[list[int]], Awaitable[None]],
        within: PortRange | None,
        known: Iterable[int] = (),
        first: Sequence[int] = (),
    ) -> None:
        """Take ``count`` ports, ``first`` those, and use them; other programs' (``known`` or not) are passed over."""
        busy = set(known)
        while True:
            ports = self._pool.take(count, busy, within, first)
            try:
                await self._use(ports, use)
            except PortsBusy as others:
                busy.update(others.ports)
                self._pool.put_back(port for port in ports if port not in busy)
                self._pool.give_back(others.ports)
                _log.info("port passed over: %s", others.reason)
            except BaseException:
                self._pool.put_back(ports)
                raise
            else:
                return

    async def _use(self, ports: list[int], use: Callable[[list[int]], Awaitable[None]]) -> None:
        self._moving.update(ports)
        try:
            await use(ports)
        finally:
            self._moving.difference_update(ports)
            self._moved.set()
            self._moved = asyncio.Event()

    async def _rebind(self, tunnel: Tunnel, ports: list[int]) -> None:
        before = tunnel.binds
        binds = tuple(
            replace(bind, endpoint=replace(bind.endpoint, port=port)) for bind, port in zip(before, ports, strict=True)
        )
        if binds == before:
            return
        await self._flows.apply(tunnel, binds=tuple(dict.fromkeys((*before, *binds))))
        try:
            await tunnel.holding.rebind(binds)
            tunnel.binds = binds
        finally:
            await self._flows.apply(tunnel)
