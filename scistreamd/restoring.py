"""Going on where the daemon before stopped: tunnels are adopted as they run, or made again."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Coroutine
from typing import Any

from scistreamd.books import is_worth_keeping, remaining
from scistreamd.course import Course
from scistreamd.errors import Code, ScistreamError
from scistreamd.flows import Flows
from scistreamd.interfaces import EndedMeanwhile, Launcher, PortsBusy
from scistreamd.model import State
from scistreamd.registry import Registry
from scistreamd.reservations import Reservations
from scistreamd.tunnel import Tunnel

_log = logging.getLogger("scistreamd.manager")


class Restoring:
    """The tunnels that the books tell of, taken up before any front door opens."""

    def __init__(self, course: Course, registry: Registry, flows: Flows, ports: Reservations) -> None:
        self._course = course
        self._registry = registry
        self._flows = flows
        self._ports = ports

    async def all(self) -> None:
        """Take over what the books tell of.

        A tunnel that runs is adopted as it is; one whose data server is gone,
        as after a reboot, is made again with its UID, listeners and targets
        while its lifetime lasts; of all else the rest is cleared away. What
        looks like a tunnel of ours and is in no book is told of and left alone.
        """
        books = self._course.books
        found = [(books.tunnel(record), is_worth_keeping(record)) for record in books.load()]
        launchers = {self._launcher_of(tunnel) for tunnel, _ in found}
        async with contextlib.AsyncExitStack() as surveys:
            for launcher in launchers:
                await surveys.enter_async_context(launcher.survey())
            await asyncio.gather(*(self._try(each, self._adopt(each, keep)) for each, keep in found))
        # Before any is made again: those that run keep their rates and their guards meanwhile.
        await self._flows.reconcile(each for each in self._registry if each.held is not None)
        stay = [each for each in self._registry if each.state in (State.READY, State.ACTIVE)]
        await asyncio.gather(*(self._try(each, self._go_on(each)) for each in stay))
        for launcher in launchers:
            for stranger in await launcher.strangers([tunnel.id for tunnel in self._registry]):
                _log.warning("%s looks like a tunnel of ours and is in no book; it is left alone", stranger)

    def _launcher_of(self, tunnel: Tunnel) -> Launcher:
        return self._course.planner.launcher_of(tunnel.type)

    async def _try(self, tunnel: Tunnel, step: Coroutine[Any, Any, None]) -> None:
        try:
            await step
        except Exception as problem:
            self._cannot_restore(tunnel, problem)

    async def _adopt(self, tunnel: Tunnel, worth_keeping: bool) -> None:
        launcher = self._launcher_of(tunnel)
        program = None
        if tunnel.state is State.RELEASING:
            tunnel.state, tunnel.drain = State.ACTIVE, remaining(tunnel)
            worth_keeping = tunnel.drain > 0
        if tunnel.state is State.ACTIVE:
            plan = self._course.books.plan(tunnel, tunnel.generation)
            program = tunnel.type.server.render(plan, launcher.places(tunnel.id))
        self._course.enter(tunnel)
        self._ports.claim(tunnel)
        tunnel.greeted.cancel()  # its req went with the daemon before
        try:
            tunnel.held = await launcher.adopt(tunnel.id, tunnel.binds, program, self._course.told(tunnel))
        except EndedMeanwhile:
            why = "it was stopped on this host, or its time was over, while scistreamd did not run"
            await self._course.end(tunnel, why)
            return
        if not worth_keeping or (tunnel.held is None and (tunnel.drain or tunnel.state is State.READY)):
            tunnel.drain = 0
            await self._course.end(tunnel, "it did not outlive the daemon before")

    async def _go_on(self, tunnel: Tunnel) -> None:
        if tunnel.held is None:
            await self._make_again(tunnel)
        if tunnel.state is State.READY:
            self._course.limit(tunnel, self._course.settings.times.update, "no update came in time")
        elif tunnel.drain:
            self._course.spawn(self._drain(tunnel))
        elif tunnel.expires:
            self._course.limit(tunnel, remaining(tunnel), "its lifetime is over")
        self._registry.changed(tunnel)
        _log.info("goes on", extra={"tunnel": tunnel.id})

    async def _drain(self, tunnel: Tunnel) -> None:
        with contextlib.suppress(ScistreamError):  # this daemon stops, too
            await self._course.end(tunnel, "released before scistreamd was started anew")

    def _cannot_restore(self, tunnel: Tunnel, problem: Exception) -> None:
        """The others go on; but where nothing could be learnt, we start once more, and leave every tunnel alone."""
        if isinstance(problem, ScistreamError) and problem.code is Code.UNAVAILABLE:
            raise problem
        if not isinstance(problem, ScistreamError | PortsBusy):
            _log.error("cannot be restored", exc_info=problem, extra={"tunnel": tunnel.id})
        tunnel.undo.push_async_callback(self._launcher_of(tunnel).clear, tunnel.id)
        self._course.fail(tunnel, f"it could not be restored: {problem}")

    async def _make_again(self, tunnel: Tunnel) -> None:
        await self._flows.apply(tunnel)
        tunnel.held = await self._launcher_of(tunnel).hold(tunnel.id, tunnel.binds, self._course.told(tunnel))
        await self._course.run(tunnel, tunnel.held, self._course.books.plan(tunnel, tunnel.generation))
        await self._flows.apply(tunnel)
        if tunnel.expires:
            await tunnel.held.limit(remaining(tunnel))
