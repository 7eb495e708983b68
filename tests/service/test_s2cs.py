"""s2cs as users run it: the process, its control port, real data servers, real clients."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import socket
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import grpc
import pytest

from scistreamd import runtime
from scistreamd.model import Uid
from tests.service.gateways import (
    BIN,
    Deployed,
    Gateway,
    application,
    encode,
    gateway,
    run,
    s2uc,
    say,
    split,
)

TYPES = ["Haproxy", "nginx", "STUNNEL", "HaproxySubprocess", "NginxSubprocess", "StunnelSubprocess"]


async def status_of(call: object) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call  # type: ignore[misc]
    code = caught.value.code()
    assert isinstance(code, grpc.StatusCode)
    return code


@pytest.mark.parametrize("kind", TYPES)
async def test_a_stream_through_two_gateways(tmp_path: Path, kind: str) -> None:
    """The deployed clients' whole sequence; retargeted while a stream runs; nothing left after."""
    async with (
        gateway(tmp_path, "127.0.0.2", f"--type={kind}", "--port-range=26300-26309") as inbound,
        gateway(tmp_path, "127.0.0.3", "-t", kind, "--port_range", "26300-26309") as outbound,
        application(b"one ") as one,
        application(b"two ") as two,
        inbound.channel() as inner,
        outbound.channel() as outer,
    ):
        uid = Uid.random().reveal()
        producer, consumer = Deployed(inner), Deployed(outer)
        listeners = await producer.request(uid, "PROD", 2, [one])
        assert listeners == ["127.0.0.2:26300", "127.0.0.2:26301"]
        assert (await producer.update(uid, [one], "PROD"))[2] == [one, one]
        local = await consumer.request(uid, "CONS", 2, ["localhost:26305", "localhost:9"])
        assert local[0] == "127.0.0.3:26305"
        await consumer.update(uid, listeners, "CONS")
        for listener in local:
            assert await say(listener) == b"one hello\n"
        reader, writer = await asyncio.open_connection(*split(local[0]))
        writer.write(b"before\n")
        assert await reader.readline() == b"one before\n"
        await producer.update(uid, [two], "PROD")
        assert await say(local[0]) == b"two hello\n"
        writer.write(b"after\n")
        assert await reader.readline() == b"one after\n"
        await producer.release(uid)
        assert await asyncio.wait_for(reader.read(), 60) == b""
        writer.close()
        await consumer.release(uid)
        for port in (26300, 26301, 26305):
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # the stream's TIME_WAIT is no listener
                probe.bind(("0.0.0.0", port))
                probe.listen()
        assert not inbound.children()
        assert not outbound.children()
        for each in (inbound, outbound):
            assert uid not in each.log.read_text()
            assert uid.replace("-", "") not in each.log.read_text()


async def test_fifty_clients_at_once(tmp_path: Path) -> None:
    """Each with its own target, marker and pair of tunnels: nobody sees what is another's."""
    rounds = 50

    async def one(producer: Deployed, consumer: Deployed, number: int) -> str:
        uid = str(uuid.uuid4())
        marker = f"client {number}: ".encode()
        async with application(marker) as target:
            [listener] = await producer.request(uid, "PROD", 1, [target])
            await producer.update(uid, [target], "PROD")
            [local] = await consumer.request(uid, "CONS", 1, [f"localhost:{26400 + number}"])
            assert local == f"127.0.0.3:{26400 + number}"
            await consumer.update(uid, [listener], "CONS")
            assert await say(local) == marker + b"hello\n"
            await asyncio.gather(producer.release(uid), consumer.release(uid))
        return listener

    async with (
        gateway(tmp_path, "127.0.0.2", "--type=Nginx", "--port-range=26400-26499") as inbound,
        gateway(tmp_path, "127.0.0.3", "--type=Nginx", "--port-range=26400-26499") as outbound,
    ):
        async with inbound.channel() as inner, outbound.channel() as outer:
            clients = [one(Deployed(inner), Deployed(outer), number) for number in range(rounds)]
            await asyncio.gather(*clients)
        assert not inbound.children()
        assert not outbound.children()


