"""The end of a stream arrives whole where the reader is slow, in every pair of data servers.

A slow reader makes every buffer on the way full, so that the end of the data
reaches a data server long before it has read the data. Who has sent all closes
at once.
"""

from __future__ import annotations

import asyncio
import hashlib
import socket

import pytest

from scistreamd.model import Endpoint, Security
from tests.service.dataplane_kit import Field, Pair, close, closing, endpoint, pairs, poured

MEBIBYTES = 8
STREAMS = 2
FIRST, LATE = b"first\n", b"late\n"
WORD = b"the other direction has ended\n"
# Of the reader's socket and its stream: the rest waits in the data servers and their sockets.
READER_BUFFER = 32768


async def read_slowly(reader: asyncio.StreamReader) -> tuple[int, str]:
    """Length and SHA-256 of all until the end; every writer on the way is faster."""
    digest, length = hashlib.sha256(), 0
    while data := await reader.read(READER_BUFFER):
        digest.update(data)
        length += len(data)
        await asyncio.sleep(0.002)
    return length, digest.hexdigest()


class Streams:
    """What both ends of the streams of one pair saw, and the server applications.

    The first line that a client sends says whether the direction of the bulk
    is ``late``: ends after the other one has ended, or is the first to end.
    """

    def __init__(self, pair: Pair) -> None:
        self._pair = str(pair)
        self.sent: list[tuple[str, str, bytes, int, str]] = []
        self.received: list[tuple[str, str, bytes, int, str]] = []
        self._read = asyncio.Semaphore(0)

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """The server application sends; its end of the connection is closed at once."""
        when = await reader.readline()
        self.sent.append((self._pair, "answer", when, *await poured(writer, MEBIBYTES)))

    async def ask(self, listener: Endpoint, when: bytes) -> None:
        """The client reads that."""
        reader, writer = await dial(listener)
        try:
            writer.write(when)
            if when == LATE:
                writer.write_eof()
            self.received.append((self._pair, "answer", when, *await read_slowly(reader)))
        finally:
            await close(writer)

    async def tell(self, listener: Endpoint, when: bytes) -> None:
        """The client sends; where it ends last, it closes at once."""
        reader, writer = await dial(listener)
        try:
            writer.write(when)
            if when == LATE:
                assert await reader.read() == WORD
            self.sent.append((self._pair, "question", when, *await poured(writer, MEBIBYTES)))
            if when == FIRST:
                writer.write_eof()
                assert await reader.read() == b""
        finally:
            await close(writer)
        await self._read.acquire()

    async def question(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """The server application reads that."""
        when = await reader.readline()
        if when == LATE:
            writer.write(WORD)
            writer.write_eof()
        self.received.append((self._pair, "question", when, *await read_slowly(reader)))
        self._read.release()


async def dial(to: Endpoint) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect, with the small buffer of a slow reader."""
    with_buffer = small_buffer(socket.socket())
    with_buffer.setblocking(False)
    await asyncio.get_running_loop().sock_connect(with_buffer, (str(to.address), to.port))
    return await asyncio.open_connection(sock=with_buffer, limit=READER_BUFFER)


def small_buffer(made: socket.socket) -> socket.socket:
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, READER_BUFFER)
    return made


async def slow_application(scene: Field, streams: Streams) -> Endpoint:
    """The server application that reads; what a listener has, its connections inherit."""
    listening = small_buffer(socket.socket())
    listening.bind(("127.0.0.1", 0))
    server = await asyncio.start_server(closing(streams.question), sock=listening, limit=READER_BUFFER)
    scene.stack.push_async_callback(server.wait_closed)
    scene.stack.callback(server.close)
    return endpoint("127.0.0.1", listening.getsockname()[1])


async def run(scene: Field, pair: Pair) -> None:
    """All kinds of streams through one pair at the same time."""
    streams = Streams(pair)
    answers, questions = await scene.application(streams.answer), await slow_application(scene, streams)
    asking, telling = await scene.tunnel(pair, answers, questions)
    kinds = [(streams.ask, asking), (streams.tell, telling)]
    await asyncio.gather(*(kind(to, when) for kind, to in kinds for when in (FIRST, LATE) for _ in range(STREAMS)))
    assert sorted(streams.received) == sorted(streams.sent)


@pytest.mark.timeout(600)
async def test_slow_readers_get_all(scene: Field) -> None:
    results = await asyncio.gather(*(run(scene, pair) for pair in pairs(*Security)), return_exceptions=True)
    assert [result for result in results if result is not None] == []
