"""The four calls as foreign clients make them: grpcio with hand-encoded messages, grpclib, deployed habits."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import grpc
import grpc.aio
import pytest
from grpclib.client import Channel
from grpclib.health.v1.health_grpc import HealthStub
from grpclib.health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpclib.reflection.v1.reflection_grpc import ServerReflectionStub
from grpclib.reflection.v1.reflection_pb2 import ServerReflectionRequest

from scistreamd.control import scistream_pb2 as pb
from scistreamd.errors import BugError, Code, ScistreamError
from scistreamd.gate import Verb
from scistreamd.model import Answer, Caller, Role, Security, Target, Uid

from .control_kit import Port, Raw, control_port, framed, hello, new_uid, release, request, strings, until, update

Metadata = Sequence[tuple[str, str]]
OLD_CLIENT: Metadata = (("authorization", "INVALID_TOKEN"),)


class Foreign:
    """grpcio without stubs: bytes in, bytes out."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel

    async def call(self, name: str, message: bytes, metadata: Metadata = OLD_CLIENT) -> bytes:
        answer: bytes = await self.start(name, message, metadata)
        return answer

    def start(
        self, name: str, message: bytes, metadata: Metadata = OLD_CLIENT, timeout: float | None = None
    ) -> grpc.aio.UnaryUnaryCall[bytes, bytes]:
        method = self._channel.unary_unary(f"/scistream.Control/{name}")
        return method(message, metadata=tuple(metadata), timeout=timeout)

    async def refused(self, name: str, message: bytes, metadata: Metadata = OLD_CLIENT) -> tuple[grpc.StatusCode, str]:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.call(name, message, metadata)
        return caught.value.code(), caught.value.details() or ""


@asynccontextmanager
async def foreign(port: Port) -> AsyncIterator[Foreign]:
    async with grpc.aio.insecure_channel(port.address) as channel:
        yield Foreign(channel)


async def test_the_four_calls_of_a_deployed_client() -> None:
    uid = new_uid()
    async with control_port(foreign=True) as port, foreign(port) as client:
        waits = client.start("req", request(uid, count=2))
        await until(lambda: bool(port.bench.waiting))
        told = await client.call("hello", hello(uid, "192.0.2.1:5001", "192.0.2.1:5002"))
        assert (strings(told, 1), strings(told, 2)) == (["Sending Prod listeners..."], ["192.0.2.9:5100"])
        answer = await waits
        assert strings(answer, 1) == ["192.0.2.9:5100", "192.0.2.9:5101"]
        assert strings(answer, 2) == ["192.0.2.1:5001", "192.0.2.1:5002"]
        answer = await client.call("update", update(uid, "gateway.example:5100", role=""))
        assert strings(answer, 2) == ["gateway.example:5100"]
        assert port.bench.updates == [(None, (Target("gateway.example", 5100),))]
        assert await client.call("release", release(uid)) == b""
    loopback = ipaddress.ip_address("127.0.0.1")
    assert [grant.verb for grant in port.bench.granted] == [Verb.CREATE, Verb.HELLO, Verb.UPDATE, Verb.RELEASE]
    assert {grant.caller for grant in port.bench.granted} == {Caller("gRPC", loopback, loopback)}


async def test_an_outbound_hello_without_ports_has_the_old_text() -> None:
    uid = new_uid()
    async with control_port(foreign=True) as port, foreign(port) as client:
        waits = client.start("req", request(uid, role="CONS"))
        await until(lambda: bool(port.bench.waiting))
        assert strings(await client.call("hello", hello(uid, role="CONS")), 1) == ["Sending listeners..."]
        assert strings(await waits, 2) == []


async def test_options_reach_the_manager() -> None:
    metadata = [("scistream-type", "Nginx"), ("scistream-security", "psk-null"), ("scistream-rate-policy", "enforce")]
    uid = new_uid()
    async with control_port(foreign=True) as port, foreign(port) as client:
        waits = client.start("req", request(uid, rate=77), metadata)
        await until(lambda: bool(port.bench.options))
        asked = port.bench.options[0]
        assert (asked.data_server, asked.security, asked.rate) == ("Nginx", Security.PSK_NULL, 77)
        waits.cancel()


