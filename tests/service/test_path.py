"""The test of the hop between the gateways: real data servers, real faults; the application sees nothing of it."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from scistreamd import pathtest
from scistreamd.config import Settings
from scistreamd.daemon import Gateway, Plugged
from scistreamd.dataserver.stunnel import ANSWER_SCRIPT
from scistreamd.errors import ScistreamError
from scistreamd.gate import Grant, Verb
from scistreamd.hop import Finding, Outcome
from scistreamd.keys import TunnelKeys
from scistreamd.manager import Manager
from scistreamd.model import Caller, Endpoint, Options, PortRange, Role, Security, Target, Uid
from scistreamd.pathtest import PathTest
from scistreamd.runtime import runtime_directory
from tests.service.dataplane_kit import CHUNK, TYPES, Field, Handler, Pair, answers, connected, echo, endpoint, pairs
from tests.service.dataplane_strangers import context
from tests.service.netns_kit import in_netns, needs_root, run

LOOPBACK = ipaddress.ip_address("127.0.0.1")
SECONDS = 20.0  # under load; what is told apart below does not depend on it


class Counting:
    """An application that counts who connects, and echoes."""

    def __init__(self) -> None:
        self.accepted = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        await echo(reader, writer)


async def found(
    listener: Endpoint, uid: Uid, security: Security = Security.TLS, throughput: float = 0, seconds: float = SECONDS
) -> Finding:
    return await PathTest(TunnelKeys()).test(uid, security, listener, seconds, throughput)


def dead() -> Endpoint:
    """Where nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return endpoint("127.0.0.1", probe.getsockname()[1])


@pytest.mark.parametrize("pair", list(pairs(Security.TLS)), ids=str)
async def test_a_good_hop_and_no_byte_for_the_application(scene: Field, pair: Pair) -> None:
    uid, one, other = Uid.random(), Counting(), Counting()
    applications = [await scene.application(each) for each in (one, other)]
    inbound = await scene.gateway(pair.inbound, Role.PROD, *applications, uid=uid)
    outbound = await scene.gateway(pair.outbound, Role.CONS, *inbound.listeners, uid=uid)
    for listener in inbound.listeners:
        good = await found(listener, uid, throughput=0.3)
        assert (good.outcome, good.hint) == (Outcome.OK, ""), good
        assert min(good.connect_usec, good.handshake_usec, good.rtt_usec) > 0
        assert min(good.sent_bytes, good.throughput) > 100_000, good
    assert (one.accepted, other.accepted) == (0, 0)
    # The same hop, for what it is there for; also after a reload.
    assert [await answers(listener) for listener in outbound.listeners] == [True, True]
    await inbound.serve(*reversed(applications))
    assert (await found(inbound.listeners[1], uid)).outcome is Outcome.OK
    assert (one.accepted, other.accepted) == (1, 1)


@pytest.mark.parametrize("kind", TYPES)
async def test_an_application_that_is_down_is_another_matter(scene: Field, kind: str) -> None:
    uid = Uid.random()
    inbound = await scene.gateway(kind, Role.PROD, dead(), uid=uid, address="::1")
    assert (await found(inbound.listeners[0], uid)).outcome is Outcome.OK


@pytest.mark.parametrize("kind", TYPES)
async def test_another_uid_gets_no_answer_and_no_application(scene: Field, kind: str) -> None:
    application = Counting()
    inbound = await scene.gateway(kind, Role.PROD, await scene.application(application), uid=Uid.random())
    other = await found(inbound.listeners[0], Uid.random())
    assert other.outcome is Outcome.WRONG_UID
    assert "same UID" in other.hint
    assert application.accepted == 0


@pytest.mark.parametrize("kind", TYPES)
async def test_the_answerer_itself_refuses_who_does_not_know_the_uid(scene: Field, kind: str, tmp_path: Path) -> None:
    """Who believes every server, and shows no certificate or another tunnel's, hears nothing of it."""
    uid, application = Uid.random(), Counting()
    inbound = await scene.gateway(kind, Role.PROD, await scene.application(application), uid=uid)
    theirs = TunnelKeys().files(Uid.random(), Role.CONS, Security.TLS)
    ours = TunnelKeys().files(uid, Role.CONS, Security.TLS)
    heard = [await asked(inbound.listeners[0], tmp_path, files) for files in (None, theirs, ours)]
    assert heard[:2] == [b"", b""]
    assert heard[2].startswith(b"HTTP/1.1 200"), "this test would not see who is let in"
    assert application.accepted == 0


