"""scistream.v2.Tunnels and the commands that ask it, with the real manager and data servers."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import signal
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import grpc
import grpc.aio
import pytest
from google.protobuf.message import Message

from scistreamd.config import Settings
from scistreamd.control import scistream_v2_pb2 as pb
from scistreamd.daemon import Gateway, Plugged
from scistreamd.identity import Challenge, Credentials, Identity
from scistreamd.model import Endpoint, PortRange, Uid
from scistreamd.plans import Bind
from scistreamd.rulefile import join, parse, parse_some
from scistreamd.runtime import runtime_directory
from scistreamd.sockets import hold
from tests.service.gateways import BIN, Deployed, run

LOOPBACK = ipaddress.ip_address("127.0.0.1")
TARGET = "127.0.0.1:26399"
SETTINGS = Settings(
    listen_inbound=LOOPBACK,
    listen_outbound=LOOPBACK,
    port_range=PortRange(26380, 26389),
    default_type="Nginx",
    administrators=parse_some({"token": "root"}, "auth.administrators"),
)


class Names:
    """Believes everyone who says a name."""

    challenge = Challenge("token")

    async def identify(self, credentials: Credentials) -> Identity | None:
        return Identity("token", credentials.token, credentials.token) if credentials.token else None


@dataclass
class Scene:
    """A gateway on loopback in this process, and its control port in plaintext."""

    gateway: Gateway
    address: str

    @contextlib.asynccontextmanager
    async def client(self, name: str = "") -> AsyncIterator[Client]:
        async with grpc.aio.insecure_channel(self.address) as channel:
            yield Client(channel, [("authorization", name)] if name else [])

    async def s2uc(self, *words: str) -> tuple[int, str, str]:
        return await run(BIN / "s2uc", words[0], "--s2cs", self.address, "--no-tls", *words[1:], cwd=Path("/"))


@dataclass
class Client:
    """A caller with grpcio and our messages."""

    channel: grpc.aio.Channel
    metadata: Sequence[tuple[str, str]]

    async def make(self, lifetime: int | None = None, label: str = "") -> str:
        uid = str(uuid.uuid4())
        options = [("scistream-lifetime", str(lifetime))] if lifetime else []
        options += [("scistream-label", label)] if label else []
        deployed = Deployed(self.channel, *[token for _, token in self.metadata])
        await deployed.request(uid, "PROD", 1, [TARGET], options)
        await deployed.update(uid, [TARGET], "PROD")
        return uid

    async def list(self, *, everyone: bool = False) -> list[str]:
        call = self._unary("List", pb.ListRequest, pb.ListResponse)
        return [each.id for each in (await call(pb.ListRequest(everyone=everyone), metadata=self.metadata)).tunnels]

    async def get(self, name: str) -> pb.Tunnel:
        call = self._unary("Get", pb.GetRequest, pb.Tunnel)
        found: pb.Tunnel = await call(pb.GetRequest(name=name), metadata=self.metadata)
        return found

    async def extend(self, name: str, lifetime: int) -> pb.Tunnel:
        call = self._unary("Extend", pb.ExtendRequest, pb.Tunnel)
        found: pb.Tunnel = await call(pb.ExtendRequest(name=name, lifetime=lifetime), metadata=self.metadata)
        return found

    async def release(self, name: str, drain: int = 0) -> None:
        call = self._unary("Release", pb.ReleaseRequest, pb.ReleaseResponse)
        await call(pb.ReleaseRequest(name=name, drain=drain), metadata=self.metadata)

    def watch(self, *, everyone: bool = False) -> grpc.aio.UnaryStreamCall[pb.WatchRequest, pb.Change]:
        method = self.channel.unary_stream(
            "/scistream.v2.Tunnels/Watch", pb.WatchRequest.SerializeToString, pb.Change.FromString
        )
        return method(pb.WatchRequest(everyone=everyone), metadata=self.metadata)

    def _unary(self, name: str, asked: type[Message], answer: type[Message]) -> grpc.aio.UnaryUnaryMultiCallable:
        return self.channel.unary_unary(f"/scistream.v2.Tunnels/{name}", asked.SerializeToString, answer.FromString)


@contextlib.asynccontextmanager
async def scene(*, known: bool = True, settings: Settings = SETTINGS) -> AsyncIterator[Scene]:
    [listener] = hold([Bind(Endpoint(LOOPBACK, 0))], 30)
    with runtime_directory() as runtime:
        gateway = Gateway(settings, runtime, LOOPBACK, Plugged())
        if known:
            gateway.gate.reconfigure(settings, [Names()])
        try:
            await gateway.start([listener], None)
            yield Scene(gateway, f"127.0.0.1:{listener.getsockname()[1]}")
        finally:
            await gateway.close()


async def told(call: object) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call  # type: ignore[misc]  # grpcio has no types
    return caught.value.code(), caught.value.details()


async def test_ones_own_tunnels_and_nobody_elses() -> None:
    async with scene() as here, here.client("alice") as alice, here.client("bob") as bob, here.client("root") as root:
        first, second, bobs = await alice.make(label="one"), await alice.make(lifetime=900), await bob.make()
        ids = [Uid.parse(each).id for each in (first, second, bobs)]
        assert await alice.list() == ids[:2]
        assert await bob.list() == ids[2:]
        assert await root.list() == []
        assert await root.list(everyone=True) == ids
        assert (await told(bob.list(everyone=True)))[0] is grpc.StatusCode.PERMISSION_DENIED

        seen = await alice.get(ids[0])
        assert (seen.label, seen.role, seen.state, seen.owner.split()[0]) == ("one", "PROD", "active", "alice")
        assert list(seen.targets) == [TARGET]
        assert first not in str(seen)
        assert (await alice.get(first)).id == ids[0]
        unknown = Uid.random()
        for name in (ids[0], first):
            for call in (bob.get, lambda each: bob.extend(each, 5), bob.release):
                answer = await told(call(name))
                assert answer[0] is grpc.StatusCode.NOT_FOUND
                assert answer == await told(call(unknown.id)) == await told(call(unknown.reveal()))
        await root.release(ids[0])
        await alice.release(ids[1], drain=1)
        assert (await alice.list(), await bob.list()) == ([], ids[2:])


async def test_extend_from_afar() -> None:
    async with scene() as here, here.client("alice") as alice:
        uid = await alice.make(lifetime=900)
        before = (await alice.get(uid)).expires_usec
        assert (await alice.extend(uid, 3600)).expires_usec - before > 2600e6
        assert (await alice.extend(uid, 0)).expires_usec == 0
        assert (await told(alice.extend(uid, 1 << 60)))[0] is grpc.StatusCode.INVALID_ARGUMENT
        assert (await told(alice.extend("x", 5)))[0] is grpc.StatusCode.INVALID_ARGUMENT


async def test_who_has_proved_nothing_changes_by_the_uid_alone() -> None:
    async with scene(known=False) as here, here.client() as caller:
        uid = await caller.make()
        tunnel_id = Uid.parse(uid).id
        assert await caller.list() == [tunnel_id]
        assert (await caller.get(tunnel_id)).id == tunnel_id
        code, message = await told(caller.release(tunnel_id))
        assert code is grpc.StatusCode.NOT_FOUND
        assert "UID" in message
        assert (await told(caller.extend(tunnel_id, 5)))[0] is grpc.StatusCode.NOT_FOUND
        await caller.extend(uid, 500)
        await caller.release(uid)
        assert await caller.list() == []


async def test_no_login_no_answer() -> None:
    async with scene() as here, here.client() as stranger:
        for call in (stranger.list(), stranger.get("0" * 12), stranger.release("0" * 12)):
            assert (await told(call))[0] is grpc.StatusCode.UNAUTHENTICATED
        assert (await told(anext(aiter(stranger.watch()))))[0] is grpc.StatusCode.UNAUTHENTICATED


async def test_watch_tells_what_there_is_and_what_happens() -> None:
    async with scene() as here, here.client("alice") as alice, here.client("bob") as bob:
        first = Uid.parse(await alice.make()).id
        await bob.make()
        changes = aiter(alice.watch())
        told = await anext(changes)
        assert (told.kind, told.tunnel.id) == (pb.Change.ADDED, first)
        assert (await anext(changes)).kind == pb.Change.CURRENT
        uid = await alice.make()
        seen: list[tuple[int, str]] = []
        while not seen or seen[-1][1] != "active":
            change = await anext(changes)
            assert change.tunnel.id == Uid.parse(uid).id
            seen.append((change.kind, change.tunnel.state))
        assert seen[0] == (pb.Change.ADDED, "pending")
        await alice.release(uid)
        while (change := await anext(changes)).kind != pb.Change.REMOVED:
            assert change.kind == pb.Change.CHANGED
        watchers = len(here.gateway.manager._registry._watchers)
    async with scene() as here:
        assert len(here.gateway.manager._registry._watchers) == watchers - 1


async def test_a_stop_ends_the_watchers() -> None:
    async with scene() as here, here.client("alice") as alice:
        changes = aiter(alice.watch())
        await anext(changes)
        waiting = asyncio.ensure_future(anext(changes))
        await here.gateway.close()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await waiting
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_the_commands() -> None:
    async with scene(known=False) as here, here.client() as caller:
        uid = await caller.make(label="beamline", lifetime=900)
        tunnel_id = Uid.parse(uid).id
        status, out, err = await here.s2uc("list", "--json")
        assert (status, err) == (0, "")
        [found] = json.loads(out)
        assert (found["id"], found["label"], found["targets"]) == (tunnel_id, "beamline", [TARGET])
        status, out, _ = await here.s2uc("list")
        assert out.splitlines()[1].split()[:4] == [tunnel_id, "beamline", "PROD", "active"]
        assert out.splitlines()[-1] == "1 tunnel."
        for name in (tunnel_id, tunnel_id[:5], "beamline", uid):
            status, out, _ = await here.s2uc("show", name)
            assert (status, tunnel_id in out, uid in out) == (0, True, False)
        status, _, err = await here.s2uc("show", "nobody")
        assert (status, "no tunnel of yours" in err) == (5, True)
        status, out, _ = await here.s2uc("extend", uid, "2h")
        assert status == 0
        assert "(in 1h 59min)" in out
        assert (await here.s2uc("extend", uid, "0"))[1].strip().endswith("never")
        status, _, err = await here.s2uc("release", tunnel_id)
        assert (status, "UID" in err) == (5, True)
        assert (await here.s2uc("list", "--everyone"))[0] == 7
        assert (await here.s2uc("release", uid))[0] == 0
        assert (await here.s2uc("list"))[1] == "No tunnels.\n"


async def test_watch_as_a_command() -> None:
    async with scene(known=False) as here, here.client() as caller:
        words = ("s2uc", "watch", "--s2cs", here.address, "--no-tls", "--json")
        process = await asyncio.create_subprocess_exec(
            BIN / words[0], *words[1:], stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        assert process.stdout is not None
        uid = await caller.make()
        seen = json.loads(await asyncio.wait_for(process.stdout.readline(), 30))
        assert seen["tunnel"]["id"] == Uid.parse(uid).id
        process.send_signal(signal.SIGINT)
        _, err = await process.communicate()
        assert (process.returncode, err) == (130, b"")


async def test_policy_rules_count_from_afar_too() -> None:
    rules = join((), parse([{"name": "short", "max_lifetime": 600}]))
    async with scene(settings=replace(SETTINGS, policy=rules)) as here, here.client("alice") as alice:
        uid = await alice.make()
        assert (await alice.get(uid)).expires_usec
        code, message = await told(alice.extend(uid, 601))
        assert (code, "short" in message) == (grpc.StatusCode.PERMISSION_DENIED, True)
        # Asking for no end gives what there is.
        assert (await alice.extend(uid, 0)).expires_usec