@pytest.mark.parametrize(
    ("name", "message", "metadata", "named"),
    [
        ("req", request("x"), (), "uid"),
        ("req", request(new_uid(), role="BOTH"), (), "role"),
        ("req", request(new_uid(), count=0), (), "num_conn"),
        ("req", request(new_uid(), count=-1), (), "num_conn"),
        ("req", request(new_uid(), count=2**31 - 1), (), "num_conn"),
        ("req", request(new_uid(), rate=-1), (), "rate"),
        ("req", request(new_uid()), (("scistream-colour", "red"),), "scistream-colour"),
        ("req", request(new_uid()), (("scistream-label", "a"), ("scistream-label", "b")), "scistream-label"),
        ("req", b"", (), "uid"),
        ("hello", hello(new_uid(), "a b:1"), (), "prod_listeners[0]"),
        ("hello", hello(new_uid()), (), "prod_listeners"),
        ("hello", hello(new_uid(), "h:1"), (("scistream-exact-ports", "true"),), "scistream-exact-ports"),
        ("update", update(new_uid(), "h:1", "2130706433:80"), (), "remote_listeners[1]"),
        ("update", update(new_uid(), *["h:1"] * 10_000), (), "remote_listeners"),
        ("release", release("../../x"), (), "uid"),
        ("release", b"\x0a\xff", (), "scistream.Release"),
        ("req", b"\x0a\x02\xff\xfe", (), "scistream.Request"),
    ],
)
async def test_bad_input_is_named_and_leaves_no_trace(
    name: str, message: bytes, metadata: Metadata, named: str
) -> None:
    async with control_port(foreign=True) as port, foreign(port) as client:
        code, details = await client.refused(name, message, metadata)
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert named in details
        assert not port.bench.granted


@pytest.mark.parametrize("code", Code)
async def test_every_code_of_the_manager_becomes_its_status_with_the_hint(code: Code) -> None:
    async with control_port(foreign=True) as port, foreign(port) as client:
        port.bench.failure = ScistreamError(code, "Größe: 100 % zu viel", "weniger")
        status, details = await client.refused("release", release(new_uid()))
        assert status.value[0] == code.grpc_status
        assert details == "Größe: 100 % zu viel (weniger)"


async def test_the_gate_is_asked_and_its_refusal_is_told() -> None:
    async with control_port(foreign=True) as port, foreign(port) as client:
        port.doorman.closed_for = {Verb.UPDATE}
        told = await client.refused("update", update(new_uid(), "h:1"))
        assert told == (grpc.StatusCode.PERMISSION_DENIED, "update is not yours (ask the operator)")
        assert not port.bench.granted