async def asked(listener: Endpoint, directory: Path, files: object) -> bytes:
    tls = context(directory, files)  # type: ignore[arg-type]  # as TunnelKeys gives them
    name = "test.scistream.invalid"
    try:
        reader, writer = await asyncio.open_connection(
            str(listener.address), listener.port, ssl=tls, server_hostname=name
        )
    except OSError:
        return b""
    try:
        writer.write(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
        return await reader.read(100)
    except OSError:
        return b""
    finally:
        writer.transport.abort()


async def test_stunnels_answerer_writes_an_answer_at_once(scene: Field) -> None:
    """What it writes in two parts costs the round trip of the test a delayed acknowledgement, 40 ms."""
    inbound = await scene.gateway("Stunnel", Role.PROD, dead(), uid=Uid.random())
    script = Path(inbound.held.places.config) / ANSWER_SCRIPT
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, its:
        run = await asyncio.create_subprocess_exec(
            "/bin/sh", script, stdin=asyncio.subprocess.PIPE, stdout=its.fileno()
        )
        await run.communicate(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
        answer = ours.recv(4096)
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.endswith(b"\r\n\r\nscistream test")


class Cutting:
    """A relay on the way that cuts so many connections once they have carried a mebibyte."""

    def __init__(self, to: Endpoint, times: int) -> None:
        self._to = to
        self.times = times

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        left = 1 << 20 if self.times > 0 else 1 << 40
        self.times -= 1
        async with connected(self._to) as (back, forth):
            answers = asyncio.create_task(self._relay(back, writer, 1 << 40))
            await self._relay(reader, forth, left)
            answers.cancel()
            await asyncio.wait([answers])

    @staticmethod
    async def _relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, left: int) -> None:
        while left > 0 and (data := await reader.read(CHUNK)):
            left -= len(data)
            writer.write(data)
            await writer.drain()


async def test_a_hop_that_fails_once_while_it_is_measured_is_measured_again(scene: Field) -> None:
    uid = Uid.random()
    inbound = await scene.gateway("Nginx", Role.PROD, dead(), uid=uid)
    relays = [await scene.application(Cutting(inbound.listeners[0], times)) for times in (1, 2)]
    once, again = [await found(each, uid, throughput=0.3) for each in relays]
    assert (once.outcome, once.sent_bytes > 1 << 20) == (Outcome.OK, True), once
    assert (again.outcome, again.rtt_usec > 0) == (Outcome.RESET, True), again


async def test_a_measurement_that_breaks_off_now_and_then_goes_on(
    scene: Field, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pathtest, "_MUCH", 0)
    uid = Uid.random()
    inbound = await scene.gateway("Nginx", Role.PROD, dead(), uid=uid)
    cutting = Cutting(inbound.listeners[0], 3)
    listener = await scene.application(cutting)
    # A slow machine needs longer for what is cut off.
    while cutting.times > 0:
        going = await found(listener, uid, throughput=1.0)
        assert (going.outcome, going.sent_bytes > 0, going.throughput > 0) == (Outcome.OK, True, True), going


async def test_what_listens_nowhere_refuses() -> None:
    nothing = await found(dead(), Uid.random())
    assert (nothing.outcome, nothing.connect_usec) == (Outcome.REFUSED, 0)
    assert "s2ctl list" in nothing.hint


async def resets(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Hang up hard once the other side has said something."""
    await reader.read(1)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def hangs_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(100)


async def greets(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"220 mail.example.org ESMTP\r\n")
    await reader.read()


async def says_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


@pytest.mark.parametrize(
    ("behaviour", "outcome"),
    [
        (resets, Outcome.RESET),
        (hangs_up, Outcome.RESET),
        (greets, Outcome.OTHER_SECURITY),
        (echo, Outcome.OTHER_SECURITY),
    ],
)
async def test_what_is_no_gateway(scene: Field, behaviour: Handler, outcome: Outcome) -> None:
    assert (await found(await scene.application(behaviour), Uid.random())).outcome is outcome


async def test_what_connects_and_says_nothing(scene: Field) -> None:
    silent = await found(await scene.application(says_nothing), Uid.random(), seconds=1.5)
    assert (silent.outcome, silent.connect_usec > 0) == (Outcome.SILENT, True)


@pytest.mark.parametrize(
    ("kind", "security"), [("Haproxy", Security.NONE), ("Nginx", Security.NONE), ("Stunnel", Security.PSK_NULL)]
)
async def test_another_security_mode_there(scene: Field, kind: str, security: Security) -> None:
    uid = Uid.random()
    inbound = await scene.gateway(kind, Role.PROD, await scene.application(echo), uid=uid, security=security)
    other = await found(inbound.listeners[0], uid)
    assert other.outcome is Outcome.OTHER_SECURITY, other
    assert "--security" in other.hint


async def test_a_gateway_before_this_answer_existed(scene: Field, tmp_path: Path) -> None:
    """Its certificate lacks the name: nothing is said, for an application would hear it."""
    uid, heard = Uid.random(), []
    files = TunnelKeys().files(uid, Role.CONS, Security.TLS)  # its SAN is another one, its usage too
    tls = context(tmp_path, files, server=True)

    async def application(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.read(100))

    server = await asyncio.start_server(application, "127.0.0.1", 0, ssl=tls)
    async with server:
        there = endpoint("127.0.0.1", server.sockets[0].getsockname()[1])
        assert (await found(there, uid)).outcome in (Outcome.NO_ANSWERER, Outcome.WRONG_UID)
    assert not any(heard)


async def test_what_psk_null_and_none_can_show(scene: Field) -> None:
    uid, application = Uid.random(), Counting()
    target = await scene.application(application)
    psk = await scene.gateway("Stunnel", Role.PROD, target, uid=uid, security=Security.PSK_NULL)
    tls = await scene.gateway("Stunnel", Role.PROD, target, uid=uid)
    plain = await scene.gateway("Nginx", Role.PROD, target, uid=uid, security=Security.NONE)
    modes = {
        "psk-psk": (psk, Security.PSK_NULL, Outcome.UNPROVED),
        "psk-tls": (tls, Security.PSK_NULL, Outcome.OTHER_SECURITY),
        "psk-none": (plain, Security.PSK_NULL, Outcome.OTHER_SECURITY),
    }
    for name, (there, security, outcome) in modes.items():
        assert (await found(there.listeners[0], uid, security)).outcome is outcome, name
    assert (await found(plain.listeners[0], uid, Security.NONE)).outcome is Outcome.UNPROVED


@needs_root
@pytest.mark.parametrize(
    ("verdict", "outcome"),
    [
        ("drop", Outcome.FILTERED),
        ("reject with icmpx type admin-prohibited", Outcome.FILTERED),
        ("reject", Outcome.FILTERED),  # by ICMP, port unreachable
        ("reject with tcp reset", Outcome.REFUSED),
        ("reject with icmpx type host-unreachable", Outcome.UNREACHABLE),
    ],
)
@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_a_firewall(verdict: str, outcome: Outcome, address: str) -> None:
    @in_netns
    async def filtered() -> None:
        rule = f"tcp dport 5100 {verdict}"
        run(
            "nft",
            f"add table inet t; add chain inet t c {{ type filter hook input priority 0; }}; add rule inet t c {rule}",
        )
        there = await found(endpoint(address, 5100), Uid.random(), seconds=1.5)
        assert there.outcome is outcome, there
        by_icmp = verdict.startswith("reject") and outcome is not Outcome.REFUSED
        assert by_icmp == (f" {address} " in f"{there.message} ".replace(",", " "))

    filtered()


@needs_root
def test_no_route() -> None:
    @in_netns
    async def unreachable() -> None:
        assert (await found(endpoint("192.0.2.1", 5100), Uid.random())).outcome is Outcome.UNREACHABLE

    unreachable()


async def test_who_asked_goes_away(scene: Field) -> None:
    """The thread ends with its caller."""
    there = await scene.application(says_nothing)
    waiting = asyncio.create_task(found(there, Uid.random(), seconds=600))
    await asyncio.sleep(0.2)
    waiting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await waiting
    assert waiting.cancelled()


GATEWAY = Settings(
    listen_inbound=LOOPBACK, listen_outbound=LOOPBACK, port_range=PortRange(27840, 27849), default_type="Nginx"
)


@contextlib.asynccontextmanager
async def gateway(settings: Settings = GATEWAY) -> AsyncIterator[Manager]:
    """A whole gateway without front doors."""
    with runtime_directory() as runtime:
        made = Gateway(settings, runtime, LOOPBACK, Plugged())
        try:
            yield made.manager
        finally:
            await made.close()


async def test_an_outbound_update_tries_the_hop_and_warns(scene: Field) -> None:
    caller = Caller("test", peer=LOOPBACK, reached=LOOPBACK)
    grant, uid, application = Grant(caller, Verb.CREATE), Uid.random(), Counting()
    inbound = await scene.gateway("Haproxy", Role.PROD, await scene.application(application), uid=uid)
    good, nowhere = Target("127.0.0.1", inbound.listeners[0].port), Target("127.0.0.1", dead().port)
    async with gateway() as manager:
        _, view = await manager.create(grant, Role.CONS, (good,), Options(), uid)
        assert view.warnings == ()
        answer = await manager.update(grant, uid, Role.CONS, (nowhere,))
        (warning,) = answer.warnings
        assert warning.startswith(f"the hop to {nowhere}: refused: nothing listens there (")
        assert manager.view(view.id).warnings == (warning,)
        [bad] = await manager.test(grant, view.id, 0)
        assert bad.warning == warning
        assert (await manager.update(grant, uid, Role.CONS, (good,))).warnings == ()
        other = await manager.test_path(grant, Uid.random(), good, None, 0)
        assert other.outcome is Outcome.WRONG_UID
        _, other_side = await manager.create(grant, Role.PROD, (good,), Options())
        with pytest.raises(ScistreamError, match="from the outbound gateway"):
            await manager.test(grant, other_side.id, 0)
        # What no outbound tunnel may go to is not tested for anybody.
        with pytest.raises(ScistreamError, match=r"169\.254\.169\.254"):
            await manager.test_path(grant, uid, Target("169.254.169.254", 80), None, 0)
    assert application.accepted == 0
