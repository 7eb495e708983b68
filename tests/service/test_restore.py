"""The books, and a daemon that goes on where the one before stopped."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import shutil
import stat
import time
from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from scistreamd.errors import Code, ScistreamError
from scistreamd.gate import Gate, Verb
from scistreamd.identity import Identity
from scistreamd.interfaces import EndedMeanwhile, Held, Told
from scistreamd.keys import TunnelKeys
from scistreamd.manager import Manager
from scistreamd.model import Change, ChangeKind, Options, Role, State, Uid
from scistreamd.network import HostNetwork
from scistreamd.plans import Bind, Program
from scistreamd.process import ProcessLauncher
from scistreamd.process_held import ProcessHeld
from scistreamd.records import BadRecord, Record
from scistreamd.runtime import runtime_directory
from scistreamd.store import FileStore
from tests.service.test_manager import ANY, CALLER, RANGE, SETTINGS, TARGET, grant, listening


class LastingLauncher(ProcessLauncher):
    """Stands for the service manager: what it holds does not end with a `Manager`."""

    def __init__(self, runtime: Path) -> None:
        super().__init__(runtime)
        self.lasting: dict[str, ProcessHeld] = {}
        self.others: list[str] = []
        self.problems: dict[str, Exception] = {}
        self.cleared: list[str] = []

    @property
    def outlives(self) -> bool:
        return True

    async def hold(self, tunnel_id: str, binds: Sequence[Bind], told: Told) -> ProcessHeld:
        held = self.lasting[tunnel_id] = await super().hold(tunnel_id, binds, told)
        return held

    async def adopt(self, tunnel_id: str, binds: Sequence[Bind], program: Program | None, told: Told) -> Held | None:  # type: ignore[override]
        if problem := self.problems.get(tunnel_id):
            raise problem
        held = self.lasting.get(tunnel_id)
        return held if held and held._closing is None else None

    async def clear(self, tunnel_id: str) -> None:
        self.cleared.append(tunnel_id)
        if held := self.lasting.get(tunnel_id):
            await held.close()

    async def strangers(self, known: Collection[str]) -> list[str]:
        return [f"scistream-{each}.service" for each in self.others if each not in known]


class Host:
    """A host on which daemons come and go."""

    def __init__(self, runtime: Path, state: Path) -> None:
        self.launcher = LastingLauncher(runtime)
        self.runtime = runtime
        self.store = FileStore(state / "tunnels", state / "ended")
        self.network = HostNetwork(5)
        self.running: list[Manager] = []

    async def daemon(self) -> Manager:
        manager = Manager(
            SETTINGS, Gate(SETTINGS, self.network), TunnelKeys(), lambda _: self.launcher, ANY, store=self.store
        )
        await manager.restore()
        self.running.append(manager)
        return manager

    def reboot(self) -> None:
        """Forget what ran; its processes are ended by the caller."""
        self.launcher.lasting.clear()


@contextlib.asynccontextmanager
async def host(state: Path) -> AsyncIterator[Host]:
    with runtime_directory() as runtime:
        made = Host(runtime, state)
        try:
            yield made
        finally:
            for held in made.launcher.lasting.values():
                await held.close()
            for manager in made.running:
                await manager.close()
            made.network.close()


async def make(manager: Manager, options: Options | None = None) -> Uid:
    uid, _ = await manager.create(grant(Verb.CREATE), Role.PROD, (TARGET,), options or Options(label="kept"))
    return uid


async def test_a_running_tunnel_is_adopted_and_ends_as_ever(tmp_path: Path) -> None:
    async with host(tmp_path) as here:
        first = await here.daemon()
        uid = await make(first)
        before = first.view(uid.id)
        await first.close()
        assert listening(26200)
        second = await here.daemon()
        assert second.view(uid.id) == before
        assert second.free_ports == len(RANGE) - 1
        other = await make(second)
        assert second.view(other.id).listeners[0].port == 26201
        assert second.pulse() == (2, 2)
        shutil.move(tmp_path / "tunnels" / f"{other.id}.json", tmp_path)
        assert second.pulse() == (2, 1)  # it looks
        shutil.move(tmp_path / f"{other.id}.json", tmp_path / "tunnels")
        await second.retarget(grant(Verb.UPDATE), uid.id, (TARGET,))
        for each in (uid, other):
            await second.end(grant(Verb.RELEASE), each.id, 0)
        assert not listening(26200)
        assert os.listdir(tmp_path / "tunnels") == []
        assert os.listdir(here.runtime) == ["lock"]
        assert second.free_ports == len(RANGE)


async def test_what_is_held_is_in_the_books_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon that is killed in between leaves no listeners that the next one does not know."""
    async with host(tmp_path) as here:
        noted: list[list[str]] = []

        async def hold(tunnel_id: str, binds: Sequence[Bind], told: Told) -> ProcessHeld:
            noted.append(os.listdir(tmp_path / "tunnels"))
            raise ScistreamError(Code.FAILED_PRECONDITION, "not to be had")

        manager = await here.daemon()
        monkeypatch.setattr(here.launcher, "hold", hold)
        with pytest.raises(ScistreamError, match="not to be had"):
            await make(manager)
        assert [len(files) for files in noted] == [1]
        assert os.listdir(tmp_path / "tunnels") == []


