"""The interfaces whose root is ours, with the classes of the rated tunnels on each."""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Collection, Mapping, Sequence

from scistreamd import tc
from scistreamd.errors import Code, ScistreamError
from scistreamd.netlink import Refused
from scistreamd.shaping import Shape

# A class that was slow sends the next packet when the one before is paid for (`shaping`): 0.2 s from 100 kB/s on.
_FLUSH_SECONDS, _FLUSH_LOOKS = 2.0, 100
# The interface, our root or the class has gone meanwhile.
_GONE = frozenset({errno.ENOENT, errno.ENODEV, errno.EINVAL})

_log = logging.getLogger("scistreamd.rates")


class Taken:
    """All errors of its methods are ScistreamErrors."""

    def __init__(self) -> None:
        self._tc = tc.TrafficControl()
        # By index.
        self.names: dict[int, str] = {}

    def close(self) -> None:
        """Needed no more; what is taken stays so."""
        self._tc.close()

    async def take(self, index: int, name: str, shapes: Sequence[Shape]) -> None:
        """Have our root there, with the classes of these tunnels.

        FAILED_PRECONDITION where somebody set another one, which is named, or the kernel cannot.
        """
        if index in self.names:
            return
        there = await self._disciplines()
        if other := tc.foreign(there, index):
            raise _not_ours(name, other.kind, other.handle)
        try:
            if index not in tc.ours(there):
                await self._tc.take(index)
        except Refused as problem:
            raise tc.explained(problem, name) from problem
        self.names[index] = name
        await self._set(index, shapes)

    async def put(self, shapes: Sequence[Shape]) -> None:
        """Have the classes of these tunnels on all interfaces, with their rates."""
        for index in self.names:
            await self._set(index, shapes)

    async def _set(self, index: int, shapes: Sequence[Shape]) -> None:
        name = self.names[index]
        try:
            mtu = tc.mtu_of(name)
            for shape in shapes:
                for minor in (shape.minor, shape.minor + 1):
                    await self._tc.set_class(index, minor, shape.flow.rate * 1000, mtu)
        except Refused as problem:
            raise tc.explained(problem, name) from problem
        except OSError as problem:
            raise ScistreamError(Code.FAILED_PRECONDITION, f"rate: {name} has gone: {problem.strerror}") from problem

    async def remove(self, shapes: Sequence[Shape]) -> None:
        """Remove the classes of these tunnels; what waits in them leaves first."""
        numbers = {minor for shape in shapes for minor in (shape.minor, shape.minor + 1)}
        for index in self.names:
            await self._remove(index, numbers)

    async def _remove(self, index: int, numbers: Collection[int]) -> None:
        try:
            there = set(await self._tc.classes(index)) & set(numbers)
            for minor in there:
                await self._tc.speed_up(index, minor)
            await self._flush(index, there)
            for minor in there:
                await self._tc.remove_class(index, minor)
        except Refused as problem:
            if problem.errno not in _GONE:
                raise tc.explained(problem, self.names.get(index, f"interface {index}")) from problem

    async def _flush(self, index: int, numbers: Collection[int]) -> None:
        """Return when nothing waits in these classes any more, or has waited too long."""
        for _ in range(_FLUSH_LOOKS):
            there = await self._tc.classes(index)
            if not any(there[minor].waiting for minor in numbers if minor in there):
                return
            await asyncio.sleep(_FLUSH_SECONDS / _FLUSH_LOOKS)

    async def give_back(self) -> None:
        """Let the kernel have its own on every interface again, but where another daemon has classes too."""
        for index, name in list(self.names.items()):
            del self.names[index]
            await self._give_back(index, name)

    async def _give_back(self, index: int, name: str) -> None:
        try:
            if not await self._tc.classes(index):
                await self._tc.give_back(index)
        except Refused as problem:
            if problem.errno not in _GONE:
                raise tc.explained(problem, name) from problem

    # What a daemon before left, and what others change

    async def look(self) -> set[int]:
        """The interfaces that have our root, whoever of us put it there."""
        return tc.ours(await self._disciplines())

    async def _disciplines(self) -> list[tc.Discipline]:
        try:
            return await self._tc.disciplines()
        except Refused as problem:
            raise tc.explained(problem, "this host's interfaces") from problem

    async def numbers(self) -> set[int]:
        """The class numbers that are in use somewhere."""
        found: set[int] = set()
        for index in await self.look():
            found.update(await self._tc.classes(index))
        return found

    async def sent(self) -> dict[tuple[int, int], int]:
        """The bytes that have left each class, by its number and the interface; of what has just gone, nothing."""
        found: dict[tuple[int, int], int] = {}
        for index in list(self.names):
            try:
                classes = await self._tc.classes(index)
            except Refused as problem:
                if problem.errno not in _GONE:
                    raise tc.explained(problem, self.names[index]) from problem
                continue
            found |= {(minor, index): each.sent for minor, each in classes.items()}
        return found

    async def clear(self, keep: Collection[int]) -> None:
        """Remove all classes but those of the tunnels with these numbers, and our root where none is left then."""
        for index in await self.look():
            there = await self._tc.classes(index)
            stale = {number for number in there if number & ~1 not in keep}
            await self._remove(index, stale)
            if stale == set(there):
                await self._give_back(index, f"interface {index}")

    async def adopt(self, there: Collection[int], names: Mapping[int, str], shapes: Sequence[Shape]) -> None:
        """Go on with the interfaces that a daemon before took."""
        for index in await self.look() & set(there):
            self.names[index] = names.get(index, f"interface {index}")
            await self._set(index, shapes)

    async def lost(self) -> bool:
        """Whether our root has gone from an interface that we took, as when that was removed; it is forgotten."""
        gone = set(self.names) - await self.look()
        for index in gone:
            _log.warning("the root of %s is not ours any more", self.names.pop(index))
        return bool(gone)


def _not_ours(name: str, kind: str, handle: int) -> ScistreamError:
    return ScistreamError(
        Code.FAILED_PRECONDITION,
        f"rate: {name} has a queueing discipline of its own ({kind} {handle >> 16:x}:), which is left alone",
        f"`tc qdisc del dev {name} root` takes it away; or leave the rate out",
    )