async def test_three_hundred_that_wait_block_nobody(tmp_path: Path) -> None:
    async with (
        gateway(tmp_path, "127.0.0.2", "--type=Nginx", "--port-range=26500-26899") as here,
        application(b"") as target,
        here.channel() as waiting,
        here.channel() as other,
    ):
        asked = [
            asyncio.ensure_future(Deployed(waiting).call("req", {1: str(uuid.uuid4()), 2: "PROD", 3: 1, 4: 0}))
            for _ in range(300)
        ]
        await asyncio.sleep(1)
        assert not any(each.done() for each in asked)
        for channel in (waiting, other):
            uid = str(uuid.uuid4())
            [listener] = await Deployed(channel).request(uid, "PROD", 1, [target])
            await Deployed(channel).update(uid, [target], "PROD")
            assert 26500 <= split(listener)[1] <= 26899
            await Deployed(channel).release(uid)
        for each in asked:
            each.cancel()
        await asyncio.wait(asked)
        assert len(await given(Deployed(other), 128, target)) == 128


async def given(caller: Deployed, count: int, target: str) -> list[str]:
    """So many listeners, released again: asked for until those that others gave up are free."""
    uid = str(uuid.uuid4())
    while True:
        try:
            listeners = await caller.request(uid, "PROD", count, [target])
        except grpc.aio.AioRpcError as refused:
            assert refused.code() in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.NOT_FOUND)
            await asyncio.sleep(0.1)
        else:
            await caller.release(uid)
            return listeners