async def test_the_next_daemon_goes_on_with_a_drain(tmp_path: Path) -> None:
    async with host(tmp_path) as here:
        first = await here.daemon()
        uid = await make(first, Options(data_server="Stunnel"))  # it lasts as long as the drain may
        draining = asyncio.create_task(first.end(grant(Verb.RELEASE), uid.id, 600))
        await asyncio.sleep(0.1)
        first.hurry()
        with pytest.raises(ScistreamError, match="ends when it has drained") as caught:
            await draining
        assert caught.value.code is Code.UNAVAILABLE
        await first.close()
        second = await here.daemon()
        view = second.view(uid.id)
        assert 0 < view.expires_usec / 1e6 - time.time() < 600
        await asyncio.sleep(0)
        assert second.view(uid.id).state is State.RELEASING
        told: asyncio.Queue[Change] = asyncio.Queue()
        second.watch(told.put_nowait)
        await here.launcher.lasting[uid.id].close()  # the drain is over
        assert (await asyncio.wait_for(told.get(), 30)).kind is ChangeKind.REMOVED
        assert os.listdir(tmp_path / "tunnels") == []


async def test_after_a_reboot_it_comes_back_the_same(tmp_path: Path) -> None:
    async with host(tmp_path) as here:
        first = await here.daemon()
        uid = await make(first, Options(lifetime=600))
        before = first.view(uid.id)
        await first.close()
        for held in here.launcher.lasting.values():
            await held.close()
        here.reboot()
        assert not listening(26200)
        second = await here.daemon()
        assert second.view(uid.id) == before
        assert listening(26200)
        await second.end(grant(Verb.RELEASE), uid.id, 0)


@pytest.mark.parametrize("change", [{"state": State.PENDING}, {"state": State.FAILED}, {"expires": 1.0}])
async def test_what_is_not_worth_keeping_is_cleared(tmp_path: Path, change: dict[str, object]) -> None:
    async with host(tmp_path) as here:
        first = await here.daemon()
        await make(first)
        await first.close()
        [record] = here.store.load()
        here.store.save(replace(record, **change))  # type: ignore[arg-type]
        second = await here.daemon()
        assert second.tunnels() == ()
        assert not listening(26200)
        assert here.store.load() == []
        assert second.free_ports == len(RANGE)


async def test_one_whose_port_was_taken_meanwhile_is_told_of(tmp_path: Path) -> None:
    async with host(tmp_path) as here:
        first = await here.daemon()
        uid = await make(first)
        await first.close()
        for held in here.launcher.lasting.values():
            await held.close()
        here.reboot()
        rival = await asyncio.start_server(lambda *_: None, "127.0.0.1", 26200)
        second = await here.daemon()
        assert second.view(uid.id).state is State.FAILED
        assert "26200 is in use by another program" in second.view(uid.id).result
        rival.close()
        await rival.wait_closed()
        await second.end(grant(Verb.RELEASE), uid.id, 0)
        assert second.free_ports == len(RANGE)


async def test_one_that_cannot_be_adopted_fails_and_is_cleared_away_with_its_end(tmp_path: Path) -> None:
    async with host(tmp_path) as here:
        first = await here.daemon()
        broken, well = await make(first), await make(first)
        await first.close()
        here.launcher.problems[broken.id] = RuntimeError("something of systemd's")
        second = await here.daemon()
        assert second.view(broken.id).state is State.FAILED
        assert "something of systemd's" in second.view(broken.id).result
        assert second.view(well.id).state is State.ACTIVE
        assert here.launcher.cleared == []
        for uid in (broken, well):
            await second.end(grant(Verb.RELEASE), uid.id, 0)
        assert here.launcher.cleared == [broken.id]
        assert second.free_ports == len(RANGE)


