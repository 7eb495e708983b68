"""The manager with the real launcher: ports, time limits, wishes, and every way out."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import socket
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from types import FrameType

import pytest
from cryptography import x509

from scistreamd.addresses import own
from scistreamd.config import Settings, Times
from scistreamd.errors import Code, ScistreamError
from scistreamd.gate import Gate, Grant, Verb
from scistreamd.identity import Identity
from scistreamd.keys import TunnelKeys
from scistreamd.manager import Manager
from scistreamd.model import (
    Answer,
    Caller,
    Change,
    ChangeKind,
    Endpoint,
    IPAddress,
    Listen,
    Options,
    PortRange,
    Role,
    Security,
    State,
    Target,
    Uid,
)
from scistreamd.network import HostNetwork, dialable, own_addresses
from scistreamd.planning import Planner
from scistreamd.plans import LEAF_FILE, Bind
from scistreamd.policy import Quotas
from scistreamd.process import ProcessLauncher
from scistreamd.process_held import ProcessHeld
from scistreamd.rulefile import join, parse
from scistreamd.runtime import runtime_directory

LOOPBACK = ipaddress.ip_address("127.0.0.1")
ANY = ipaddress.ip_address("0.0.0.0")
CALLER = Caller("test", peer=LOOPBACK, reached=LOOPBACK)
RANGE = PortRange(26200, 26209)
SETTINGS = Settings(
    listen_inbound=LOOPBACK,
    listen_outbound=LOOPBACK,
    port_range=RANGE,
    default_type="Nginx",
    times=Times(early_hello=0.3),
)
USERS = (Identity("local", "1000", "alice"), Identity("local", "1001", "bob"))
TARGET = Target.parse("127.0.0.1:26299")


def grant(verb: Verb, caller: Caller = CALLER) -> Grant:
    return Grant(caller, verb)


class Gateway:
    """A manager, with the calls that a front door makes."""

    def __init__(self, settings: Settings, runtime: Path) -> None:
        self.network = HostNetwork(settings.times.resolve)
        self.runtime = runtime
        launcher = ProcessLauncher(runtime)
        self.gate = Gate(settings, self.network)
        self.manager = Manager(
            settings, self.gate, TunnelKeys(), lambda kind: launcher, ANY, own_addresses=own_addresses
        )

    def req(
        self, uid: Uid, role: Role = Role.PROD, count: int = 1, options: Options | None = None, caller: Caller = CALLER
    ) -> asyncio.Task[Answer]:
        call = self.manager.request(grant(Verb.CREATE, caller), uid, role, count, options or Options())
        return asyncio.create_task(call)

    async def hello(self, uid: Uid, *entries: Target, role: Role = Role.PROD) -> Answer:
        return await self.manager.hello(grant(Verb.HELLO), uid, role, entries)

    async def update(self, uid: Uid, *targets: Target, role: Role | None = None) -> Answer:
        return await self.manager.update(grant(Verb.UPDATE), uid, role, targets)

    async def release(self, uid: Uid, drain: float = 0) -> None:
        await self.manager.release(grant(Verb.RELEASE), uid, drain)

    async def ready(self, uid: Uid, role: Role = Role.PROD, count: int = 1, *entries: Target) -> Answer:
        asked = self.req(uid, role, count)
        await self.hello(uid, *(entries or (TARGET,)))
        return await asked

    async def freed(self) -> None:
        """Return when nothing is left, which comes by itself."""
        while len(self.manager) or os.listdir(self.runtime) != ["lock"]:  # noqa: ASYNC110  no event to wait for
            await asyncio.sleep(0.02)
        self.nothing_is_left()

    async def holds(self, *ports: int) -> None:
        """Return when these ports are held for a request that waits."""
        while not all(listening(port) for port in ports):  # noqa: ASYNC110  the kernel tells nobody
            await asyncio.sleep(0.02)

    def nothing_is_left(self) -> None:
        assert len(self.manager) == 0
        assert self.manager.free_ports == len(RANGE)
        assert os.listdir(self.runtime) == ["lock"]
        for port in RANGE:
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a stream's TIME_WAIT is no listener
                probe.bind(("127.0.0.1", port))
                probe.listen()


@contextlib.asynccontextmanager
async def gateway(settings: Settings = SETTINGS) -> AsyncIterator[Gateway]:
    with runtime_directory() as runtime:
        made = Gateway(settings, runtime)
        try:
            yield made
            await made.manager.close()
            made.nothing_is_left()
        finally:
            await made.manager.close()
            made.network.close()


async def refusal(call: asyncio.Future[Answer] | asyncio.Task[Answer]) -> ScistreamError:
    with pytest.raises(ScistreamError) as caught:
        await asyncio.wait_for(call, 60)
    return caught.value


def listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


async def test_a_life() -> None:
    async with gateway() as here:
        uid = Uid.random()
        asked = here.req(uid, count=2)
        greeted = await here.hello(uid, TARGET)
        answer = await asked
        assert [str(each) for each in answer.listeners] == ["127.0.0.1:26200", "127.0.0.1:26201"]
        assert answer.targets == (TARGET,)
        assert greeted.listeners == answer.listeners
        updated = await here.update(uid, *answer.targets, role=Role.PROD)
        assert updated.targets == (TARGET, TARGET)
        await here.release(uid)
        here.nothing_is_left()
        assert not listening(26200)
        with pytest.raises(ScistreamError) as caught:
            await here.release(uid)
        assert caught.value.code is Code.NOT_FOUND


async def test_ports_are_held_from_req_on_and_free_on_every_way_out() -> None:
    quick = replace(SETTINGS, times=Times(hello=1, early_hello=0.1, update=0.3))
    async with gateway(quick) as here:
        # no hello in time
        uid = Uid.random()
        asked = here.req(uid, count=3)
        await here.holds(26200, 26201, 26202)
        assert (await refusal(asked)).code is Code.DEADLINE_EXCEEDED
        here.nothing_is_left()
        # no update in time
        await here.ready(uid)
        await here.freed()
    async with gateway() as here:
        # the client goes away
        asked = here.req(uid, count=3)
        await here.holds(26200, 26201, 26202)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        here.nothing_is_left()
        # released while it waits
        asked = here.req(uid)
        await here.holds(26203)
        await here.release(uid)
        assert (await refusal(asked)).code is Code.CANCELLED
        here.nothing_is_left()
        # the daemon stops
        asked = here.req(uid)
        await here.holds(26204)
        await here.manager.close()
        assert (await refusal(asked)).code is Code.CANCELLED
        here.nothing_is_left()


async def test_a_port_that_is_asked_for_is_held_from_the_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    async with gateway() as here:
        monkeypatch.delattr(ProcessHeld, "rebind")  # for listeners that change are let go for a moment
        asked = Options(listen=(Listen(LOOPBACK, 26207), Listen(LOOPBACK, 26203)))
        uid, view = await here.manager.create(grant(Verb.CREATE), Role.CONS, (TARGET,), asked)
        assert [each.port for each in view.listeners] == [26207, 26203]
        await here.release(uid)


async def test_a_drain_is_cut_short_by_a_second_release() -> None:
    async with gateway() as here:
        uid, _ = await here.manager.create(grant(Verb.CREATE), Role.PROD, (TARGET,), Options(data_server="Stunnel"))
        draining = asyncio.create_task(here.release(uid, drain=600))
        await asyncio.sleep(0.1)
        with pytest.raises(ScistreamError) as caught:
            await here.release(uid, drain=10)
        assert caught.value.code is Code.NOT_FOUND
        await asyncio.wait_for(here.release(uid), 30)
        here.nothing_is_left()
        await draining


async def test_a_daemon_that_ends_waits_for_no_drain() -> None:
    async with gateway() as here:
        uid = Uid.random()
        # Stunnel cannot drain: its tunnel would last as long as it may.
        asked = here.req(uid, options=Options(data_server="Stunnel"))
        await here.hello(uid, TARGET)
        await asked
        await here.update(uid, TARGET)
        draining = asyncio.create_task(here.release(uid, drain=600))
        await asyncio.sleep(0.1)
        assert [view.state for view in here.manager.tunnels()] == [State.RELEASING]
        here.manager.hurry()
        await asyncio.wait_for(draining, 30)
        here.nothing_is_left()


async def test_a_data_server_that_cannot_start_frees_its_ports_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    async with gateway() as here:
        uid = Uid.random()
        await here.ready(uid)

        def no_keys(*_: object) -> dict[str, bytes]:
            return {}

        with monkeypatch.context() as broken:
            broken.setattr(TunnelKeys, "files", no_keys)
            with pytest.raises(ScistreamError, match=r"pem") as caught:
                await here.update(uid, TARGET)
        assert caught.value.code is Code.FAILED_PRECONDITION
        assert here.manager.free_ports == len(RANGE)
        assert not listening(26200)
        with pytest.raises(ScistreamError, match="failed") as caught:
            await here.update(uid, TARGET)
        await here.release(uid)


async def test_other_programs_ports_are_skipped_and_never_fewer_given() -> None:
    async with gateway() as here:
        with socket.socket() as rival, socket.socket() as wildcard:
            rival.bind(("127.0.0.1", 26200))
            rival.listen()
            wildcard.bind(("0.0.0.0", 26202))
            wildcard.listen()
            uid = Uid.random()
            answer = await here.ready(uid, Role.PROD, 3)
            assert [each.port for each in answer.listeners] == [26201, 26203, 26204]
            refused = await refusal(here.req(Uid.random(), count=6))
            assert refused.code is Code.RESOURCE_EXHAUSTED
            assert "2 in use by other programs" in refused.message
            assert here.manager.free_ports == 7
            await here.release(uid)


async def test_a_thousand_rounds_over_ten_ports() -> None:
    async with gateway() as here:
        for _ in range(1000):
            uid = Uid.random()
            await here.ready(uid, Role.PROD, 10)
            await here.release(uid)


async def test_wished_ports_of_an_outbound_tunnel() -> None:
    async with gateway() as here:

        def wish(*ports: int) -> list[Target]:
            return [Target("localhost", port) for port in ports]

        async def settled(uid: Uid, *ports: int, count: int = 0) -> list[int]:
            answer = await here.ready(uid, Role.CONS, count or len(ports), *wish(*ports))
            assert answer.targets == ()
            return [each.port for each in answer.listeners]

        one, two, three, four = (Uid.random() for _ in range(4))
        assert await settled(one, 26205, 26201) == [26205, 26201]
        with socket.socket() as rival:
            rival.bind(("127.0.0.1", 26207))
            rival.listen()
            got = await settled(two, 26205, 26207, 9, 26203, 26203)
            assert got[3] == 26203
            assert not {26205, 26207, 26201} & set(got)
            assert len(set(got)) == 5
        # what another request holds and has not settled on changes hands
        waiting = here.req(three, Role.CONS, 1)
        provisional = 0
        while not provisional:
            await asyncio.sleep(0.02)
            others = (port for port in RANGE if port not in (26205, 26201, *got))
            provisional = next((port for port in others if listening(port)), 0)
        assert await settled(four, provisional) == [provisional]
        await here.hello(three, role=Role.CONS)
        [other] = (await waiting).listeners
        assert other.port not in (provisional, 26205, 26201, *got)
        assert here.manager.free_ports == 1
        for uid in (one, two, three, four):
            await here.release(uid)


async def test_exact_ports_or_none() -> None:
    async with gateway() as here:
        uid = Uid.random()
        asked = here.req(uid, Role.CONS, 2, Options(exact_ports=True))
        with pytest.raises(ScistreamError, match="9 is not to be had") as caught:
            await here.hello(uid, Target("localhost", 26200), Target("localhost", 9))
        assert caught.value.code is Code.RESOURCE_EXHAUSTED
        assert (await refusal(asked)).code is Code.RESOURCE_EXHAUSTED
        here.nothing_is_left()


async def test_an_early_hello_waits_for_its_req() -> None:
    async with gateway(replace(SETTINGS, times=Times(early_hello=60))) as here:
        uid = Uid.random()
        early = asyncio.create_task(here.hello(uid, TARGET))
        await asyncio.sleep(0.1)
        assert (await here.req(uid)).targets == (TARGET,)
        await early
    async with gateway() as here:
        with pytest.raises(ScistreamError) as caught:
            await here.hello(Uid.random(), TARGET)
        assert caught.value.code is Code.NOT_FOUND


async def test_what_comes_out_of_turn() -> None:
    async with gateway() as here:
        uid = Uid.random()
        with pytest.raises(ScistreamError) as caught:
            await here.update(uid, TARGET)
        assert caught.value.code is Code.NOT_FOUND
        asked = here.req(uid)
        await asyncio.sleep(0)
        assert (await refusal(here.req(uid))).code is Code.ALREADY_EXISTS
        for code, call in [
            (Code.FAILED_PRECONDITION, here.update(uid, TARGET)),
            (Code.INVALID_ARGUMENT, here.hello(uid, role=Role.CONS)),
            (Code.INVALID_ARGUMENT, here.hello(uid)),
            (Code.PERMISSION_DENIED, here.hello(uid, Target.parse("169.254.169.254:80"))),
        ]:
            with pytest.raises(ScistreamError) as caught:
                await call
            assert caught.value.code is code
        await here.hello(uid, TARGET)
        await asked
        for code, call in [
            (Code.FAILED_PRECONDITION, here.hello(uid, TARGET)),
            (Code.INVALID_ARGUMENT, here.update(uid, TARGET, role=Role.CONS)),
            (Code.PERMISSION_DENIED, here.update(uid, Target.parse("169.254.169.254:80"))),
            (Code.INVALID_ARGUMENT, here.update(uid, Target.parse("no.such.host.invalid:80"))),
        ]:
            with pytest.raises(ScistreamError) as caught:
                await call
            assert caught.value.code is code
        await here.update(uid, TARGET)
        await here.release(uid)


@pytest.mark.parametrize(
    ("options", "code", "field"),
    [
        (Options(data_server="S2DS"), Code.INVALID_ARGUMENT, "type"),
        (Options(security=Security.NONE), Code.PERMISSION_DENIED, "security"),
    ],
)
async def test_options_that_are_refused(options: Options, code: Code, field: str) -> None:
    async with gateway() as here:
        refused = await refusal(here.req(Uid.random(), options=options))
        assert refused.code is code
        assert refused.message.startswith(field)
        assert refused.hint


async def test_a_security_mode_that_the_type_cannot_do() -> None:
    async with gateway(replace(SETTINGS, allowed_security=frozenset(Security))) as here:
        refused = await refusal(here.req(Uid.random(), options=Options(security=Security.PSK_NULL)))
        assert refused.code is Code.INVALID_ARGUMENT
        assert "psk-null" in refused.message


async def test_a_missing_program_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scistreamd.programs.PATH", "/nonexistent")
    async with gateway() as here:
        refused = await refusal(here.req(Uid.random(), options=Options(data_server="haproxy")))
        assert refused.code is Code.FAILED_PRECONDITION
        assert "install haproxy" in refused.message


async def test_quotas() -> None:
    async with gateway(replace(SETTINGS, quotas=Quotas(ports_per_request=2, tunnels_per_peer=2, pending=3))) as here:
        assert "at most 2 go into one request" in (await refusal(here.req(Uid.random(), count=3))).message
        waiting = [here.req(Uid.random()) for _ in range(2)]
        await asyncio.sleep(0)
        assert "this peer has 2 tunnels" in (await refusal(here.req(Uid.random()))).message
        other = replace(CALLER, peer=ipaddress.ip_address("127.0.0.9"))
        waiting.append(here.req(Uid.random(), caller=other))
        await asyncio.sleep(0)
        third = replace(CALLER, peer=ipaddress.ip_address("127.0.0.10"))
        assert "3 requests wait" in (await refusal(here.req(Uid.random(), caller=third))).message
        for each in waiting:
            each.cancel()
        await asyncio.wait(waiting)


async def test_each_user_of_the_host_has_a_quota_of_its_own() -> None:
    async with gateway(replace(SETTINGS, quotas=Quotas(tunnels_per_peer=1))) as here:
        alice, bob = (Caller("D-Bus", reached=LOOPBACK, identity=each) for each in USERS)
        waiting = [here.req(Uid.random(), caller=each) for each in (alice, bob)]
        await asyncio.sleep(0)
        assert "this peer has 1 tunnels" in (await refusal(here.req(Uid.random(), caller=alice))).message
        assert not any(each.done() for each in waiting)
        for each in waiting:
            each.cancel()
        await asyncio.wait(waiting)


async def test_answers_name_no_wildcard(tmp_path: Path) -> None:
    """Who calls by D-Bus has dialled no address of ours: it is the one that others most likely dial."""
    network, launcher = HostNetwork(5), ProcessLauncher(tmp_path)
    open_to_all = replace(SETTINGS, listen_inbound=None)
    for reached, shown in ((None, "192.0.2.9"), (LOOPBACK, "127.0.0.1")):
        planner = Planner(
            open_to_all, Gate(open_to_all, network), lambda _: launcher, ANY, lambda: ipaddress.ip_address("192.0.2.9")
        )
        caller = Caller("D-Bus", reached=reached)
        tunnel = planner.tunnel(caller, Uid.random(), Role.PROD, 1, Options())
        tunnel.binds = (Bind(Endpoint(planner.address(tunnel), 5100)),)
        assert [str(each) for each in tunnel.answer().listeners] == [f"{shown}:5100"]
    network.close()


def test_the_address_that_others_dial_is_one_of_the_hosts() -> None:
    found = dialable()
    assert found is None or found in own()[1]


async def test_a_lifetime_ends_the_tunnel() -> None:
    async with gateway() as here:
        uid = Uid.random()
        asked = here.req(uid, options=Options(lifetime=4))
        await here.hello(uid, TARGET)
        await asked
        await here.update(uid, TARGET)
        assert listening(26200)
        await here.freed()


@pytest.mark.parametrize(
    ("role", "inbound", "outbound", "expected"),
    [
        (Role.PROD, None, None, "127.0.0.3:26200"),
        (Role.PROD, ipaddress.ip_address("127.0.0.2"), None, "127.0.0.2:26200"),
        (Role.CONS, ipaddress.ip_address("127.0.0.2"), None, "127.0.0.3:26200"),
        (Role.CONS, None, ipaddress.ip_address("0.0.0.0"), "127.0.0.3:26200"),
        (Role.CONS, None, ipaddress.ip_address("127.0.0.4"), "127.0.0.4:26200"),
    ],
)
async def test_where_it_listens_and_what_it_answers(
    role: Role, inbound: IPAddress | None, outbound: IPAddress | None, expected: str
) -> None:
    reached = replace(CALLER, reached=ipaddress.ip_address("127.0.0.3"))
    settings = replace(SETTINGS, listen_inbound=inbound, listen_outbound=outbound)
    async with gateway(settings) as here:
        uid = Uid.random()
        asked = here.req(uid, role, caller=reached)
        await here.hello(uid, *[Target.parse("10.99.0.1:1")] * (role is Role.PROD), role=role)
        answer = await asked
        assert [str(each) for each in answer.listeners] == [expected]
        with socket.socket() as elsewhere:
            wildcard = role is Role.PROD and inbound is None
            assert (elsewhere.connect_ex(("127.0.0.9", 26200)) == 0) is wildcard
        await here.release(uid)


async def test_an_outbound_wildcard_without_an_address_of_the_request() -> None:
    """What the host has, and the line of the configuration, are said."""
    async with gateway(replace(SETTINGS, listen_outbound=None)) as here:
        refused = await refusal(here.req(Uid.random(), Role.CONS, caller=replace(CALLER, reached=None)))
        assert refused.code is Code.FAILED_PRECONDITION
        first, *_ = found = [str(each) for each in own_addresses()] or ["ADDRESS"]
        assert ", ".join(found) in f"{refused.message} ADDRESS"
        assert f'listen.outbound = "{first}"' in refused.hint


async def test_release_in_the_middle_of_an_update() -> None:
    async with gateway() as here:
        uid = Uid.random()
        await here.ready(uid)
        updating = asyncio.create_task(here.update(uid, TARGET))
        await asyncio.sleep(0.005)
        await here.release(uid)
        await asyncio.wait([updating])
        updating.exception()
        here.nothing_is_left()


async def test_the_manager_tells_weak_uids(caplog: pytest.LogCaptureFixture) -> None:
    async with gateway() as here:
        uid = Uid.parse(str(uuid.uuid1()))
        answer = await here.ready(uid)
        assert "guessed" in answer.warnings[0]
        assert "guessed" in caplog.text
        await here.release(uid)


async def test_the_manager_tells_what_a_data_server_lacks(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("scistreamd.programs._LIBRARIES", (tmp_path,))
    async with gateway(replace(SETTINGS, default_type="Stunnel")) as here:
        uid = Uid.random()
        answer = await here.ready(uid)
        assert "may lose" in answer.warnings[0]
        assert "install a C compiler" in caplog.text
        await here.release(uid)


async def test_made_in_one_step_shown_watched_extended_and_ended() -> None:
    async with gateway() as here:
        seen: list[Change] = []
        stop = here.manager.watch(seen.append)
        options = Options(label="detector", listen=(Listen.parse("127.0.0.1:26205"),))
        uid, made = await here.manager.create(grant(Verb.CREATE), Role.PROD, (TARGET, TARGET), options)
        assert (made.id, made.label, made.state, made.expires_usec) == (uid.id, "detector", State.ACTIVE, 0)
        assert [each.port for each in made.listeners] == [26205, 26200]
        assert made.targets == (TARGET, TARGET)
        assert here.manager.tunnels() == (made,)
        assert here.manager.find(uid.id) == here.manager.find(uid.reveal()) == uid.id
        assert here.manager.reveal(grant(Verb.UPDATE), uid.id) == uid
        other = Target.parse("127.0.0.1:26298")
        assert (await here.manager.retarget(grant(Verb.UPDATE), uid.id, (other,))).targets == (other, other)
        assert (await here.manager.extend(grant(Verb.UPDATE), uid.id, 1)).expires_usec > made.created_usec
        assert (await here.manager.extend(grant(Verb.UPDATE), uid.id, 0)).expires_usec == 0
        await asyncio.sleep(1.2)
        assert listening(26205)
        await here.manager.end(grant(Verb.RELEASE), uid.id, 0)
        stop()
        states = [(change.kind, change.view.state) for change in seen]
        assert states[0] == (ChangeKind.ADDED, State.PENDING)
        assert states[-2:] == [(ChangeKind.CHANGED, State.RELEASING), (ChangeKind.REMOVED, State.RELEASING)]
        assert (ChangeKind.CHANGED, State.ACTIVE) in states
        for call in (here.manager.find, here.manager.view):
            with pytest.raises(ScistreamError) as caught:
                call(uid.id)
            assert caught.value.code is Code.NOT_FOUND
        with pytest.raises(ScistreamError, match="neither the id nor the UID"):
            here.manager.find("x")


async def test_made_in_one_step_or_not_at_all() -> None:
    async with gateway() as here:
        refused = Target.parse("169.254.169.254:80")
        with pytest.raises(ScistreamError) as caught:
            await here.manager.create(grant(Verb.CREATE), Role.PROD, (refused,), Options())
        assert caught.value.code is Code.PERMISSION_DENIED
        here.nothing_is_left()


async def test_a_tunnels_certificate_names_the_address_that_was_answered() -> None:
    wildcard, shown = replace(SETTINGS, listen_inbound=ANY), ipaddress.ip_address("192.0.2.7")
    target = Target.parse("10.255.255.1:5001")  # a gateway beyond loopback forwards to no loopback address
    for settings, expected in ((SETTINGS, LOOPBACK), (wildcard, LOOPBACK), (replace(wildcard, advertise=shown), shown)):
        async with gateway(settings) as here:
            uid = Uid.random()
            await here.ready(uid, Role.PROD, 1, target)
            (listener,) = (await here.update(uid, target)).listeners
            assert listener.address == expected
            (leaf,) = here.runtime.rglob(LEAF_FILE)
            extensions = x509.load_pem_x509_certificate(leaf.read_bytes()).extensions
            names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            assert names.get_values_for_type(x509.IPAddress) == [expected]


async def test_a_failed_tunnel_gives_way_to_a_new_request(monkeypatch: pytest.MonkeyPatch) -> None:
    async with gateway() as here:
        uid = Uid.random()
        await here.ready(uid)
        with monkeypatch.context() as broken:
            broken.setattr(TunnelKeys, "files", lambda *_: {})
            with pytest.raises(ScistreamError):
                await here.update(uid, TARGET)
        assert here.manager.view(uid.id).state is State.FAILED
        assert "pem" in here.manager.view(uid.id).result
        await here.ready(uid)
        await here.update(uid, TARGET)
        assert here.manager.view(uid.id).state is State.ACTIVE


async def test_only_the_owner_updates_and_releases_and_a_foreign_uid_looks_unknown() -> None:
    async with gateway() as gw:
        uid = Uid.random()
        alice = replace(CALLER, identity=Identity("token", "1", "alice"))
        bob = replace(CALLER, identity=Identity("token", "2", "bob"))
        waiting = asyncio.create_task(gw.manager.request(grant(Verb.CREATE, alice), uid, Role.PROD, 1, Options()))
        # Knowing the UID is enough for hello: the application says it.
        await gw.manager.hello(grant(Verb.HELLO), uid, Role.PROD, (TARGET,))
        await waiting
        for caller in (bob, CALLER, replace(alice, identity=Identity("mtls", "1", "alice"))):
            told = []
            for name in (uid, Uid.random()):
                with pytest.raises(ScistreamError) as refused:
                    await gw.manager.update(grant(Verb.UPDATE, caller), name, None, (TARGET,))
                with pytest.raises(ScistreamError) as kept:
                    await gw.manager.release(grant(Verb.RELEASE, caller), name)
                told += [(refused.value.code, str(refused.value)), (kept.value.code, str(kept.value))]
            assert len(set(told)) == 1
            assert told[0][0] is Code.NOT_FOUND
        elsewhere = replace(alice, peer=ipaddress.ip_address("127.0.0.9"))
        await gw.manager.update(grant(Verb.UPDATE, elsewhere), uid, None, (TARGET,))
        await gw.manager.release(grant(Verb.RELEASE, elsewhere), uid)
        assert len(gw.manager) == 0


async def test_a_foreign_uid_and_an_unknown_one_take_the_same_steps() -> None:
    """So that they take the same time: each function that runs for one runs for the other, in the same order."""
    async with gateway() as gw:
        uid = Uid.random()
        alice = replace(CALLER, identity=Identity("token", "1", "alice"))
        bob = replace(CALLER, identity=Identity("token", "2", "bob"))
        waiting = asyncio.create_task(gw.manager.request(grant(Verb.CREATE, alice), uid, Role.PROD, 1, Options()))
        await gw.manager.hello(grant(Verb.HELLO), uid, Role.PROD, (TARGET,))
        await waiting

        async def steps(call: Callable[[Uid], Awaitable[object]], name: Uid) -> list[str]:
            ran: list[str] = []

            def note(frame: FrameType, event: str, _: object) -> None:
                if event == "call" and "/scistreamd/" in frame.f_code.co_filename:
                    ran.append(f"{frame.f_code.co_filename}:{frame.f_code.co_name}")

            sys.setprofile(note)
            try:
                with pytest.raises(ScistreamError):
                    await call(name)
            finally:
                sys.setprofile(None)
            return ran

        async def own(name: Uid) -> str:
            return gw.manager.own_id(grant(Verb.RELEASE, bob), name.reveal(), change=True)

        calls: list[Callable[[Uid], Awaitable[object]]] = [
            lambda name: gw.manager.update(grant(Verb.UPDATE, bob), name, None, (TARGET,)),
            lambda name: gw.manager.release(grant(Verb.RELEASE, bob), name),
            own,
        ]
        for call in calls:
            foreign, unknown = await steps(call, uid), await steps(call, Uid.random())
            assert foreign == unknown
            assert any("administers" in each for each in foreign)
        await gw.manager.release(grant(Verb.RELEASE, alice), uid)


async def test_another_rate_or_lifetime_is_under_the_rule_that_covers_the_targets() -> None:
    other = Target.parse("127.0.0.1:26298")
    rules = [
        {"name": "wide", "anonymous": True, "targets": [str(other)]},
        {"name": "narrow", "anonymous": True, "targets": [str(TARGET)], "max_lifetime": 600, "max_rate": 100},
    ]
    async with gateway(replace(SETTINGS, policy=join((), parse(rules)))) as here:
        _, free = await here.manager.create(grant(Verb.CREATE), Role.PROD, (other,), Options())
        assert (await here.manager.extend(grant(Verb.UPDATE), free.id, 601)).expires_usec
        with pytest.raises(ScistreamError) as caught:  # its rate cannot be kept here, so it is not made
            await here.manager.create(grant(Verb.CREATE), Role.PROD, (TARGET,), Options(lifetime=300))
        assert caught.value.code is Code.UNIMPLEMENTED
        with pytest.raises(ScistreamError) as caught:
            await here.manager.hold_to(grant(Verb.UPDATE), free.id, 5)
        assert caught.value.code is Code.UNIMPLEMENTED  # allowed, and there is nothing to keep it
        # The rule of the first one's targets is not the other's.
        narrowed = join((), parse([rules[0], {**rules[1], "targets": [str(other)]}][::-1]))
        here.gate.reconfigure(replace(SETTINGS, policy=narrowed))
        for asked in (
            here.manager.extend(grant(Verb.UPDATE), free.id, 601),
            here.manager.hold_to(grant(Verb.UPDATE), free.id, 101),
        ):
            with pytest.raises(ScistreamError) as caught:
                await asked
            assert (caught.value.code, "narrow" in caught.value.message) == (Code.PERMISSION_DENIED, True)


async def test_other_settings_count_from_then_on() -> None:
    async with gateway() as here:
        uid, other = Uid.random(), Uid.random()
        before = (await here.ready(uid)).listeners
        here.manager.reconfigure(replace(SETTINGS, port_range=PortRange(26205, 26209), default_type="Stunnel"))
        assert here.manager.free_ports == 5
        assert (await here.ready(other)).listeners[0].port == 26205
        assert here.manager.view(other.id).type == "Stunnel"
        assert here.manager.view(uid.id).listeners == before
        await here.release(uid)
        assert here.manager.free_ports == 4
        here.manager.reconfigure(SETTINGS)
        assert here.manager.free_ports == 9