async def test_a_dropped_connection_frees_its_ports(tmp_path: Path) -> None:
    async with gateway(tmp_path, "127.0.0.2", "--port-range=26300-26303") as here, here.channel() as channel:
        killed = await asyncio.create_subprocess_exec(
            BIN / "s2uc", "prod-req", "--s2cs", here.s2cs, "--num_conn=4", cwd=here.certificate.parent,
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert killed.stdout is not None
        await killed.stdout.readline()
        while not all(held(here.address, port) for port in range(26300, 26304)):  # noqa: ASYNC110  they tell nobody
            await asyncio.sleep(0.05)
        full = Deployed(channel).call("req", {1: str(uuid.uuid4()), 2: "PROD", 3: 1, 4: 0})
        assert await status_of(full) is grpc.StatusCode.RESOURCE_EXHAUSTED
        killed.kill()
        await killed.communicate()
        assert len(await given(Deployed(channel), 4, "127.0.0.1:1")) == 4


def held(address: str, port: int) -> bool:
    """Whether a connection is taken there."""
    with socket.socket() as probe:
        return probe.connect_ex((address, port)) == 0


BAD: list[tuple[str, dict[int, object], str, str]] = [
    ("req", {1: "x", 2: "PROD", 3: 1}, "INVALID_ARGUMENT", "uid"),
    ("req", {1: "../../etc/passwd", 2: "PROD", 3: 1}, "INVALID_ARGUMENT", "uid"),
    ("req", {1: str(uuid.uuid4()) + "\n", 2: "PROD", 3: 1}, "INVALID_ARGUMENT", "uid"),
    ("req", {1: str(uuid.uuid4()), 2: "BOTH", 3: 1}, "INVALID_ARGUMENT", "role"),
    ("req", {1: str(uuid.uuid4()), 2: "PROD", 3: 0}, "INVALID_ARGUMENT", "num_conn"),
    ("req", {1: str(uuid.uuid4()), 2: "PROD", 3: -1}, "INVALID_ARGUMENT", "num_conn"),
    ("req", {1: str(uuid.uuid4()), 2: "PROD", 3: 2**31 - 1}, "INVALID_ARGUMENT", "num_conn"),
    ("req", {1: str(uuid.uuid4()), 2: "PROD", 3: 11}, "RESOURCE_EXHAUSTED", "num_conn"),
    ("req", {1: str(uuid.uuid4()), 2: "PROD", 3: 1, 4: -5}, "INVALID_ARGUMENT", "rate"),
    ("hello", {1: str(uuid.uuid4()), 2: ["h:1"], 3: "PROD"}, "NOT_FOUND", "uid"),
    ("hello", {1: str(uuid.uuid4()), 3: "PROD"}, "INVALID_ARGUMENT", "prod_listeners"),
    ("hello", {1: str(uuid.uuid4()), 2: ["h:1"] * 10000, 3: "PROD"}, "INVALID_ARGUMENT", "prod_listeners"),
    ("update", {1: str(uuid.uuid4()), 2: ["192.0.2.1:1\nsetenv x"], 3: "PROD"}, "INVALID_ARGUMENT", "remote_listeners"),
    ("update", {1: str(uuid.uuid4()), 2: ['192.0.2.1:1"; }'], 3: "PROD"}, "INVALID_ARGUMENT", "remote_listeners"),
    ("update", {1: str(uuid.uuid4()), 2: ["127.1:80"], 3: "PROD"}, "INVALID_ARGUMENT", "remote_listeners"),
    ("update", {1: str(uuid.uuid4()), 2: ["h:65536"], 3: "PROD"}, "INVALID_ARGUMENT", "remote_listeners"),
    ("update", {1: str(uuid.uuid4()), 3: "PROD"}, "INVALID_ARGUMENT", "remote_listeners"),
    ("update", {1: str(uuid.uuid4()), 2: ["h:1"], 3: "PROD"}, "NOT_FOUND", "uid"),
    ("release", {1: str(uuid.uuid4())}, "NOT_FOUND", "uid"),
    ("nosuchcall", {}, "UNIMPLEMENTED", ""),
]


async def test_bad_input_gets_its_status_names_its_field_and_leaves_no_trace(tmp_path: Path) -> None:
    async with (
        gateway(tmp_path, "127.0.0.2", "--port-range=26300-26309", "--type=Nginx") as here,
        application(b"") as target,
        here.channel() as channel,
    ):
        caller = Deployed(channel)
        for method, fields, code, field in BAD:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await caller.call(method, fields)  # type: ignore[arg-type]
            assert caught.value.code() is grpc.StatusCode[code], (method, caught.value.details())
            assert field in (caught.value.details() or ""), (method, caught.value.details())
            assert len(str(fields.get(1, ""))) < 2 or str(fields[1]) not in (caught.value.details() or "")
        uid = str(uuid.uuid4())
        assert len(await caller.request(uid, "PROD", 10, [target])) == 10
        for again in (caller.call("req", {1: uid, 2: "PROD", 3: 1}),):
            assert await status_of(again) is grpc.StatusCode.ALREADY_EXISTS
        assert (
            await status_of(caller.call("hello", {1: uid, 2: [target], 3: "PROD"}))
            is grpc.StatusCode.FAILED_PRECONDITION
        )
        await caller.release(uid)
        assert await status_of(caller.release(uid)) is grpc.StatusCode.NOT_FOUND


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the gateways of this test alone have their runtime directories."""
    with tempfile.TemporaryDirectory(dir=runtime._base()) as own:
        Path(own).chmod(0o711)  # data servers of root run as users of their own, and pass through
        for name in ("RUNTIME_DIRECTORY", "XDG_RUNTIME_DIR", "TMPDIR"):
            monkeypatch.setenv(name, own)
        yield Path(own)


def places(memory: Path) -> set[Path]:
    return set(memory.iterdir())


async def test_it_ends_all_on_sigterm_and_in_time(tmp_path: Path, memory: Path) -> None:
    async with gateway(tmp_path, "127.0.0.2", "--port-range=26300-26309") as here, here.channel() as channel:
        uid = str(uuid.uuid4())
        await Deployed(channel).request(uid, "PROD", 1, ["127.0.0.1:26399"])
        await Deployed(channel).update(uid, ["127.0.0.1:26399"], "PROD")
        assert here.children()
        assert len(places(memory)) == 1
        waiting = asyncio.ensure_future(Deployed(channel).call("req", {1: str(uuid.uuid4()), 2: "PROD", 3: 1}))
        await asyncio.sleep(0.3)
        here.process.send_signal(signal.SIGTERM)
        assert await status_of(waiting) is grpc.StatusCode.UNAVAILABLE
        assert await asyncio.wait_for(here.process.wait(), 60) == 0
    assert not places(memory)


async def test_what_a_killed_one_leaves_is_cleared_by_the_next(tmp_path: Path, memory: Path) -> None:
    with contextlib.suppress(AssertionError):  # its exit status is not 0
        async with gateway(tmp_path, "127.0.0.2", "--port-range=26300-26309") as here, here.channel() as channel:
            uid = str(uuid.uuid4())
            await Deployed(channel).request(uid, "PROD", 1, ["127.0.0.1:26399"])
            await Deployed(channel).update(uid, ["127.0.0.1:26399"], "PROD")
            here.process.kill()
            await here.process.wait()
    [left] = places(memory)
    async with gateway(tmp_path, "127.0.0.2", "--port-range=26300-26309"):
        assert left not in places(memory)


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        (["--type=S2DS"], 2, ["S2DS", "Haproxy", "NginxSubprocess"]),
        (["--port-range=5"], 9, ["s2ctl cert create"]),
        (["--port-range=9-5"], 2, ["port-range"]),
        (["--port=70000"], 2, ["--port"]),
        (["--listener-ip=nowhere"], 2, ["--listener-ip"]),
        (["--nonsense"], 2, ["--nonsense"]),
        (["--client_secret=xyz"], 2, ["--client-secret", "--client-id"]),
        (["--client-id=abc", "--client-secret=xyz", "--client-secret-file=f"], 2, ["--client-secret-file"]),
        (["--client-id=abc", "--issuer=http://192.0.2.1"], 2, ["--issuer", "https"]),
        (["--ssl=False"], 2, ["plaintext", "--force-plaintext"]),
        (["--nossl", "--listener-ip=192.0.2.1"], 2, ["plaintext"]),
        (["--security=psk-null"], 2, ["--type=Stunnel"]),
        (["--security=ssl"], 2, ["psk-null"]),
        (["--server-crt=missing.crt"], 9, ["missing.crt", "s2ctl cert create"]),
    ],
)
async def test_what_it_refuses_to_start_with(tmp_path: Path, options: list[str], status: int, words: list[str]) -> None:
    code, out, err = await run(BIN / "s2cs", *options, cwd=tmp_path)
    assert (code, out) == (status, "")
    for word in words:
        assert word in err
    assert "hint: " in err
    assert "xyz" not in err


async def test_version_and_help(tmp_path: Path) -> None:
    status, out, err = await run(BIN / "s2cs", "--version", cwd=tmp_path)
    assert (status, err) == (0, "")
    assert out.startswith("s2cs, version: ")
    status, out, err = await run(BIN / "s2cs", "--help", cwd=tmp_path)
    assert (status, err) == (0, "")
    assert "--listener-ip" in out


async def test_a_control_port_that_is_taken(tmp_path: Path) -> None:
    async with gateway(tmp_path, "127.0.0.2") as here:
        again = await run(BIN / "s2cs", "--listener-ip=127.0.0.2", f"--port={here.port}", cwd=here.certificate.parent)
        assert again[0] == 9
        assert "in use" in again[2]


async def test_plaintext_on_loopback_is_loud(tmp_path: Path) -> None:
    async with gateway(tmp_path, "127.0.0.2", "--ssl=False", "--type=Nginx", "--port-range=26300-26309") as here:
        assert "WARNING: the control port is not encrypted" in here.log.read_text()
        status, out, err = await s2uc(
            tmp_path,
            "inbound-request",
            "--no-tls",
            "--s2cs",
            here.s2cs,
            "--remote-ip=127.0.0.1",
            "--receiver-ports=26399",
        )
        assert status == 0, err
        assert out.splitlines()[-1] == "Listeners: ['127.0.0.2:26300']"


async def test_our_own_client_end_to_end(tmp_path: Path) -> None:
    async with (
        gateway(tmp_path, "127.0.0.2", "--port-range=26300-26309") as inbound,
        gateway(tmp_path, "127.0.0.3", "--port-range=26300-26309") as outbound,
        application(b"got ") as target,
    ):
        where = inbound.certificate.parent
        host, port = split(target)
        status, out, err = await s2uc(
            where, "inbound_request", "--s2cs", inbound.s2cs, "--remote_ip", host, "--receiver_ports", str(port)
        )
        assert status == 0, err
        lines = out.splitlines()
        assert lines[0] == "uid; s2cs; access_token; role"
        uid, *rest = lines[1].split()
        assert rest == [inbound.s2cs, "INVALID_TOKEN", "PROD"]
        listener = lines[-1].removeprefix("Listeners: ['").removesuffix("']")
        cert = f"--server_cert={outbound.certificate}"
        status, out, err = await s2uc(
            where, "outbound_request", "--s2cs", outbound.s2cs, cert, "--remote_ip", "192.0.2.9", "--receiver_ports",
            "26307", uid, listener,
        )  # fmt: skip
        assert status == 0, err
        assert out.splitlines()[-1] == "Listeners: ['127.0.0.3:26307']"
        assert await say("127.0.0.3:26307") == b"got hello\n"
        for there, options in ((inbound, ()), (outbound, (cert,))):
            assert (await s2uc(where, "release", uid, "--s2cs", there.s2cs, *options))[:2] == (0, "Release completed\n")
            status, out, err = await s2uc(where, "release", uid, "--s2cs", there.s2cs, *options)
            assert (status, out) == (5, "")
            assert "no such tunnel" in err
            assert uid not in err


async def test_the_gateway_warns_of_a_public_uid(tmp_path: Path) -> None:
    async with gateway(tmp_path, "127.0.0.2", "--type=Nginx", "--port-range=26300-26309") as here:
        status, _, err = await s2uc(
            here.certificate.parent, "inbound-request", "--mock", "True", "--s2cs", here.s2cs, "--remote-ip=127.0.0.1",
            "--receiver-ports=26399",
        )  # fmt: skip
        assert status == 0
        assert err.count("this UID is published in the SciStream tutorial") == 1
        assert "this UID is published" in here.log.read_text()


async def test_the_gateway_warns_of_a_uid_that_can_be_guessed(tmp_path: Path) -> None:
    async with (
        gateway(tmp_path, "127.0.0.2", "--type=Nginx", "--port-range=26300-26309") as here,
        here.channel() as channel,
    ):
        uid = str(uuid.uuid1())
        asked = channel.unary_unary("/scistream.Control/req")(encode({1: uid, 2: "PROD", 3: 1, 4: 10000}))
        await Deployed(channel).call("hello", {1: uid, 2: ["127.0.0.1:1"], 3: "PROD"})
        await asked
        [warning] = [value for key, value in await asked.initial_metadata() if key == "scistream-warning"]
        assert "guessed" in unquote(warning)


async def test_an_outbound_request_hears_of_a_hop_that_does_not_work(tmp_path: Path) -> None:
    async with gateway(tmp_path, "127.0.0.2", "--type=Nginx", "--port-range=26300-26309") as here:
        nowhere = "127.0.0.3:26399"
        asked = ("outbound-request", "--s2cs", here.s2cs, "--receiver-ports=26300", str(uuid.uuid4()), nowhere)
        status, _, err = await s2uc(here.certificate.parent, *asked)
        assert status == 0
        assert err.count(f"s2uc: note: the hop to {nowhere}: refused: nothing listens there (") == 1


async def strangers(here: Gateway) -> list[socket.socket]:
    """Clients that open a connection and do nothing useful with it."""
    stuck = []
    for words in (b"", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00", random.Random(1).randbytes(4096)):
        client = socket.create_connection((here.address, here.port))
        client.sendall(words)
        stuck.append(client)
    return stuck


async def test_stuck_clients_cost_a_socket_and_nobody_waits_for_them(tmp_path: Path) -> None:
    async with (
        gateway(tmp_path, "127.0.0.2", "--type=Nginx", "--port-range=26300-26309") as here,
        here.channel() as channel,
    ):
        stuck = [client for _ in range(25) for client in await strangers(here)]
        uid = str(uuid.uuid4())
        await Deployed(channel).request(uid, "PROD", 1, ["127.0.0.1:26399"])
        await Deployed(channel).release(uid)
        loop = asyncio.get_running_loop()
        for client in stuck:
            client.setblocking(False)
            with contextlib.suppress(ConnectionError):
                while await asyncio.wait_for(loop.sock_recv(client, 4096), 90):
                    pass
            client.close()
