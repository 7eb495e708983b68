"""Streams that are idle or closed in one direction live on, in every pair of data servers.

The waits are real, two minutes; all pairs wait at the same time. test_streams_are_not_cut.py runs this program
beside the other tests. Its exit status is 0 where all streams lived, else it prints which did not.
"""

from __future__ import annotations

import asyncio
import signal
import sys

from scistreamd.model import Endpoint, Security
from scistreamd.process import ProcessLauncher
from scistreamd.runtime import runtime_directory
from tests.service.dataplane_kit import Field, Pair, close, connected, drained, echo, field, pairs, poured

IDLE_SECONDS = 121
HALF_CLOSED_SECONDS = 75
MEBIBYTES = 100
QUESTION = b"the whole question, and no more\n" * 4096


class LateAnswer:
    """The client sends, shuts down its write side, waits, and reads 100 MiB."""

    def __init__(self, pair: Pair) -> None:
        self._pair = pair
        self._sent = (0, "")
        self._question = b""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._question = await reader.read(-1)
        await asyncio.sleep(HALF_CLOSED_SECONDS)
        self._sent = await poured(writer, MEBIBYTES)

    async def run(self, listener: Endpoint) -> None:
        async with connected(listener) as (reader, writer):
            writer.write(QUESTION)
            writer.write_eof()
            received = await drained(reader)
        assert self._question == QUESTION, self._pair
        assert received == self._sent, self._pair


class LateQuestion:
    """The mirror: the server application sends and shuts down first, the client sends 100 MiB later."""

    def __init__(self, pair: Pair) -> None:
        self._pair = pair
        self._received = (0, "")
        self._ended = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            writer.write(QUESTION)
            writer.write_eof()
            self._received = await drained(reader)
        finally:
            self._ended.set()

    async def run(self, listener: Endpoint) -> None:
        reader, writer = await asyncio.open_connection(str(listener.address), listener.port)
        try:
            assert await reader.read(-1) == QUESTION, self._pair
            await asyncio.sleep(HALF_CLOSED_SECONDS)
            sent = await poured(writer, MEBIBYTES)
        finally:
            await close(writer)
        await self._ended.wait()
        assert self._received == sent, self._pair


async def idle(listener: Endpoint) -> None:
    """A connection on which nothing happens lives."""
    async with connected(listener) as (reader, writer):
        writer.write(b"1")
        assert await reader.readexactly(1) == b"1"
        await asyncio.sleep(IDLE_SECONDS)
        writer.write(b"2")
        assert await reader.readexactly(1) == b"2"


async def silent(listener: Endpoint) -> None:
    """So does one on which nothing has happened yet."""
    async with connected(listener) as (reader, writer):
        await asyncio.sleep(IDLE_SECONDS)
        writer.write(b"1")
        assert await reader.readexactly(1) == b"1"


async def live(scene: Field) -> list[BaseException]:
    """Why streams did not live."""
    echoing = await scene.application(echo)
    streams = []
    for pair in pairs(*Security):
        answer, question = LateAnswer(pair), LateQuestion(pair)
        applications = [await scene.application(each.serve) for each in (answer, question)]
        listeners = await scene.tunnel(pair, *applications, echoing)
        streams += [answer.run(listeners[0]), question.run(listeners[1]), idle(listeners[2]), silent(listeners[2])]
    print(f"{len(streams)} streams wait", flush=True)
    results = await asyncio.gather(*streams, return_exceptions=True)
    return [result for result in results if result is not None]


async def main() -> int:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    with runtime_directory() as runtime:
        async with field(ProcessLauncher(runtime)) as scene:
            failures = await live(scene)
    for failure in failures:
        print(repr(failure))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
