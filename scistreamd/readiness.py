"""How a data server says that it accepts: by its log, or on a control socket of its own."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Protocol

from scistreamd.child import Watch
from scistreamd.plans import LogSays, Program, SocketSays

_ANSWER_SECONDS = 1.0


class Output(Protocol):
    """The lines that a data server writes: those of a child, or those in the journal."""

    def watch(self, text: str) -> Watch:
        """Count lines that hold ``text`` from now on, until `unwatch`."""

    def unwatch(self, watch: Watch) -> None:
        """Count no more."""


class Words(contextlib.ExitStack):
    """What a data server says about one configuration, from the moment before it is told of it."""

    def __init__(self, output: Output, program: Program, before: Program | None = None) -> None:
        """``before``: the program of the configuration that this one replaces in a running data server."""
        super().__init__()
        self._ready = program.ready
        self._output = output
        self._logged = [self._counting(program.ready)] if isinstance(program.ready, LogSays) else []
        if before and before.retired:
            self._logged.append(self._counting(before.retired))
        self._rejected = self._watching(program.rejected) if before and program.rejected else None

    def _counting(self, says: LogSays) -> tuple[Watch, int]:
        return self._watching(says.text), says.count

    def _watching(self, text: str) -> Watch:
        watch = self._output.watch(text)
        self.callback(self._output.unwatch, watch)
        return watch

    async def say_ready(self) -> bool:
        """Whether all has been said that means: it accepts, by the new configuration alone."""
        if any(watch.count < count for watch, count in self._logged):
            return False
        return await self.answers()

    async def answers(self) -> bool:
        """Whether its control socket answers for this configuration; True where it has none."""
        return await _socket_says(self._ready) if isinstance(self._ready, SocketSays) else True

    @property
    def say_rejected(self) -> bool:
        """Whether it has said that it does not take the new configuration."""
        return bool(self._rejected and self._rejected.count)


async def _socket_says(ready: SocketSays) -> bool:
    with contextlib.suppress(OSError, asyncio.TimeoutError):  # not there yet: asked again
        return ready.expect in await asyncio.wait_for(_ask(ready), _ANSWER_SECONDS)
    return False


async def _ask(ready: SocketSays) -> bytes:
    reader, writer = await asyncio.open_unix_connection(str(ready.path))
    try:
        writer.write(ready.request)
        return await reader.read()
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
