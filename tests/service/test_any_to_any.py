"""Any data server type to any other, with real programs: data, refusals, secrecy, retarget, drain."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import socket
import ssl
import time
from pathlib import Path
from typing import cast

import pytest

from scistreamd import sockets
from scistreamd.errors import Code, ScistreamError
from scistreamd.keys import TunnelKeys
from scistreamd.model import Endpoint, Role, Security, Uid
from scistreamd.plans import Bind, Tuning
from tests.service.dataplane_kit import (
    CHUNK,
    MIB,
    TYPES,
    Field,
    Handler,
    Pair,
    answers,
    connected,
    drained,
    echo,
    endpoint,
    pairs,
    poured,
)
from tests.service.dataplane_strangers import FalseGateway, Tap, context, false_gateways, records, refusal, strangers

TLS_PAIRS = list(pairs(Security.TLS))
ALL_PAIRS = list(pairs(*Security))
MARKER = b"beamline 7-BM, frame 000001: not for the eyes of others"

TLS_1_2, TLS_1_3 = 0x0303, 0x0304
TLS_AES_128_GCM_SHA256 = 0x1301
ECDHE_PSK_WITH_NULL_SHA = 0xC039  # RFC 5489


def letter(text: bytes) -> Handler:
    """An application that says its letter and then echoes."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(text)
        await echo(reader, writer)

    return handle


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("pair", ALL_PAIRS, ids=str)
async def test_data_goes_through_byte_exact(scene: Field, pair: Pair, address: str) -> None:
    seen: list[tuple[tuple[int, str], tuple[int, str]]] = []

    async def application(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sent, received = await asyncio.gather(poured(writer, 4), drained(reader))
        seen.append((sent, received))

    (listener,) = await scene.tunnel(pair, await scene.application(application, address), address=address)

    async def send(writer: asyncio.StreamWriter) -> tuple[int, str]:
        sent = await poured(writer, 4)
        writer.write_eof()
        return sent

    async with connected(listener) as (reader, writer):
        sent, received = await asyncio.gather(send(writer), drained(reader))
    assert seen == [(received, sent)]


@pytest.mark.parametrize("pair", TLS_PAIRS, ids=str)
async def test_strangers_are_refused_and_disturb_nobody(scene: Field, pair: Pair, tmp_path: Path) -> None:
    reached: list[bytes] = []

    async def application(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(CHUNK):
            reached.append(data)
            writer.write(data)

    uid = Uid.random()
    inbound = await scene.gateway(pair.inbound, Role.PROD, await scene.application(application), uid=uid)
    outbound = await scene.gateway(pair.outbound, Role.CONS, *inbound.listeners, uid=uid)
    another = await scene.gateway(pair.outbound, Role.CONS, *inbound.listeners, uid=Uid.random())
    async with connected(outbound.listeners[0]) as (reader, writer):
        writer.write(b"before")
        assert await reader.readexactly(6) == b"before"
        assert not await answers(another.listeners[0], b"another UID")
        for who, client in strangers(tmp_path, uid).items():
            assert await refusal(inbound.listeners[0], client), f"{who} was let in"
        ours = context(tmp_path, TunnelKeys().files(uid, Role.CONS, Security.TLS))
        assert not await refusal(inbound.listeners[0], ours), "this test would not see who is let in"
        writer.write(b"after")
        assert await reader.readexactly(5) == b"after"
    assert await answers(outbound.listeners[0], b"new")
    assert reached == [b"before", b"let me in", b"after", b"new"]


@pytest.mark.parametrize("kind", TYPES)
async def test_a_false_inbound_gateway_gets_nothing_to_read(scene: Field, kind: str, tmp_path: Path) -> None:
    uid = Uid.random()
    for who, tls in false_gateways(tmp_path, uid).items():
        false = FalseGateway()
        outbound = await scene.gateway(kind, Role.CONS, await false.start(scene, tls), uid=uid)
        assert not await answers(outbound.listeners[0], MARKER), who
        assert false.connections == 1, who
        assert false.read == b"", f"{who} was believed"
    true = FalseGateway()
    files = TunnelKeys().files(uid, Role.PROD, Security.TLS)
    outbound = await scene.gateway(
        kind, Role.CONS, await true.start(scene, context(tmp_path, files, server=True)), uid=uid
    )
    assert not await answers(outbound.listeners[0], MARKER)
    assert true.read == MARKER, "this test would not see who is believed"


@pytest.mark.parametrize("pair", ALL_PAIRS, ids=str)
async def test_what_a_tap_on_the_hop_sees(scene: Field, pair: Pair) -> None:
    uid, tap = Uid.random(), Tap()
    inbound = await scene.gateway(
        pair.inbound, Role.PROD, await scene.application(echo), uid=uid, security=pair.security
    )
    hop = await tap.start(scene, inbound.listeners[0])
    outbound = await scene.gateway(pair.outbound, Role.CONS, hop, uid=uid, security=pair.security)
    assert await answers(outbound.listeners[0], MARKER)
    hidden = pair.security is Security.TLS
    assert (MARKER in tap.upward, MARKER in tap.downward) == (not hidden, not hidden)
    if pair.security is Security.TLS:
        assert tap.agreed() == (TLS_1_3, TLS_AES_128_GCM_SHA256)
    elif pair.security is Security.PSK_NULL:
        assert tap.agreed() == (TLS_1_2, ECDHE_PSK_WITH_NULL_SHA)
    assert not any(secret in tap.upward + tap.downward for secret in (uid.bytes, uid.reveal().encode()))


@pytest.mark.parametrize("kind", TYPES)
async def test_records_are_as_small_as_a_slow_tunnel_needs_them(scene: Field, kind: str) -> None:
    for asked, most in ((0, 16384), (4096, 4096)):
        uid, tap, tuning = Uid.random(), Tap(), Tuning(record_bytes=asked)
        inbound = await scene.gateway(kind, Role.PROD, await scene.application(echo), uid=uid, tuning=tuning)
        hop = await tap.start(scene, inbound.listeners[0])
        outbound = await scene.gateway(kind, Role.CONS, hop, uid=uid, tuning=tuning)
        async with connected(outbound.listeners[0]) as (reader, writer):
            sending = asyncio.create_task(poured(writer, 2))
            got = 0
            while got < 2 * MIB:
                got += len(await reader.read(CHUNK))
            sent = await sending
        assert sent[0] == got == 2 * MIB
        for way in (tap.upward, tap.downward):
            # Of application data; TLS 1.3 adds the kind and a tag of 16 bytes (RFC 8446 5.2).
            assert most / 2 < max(records(way)) - 17 <= most


async def test_psk_null_refuses_another_key_and_none(scene: Field, tmp_path: Path) -> None:
    uid = Uid.random()
    inbound = await scene.gateway(
        "Stunnel", Role.PROD, await scene.application(echo), uid=uid, security=Security.PSK_NULL
    )
    for each, passes in ((Uid.random(), False), (uid, True)):
        outbound = await scene.gateway("Stunnel", Role.CONS, *inbound.listeners, uid=each, security=Security.PSK_NULL)
        assert await answers(outbound.listeners[0]) == passes
    # What two SciStream 1.2 peers agree on: no key, no certificate, no cipher.
    anonymous = context(tmp_path, None)
    anonymous.maximum_version = ssl.TLSVersion.TLSv1_2
    anonymous.set_ciphers("AECDH-NULL-SHA:@SECLEVEL=0")
    assert await refusal(inbound.listeners[0], anonymous)


@pytest.mark.parametrize("pair", TLS_PAIRS, ids=str)
async def test_who_closes_before_sending_anything_is_answered(scene: Field, pair: Pair) -> None:
    """The way between the gateways is slow, so the client's direction ends before the hop stands."""

    async def application(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.read() == b""
        writer.write(MARKER)

    uid = Uid.random()
    inbound = await scene.gateway(pair.inbound, Role.PROD, await scene.application(application), uid=uid)
    slow = Tap(after=0.2)
    hop = await slow.start(scene, inbound.listeners[0])
    outbound = await scene.gateway(pair.outbound, Role.CONS, hop, uid=uid)
    [entry] = outbound.listeners

    def closing() -> tuple[bytes, bool]:
        """What is answered, and whether it did close at once: a busy machine may let it wait in between."""
        began = time.monotonic()
        with socket.create_connection((str(entry.address), entry.port)) as client:
            time.sleep(0.002)
            client.shutdown(socket.SHUT_WR)
            at_once = time.monotonic() - began < 0.012  # HAProxy waits for it for 20 ms
            return b"".join(iter(lambda: client.recv(CHUNK), b"")), at_once

    got: list[bytes] = []
    while len(got) < 4:
        answer, at_once = await asyncio.to_thread(closing)
        got += [answer] if at_once else []
    await slow.ended()
    assert got.count(MARKER) >= 3, got


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("role", Role)
async def test_an_address_that_refuses_is_followed_by_the_next(scene: Field, kind: str, role: Role) -> None:
    uid, application = Uid.random(), await scene.application(echo)
    dead = endpoint("::1", application.port)
    if role is Role.PROD:
        inbound = await scene.gateway(kind, role, (dead, application), uid=uid)
        outbound = await scene.gateway("Nginx", Role.CONS, *inbound.listeners, uid=uid)
    else:
        inbound = await scene.gateway("Nginx", Role.PROD, application, uid=uid)
        live = inbound.listeners[0]
        outbound = await scene.gateway(kind, role, (endpoint("::1", live.port), live), uid=uid)
    assert [await answers(outbound.listeners[0]) for _ in range(5)] == [True] * 5


@pytest.mark.parametrize("kind", TYPES)
async def test_the_ipv6_wildcard_takes_ipv4_and_each_listener_its_own_target(scene: Field, kind: str) -> None:
    uid = Uid.random()
    applications = [await scene.application(letter(text)) for text in (b"A", b"B", b"C")]
    inbound = await scene.gateway(kind, Role.PROD, *applications, uid=uid, address="::")
    for address in ("127.0.0.1", "::1"):
        hop = [endpoint(address, listener.port) for listener in inbound.listeners]
        outbound = await scene.gateway(kind, Role.CONS, *hop, uid=uid)
        for listener, text in zip(outbound.listeners, (b"A", b"B", b"C"), strict=True):
            async with connected(listener) as (reader, _):
                assert await reader.readexactly(1) == text


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("role", Role)
async def test_retarget_takes_new_connections_elsewhere_and_breaks_none(scene: Field, kind: str, role: Role) -> None:
    uid = Uid.random()
    applications = [await scene.application(letter(text)) for text in (b"A", b"B")]
    if role is Role.PROD:
        moved = await scene.gateway(kind, Role.PROD, applications[0], uid=uid)
        entry = (await scene.gateway("Haproxy", Role.CONS, *moved.listeners, uid=uid)).listeners[0]
        targets = applications
    else:
        inbound = await scene.gateway("Haproxy", Role.PROD, *applications, uid=uid)
        targets = list(inbound.listeners)
        moved = await scene.gateway(kind, Role.CONS, targets[0], uid=uid)
        entry = moved.listeners[0]
    async with contextlib.AsyncExitStack() as stack:
        running = []
        for turn in range(4):
            if turn:
                await moved.serve(targets[turn % 2])
            running.append(await stack.enter_async_context(connected(entry)))
            assert await running[-1][0].readexactly(1) == (b"A", b"B")[turn % 2]
            for _ in range(10):
                async with connected(entry) as (reader, _):
                    assert await reader.readexactly(1) == (b"A", b"B")[turn % 2]
            for reader, writer in running:
                block = os.urandom(CHUNK)
                writer.write(block)
                assert await reader.readexactly(CHUNK) == block


@pytest.mark.parametrize("kind", TYPES)
async def test_a_configuration_that_is_refused_changes_nothing(scene: Field, kind: str) -> None:
    uid = Uid.random()
    inbound = await scene.gateway(kind, Role.PROD, await scene.application(echo), uid=uid)
    outbound = await scene.gateway("Nginx", Role.CONS, *inbound.listeners, uid=uid)
    async with connected(outbound.listeners[0]) as (reader, writer):
        writer.write(b"1")
        assert await reader.readexactly(1) == b"1"
        program = inbound.render(await scene.application(letter(b"B")))
        broken = dataclasses.replace(
            program, config={name: f"{text}\nnonsense {{\n" for name, text in program.config.items()}
        )
        with pytest.raises(ScistreamError) as failure:
            await inbound.held.serve(broken, {})
        assert failure.value.code is Code.FAILED_PRECONDITION
        writer.write(b"2")
        assert await reader.readexactly(1) == b"2"
    assert await answers(outbound.listeners[0])


@pytest.mark.parametrize("kind", [kind for kind in TYPES if kind != "Stunnel"])
async def test_drain_lets_a_stream_end_by_itself(scene: Field, kind: str) -> None:
    uid = Uid.random()
    inbound = await scene.gateway("Nginx", Role.PROD, await scene.application(echo), uid=uid)
    outbound = await scene.gateway(kind, Role.CONS, *inbound.listeners, uid=uid)
    async with connected(outbound.listeners[0]) as (reader, writer):
        writer.write(b"1")
        assert await reader.readexactly(1) == b"1"
        closed = asyncio.create_task(outbound.held.drain(60))
        while await answers(outbound.listeners[0]):
            continue
        writer.write(b"2")
        assert await reader.readexactly(1) == b"2"
        assert not closed.done()
    await closed


@pytest.mark.parametrize("kind", TYPES)
async def test_a_stranger_who_says_nothing_is_dropped_and_an_idle_stream_is_not(scene: Field, kind: str) -> None:
    uid = Uid.random()
    inbound = await scene.gateway(kind, Role.PROD, await scene.application(echo), uid=uid)
    outbound = await scene.gateway(kind, Role.CONS, *inbound.listeners, uid=uid)
    async with connected(outbound.listeners[0]) as (reader, writer):
        writer.write(b"1")
        assert await reader.readexactly(1) == b"1"
        half_a_hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"
        await asyncio.gather(*(dropped(inbound.listeners[0], greeting) for greeting in (b"", half_a_hello)))
        writer.write(b"2")
        assert await reader.readexactly(1) == b"2"


async def dropped(by: Endpoint, greeting: bytes) -> None:
    """Return when a client who says no more than this is dropped."""
    async with connected(by) as (reader, writer):
        writer.write(greeting)
        with contextlib.suppress(ConnectionError):
            await reader.read()


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("kind", TYPES)
async def test_no_more_connections_at_a_time_than_the_tunnel_may_have(scene: Field, kind: str, role: Role) -> None:
    came = 0

    async def counting(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal came
        came += 1
        await echo(reader, writer)

    two, uid = Tuning(connections=2), Uid.random()
    target = await scene.application(counting)
    inbound = await scene.gateway(kind, Role.PROD, target, uid=uid, tuning=two if role is Role.PROD else None)
    outbound = await scene.gateway(
        kind, Role.CONS, *inbound.listeners, uid=uid, tuning=two if role is Role.CONS else None
    )
    [listener] = outbound.listeners
    async with contextlib.AsyncExitStack() as last, contextlib.AsyncExitStack() as streams:
        for _ in range(2):
            reader, writer = await streams.enter_async_context(connected(listener))
            writer.write(b"here")
            assert await reader.readexactly(4) == b"here"
        reader, writer = await last.enter_async_context(connected(listener))
        writer.write(b"one too many")
        # HAProxy lets it wait, the others turn it away.
        with contextlib.suppress(asyncio.TimeoutError, ConnectionError):
            await asyncio.wait_for(reader.read(1), 0.3)
        assert came == 2
    deadline = asyncio.get_running_loop().time() + 60
    while not await answers(listener):
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.05)


def test_inherited_sockets_do_not_block() -> None:
    """nginx does not see to it: a worker hung in accept(2), with its streams, when another was faster."""
    with contextlib.ExitStack() as stack:
        bind = Bind(endpoint("127.0.0.1", free_port()), udp=True)
        held = [stack.enter_context(each) for each in sockets.hold([bind], 60)]
        assert [os.get_blocking(each.fileno()) for each in held] == [False, False]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Datagrams(asyncio.DatagramProtocol):
    """Keeps what comes, or sends it back in capitals."""

    def __init__(self, *, answer: bool) -> None:
        self._answer = answer
        self.received: asyncio.Queue[bytes] = asyncio.Queue()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str | None, int]) -> None:
        if self._answer:
            self._transport.sendto(data.upper(), addr)
        self.received.put_nowait(data)


async def test_nginx_forwards_udp_and_tcp_of_one_port(scene: Field) -> None:
    loop, application = asyncio.get_running_loop(), await scene.application(echo)
    server, _ = await loop.create_datagram_endpoint(
        lambda: Datagrams(answer=True), ("127.0.0.1", application.port), family=socket.AF_INET
    )
    scene.stack.callback(server.close)
    gateway = await scene.gateway("Nginx", Role.CONS, application, uid=Uid.random(), security=Security.NONE, udp=True)
    listener = gateway.listeners[0]
    client, answered = await loop.create_datagram_endpoint(
        lambda: Datagrams(answer=False), remote_addr=(str(listener.address), listener.port)
    )
    scene.stack.callback(client.close)
    for text in (b"one", b"two"):
        client.sendto(text)
        assert await answered.received.get() == text.upper()
    assert await answers(listener)