async def test_where_nothing_can_be_learnt_no_tunnel_is_touched(tmp_path: Path) -> None:
    async with host(tmp_path) as here:
        first = await here.daemon()
        uid = await make(first)
        await first.close()
        here.launcher.problems[uid.id] = ScistreamError(Code.UNAVAILABLE, "the bus is away")
        with pytest.raises(ScistreamError, match="the bus is away"):
            await here.daemon()
        here.launcher.problems.clear()
        third = await here.daemon()
        assert third.view(uid.id).state is State.ACTIVE
        await third.end(grant(Verb.RELEASE), uid.id, 0)


async def test_strangers_are_told_of_and_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with host(tmp_path) as here:
        first = await here.daemon()
        uid = await make(first)
        await first.close()
        here.launcher.others = ["0123456789ab", uid.id]
        second = await here.daemon()
        assert "scistream-0123456789ab.service looks like a tunnel of ours" in caplog.text
        assert caplog.text.count("looks like") == 1
        await second.end(grant(Verb.RELEASE), uid.id, 0)


async def test_a_full_disk_refuses_new_tunnels_and_harms_no_running_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with host(tmp_path) as here:
        manager = await here.daemon()
        uid = await make(manager)

        def full(_: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as broken:
            broken.setattr(os, "fsync", full)
            with pytest.raises(ScistreamError, match="No space left on device") as caught:
                await make(manager)
        assert caught.value.code is Code.FAILED_PRECONDITION
        assert manager.free_ports == len(RANGE) - 1
        assert manager.view(uid.id).state is State.ACTIVE
        await manager.end(grant(Verb.RELEASE), uid.id, 0)


async def test_a_tunnel_whose_file_cannot_be_removed_does_not_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with host(tmp_path) as here:
        manager = await here.daemon()
        uid = await make(manager)

        def read_only(self: Path, missing_ok: bool = False) -> None:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

        with monkeypatch.context() as broken:
            broken.setattr(Path, "unlink", read_only)
            await manager.end(grant(Verb.RELEASE), uid.id, 0)
            assert len(list((tmp_path / "tunnels").iterdir())) == 1
            assert len(await here.daemon()) == 0
        assert len(await here.daemon()) == 0
        assert not list((tmp_path / "tunnels").iterdir())
        assert not (tmp_path / "ended").exists()


async def test_one_that_ended_while_no_daemon_ran_is_not_made_again(tmp_path: Path) -> None:
    async with host(tmp_path) as here:
        first = await here.daemon()
        uid = await make(first)
        await first.close()
        await here.launcher.lasting[uid.id].close()
        here.launcher.problems[uid.id] = EndedMeanwhile()
        second = await here.daemon()
        assert len(second) == 0
        assert second.free_ports == len(RANGE)
        assert not list((tmp_path / "tunnels").iterdir())


async def test_files_are_for_root_alone_and_bad_ones_are_left_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with host(tmp_path) as here:
        manager = await here.daemon()
        uid = await make(manager)
        [path] = (tmp_path / "tunnels").iterdir()
        assert path.name == f"{uid.id}.json"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        good = json.loads(path.read_text())
        bad = {
            "no json": "{",
            "another version": json.dumps(good | {"version": 2}),
            "a missing key": json.dumps({key: good[key] for key in good if key != "role"}),
            "another tunnel": json.dumps(good | {"uid": Uid.random().reveal()}),
            "a name for an address": json.dumps(good | {"addresses": [["localhost:1"]]}),
            "a list": "[]",
        }
        for number, text in enumerate(bad.values()):
            (path.parent / f"{number:012x}.json").write_text(text)
        assert [record.uid for record in here.store.load()] == [uid]
        assert caplog.text.count("is left alone") == len(bad)
        assert good["uid"] not in caplog.text
        await manager.end(grant(Verb.RELEASE), uid.id, 0)


def test_a_record_reads_back_as_it_was() -> None:
    record = Record(
        uid=Uid.random(),
        role=Role.CONS,
        state=State.ACTIVE,
        type="Nginx",
        security=SETTINGS.default_security,
        binds=(),
        shown_host=ANY,
        owner=replace(CALLER, identity=Identity("local", "1000", "alice")),
        options=Options(label="ü", lifetime=5),
        targets=(TARGET,),
        generation=3,
        created=time.time(),
        expires=time.time() + 5,
    )
    assert Record.from_json(json.loads(json.dumps(record.to_json()))) == record
    with pytest.raises(BadRecord):
        Record.from_json(None)
