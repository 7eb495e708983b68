"""The ends of the control port: of its life, where waiting calls are told, and of its file descriptors."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import socket

import h2.events
import pytest

from scistreamd.control.server import ControlServer

from .control_kit import (
    Bench,
    Doorman,
    Raw,
    bound,
    control_port,
    framed,
    new_uid,
    release,
    request,
    still_serves,
    text,
    until,
    update,
)

UNAVAILABLE, OK = 14, 0


async def test_waiting_calls_are_told_unavailable_and_their_ports_freed() -> None:
    async with control_port() as port, Raw.to(port) as raw:
        streams = [raw.call("/scistream.Control/req") for _ in range(20)]
        for stream in streams:
            raw.send(stream, framed(request(new_uid())))
        watch = raw.call("/grpc.health.v1.Health/Watch")
        raw.send(watch, framed(text(1, "")))
        await until(lambda: len(port.bench.waiting) == 20)
        await raw.read_until(lambda: raw.saw(h2.events.DataReceived, watch))
        closing = asyncio.ensure_future(port.server.close(5))
        for stream in [*streams, watch]:
            assert await raw.status(stream) == (UNAVAILABLE, "the control server is stopping")
        await raw.closed()
        assert raw.saw(h2.events.ConnectionTerminated)
        await closing
        assert len(port.bench.freed) == 20


async def test_an_update_at_work_may_finish_and_new_calls_are_refused() -> None:
    async with control_port() as port, Raw.to(port) as raw:
        port.bench.slow = asyncio.Event()
        stream = raw.call("/scistream.Control/update")
        raw.send(stream, framed(update(new_uid(), "h:1")))
        await until(lambda: bool(port.bench.updates))
        closing = asyncio.ensure_future(port.server.close(20))
        await asyncio.sleep(0)
        assert (await raw.exchange("/scistream.Control/release", release(new_uid())))[0] == UNAVAILABLE
        port.bench.slow.set()
        assert (await raw.status(stream))[0] == OK
        await closing


async def test_grace_ends() -> None:
    async with control_port() as port, Raw.to(port) as raw:
        port.bench.slow = asyncio.Event()
        stream = raw.call("/scistream.Control/update")
        raw.send(stream, framed(update(new_uid(), "h:1")))
        await until(lambda: bool(port.bench.updates))
        closing = asyncio.ensure_future(port.server.close(0.1))
        assert (await raw.status(stream))[0] == UNAVAILABLE
        await closing
        assert port.server.connections == 0


async def test_a_peer_that_never_closes_does_not_hold_up_the_end() -> None:
    async with control_port() as port, Raw.to(port) as raw:
        raw.send(raw.call("/scistream.Control/req"), framed(request(new_uid())))
        await until(lambda: len(port.bench.waiting) == 1)
        await port.server.close(0)
        assert port.server.connections == 0
        assert not port.bench.waiting


async def test_start_and_stop_again_and_again() -> None:
    for _ in range(20):
        async with control_port() as port, Raw.to(port) as raw:
            assert (await raw.exchange("/scistream.Control/release", release(new_uid())))[0] == OK


async def test_without_file_descriptors_it_rests_and_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with control_port() as port:
        # They wait in the backlog: this thread has not let the server accept yet.
        peers = [socket.create_connection((port.host, port.number)) for _ in range(3)]
        highest = max(int(fd) for fd in os.listdir("/proc/self/fd"))
        holders = [os.dup(peers[0].fileno()) for _ in range(20)]
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(highest, min(holders)), hard))
            await until(lambda: "cannot accept" in caplog.text)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for fd in holders:
                os.close(fd)
        assert port.server.connections == 0
        await until(lambda: port.server.connections == 3)
        await still_serves(port)
        for peer in peers:
            peer.close()
        assert [record.levelno for record in caplog.records if "cannot accept" in record.getMessage()] == [
            logging.WARNING
        ]


async def test_a_socket_that_cannot_listen_takes_the_others_down() -> None:
    good, bad = bound(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server = ControlServer(Bench(), Doorman())
    with pytest.raises(OSError):
        await server.start([good, bad], None)
    assert good.fileno() == bad.fileno() == -1
