"""Who may do what on D-Bus: what polkit is asked, and what follows from each of its answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from dbus_next import Message, MessageFlag, MessageType, Variant
from dbus_next.aio import MessageBus

from scistreamd import names
from scistreamd.bus import Bus
from scistreamd.bus_wire import hang_up
from scistreamd.config import Settings
from scistreamd.errors import Code, ScistreamError
from scistreamd.gate import Gate, Verb
from scistreamd.identity import Identity
from scistreamd.model import Caller
from scistreamd.network import HostNetwork
from scistreamd.polkit import Polkit
from tests.service.bus_kit import Client, PrivateBus, connected, until

YES, NO, CHALLENGE = (True, False), (False, False), (False, True)


@dataclass
class Authority:
    """Stands where polkit does, and answers as a test says: None keeps the question open."""

    connection: MessageBus
    answer: tuple[bool, bool] | str | None = YES
    asked: list[list[Any]] = field(default_factory=list)
    open: list[Message] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)

    async def start(self) -> None:
        self.connection.add_message_handler(self._on_message)
        await self.connection.request_name("org.freedesktop.PolicyKit1")

    def _on_message(self, message: Message) -> Message | bool:
        if message.message_type is not MessageType.METHOD_CALL:
            return False
        assert message.path == "/org/freedesktop/PolicyKit1/Authority"
        assert message.interface == "org.freedesktop.PolicyKit1.Authority"
        if message.member == "CancelCheckAuthorization":
            self.cancelled.append(message.body[0])
            return Message.new_method_return(message)
        assert (message.member, message.signature) == ("CheckAuthorization", "(sa{sv})sa{ss}us")
        self.asked.append(message.body)
        if isinstance(self.answer, str):
            return Message.new_error(message, self.answer, "it said")
        if self.answer is None:
            self.open.append(message)
            return True
        return Message.new_method_return(message, "(bba{ss})", [[*self.answer, {}]])


@dataclass
class Scene:
    """A gate with polkit on a bus, and a caller there."""

    gate: Gate
    authority: Authority
    client: Client

    def caller(self, user: int = 1000, *, interactive: bool = False) -> Caller:
        name = self.client.connection.unique_name or ""
        return Caller(
            "D-Bus",
            identity=Identity("local", str(user), f"user{user}"),
            user=user,
            bus_name=name,
            interactive=interactive,
        )


async def serving(call: Any) -> Any:
    raise AssertionError("this side of the test answers nobody")


@pytest_asyncio.fixture
async def private(tmp_path: Path) -> AsyncIterator[PrivateBus]:
    bus = PrivateBus(tmp_path)
    await bus.start()
    yield bus
    await bus.stop()


@pytest_asyncio.fixture
async def scene(private: PrivateBus) -> AsyncIterator[Scene]:
    network, bus = HostNetwork(1), Bus(private.address)
    async with connected(private.address) as client, connected(private.address) as other:
        await bus.serve(serving)
        authority = Authority(other.connection)
        await authority.start()
        yield Scene(Gate(Settings(), network, Polkit(bus)), authority, client)
        await bus.close()
        network.close()


async def refused(scene: Scene, caller: Caller, verb: Verb, owner: str | None = None) -> ScistreamError:
    with pytest.raises(ScistreamError) as caught:
        await scene.gate.authorize(caller, verb, owner)
    return caught.value


async def test_root_is_never_asked_about(scene: Scene) -> None:
    for verb in Verb:
        grant = await scene.gate.authorize(scene.caller(0), verb, "somebody else")
        assert grant.verb is verb
    assert scene.authority.asked == []


async def test_what_polkit_is_asked(scene: Scene) -> None:
    caller = scene.caller()
    for verb, owner, own in (
        (Verb.CREATE, None, "true"),
        (Verb.UPDATE, caller.principal, "true"),
        (Verb.RELEASE, "somebody else", "false"),
        (Verb.REVEAL, "", "false"),
        (Verb.RELOAD, None, "true"),
    ):
        await scene.gate.authorize(caller, verb, owner)
        subject, action, details, flags, mark = scene.authority.asked[-1]
        assert subject == ["system-bus-name", {"name": Variant("s", caller.bus_name)}]
        assert (action, details, flags) == (names.action(verb.value), {"own": own}, 0)
        assert mark.startswith("scistreamd-")
    assert len({body[4] for body in scene.authority.asked}) == 5
    await scene.gate.authorize(scene.caller(interactive=True), Verb.CREATE)
    assert scene.authority.asked[-1][3] == 1
    assert scene.authority.cancelled == []


@pytest.mark.parametrize(
    ("answer", "interactive", "verb", "owner", "told"),
    [
        (NO, False, Verb.CREATE, None, "create: user1000 may not (members of the group scistream may, or use sudo)"),
        (NO, False, Verb.RELEASE, "x", "release: user1000 may not on other people's tunnels (ask an administrator"),
        (NO, False, Verb.RELOAD, None, "reload: user1000 may not (ask an administrator"),
        (CHALLENGE, False, Verb.CREATE, None, "or use sudo; members of the group scistream need none)"),
        (CHALLENGE, True, Verb.RELOAD, None, "ask an administrator"),
    ],
)
async def test_a_no_says_what_would_help(
    scene: Scene, answer: tuple[bool, bool], interactive: bool, verb: Verb, owner: str | None, told: str
) -> None:
    scene.authority.answer = answer
    error = await refused(scene, scene.caller(interactive=interactive), verb, owner)
    assert error.code is Code.PERMISSION_DENIED
    assert told in str(error)


@pytest.mark.parametrize(
    ("name", "code", "told"),
    [
        ("org.freedesktop.PolicyKit1.Error.Failed", Code.UNAVAILABLE, "polkit cannot decide: it said"),
        ("org.freedesktop.PolicyKit1.Error.Cancelled", Code.CANCELLED, "withdrawn"),
        ("org.freedesktop.DBus.Error.Spawn.ChildExited", Code.UNAVAILABLE, "polkit does not run here"),
    ],
)
async def test_no_decision_is_no_yes(scene: Scene, name: str, code: Code, told: str) -> None:
    scene.authority.answer = name
    error = await refused(scene, scene.caller(), Verb.CREATE)
    assert error.code is code
    assert told in str(error)


async def test_without_polkit_only_root_may(scene: Scene) -> None:
    await scene.authority.connection.release_name("org.freedesktop.PolicyKit1")
    error = await refused(scene, scene.caller(), Verb.CREATE)
    assert error.code is Code.UNAVAILABLE
    assert "install polkitd" in error.hint
    await scene.gate.authorize(scene.caller(0), Verb.CREATE)


async def test_a_gate_without_authority_and_a_caller_without_user(scene: Scene) -> None:
    network = HostNetwork(1)
    with pytest.raises(ScistreamError, match="only root may"):
        await Gate(Settings(), network).authorize(scene.caller(), Verb.CREATE)
    network.close()
    assert (await refused(scene, Caller("gRPC"), Verb.CREATE)).code is Code.PERMISSION_DENIED
    assert scene.authority.asked == []


async def test_a_question_is_withdrawn_when_the_caller_leaves(scene: Scene) -> None:
    scene.authority.answer = None
    asking = asyncio.create_task(scene.gate.authorize(scene.caller(interactive=True), Verb.CREATE))
    await until(lambda: scene.authority.open)
    await hang_up(scene.client.connection)
    with pytest.raises(ScistreamError) as caught:
        await asking
    assert caught.value.code is Code.CANCELLED
    assert scene.authority.cancelled == [scene.authority.asked[0][4]]


async def test_a_question_that_is_cancelled_is_withdrawn(scene: Scene) -> None:
    scene.authority.answer = None
    asking = asyncio.create_task(scene.gate.authorize(scene.caller(), Verb.CREATE))
    await until(lambda: scene.authority.open)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert scene.authority.cancelled == [scene.authority.asked[0][4]]


async def test_a_polkit_that_does_not_decide(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scistreamd.polkit._SECONDS", 0.1)
    scene.authority.answer = None
    error = await refused(scene, scene.caller(), Verb.CREATE)
    assert error.code is Code.UNAVAILABLE
    assert "not decided in time" in error.message
    assert scene.authority.cancelled == [scene.authority.asked[0][4]]


async def test_the_message_says_whether_a_password_may_be_asked_for(private: PrivateBus) -> None:
    seen = []

    async def answer(call: Any) -> Any:
        seen.append((call.sender, call.interactive))
        raise ScistreamError(Code.INTERNAL, "not reached by the border")

    bus = Bus(private.address)
    await bus.serve(answer)
    async with connected(private.address) as client:
        for flags in (0, MessageFlag.ALLOW_INTERACTIVE_AUTHORIZATION):
            with pytest.raises(Exception, match="internal error"):
                await client.manager("Reload", flags=int(flags))
        assert seen == [(client.connection.unique_name, False), (client.connection.unique_name, True)]
    await bus.close()
