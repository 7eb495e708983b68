"""Peers that are stuck, slow, wrong or hostile: each costs one socket, is told why, and harms nobody."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import struct

import h2.events
import pytest
from h2.errors import ErrorCodes

from .control_kit import Port, Raw, control_port, framed, new_uid, number, release, request, still_serves, text, until

RELEASE = "/scistream.Control/release"
REQ = "/scistream.Control/req"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = b"\0\0\0\4\0\0\0\0\0"
PING = b"\0\0\x08\6\0\0\0\0\0" + b"12345678"
OK, INVALID_ARGUMENT, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, UNIMPLEMENTED, INTERNAL = 0, 3, 4, 8, 12, 13


@pytest.fixture(autouse=True)
def clean_log(caplog: pytest.LogCaptureFixture) -> None:
    """No hostile input makes the log shout."""
    caplog.set_level(logging.WARNING)


@pytest.fixture(autouse=True)
def _nothing_shouted(caplog: pytest.LogCaptureFixture, clean_log: None):  # type: ignore[no-untyped-def]
    yield
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.parametrize(
    "says",
    [
        b"",
        PREFACE[:7],
        PREFACE,
        PREFACE + SETTINGS,
        PREFACE + SETTINGS + b"\0\0\x40\1\4\0\0",
        PREFACE + SETTINGS + PING,
    ],
    ids=["silence", "half a preface", "preface", "settings", "half a frame", "ping"],
)
async def test_a_peer_that_never_asks_is_closed(says: bytes) -> None:
    async with control_port(first_request_seconds=0.3) as port, Raw.to(port, preface=False) as raw:
        raw.writer.write(says)
        await ends(raw)
        await until(lambda: port.server.connections == 0)
        await still_serves(port)


@pytest.mark.parametrize(
    "says",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
        PREFACE + SETTINGS + b"\xff" * 100_000,
        PREFACE + SETTINGS + b"\0\0\5\1\5\0\0\0\1\xff\xff\xff\xff\xff",
        PREFACE + SETTINGS + b"\0\0\1\0\1\0\0\0\1x",
        PREFACE + SETTINGS + b"\0\0\4\x08\0\0\0\0\0\0\0\0\0",
    ],
    ids=["HTTP/1.1", "TLS on the plain port", "frame too long", "bad HPACK", "data on no stream", "window of 0"],
)
async def test_what_is_no_http2_is_closed_at_once(says: bytes) -> None:
    async with control_port() as port, Raw.to(port, preface=False) as raw:
        raw.writer.write(says)
        await ends(raw)
        await still_serves(port)


async def ends(raw: Raw) -> None:
    """Read to the end: a reset where the server has closed before all that was said had come."""
    with contextlib.suppress(ConnectionResetError):
        while await raw.reader.read(65536):
            pass


async def test_endless_tiny_frames_end_the_connection_even_after_a_request() -> None:
    async with control_port(frames=200, frames_per_second=10) as port, Raw.to(port) as raw:
        assert (await raw.exchange(RELEASE, release(new_uid())))[0] == OK
        for _ in range(300):
            raw.writer.write(PING)
        await raw.closed()
        assert [event.error_code for event in raw.events if isinstance(event, h2.events.ConnectionTerminated)] == [
            ErrorCodes.ENHANCE_YOUR_CALM
        ]
        await still_serves(port)


async def test_rapid_resets_end_the_connection_and_leave_no_call() -> None:
    async with control_port(frames=500, frames_per_second=10) as port, Raw.to(port) as raw:
        for _ in range(400):
            raw.h2.reset_stream(raw.call(REQ))
            raw.flush()
        await raw.closed()
        await until(lambda: port.server.connections == 0)
        assert not port.bench.granted
        await still_serves(port)


async def test_a_client_that_asks_much_is_not_taken_for_a_flood() -> None:
    async with control_port(frames=200, frames_per_second=1) as port, Raw.to(port) as raw:
        for _ in range(300):
            assert (await raw.exchange(RELEASE, release(new_uid())))[0] == OK


async def test_a_peer_that_does_not_read_stops_being_read() -> None:
    async with control_port(frames=10**9, first_request_seconds=1) as port:
        loop = asyncio.get_running_loop()
        with socket.create_connection((port.host, port.number)) as peer:
            peer.setblocking(False)
            await loop.sock_sendall(peer, PREFACE + SETTINGS)
            # The answers fill the peer's receive buffer, then our send buffer; then nothing more is taken.
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(_flood(peer), 0.5)
            await still_serves(port)
            await until(lambda: port.server.connections == 0)


async def _flood(peer: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    while True:
        await loop.sock_sendall(peer, PING * 1000)


async def test_an_announced_length_is_judged_before_reading() -> None:
    async with control_port() as port, Raw.to(port) as raw:
        stream = raw.call(RELEASE)
        raw.send(stream, framed(b"", length=2**32 - 1), end=False)
        code, message = await raw.status(stream)
        assert code == RESOURCE_EXHAUSTED and "4294967295 bytes" in message
        assert (await raw.exchange(RELEASE, release(new_uid())))[0] == OK


async def test_incomplete_messages_of_one_connection_are_bounded_together() -> None:
    async with control_port(message_seconds=1, pending_bytes=500_000) as port, Raw.to(port) as raw:
        streams = [raw.call(RELEASE) for _ in range(3)]
        for stream in streams:
            raw.send(stream, framed(b"x", length=200_000), end=False)
        assert (await raw.status(streams[2]))[0] == RESOURCE_EXHAUSTED
        assert (await raw.exchange(RELEASE, release(new_uid())))[0] == OK
        assert (await raw.status(streams[0]))[0] == DEADLINE_EXCEEDED


@pytest.mark.parametrize("data", [b"", b"\0\0", framed(b"ab", length=3)], ids=["nothing", "prefix", "message"])
async def test_a_message_that_never_completes_is_given_up(data: bytes) -> None:
    async with control_port(message_seconds=0.3) as port, Raw.to(port) as raw:
        stream = raw.call(RELEASE)
        raw.send(stream, data, end=False)
        assert (await raw.status(stream))[0] == DEADLINE_EXCEEDED
        assert (await raw.exchange(RELEASE, release(new_uid())))[0] == OK


@pytest.mark.parametrize("data", [b"", b"\0\0", framed(b"ab", length=3)], ids=["nothing", "prefix", "message"])
@pytest.mark.parametrize("path", [RELEASE, "/grpc.health.v1.Health/Check"])
async def test_a_message_that_is_cut_is_refused(data: bytes, path: str) -> None:
    async with control_port() as port, Raw.to(port) as raw:
        stream = raw.call(path)
        raw.send(stream, data)
        assert (await raw.status(stream))[0] == INVALID_ARGUMENT
        assert (await raw.exchange(RELEASE, release(new_uid())))[0] == OK


async def test_a_message_in_single_bytes_and_empty_frames_is_taken() -> None:
    uid = new_uid()
    async with control_port() as port, Raw.to(port) as raw:
        stream = raw.call(RELEASE)
        raw.send(stream, b"", end=False)
        for byte in framed(release(uid)):
            raw.send(stream, bytes([byte]), end=False)
            raw.send(stream, b"", end=False)
        assert await raw.status(stream) == (OK, "")


async def test_a_message_larger_than_the_window_is_taken() -> None:
    """The window is reopened while a message arrives; 200 000 bytes are three windows."""
    async with control_port() as port, Raw.to(port) as raw:
        stream = raw.call(RELEASE)
        rest = framed(release(new_uid()) + text(9, b"x" * 200_000))
        while rest:
            await raw.read_until(lambda: raw.h2.local_flow_control_window(stream) > 0)
            size = min(len(rest), raw.h2.local_flow_control_window(stream), 16384)
            raw.send(stream, rest[:size], end=size == len(rest))
            rest = rest[size:]
        assert await raw.status(stream) == (OK, "")


@pytest.mark.parametrize(
    ("flag", "headers", "code"),
    [(1, (("grpc-encoding", "gzip"),), UNIMPLEMENTED), (1, (), INTERNAL), (2, (), INTERNAL)],
)
async def test_compressed_messages(flag: int, headers: tuple[tuple[str, str], ...], code: int) -> None:
    async with control_port() as port, Raw.to(port) as raw:
        stream = raw.call(RELEASE, *headers)
        raw.send(stream, framed(release(new_uid()), flag=flag))
        assert (await raw.status(stream))[0] == code
        assert (await raw.exchange(RELEASE, release(new_uid()), ("grpc-encoding", "gzip")))[0] == OK


@pytest.mark.parametrize(
    ("header", "code"),
    [
        (("grpc-timeout", "0S"), DEADLINE_EXCEEDED),
        (("grpc-timeout", "1n"), DEADLINE_EXCEEDED),
        (("grpc-timeout", "99999999H"), OK),
        (("grpc-timeout", "9" * 400 + "H"), INVALID_ARGUMENT),
        (("grpc-timeout", "soon"), INVALID_ARGUMENT),
        (("trace-bin", "%%%"), OK),
        (("scistream-label-bin", "%%%"), INVALID_ARGUMENT),
        (("scistream-type", "Häproxy"), INVALID_ARGUMENT),
        (("x-name", "Häproxy"), OK),
    ],
)
async def test_odd_headers_are_answered(header: tuple[str, str], code: int) -> None:
    async with control_port() as port, Raw.to(port) as raw:
        assert (await raw.exchange(RELEASE, release(new_uid()), header))[0] == code
        assert (await raw.exchange(RELEASE, release(new_uid())))[0] == OK


@pytest.mark.parametrize("missing", [":method", ":path", "te", "content-type"])
async def test_missing_headers_harm_nobody(missing: str) -> None:
    async with control_port() as port, Raw.to(port) as raw:
        stream = raw.call(RELEASE, leave_out=missing)
        while not raw.saw(h2.events.ResponseReceived, stream) and await raw.read():
            pass
        await still_serves(port)


async def test_too_long_a_header_list_ends_the_connection() -> None:
    async with control_port() as port, Raw.to(port) as raw:
        raw.call(RELEASE, ("authorization", "x" * 12_000))
        raw.call(RELEASE, ("authorization", "y" * 16_000), ("x-more", "z" * 300))
        await raw.closed()
        await still_serves(port)


async def test_more_streams_than_announced_end_the_connection() -> None:
    async with control_port(streams=5) as port, Raw.to(port) as raw:
        raw.h2.remote_settings.max_concurrent_streams = 100
        raw.h2.remote_settings.acknowledge()
        for _ in range(6):
            raw.call(REQ)
        await raw.closed()
        await still_serves(port)


async def test_unknown_frames_are_ignored() -> None:
    async with control_port() as port, Raw.to(port) as raw:
        raw.writer.write(b"\0\0\2\xc8\0\0\0\0\0hi")
        assert (await raw.exchange(RELEASE, release(new_uid())))[0] == OK


async def test_more_after_the_message_does_no_harm() -> None:
    async with control_port() as port, Raw.to(port) as raw:
        stream = raw.call(RELEASE)
        raw.send(stream, framed(release(new_uid())) + b"more" * 1000, end=False)
        assert (await raw.status(stream))[0] == OK
        await raw.read_until(lambda: raw.saw(h2.events.StreamReset, stream))
        assert (await raw.exchange(RELEASE, release(new_uid())))[0] == OK


async def test_a_client_that_takes_no_reply_is_given_up() -> None:
    async with control_port(send_seconds=0.3) as port, Raw.to(port) as raw:
        raw.writer.write(struct.pack(">BHBBIHI", 0, 6, 4, 0, 0, 4, 0))
        stream = raw.call("/grpc.health.v1.Health/Check")
        raw.h2.reset_stream(stream)
        stream = raw.call("/scistream.Control/update")
        raw.send(stream, framed(text(1, new_uid()) + text(2, "h:1")))
        assert (await raw.status(stream))[0] == DEADLINE_EXCEEDED


@pytest.mark.parametrize("way", ["reset", "abort", "goaway", "half of it"])
async def test_a_caller_that_goes_away_while_it_waits_frees_its_ports(way: str) -> None:
    async with control_port() as port, Raw.to(port) as raw:
        stream = raw.call(REQ)
        raw.send(stream, framed(request(new_uid())))
        await until(lambda: len(port.bench.waiting) == 1)
        if way == "reset":
            raw.h2.reset_stream(stream, ErrorCodes.CANCEL)
            raw.flush()
        elif way == "goaway":
            raw.h2.close_connection()
            raw.flush()
        elif way == "abort":
            raw.writer.transport.abort()
        else:
            raw.writer.write_eof()
        await until(lambda: len(port.bench.freed) == 1)
        await still_serves(port)


async def test_a_dead_peer_of_a_waiting_request_is_found_by_ping() -> None:
    async with control_port(ping_seconds=0.2, ping_answer_seconds=0.3) as port, Raw.to(port) as raw:
        raw.send(raw.call(REQ), framed(request(new_uid())))
        await until(lambda: len(port.bench.waiting) == 1)
        await until(lambda: len(port.bench.freed) == 1)
        await until(lambda: port.server.connections == 0)


async def test_a_live_peer_of_a_waiting_request_is_left_alone() -> None:
    async with control_port(ping_seconds=0.1, ping_answer_seconds=1, idle_seconds=0.2) as port, Raw.to(port) as raw:
        stream = raw.call(REQ)
        raw.send(stream, framed(request(new_uid())))
        while sum(isinstance(event, h2.events.PingReceived) for event in raw.events) < 12:
            assert await raw.read()
        assert len(port.bench.waiting) == 1
        raw.h2.reset_stream(stream)
        raw.flush()
        # Without an open stream it is idle, and closed as such.
        await raw.closed()


async def test_an_idle_connection_is_closed_with_goaway() -> None:
    async with control_port(idle_seconds=0.2) as port, Raw.to(port) as raw:
        assert (await raw.exchange(RELEASE, release(new_uid())))[0] == OK
        await raw.closed()
        assert raw.saw(h2.events.ConnectionTerminated)
        await still_serves(port)


async def test_connections_are_counted_per_peer_and_in_all(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with control_port(connections_per_peer=3, connections=4, first_request_seconds=30) as port:
        peers = [await _from(port, "127.0.0.1") for _ in range(5)]
        await until(lambda: port.server.connections == 3)
        peers += [await _from(port, "127.0.0.2") for _ in range(3)]
        await until(lambda: port.server.connections == 4)
        refused = [peer for peer in peers if await _refused(peer)]
        assert len(refused) == 4
        assert len([record for record in caplog.records if "refused" in record.getMessage()]) == 1
        for _, writer in peers:
            writer.transport.abort()
        await until(lambda: port.server.connections == 0)
        await still_serves(port)


Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def _from(port: Port, source: str) -> Streams:
    return await asyncio.open_connection(port.host, port.number, local_addr=(source, 0))


async def _refused(peer: Streams) -> bool:
    """Whether the server closed without a word; its SETTINGS are the first word else."""
    try:
        return await peer[0].read(1) == b""
    except ConnectionResetError:
        return True


async def test_a_hundred_stuck_peers_block_nobody() -> None:
    async with control_port(first_request_seconds=1) as port:
        peers = [await _from(port, "127.0.0.1") for _ in range(100)]
        for _, writer in peers[::2]:
            writer.write(PREFACE + SETTINGS + b"\0\0\x40\1")
        await still_serves(port)
        await until(lambda: port.server.connections == 0)
        for _, writer in peers:
            writer.transport.abort()


async def test_numbers_beyond_32_bits_are_no_crash() -> None:
    async with control_port() as port, Raw.to(port) as raw:
        message = text(1, new_uid()) + text(2, "PROD") + number(3, 2**40)
        assert (await raw.exchange(REQ, message))[0] == INVALID_ARGUMENT
