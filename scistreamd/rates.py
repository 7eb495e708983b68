"""Holds tunnels to their rates, by queueing disciplines on the interfaces that their traffic leaves by.

`shaping` says how, `taken` sees to the interfaces. Peers may come
in over an interface that nobody thought of: what would leave by it waits, as a
lost packet does, for the moment until that one is shaped too.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import random
import socket
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from scistreamd import shaping
from scistreamd.errors import Code, ScistreamError
from scistreamd.interfaces import Flow
from scistreamd.nfttable import NftTable
from scistreamd.routes import Routes, Ways
from scistreamd.shaping import Shape
from scistreamd.taken import Taken

_LOOK_SECONDS = 0.2
_LOOKS = 10  # of them, until it is looked again at how much leaves by which interface
_BUSY_BYTES = 10_000  # since then: more than acknowledgements alone
_TABLES = "scistream"

_log = logging.getLogger("scistreamd.rates")


class Rates:
    """`interfaces.Traffic`: each rated tunnel in two classes of its own on every interface that is taken."""

    def __init__(self, table: NftTable) -> None:
        self._table = table
        self._taken = Taken()
        self._routes = Routes()
        self._shapes: dict[str, Shape] = {}
        self._lock = asyncio.Lock()
        self._watcher: asyncio.Task[None] | None = None
        self._warned: dict[int, str] = {}
        self._spread: dict[str, str] = {}
        self._sent: dict[tuple[int, int], int] = {}
        self._looks = itertools.cycle(range(_LOOKS))
        self._say: Callable[[str, tuple[str, ...]], None] = lambda tunnel_id, warnings: None

    def watch(self, say: Callable[[str, tuple[str, ...]], None]) -> None:
        """See `interfaces.Traffic.watch`."""
        self._say = say

    async def apply(self, flow: Flow) -> tuple[str, ...]:
        """See `interfaces.Traffic.apply`."""
        async with self._lock:
            before = self._shapes.get(flow.tunnel_id)
            if not _is_rated(flow):
                if before is not None:
                    await self._end(before)
                return ()
            _refuse_without_users()
            ways = await self._ways([flow])
            minor = before.minor if before else await self._free_minor()
            await self._change(Shape(flow, minor), before, ways)
            self._watch_on()
            return self._warnings(flow.tunnel_id)

    async def forget(self, tunnel_id: str) -> None:
        """See `interfaces.Traffic.forget`."""
        async with self._lock:
            shape = self._shapes.get(tunnel_id)
            if shape is not None:
                try:
                    await self._end(shape)
                except ScistreamError as problem:
                    _log.error("its rate could not be removed: %s", problem, extra={"tunnel": tunnel_id})

    async def reconcile(self, flows: Sequence[Flow]) -> Mapping[str, tuple[str, ...]]:
        """See `interfaces.Traffic.reconcile`."""
        async with self._lock:
            rated = [flow for flow in flows if _is_rated(flow)]
            try:
                await self._reconcile(rated)
            except ScistreamError as problem:
                if rated:
                    _log.error("%s", problem)
                return {flow.tunnel_id: (f"the rate is not enforced: {problem.message}",) for flow in rated}
        return {}

    async def close(self) -> None:
        """See `interfaces.Traffic.close`."""
        await self._watch_off()
        self._taken.close()
        self._routes.close()

    async def _ways(self, flows: Sequence[Flow]) -> Ways:
        targets = {target.address for flow in flows for target in flow.targets}
        bound = {bind.endpoint.address for flow in flows for bind in flow.binds}
        ways = await self._routes.look(targets, {each for each in bound if not each.is_unspecified})
        # Peers of a wildcard come from wherever; by the default route, most likely.
        return ways if any(each.is_unspecified for each in bound) else replace(ways, default=frozenset())

    async def _free_minor(self) -> int:
        used = {number & ~1 for number in await self._taken.numbers()}
        used |= {shape.minor for shape in self._shapes.values()}
        free = [minor for minor in shaping.MINORS if minor not in used]
        if not free:
            raise ScistreamError(Code.RESOURCE_EXHAUSTED, "rate: no more tunnels can have a rate", "release one")
        # Not the first one: another daemon of this host may be choosing now.
        return random.choice(free)  # noqa: S311  no secret

    async def _change(self, shape: Shape, before: Shape | None, ways: Ways) -> None:
        tunnel_id = shape.flow.tunnel_id
        try:
            await self._take(ways)
            await self._taken.put([shape])
            await self._write(self._shapes | {tunnel_id: shape})
        except BaseException:
            await (self._taken.put([before]) if before is not None else self._taken.remove([shape]))
            await self._give_back()
            raise

    async def _take(self, ways: Ways) -> None:
        """Take each interface that the traffic leaves by for sure; those that it may leave by, where that can be."""
        everyone = list(self._shapes.values())
        for index in sorted({*ways.towards.values(), *ways.having.values()}):
            await self._taken.take(index, ways.names[index], everyone)
        for index in sorted(ways.default - set(self._taken.names)):
            try:
                await self._taken.take(index, ways.names[index], everyone)
            except ScistreamError as problem:
                _log.info("%s", problem)

    async def _write(self, shapes: dict[str, Shape]) -> None:
        await self._table.replace(shaping.section(shapes.values(), self._taken.names))
        self._shapes = shapes

    def _warnings(self, tunnel_id: str) -> tuple[str, ...]:
        spread = self._spread.get(tunnel_id)
        return (*self._warned.values(), *([spread] if spread else []))

    async def _end(self, shape: Shape) -> None:
        self._spread.pop(shape.flow.tunnel_id, None)
        await self._write({each: self._shapes[each] for each in self._shapes if each != shape.flow.tunnel_id})
        await self._taken.remove([shape])
        await self._give_back()

    async def _give_back(self) -> None:
        if not self._shapes:
            await self._watch_off()
            await self._taken.give_back()

    # After a restart

    async def _reconcile(self, rated: Sequence[Flow]) -> None:
        there = await self._taken.look()
        if not rated and not there:
            await self._write({})
            return
        mine = list(await self._table.chains())
        of_others = shaping.minors(Counter(await self._table.every_chain(_TABLES)) - Counter(mine))
        numbers = dict(shaping.minors(mine))
        shapes = {}
        for flow in rated:
            minor = numbers.get(flow.tunnel_id) or await self._free_minor()
            shapes[flow.tunnel_id] = Shape(flow, minor)
        self._shapes = shapes
        keep = {minor for _, minor in of_others} | {shape.minor for shape in shapes.values()}
        await self._taken.clear(keep)
        if rated:
            _refuse_without_users()
            ways = await self._ways(rated)
            await self._taken.adopt(there, ways.names, list(shapes.values()))
            await self._take(ways)
            self._watch_on()
        await self._write(shapes)
        await self._give_back()

    # Interfaces that come and go

    def _watch_on(self) -> None:
        if self._watcher is None:
            self._watcher = asyncio.create_task(self._watch(), name="watch interfaces")

    async def _watch_off(self) -> None:
        watcher, self._watcher = self._watcher, None
        if watcher is not None and watcher is not asyncio.current_task():
            watcher.cancel()
            await asyncio.wait([watcher])

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            async with self._lock:
                try:
                    await self._follow()
                except ScistreamError as problem:
                    _log.error("%s", problem)

    async def _follow(self) -> None:
        """Shape what traffic wants to leave by, and let go of what has gone or was taken from us."""
        gone = await self._taken.lost()
        missed = [int.from_bytes(key, sys.byteorder) for key in await self._table.keys(shaping.MISSED)]
        came = False
        warned = {}
        for index in [each for each in missed if each not in self._taken.names]:
            name = _name(index)
            try:
                await self._taken.take(index, name, list(self._shapes.values()))
                came = True
                _log.info("traffic leaves by %s too, which is shaped from now on", name)
            except ScistreamError as problem:
                warned[index] = f"nothing leaves by {name}: {problem.message}"
        if gone or came:
            await self._write(self._shapes)
        spread = self._spread if next(self._looks) else await self._spreads()
        if (warned, spread) != (self._warned, self._spread):
            self._warned, self._spread = warned, spread
            for tunnel_id in self._shapes:
                self._say(tunnel_id, self._warnings(tunnel_id))

    async def _spreads(self) -> dict[str, str]:
        """Warnings for those of which one direction leaves by several interfaces at a time: once told, they stay."""
        before, self._sent = self._sent, await self._taken.sent()
        found = dict(self._spread)
        for tunnel_id, shape in self._shapes.items():
            for minor, whither in ((shape.minor, "those who connect"), (shape.minor + 1, "the targets")):
                busy = sorted(
                    self._taken.names[index]
                    for (of, index), sent in self._sent.items()
                    if of == minor and index in self._taken.names and sent - before.get((of, index), sent) > _BUSY_BYTES
                )
                if len(busy) > 1:
                    found[tunnel_id] = (
                        f"what goes to {whither} leaves by {' and '.join(busy)}, and the rate holds on each of them"
                        " alone: together it may be more"
                    )
        return found


def _is_rated(flow: Flow) -> bool:
    return bool(flow.rate and flow.binds)


def _name(index: int) -> str:
    try:
        return socket.if_indextoname(index)
    except OSError:
        return f"interface {index}"


def _refuse_without_users() -> None:
    if os.geteuid() != 0:
        raise ScistreamError(
            Code.FAILED_PRECONDITION,
            "rate: this gateway cannot hold a tunnel to a rate, for it does not run as root",
            "scistreamd can, and s2cs as root; or leave the rate out",
        )