@pytest.mark.parametrize("error", [BugError("secret state"), KeyError("secret state")])
async def test_a_fault_of_ours_is_internal_with_an_incident_only(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    async with control_port(foreign=True) as port, foreign(port) as client:
        port.bench.failure = error
        code, details = await client.refused("release", release(new_uid()))
        assert code is grpc.StatusCode.INTERNAL
        incident = re.fullmatch(r"internal error \(incident ([0-9a-f]{8}) in the gateway's log\)", details)
        assert incident is not None
        assert incident[1] in caplog.text and "secret state" in caplog.text


async def test_unknown_methods_and_services() -> None:
    async with control_port(foreign=True) as port, foreign(port) as client:
        assert (await client.refused("destroy", b""))[0] is grpc.StatusCode.UNIMPLEMENTED


async def test_the_audit_names_all_but_secrets(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    uid, token = new_uid(), "Bearer-geheim-0123456789"
    async with control_port(foreign=True) as port, foreign(port) as client:
        metadata = (("authorization", token),)
        waits = client.start("req", request(uid), metadata)
        await until(lambda: bool(port.bench.waiting))
        await client.call("hello", hello(uid, "h:1"), metadata)
        await waits
        await client.refused("hello", hello(uid, "h:1"), metadata)
        await client.refused("release", release(uid + "x"), metadata)
        _, details = await client.refused("update", update(uid, uid), metadata)
        assert details.startswith("remote_listeners[0]: '***' is not HOST:PORT")
    ours = [record for record in caplog.records if record.name.startswith("scistreamd")]
    lines = [record.getMessage() for record in ours if record.name == "scistreamd.audit"]
    tunnel = Uid.parse(uid).id
    by = "by anonymous from 127.0.0.1 by gRPC"
    assert f"req {by} tunnel={tunnel}: OK" in lines
    assert f"hello {by} tunnel={tunnel}: OK" in lines
    assert f"hello {by} tunnel={tunnel}: NOT_FOUND no request waits for this UID" in lines
    assert f"release {by} tunnel=-: INVALID_ARGUMENT uid: not a UID" in lines
    everything = "\n".join(record.getMessage() for record in caplog.records)
    assert uid not in everything and uid.replace("-", "") not in everything and token not in everything


async def test_three_hundred_wait_on_one_channel_and_block_nobody() -> None:
    uids = [new_uid() for _ in range(300)]
    async with control_port(foreign=True) as port, foreign(port) as client:
        calls = [client.start("req", request(uid, count=1 + index % 3)) for index, uid in enumerate(uids)]
        await until(lambda: len(port.bench.waiting) == 300)
        assert port.server.connections == 1
        for index, uid in enumerate(uids):
            await client.call("hello", hello(uid, f"192.0.2.1:{6000 + index}"))
        for index, call in enumerate(calls):
            answer = await call
            assert strings(answer, 2) == [f"192.0.2.1:{6000 + index}"]
            assert len(strings(answer, 1)) == 1 + index % 3


async def test_three_hundred_at_once_before_the_settings_are_known() -> None:
    """A client may send before it has read anything; with h2's first limit of 100 streams we would hang up."""
    uids = [new_uid() for _ in range(300)]
    async with control_port() as port, Raw.to(port, preface=False) as raw:
        raw.h2.initiate_connection()
        for uid in uids:
            raw.send(raw.call("/scistream.Control/req"), framed(request(uid)))
        await until(lambda: len(port.bench.waiting) == 300)
        raw.writer.transport.abort()
        await until(lambda: len(port.bench.freed) == 300)


async def test_a_cancelled_call_frees_its_ports_and_only_its_own() -> None:
    first, second = new_uid(), new_uid()
    async with control_port(foreign=True) as port, foreign(port) as client:
        calls = [client.start("req", request(uid)) for uid in (first, second)]
        await until(lambda: len(port.bench.waiting) == 2)
        calls[0].cancel()
        await until(lambda: port.bench.freed == [Uid.parse(first)])
        assert list(port.bench.waiting) == [Uid.parse(second)]


@pytest.mark.parametrize("outcome", [ScistreamError(Code.CANCELLED, "the tunnel has ended"), Answer(())])
async def test_an_outcome_that_comes_as_the_caller_goes_is_no_fault(
    outcome: ScistreamError | Answer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked, ended = asyncio.Event(), asyncio.Event()

    async def late(*_: object) -> Answer:
        asked.set()
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:  # as asyncio.wait_for does it before Python 3.12
            ended.set()
            if isinstance(outcome, Answer):
                return outcome
            raise outcome from None
        raise AssertionError

    async with control_port(foreign=True) as port, foreign(port) as client:
        monkeypatch.setattr(port.bench, "request", late)
        call = client.start("req", request(new_uid()))
        await asked.wait()
        call.cancel()
        await ended.wait()
        assert (await client.refused("req", request("no UID")))[0] is grpc.StatusCode.INVALID_ARGUMENT
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_a_deadline_of_the_caller_frees_its_ports() -> None:
    async with control_port(foreign=True) as port, foreign(port) as client:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.start("req", request(new_uid()), timeout=1.5)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await until(lambda: len(port.bench.freed) == 1)


async def test_health_and_reflection() -> None:
    async with control_port() as port:
        async with Channel(port.host, port.number) as channel:
            for service in ("", "scistream.Control"):
                health = await HealthStub(channel).Check(HealthCheckRequest(service=service))
                assert health.status == HealthCheckResponse.SERVING
            asks = [
                ServerReflectionRequest(list_services=""),
                ServerReflectionRequest(file_containing_symbol="scistream.Control"),
            ]
            listed, described = await ServerReflectionStub(channel).ServerReflectionInfo(asks)
        names = {service.name for service in listed.list_services_response.service}
        assert {"scistream.Control", "grpc.health.v1.Health"} <= names
        assert described.file_descriptor_response.file_descriptor_proto == [pb.DESCRIPTOR.serialized_pb]


async def test_ipv6_and_what_was_reached() -> None:
    async with control_port(host="::1", foreign=True) as port, foreign(port) as client:
        await client.call("release", release(new_uid()))
        caller = port.bench.granted[0].caller
        assert (str(caller.peer), str(caller.reached)) == ("::1", "::1")
        assert Role.PROD.value == "PROD"
