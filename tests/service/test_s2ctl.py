"""s2ctl against the D-Bus front door on a bus of its own: every verb, in text and in JSON, and its failures."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import sys
from argparse import Namespace
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from scistreamd import __version__
from scistreamd.cli import s2ctl
from scistreamd.cli.ctl import arguments, permission, top
from scistreamd.cli.ctl.tunnels import COUNTED
from scistreamd.counts import Counts, Health, Rates, Totals
from scistreamd.errors import Code, ScistreamError
from scistreamd.model import ChangeKind, State, Uid
from tests.service.bus_kit import Door, PrivateBus, door, until

UID = "11111111-2222-4333-8444-555555555555"
ID = Uid.parse(UID).id


@dataclass(frozen=True)
class Said:
    """What a command printed, and its exit status."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output as JSON."""
        return json.loads(self.out)


Run = Callable[..., Coroutine[Any, Any, Said]]


@pytest_asyncio.fixture(name="private")
async def _private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[PrivateBus]:
    bus = PrivateBus(tmp_path)
    await bus.start()
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", bus.address)
    yield bus
    await bus.stop()


@pytest_asyncio.fixture(name="scene")
async def _scene(private: PrivateBus) -> AsyncIterator[Door]:
    async with door(private) as made:
        yield made


@pytest.fixture(name="run")
def _run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run s2ctl in a thread, while the front door answers here."""

    async def run(*words: str) -> Said:
        capsys.readouterr()
        status = await asyncio.to_thread(s2ctl.main, list(words))
        return Said(status, *capsys.readouterr())

    return run


async def made(run: Run, *words: str) -> Any:
    """An inbound tunnel, as JSON."""
    said = await run("inbound", "--json=short", *(words or ("192.0.2.1:5001",)))
    assert said.status == 0, said.err
    return said.json


async def test_an_inbound_tunnel_and_its_uid_once(scene: Door, run: Run) -> None:
    said = await run("inbound", "192.0.2.1:5001", "--label", "detector 7", "192.0.2.2:5002")
    assert said.status == 0
    lines = dict(line.split(": ", 1) for line in said.out.splitlines())
    assert Uid.parse(lines["UID"]).id == lines["ID"]
    assert lines["Listeners"] == "127.0.0.1:27800 127.0.0.1:27801"
    assert said.err.splitlines() == [
        "s2ctl: note: beware",
        "s2ctl: note: next, on the other gateway: s2ctl outbound UID 127.0.0.1:27800 127.0.0.1:27801",
    ]
    (view,) = scene.tunnels.tunnels()
    assert (view.id, view.label) == (lines["ID"], "detector 7")
    assert [str(target) for target in view.targets] == ["192.0.2.1:5001", "192.0.2.2:5002"]
    for words in (["list"], ["list", "-l"], ["status"], ["status", "detector 7"], ["show", lines["ID"]]):
        for mode in ("off", "short"):
            shown = await run(*words, f"--json={mode}")
            assert shown.status == 0, shown.err
            assert lines["UID"] not in shown.out + shown.err
    revealed = await run("show", "--reveal-uid", "detector 7")
    assert (revealed.status, revealed.out) == (0, f"{lines['UID']}\n")


async def test_every_option_arrives(scene: Door, run: Run) -> None:
    words = (
        "inbound 192.0.2.1:5001 --type nginx --listen 127.0.0.1:27805 --rate 5000 --security tls --lifetime 2h "
        "--allow-from 192.0.2.0/24,198.51.100.0/24 --allow-from 2001:db8::/32 --label x --json short"
    )
    assert (await run(*words.split(), "--uid", UID)).json["id"] == ID
    ((_, grant, _, _, options, uid),) = scene.tunnels.calls
    assert (str(uid), grant.caller.interactive) == (ID, False)
    assert (options.data_server, options.rate, options.lifetime, options.label) == ("nginx", 5000, 7200, "x")
    assert [str(each) for each in options.allow_from] == ["192.0.2.0/24", "198.51.100.0/24", "2001:db8::/32"]
    assert [(str(each.address), each.port) for each in options.listen] == [("127.0.0.1", 27805)]


async def test_a_uid_from_and_to_a_file(scene: Door, run: Run, tmp_path: Path) -> None:
    file = tmp_path / "uid"
    said = await run("inbound", "192.0.2.1:5001", "--uid-file", str(file), "-q")
    uid = file.read_text().strip()
    assert (said.status, said.out) == (0, f"{Uid.parse(uid).id}\n")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert (await run("outbound", f"@{file}", "192.0.2.9:5100")).status == Code.ALREADY_EXISTS.exit_status
    assert (await run("release", f"@{file}")).out == f"Released {Uid.parse(uid).id}.\n"
    said = await run("outbound", f"@{file}", "192.0.2.9:5100,192.0.2.9:5101", "--json=pretty")
    assert (said.json["role"], said.json["uid"]) == ("CONS", None)
    assert said.json["targets"] == ["192.0.2.9:5100", "192.0.2.9:5101"]
    assert uid not in said.out + said.err


async def test_no_file_of_a_tunnel_that_was_not_made(scene: Door, run: Run, tmp_path: Path) -> None:
    file = tmp_path / "uid"
    said = await run("inbound", *["192.0.2.1:5001"] * 11, "--uid-file", str(file))
    assert said.status == Code.RESOURCE_EXHAUSTED.exit_status
    assert said.err == "s2ctl: num_conn: no free port in 27800-27809\nhint: release a tunnel\n"
    assert not [each for each in tmp_path.iterdir() if "uid" in each.name]


async def test_lists(scene: Door, run: Run) -> None:
    assert (await run("list")).out == "No tunnels.\n"
    assert (await run("list", "--no-legend")).out == ""
    first, second = await made(run), await made(run, "--label", "two", "app.example:1", "app.example:2")
    said = await run()
    lines = said.out.splitlines()
    assert lines[0].split() == ["ID", "ROLE", "STATE", "LISTENERS", "TARGETS", "TYPE"]
    assert lines[1].split() == [first["id"], "PROD", "active", "127.0.0.1:27800", "192.0.2.1:5001", "Haproxy"]
    assert "127.0.0.1:27801, 127.0.0.1:27802  app.example:1, app.example:2  Haproxy" in lines[2]
    assert lines[3:] == ["", "2 tunnels."]
    assert "\x1b" not in said.out
    bare = await run("list", "--no-legend")
    assert bare.out.splitlines() == lines[1:3]
    assert (await run("list", "-q")).out.split() == [first["id"], second["id"]]
    long = await run("--no-pager", "list", "--long")
    assert long.out.splitlines()[0].split()[:2] == ["ID", "LABEL"]
    assert " two " in long.out
    rows = (await run("list", "--json=short")).json
    assert [row["id"] for row in rows] == [first["id"], second["id"]]
    assert rows[1]["listeners"] == ["127.0.0.1:27801", "127.0.0.1:27802"]
    assert (await run("list", "-l", "--json")).json[1]["label"] == "two"


GIB = 1 << 30
CARRIED = Counts(
    connections=2,
    connections_total=5,
    plain=Totals(GIB, 1500, 9, 8),
    wan=Totals(GIB + 9, 1600, 9, 8),
    retransmits=4,
    rates=Rates((2e6, 3e6, 4e6), (20.0, 30.0, 40.0)),
    health=Health(2, 250, 20, 5_000_000),
    used=1_700_000_000,
)


async def test_what_tunnels_have_carried(scene: Door, run: Run) -> None:
    await made(run)
    second = await made(run, "192.0.2.1:1", "--label", "two")
    scene.counted.values[second["id"]] = CARRIED
    rows = (await run("list", "--json=short")).json
    assert [row["bytes_in"] for row in rows] == [0, GIB]
    assert (rows[1]["connections"], rows[1]["rates_in"], rows[1]["wan_rtt_usec"]) == (2, [2e6, 3e6, 4e6], 250)
    long = (await run("list", "--long")).out.splitlines()
    assert long[0].split()[8:11] == ["CONNS", "IN", "OUT"]
    assert " 2      1.07G  1.50k " in long[2]
    shown = (await run("show", "two", "--json=short")).json
    assert (shown["wan_cwnd"], shown["wan_delivery_rate"], shown["estimated"]) == (20, 5_000_000, False)
    assert (shown["bytes_in"], shown["packets_out"], shown["wan_retransmits"]) == (GIB, 8, 4)
    assert (
        await run("show", "two", "-p", "bytes_in,rates_in", "--value")
    ).out == f"{GIB}\n2000000.0 3000000.0 4000000.0\n"
    told = {
        line.split(":")[0].strip(): line.partition(": ")[2]
        for line in (await run("status", "two", "-n0")).out.splitlines()
    }
    assert told["Connections"] == "2 open, 5 in all"
    assert told["Carried"] == "1.07GB in, 1.50kB out"
    assert told["Now"] == "2.00MB/s in, 20B/s out"
    assert told["Hop"] == "round trip 0.25ms, 4 retransmits, window 20, delivery 5.00MB/s"


async def test_counters_that_cannot_be_seen(scene: Door, run: Run) -> None:
    """No zero that is none: null, an empty value, a dash, and a note with the reason."""
    tunnel = await made(run)
    scene.counted.problem = ScistreamError(Code.UNAVAILABLE, "the kernel tells nothing", "modprobe tcp_diag")
    said = await run("list", "--json=short")
    assert (said.status, said.json[0]["bytes_in"]) == (0, None)
    assert "note: no counters: the kernel tells nothing (modprobe tcp_diag)" in said.err
    said = await run("show", tunnel["id"], "-p", "bytes_in", "--json=short")
    assert (said.status, said.json) == (0, {"bytes_in": None})
    assert "\nbytes_in=\n" in (await run("show", tunnel["id"])).out
    said = await run("list", "--long")
    assert said.out.splitlines()[1].split()[7:10] == ["-", "-", "-"]
    assert "Connections" not in (await run("status", tunnel["id"], "-n0")).out
    said = await run("top", "-n1")
    assert (said.status, said.out) == (Code.UNAVAILABLE.exit_status, "")
    assert "the kernel tells nothing" in said.err


async def test_top(scene: Door, run: Run) -> None:
    first, second = await made(run, "192.0.2.1:1", "--label", "one"), await made(run, "192.0.2.1:1", "--label", "two")
    scene.counted.values[second["id"]] = CARRIED
    lines = (await run("top", "-n1")).out.splitlines()
    assert lines[0].endswith("2 tunnels, 2 connections, 2.00MB/s in, 20B/s out (over 1s)")
    titles = ["ID", "LABEL", "ROLE", "CONNS", "IN/s", "OUT/s", "IN", "OUT", "RTT", "RETRANS", "CWND", "HOP/s"]
    assert lines[2].split() == titles
    assert lines[3].split() == [
        second["id"], "two", "PROD", "2", "2.00M", "20", "1.07G", "1.50k", "0.25ms", "4", "20", "5.00M",
    ]  # fmt: skip
    assert lines[4].split() == [first["id"], "one", "PROD", "0", "-", "-", "0", "0", "-", "0", "0", "0"]
    assert len(lines) == 5
    bare = (await run("top", "-n2", "-d", "0.1", "--no-legend", "--sort", "label", "--span", "60")).out.splitlines()
    assert [line.split()[1] for line in bare] == ["one", "two", "one", "two"]
    assert bare[1].split()[4] == "4.00M"
    batches = [json.loads(line) for line in (await run("top", "-n2", "-d0.1", "--json=short")).out.splitlines()]
    assert [each["tunnels"][0]["rate_in"] for each in batches] == [2e6, 2e6]
    assert batches[0]["tunnels"][0]["label"] == "two"
    assert batches[0]["time_usec"] < batches[1]["time_usec"]
    scene.counted.values[second["id"]] = replace(CARRIED, estimated=True)
    assert "~1.07G" in (await run("top", "-n1")).out
    assert set(arguments.SORTS) == set(top.KEYS)
    for sort in arguments.SORTS:
        assert (await run("top", "-n1", "--sort", sort)).status == 0


async def test_ids_by_prefix_and_label(scene: Door, run: Run) -> None:
    tunnel = await made(run, "--label", "beamline", "192.0.2.1:1")
    for name in (tunnel["id"], tunnel["id"][:11], tunnel["id"][:1], "beamline"):
        assert (await run("show", name, "-p", "id", "--value")).out == f"{tunnel['id']}\n"
    said = await run("show", "beemline")
    assert said.status == Code.NOT_FOUND.exit_status
    assert "hint: did you mean beamline?" in said.err
    again = await made(run, "--label", "beamline", "192.0.2.1:1")
    said = await run("release", "beamline")
    assert said.status == Code.INVALID_ARGUMENT.exit_status
    assert f"names 2 tunnels: {tunnel['id']}, {again['id']}" in said.err
    said = await run("show", "0" * 12)
    assert said.status == Code.NOT_FOUND.exit_status
    assert len(scene.tunnels.tunnels()) == 2


async def test_show(scene: Door, run: Run) -> None:
    tunnel = await made(run, "192.0.2.1:1", "192.0.2.1:2")
    said = await run("show", tunnel["id"])
    assert "listeners=127.0.0.1:27800 127.0.0.1:27801" in said.out.splitlines()
    assert {line.partition("=")[0] for line in said.out.splitlines()} == (tunnel.keys() - {"uid"}) | set(COUNTED)
    assert (await run("show", tunnel["id"], "-p", "State,role", "--json=short")).json == {
        "state": "active",
        "role": "PROD",
    }
    said = await run("show", tunnel["id"], "-p", "stat")
    assert (said.status, "did you mean state?" in said.err) == (2, True)


async def test_status(scene: Door, run: Run) -> None:
    tunnel = await made(run, "--label", "x", "192.0.2.1:1", "192.0.2.1:2")
    said = await run("status")
    assert f"scistreamd {__version__}" in said.out
    assert "1 tunnel: 1 active" in said.out
    assert "27800-27809, 8 of 10 free" in said.out
    assert (await run("status", "--json=short")).json["port_range"] == [27800, 27809]
    view = replace(scene.tunnels.view(tunnel["id"]), state=State.FAILED, result="haproxy does not start")
    scene.tunnels.change(ChangeKind.CHANGED, view)
    said = await run("status", "x")
    assert said.out.startswith(f"● {tunnel['id']} - x\n")
    told = [line.strip() for line in said.out.splitlines()]
    for line in ("Listener 2: 127.0.0.1:27801 -> 192.0.2.1:2", "Result: haproxy does not start", "Warning: beware"):
        assert line in told


async def test_update_and_extend(scene: Door, run: Run) -> None:
    tunnel = (await made(run))["id"]
    assert (
        await run("update", tunnel, "--lifetime", "90m", "192.0.2.7:7", "192.0.2.8:8")
    ).out == f"Updated {tunnel}.\n"
    assert [str(target) for target in scene.tunnels.view(tunnel).targets] == ["192.0.2.7:7", "192.0.2.8:8"]
    assert scene.tunnels.calls[-1][3] == 5400
    said = await run("extend", tunnel[:6], "1d")
    assert (said.status, scene.tunnels.calls[-1][3]) == (0, 86400)
    assert (await run("extend", tunnel, "never")).out == f"{tunnel} ends: never\n"
    assert (await run("extend", tunnel, "0", "-q")).out == ""
    assert (await run("update", tunnel)).status == 2


async def test_release(scene: Door, run: Run) -> None:
    ids = [(await made(run))["id"] for _ in range(4)]
    said = await run("release", "--drain", "5m", ids[0], ids[1], ids[0])
    assert said.out.splitlines() == [f"Released {ids[0]}.", f"Released {ids[1]}."]
    assert scene.tunnels.calls[-1][3] == 300
    said = await run("release", ids[2], "nobody")
    assert (said.status, said.out) == (Code.NOT_FOUND.exit_status, "")
    said = await run("release", "0" * 12, ids[2])
    assert (said.status, said.out) == (Code.NOT_FOUND.exit_status, f"Released {ids[2]}.\n")
    assert said.err.startswith(f"s2ctl: {'0' * 12}: ")
    assert (await run("release", "--all", "-q")).status == 0
    assert scene.tunnels.tunnels() == ()
    assert (await run("release", "--all")).status == 0
    assert (await run("release")).status == 2
    assert (await run("release", "--all", ids[0])).status == 2


async def test_release_of_more_than_the_daemon_takes_at_once(scene: Door, run: Run) -> None:
    view = replace(scene.tunnels.view((await made(run))["id"]), listeners=())
    for number in range(130):
        scene.tunnels.change(ChangeKind.ADDED, replace(view, id=f"{number:012x}"))
    said = await run("release", "--all")
    assert (said.status, said.err) == (0, "")
    assert len(said.out.splitlines()) == 131
    assert scene.tunnels.tunnels() == ()


async def test_check(scene: Door, run: Run) -> None:
    assert (await run("check")).out.splitlines()[1:] == ["27800-27809  free", "", "10 of 10 free."]
    await made(run)
    scene.busy[27802] = "another program listens"
    said = await run("check", "27800,27802-27804,80", "--no-legend")
    assert said.status == Code.RESOURCE_EXHAUSTED.exit_status
    rows = [line.split(maxsplit=2) for line in said.out.splitlines()]
    assert [row[:2] for row in rows] == [
        ["27800", "taken"],
        ["27802", "taken"],
        ["27803-27804", "free"],
        ["80", "outside"],
    ]
    assert rows[1][2] == "another program listens"
    assert (await run("check", "27805", "-q")).status == 0
    said = await run("check", "27800-27801", "--json=short")
    assert [each["free"] for each in said.json] == [False, True]


@pytest.mark.parametrize(
    ("words", "status", "text"),
    [
        ("inbound", 2, "required: TARGET"),
        ("inbound 192.0.2.1", 2, "HOST:PORT: '192.0.2.1' is not HOST:PORT"),
        ("inbound a:1 --lifetime 4000d", 2, "never stands for no end"),
        ("inbound a:1 --allow-from 192.0.2.1/24", 2, "bits set beyond its length"),
        ("inbound a:1 --listen 127.1", 2, "listen: '127.1' is not an IP address"),
        ("inbound a:1 --uid x", 2, "UID: not a UID"),
        (f"outbound {UID}", 2, "required: LISTENER"),
        ("outbound x a:1", 2, "UID: not a UID"),
        ("extend x 5y", 2, "'5y' is not a duration"),
        ("top -d 0", 2, "'0' is not from 0.1 to 86400 seconds"),
        ("list --json=xml", 2, "invalid choice: 'xml'"),
        ("lst", 2, "did you mean list?"),
        ("config", 2, "one of: config show, config check"),
        ("list -H a;b", 2, "host: 'a;b' is not [USER@]HOST[:PORT]"),
        ("list --address tcp:host=x", 2, "no bus on a UNIX socket"),
        ("list --address unix:path=/nowhere/bus", 14, "no bus at unix:path=/nowhere/bus"),
    ],
)
async def test_mistakes_are_told(words: str, status: int, text: str, scene: Door, run: Run) -> None:
    said = await run(*words.split())
    assert (said.status, said.out) == (status, "")
    assert text in said.err
    assert "\nhint: " in said.err
    assert UID not in said.err
    assert scene.tunnels.tunnels() == ()


async def test_no_daemon_on_the_bus(private: PrivateBus, run: Run) -> None:
    for words in ("list", "status", "check", "watch", "release --all", "inbound a:1"):
        said = await run(*words.split())
        assert (said.status, said.out) == (Code.UNAVAILABLE.exit_status, "")
        assert said.err.splitlines() == [
            "s2ctl: no scistreamd is on this bus",
            "hint: systemctl start scistreamd; a gateway that s2cs runs has no D-Bus: use s2uc for it",
        ]


async def test_a_daemon_that_goes_away(scene: Door, run: Run) -> None:
    scene.tunnels.pause.clear()
    asked = asyncio.create_task(run("inbound", "192.0.2.1:1"))
    await until(lambda: scene.tunnels.calls)
    await scene.private.stop()
    said = await asked
    assert said.status == Code.UNAVAILABLE.exit_status
    assert "the connection to the bus was lost" in said.err
    await scene.private.start()


async def test_a_refusal_with_its_hint(scene: Door, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(*words: object, **more: object) -> None:
        raise ScistreamError(Code.PERMISSION_DENIED, "target a (192.0.2.1) is no target", "name another (or none)")

    monkeypatch.setattr(scene.tunnels, "create", refuse)
    said = await run("inbound", "a:1")
    assert said.status == Code.PERMISSION_DENIED.exit_status
    assert said.err == "s2ctl: target a (192.0.2.1) is no target\nhint: name another (or none)\n"


async def test_a_password_may_be_asked_for(
    scene: Door, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """polkit's agent is there before the call, which allows to ask; and gone after it."""
    agent = tmp_path / "pkttyagent"
    agent.write_text(f'#!/bin/sh\necho "$$ $*" > {tmp_path}/agent\neval "exec $3>&-"\nexec sleep 60\n')
    agent.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(permission, "may_ask", lambda options: True)
    tunnels = [(await made(run))["id"] for _ in range(2)]
    assert scene.tunnels.calls[0][1].caller.interactive
    number, _, words = (tmp_path / "agent").read_text().strip().partition(" ")
    assert words.startswith("--fallback --notify-fd ")
    assert words.endswith(f" --process {os.getpid()}")
    with pytest.raises(ProcessLookupError):
        os.kill(int(number), 0)
    said = await run("release", *tunnels)
    assert said.out.splitlines() == [f"Released {each}." for each in tunnels]
    agent.unlink()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert (await run("inbound", "192.0.2.1:1", "-q")).status == 0


