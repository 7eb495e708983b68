"""The kernel's network in a tunnel's life: asked at each step, in order, and undone where a part cannot."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Mapping, Sequence

import pytest

from scistreamd.errors import Code, ScistreamError
from scistreamd.gate import Gate, Grant, Verb
from scistreamd.interfaces import Flow
from scistreamd.keys import TunnelKeys
from scistreamd.manager import Manager
from scistreamd.model import Answer, Change, Endpoint, Options, Role, Target, Uid
from scistreamd.network import HostNetwork
from scistreamd.process import ProcessLauncher
from scistreamd.runtime import runtime_directory
from tests.service.test_manager import ANY, CALLER, LOOPBACK, RANGE, SETTINGS, TARGET


class Part:
    """Notes what it is asked, and whether the listener was there already; refuses what ``refuses`` says."""

    def __init__(self, name: str, notes: list[tuple[str, str, object]]) -> None:
        self.name = name
        self.notes = notes
        self.refuses: Callable[[Flow], bool] = lambda flow: False
        self.said: tuple[str, ...] = ()
        self.say: Callable[[str, tuple[str, ...]], None] = lambda tunnel_id, said: None
        self.done: dict[str, Flow] = {}
        self.listened: list[bool] = []
        self.takes = 0.0

    def watch(self, say: Callable[[str, tuple[str, ...]], None]) -> None:
        self.say = say

    async def apply(self, flow: Flow) -> tuple[str, ...]:
        await asyncio.sleep(self.takes)
        self.listened.append(any(taken(each.endpoint.port) for each in flow.binds))
        self.notes.append((self.name, "apply", flow))
        if self.refuses(flow):
            raise ScistreamError(Code.FAILED_PRECONDITION, f"{self.name} cannot")
        self.done[flow.tunnel_id] = flow
        return self.said

    async def forget(self, tunnel_id: str) -> None:
        if tunnel_id in self.done:
            self.listened.append(any(taken(each.endpoint.port) for each in self.done[tunnel_id].binds))
        self.notes.append((self.name, "forget", tunnel_id))
        self.done.pop(tunnel_id, None)

    async def reconcile(self, flows: Sequence[Flow]) -> Mapping[str, tuple[str, ...]]:
        self.notes.append((self.name, "reconcile", flows))
        return {}

    async def close(self) -> None:
        self.notes.append((self.name, "close", None))


def taken(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
            probe.listen()
        except OSError:
            return True
    return False


@contextlib.asynccontextmanager
async def gateway() -> AsyncIterator[tuple[Manager, Part, Part, list[tuple[str, str, object]]]]:
    notes: list[tuple[str, str, object]] = []
    first, second = Part("first", notes), Part("second", notes)
    network = HostNetwork(5)
    with runtime_directory() as runtime:
        launcher = ProcessLauncher(runtime)
        gate = Gate(SETTINGS, network)
        manager = Manager(SETTINGS, gate, TunnelKeys(), lambda kind: launcher, ANY, traffic=[first, second])
        try:
            yield manager, first, second, notes
            assert not first.done
            assert not second.done
        finally:
            await manager.close()
            network.close()
    assert notes[-2:] == [("second", "close", None), ("first", "close", None)]


async def create(manager: Manager, role: Role = Role.PROD, options: Options | None = None) -> str:
    _, view = await manager.create(Grant(CALLER, Verb.CREATE), role, (TARGET,), options or Options())
    return view.id


async def test_wished_ports_change_hands_among_many_at_once() -> None:
    """Each wishes for what the next one has for now; parts take their time, and a request is just being made."""
    async with gateway() as (manager, first, _second, _notes):
        first.takes = 0.02
        ports = list(SETTINGS.port_range)[:5]
        uids = [Uid.random() for _ in ports]

        def ask(uid: Uid) -> asyncio.Task[Answer]:
            return asyncio.create_task(manager.request(Grant(CALLER, Verb.CREATE), uid, Role.CONS, 1, Options()))

        async def greet(uid: Uid, port: int) -> Answer:
            return await manager.hello(Grant(CALLER, Verb.HELLO), uid, Role.PROD, (Target("localhost", port),))

        asked = [ask(uid) for uid in uids[:4]]
        await asyncio.sleep(0.2)
        asked.append(ask(uids[4]))
        wished = [*ports[1:], ports[0]]
        await asyncio.gather(*(greet(uid, port) for uid, port in zip(uids, wished, strict=True)))
        got = [each.port for request in asked for each in (await request).listeners]
        assert got == wished
        for uid in uids:
            await manager.release(Grant(CALLER, Verb.RELEASE), uid, 0)


async def test_parts_know_of_a_listener_before_it_is_there_and_until_it_is_gone() -> None:
    async with gateway() as (manager, first, _second, notes):
        tunnel_id = await create(manager)
        asked = [flow for name, what, flow in notes if (name, what) == ("first", "apply")]
        assert all(isinstance(flow, Flow) for flow in asked)
        flows = [flow for flow in asked if isinstance(flow, Flow)]
        assert flows[0].targets == ()
        assert not first.listened[0]
        assert first.listened[-1]
        assert flows[-1].targets == (Endpoint(LOOPBACK, 26299),)
        assert flows[-1].guarded
        assert [name for name, what, _ in notes[:2]] == ["first", "second"]
        first.listened.clear()
        await manager.end(Grant(CALLER, Verb.RELEASE), tunnel_id, 0)
        assert first.listened == [False]
        assert [(name, what) for name, what, _ in notes[-2:]] == [("second", "forget"), ("first", "forget")]


async def test_a_part_that_cannot_leaves_no_tunnel_and_nothing_in_the_others() -> None:
    async with gateway() as (manager, first, second, _notes):
        for refuses in (lambda flow: True, lambda flow: bool(flow.targets)):
            second.refuses = refuses
            with pytest.raises(ScistreamError, match="second cannot"):
                await create(manager)
            assert not first.done
            assert (len(manager), manager.free_ports) == (0, len(RANGE))


async def test_new_targets_that_a_part_refuses_leave_those_of_before() -> None:
    async with gateway() as (manager, first, second, _notes):
        tunnel_id = await create(manager)
        before = first.done[tunnel_id]
        second.refuses = lambda flow: flow.targets != before.targets
        with pytest.raises(ScistreamError, match="second cannot"):
            await manager.retarget(Grant(CALLER, Verb.UPDATE), tunnel_id, (Target.parse("127.0.0.1:26298"),))
        assert first.done[tunnel_id] == before
        assert [str(each) for each in manager.view(tunnel_id).targets] == [str(TARGET)]
        await manager.end(Grant(CALLER, Verb.RELEASE), tunnel_id, 0)


async def test_while_ports_change_hands_both_are_covered() -> None:
    async with gateway() as (manager, _first, _second, notes):
        uid = Uid.random()
        options = Options(exact_ports=True)
        wished = Target.parse("127.0.0.1:26207")
        course = manager._course
        tunnel = course.shielded(course.reserve(Grant(CALLER, Verb.CREATE), uid, Role.CONS, 1, options))
        held = [each.endpoint.port for each in (await tunnel).binds]
        await manager.hello(Grant(CALLER, Verb.HELLO), uid, Role.CONS, (wished,))
        asked = [flow for name, what, flow in notes if (name, what) == ("first", "apply")]
        ports = [[each.endpoint.port for each in flow.binds] for flow in asked if isinstance(flow, Flow)]
        assert ports == [held, [*held, 26207], [26207]]
        await manager.release(Grant(CALLER, Verb.RELEASE), uid)


async def test_warnings_of_the_parts_are_the_tunnels(caplog: pytest.LogCaptureFixture) -> None:
    changes: list[Change] = []
    async with gateway() as (manager, first, second, _notes):
        first.said, second.said = ("a",), ("b",)
        tunnel_id = await create(manager)
        assert manager.view(tunnel_id).warnings == ("a", "b")
        manager.watch(changes.append)
        second.say(tunnel_id, ("c", "d"))
        assert manager.view(tunnel_id).warnings == ("a", "c", "d")
        second.say(tunnel_id, ("c", "d"))
        second.say("0123456789ab", ("e",))
        assert [each.view.warnings for each in changes] == [("a", "c", "d")]
        assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
            "a",
            "b",
            "c",
            "d",
        ]
        await manager.end(Grant(CALLER, Verb.RELEASE), tunnel_id, 0)