@pytest.mark.parametrize(
    ("root", "terminal", "refused", "asks"),
    [(False, True, False, True), (True, True, False, False), (False, False, False, False), (False, True, True, False)],
)
def test_who_is_asked(root: bool, terminal: bool, refused: bool, asks: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0 if root else 1000)
    monkeypatch.setattr(sys, "stdin", Namespace(isatty=lambda: terminal))
    assert permission.may_ask(Namespace(no_ask_password=refused)) is asks


async def test_the_path_is_tested(scene: Door, run: Run) -> None:
    assert (await run("outbound", UID, "192.0.2.1:5100", "192.0.2.1:5999", "-q")).status == 0
    said = await run("test", ID, "--throughput", "2")
    assert said.status == Code.UNAVAILABLE.exit_status
    assert said.out.splitlines() == [
        "192.0.2.1:5100: fine",
        "  TCP 0.15ms, TLS 2.5ms, answer 0.3ms",
        "  throughput 8.00Mbit/s (5.00MB arrived)",
        "192.0.2.1:5999: filtered: no answer",
    ]
    assert said.err == "s2ctl: note: ask for an open port\n"
    alone = await run("test", "192.0.2.1:5100", "--json=short")
    assert (alone.status, [each["outcome"] for each in alone.json]) == (0, ["ok"])
    before = await run("test", "192.0.2.9:5999", "--uid", UID, "--security", "tls", "-q")
    assert (before.status, before.out) == (Code.UNAVAILABLE.exit_status, "")
    (_, _, uid, target, security, seconds) = scene.tunnels.calls[-1]
    assert (uid.id, str(target), security.value, seconds) == (ID, "192.0.2.9:5999", "tls", 0)
    for words, status in (
        (["192.0.2.7:5100"], Code.NOT_FOUND.exit_status),
        ([ID, "--security", "tls"], 2),
        ([ID, "--throughput", "31"], 2),
    ):
        assert (await run("test", *words)).status == status
