"""What s2ctl prints: tables that fit, times that sort, nobody's escape sequences; and its command line."""

from __future__ import annotations

import sys
from argparse import Namespace

import pytest

from scistreamd import names
from scistreamd.cli import s2ctl
from scistreamd.cli.ctl import bus, events, human, remote, screen, table, wire
from scistreamd.cli.ctl.bus import Signal
from scistreamd.cli.ctl.events import Event
from scistreamd.cli.ctl.screen import Screen
from scistreamd.cli.options import UsageError
from scistreamd.errors import Code

ID = "0123456789ab"
PATH = names.tunnel_path(ID)


def of_width(width: int | None, *, colour: bool = False, legend: bool = True) -> Screen:
    return Screen(width, colour, False, legend, "off")


def test_columns_are_aligned() -> None:
    lines = table.render(of_width(None), ("A", "BB"), [["long", "x"], ["s", "yy"]], "2 rows.")
    assert lines == ["A     BB", "long  x", "s     yy", "", "2 rows."]
    assert table.render(of_width(None, legend=False), ("A", "BB"), [["s", "yy"]], "1 row.") == ["s  yy"]
    assert table.render(of_width(None), ("A",), [], "No rows.") == ["No rows."]


def test_wide_and_combining_characters_keep_columns() -> None:
    lines = table.render(of_width(None, legend=False), ("", ""), [["検出器", "x"], ["e\u0301", "y"]], "")
    assert lines == ["検出器  x", "e\u0301       y"]


@pytest.mark.parametrize("width", [40, 60, 80])
def test_wrapped_to_the_width(width: int) -> None:
    row = [ID, "192.0.2.100:5100, 192.0.2.100:5101", "application-host.example.org:5001"]
    lines = table.render(of_width(width), ("ID", "LISTENERS", "TARGETS"), [row], "1 tunnel.")
    assert all(table.columns_of(line) <= width for line in lines)
    below = "".join("".join(line.split()) for line in lines)
    assert all(word in below for word in ("ID", ID))
    assert sum(line.count("5101") for line in lines) == 1


@pytest.mark.parametrize("width", [30, 40, 60, 80, 100])
def test_columns_that_have_no_room_stand_below(width: int) -> None:
    titles = ("ID", "ROLE", "STATE", "LISTENERS", "TARGETS", "TYPE", "SECURITY", "CONNS", "ENDS", "OWNER")
    row = [ID, "PROD", "active", "192.0.2.100:5100", "192.0.2.7:5001", "Haproxy", "tls", "3", "never", "alice"]
    lines = table.render(of_width(width), titles, [row, row], "2 tunnels.")
    assert max(map(table.columns_of, lines)) <= width
    assert [word for line in lines for word in line.split()] == [*titles, *row, *row, "2", "tunnels."], "none is torn"
    assert table.fitting(of_width(width), titles, [row]) == len(lines[0].split())


def test_colour_is_not_counted() -> None:
    row: table.Line = [table.Cell("active", screen.GREEN), "x"]
    assert table.render(of_width(None, colour=True, legend=False), ("", ""), [row], "") == ["\x1b[32mactive\x1b[0m  x"]


def test_what_others_wrote_is_harmless() -> None:
    (line,) = table.render(of_width(None, legend=False), ("",), [["a\x1b[31m\u202eb\n"]], "")
    assert line == "a?[31m?b"


def test_pairs() -> None:
    assert table.pairs(of_width(None), [("State", "active"), ("Id", "x")]) == ["State: active", "   Id: x"]
    lines = table.pairs(of_width(20), [("Result", "one two three four")])
    assert lines == ["Result: one two", "        three four"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59, "59s"), (60, "1min"), (3661, "1h 1min"), (7200, "2h"), (90000, "1d 1h"), (86400, "1d")],
)
def test_spans(seconds: int, text: str) -> None:
    assert human.span(seconds) == text


def test_owners_are_short() -> None:
    assert human.owner("alice from this host by D-Bus") == "alice"
    assert human.owner("anonymous from 192.0.2.7 by gRPC") == "anonymous from 192.0.2.7"


def test_moments_sort_as_text() -> None:
    early, late = human.moment(1_700_000_000_000_000), human.moment(1_800_000_000_000_000)
    assert early < late < human.moment(0) == "never"
    assert human.away(1_700_000_060_000_000, 1_700_000_000).endswith("(in 1min)")
    assert human.away(1_700_000_000_000_000, 1_700_003_600).endswith("(1h ago)")


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({}, [["less"], ["more"]]),
        ({"PAGER": "most -w"}, [["most", "-w"], ["less"], ["more"]]),
        ({"SYSTEMD_PAGER": "", "PAGER": "most"}, []),
        ({"SYSTEMD_PAGER": "cat"}, []),
        ({"PAGER": "less 'it"}, [["less", "'it"], ["less"], ["more"]]),
        ({"PAGER": "evil", "SUDO_UID": "1000"}, [["less"]]),
        ({"PAGER": "evil", "SYSTEMD_PAGERSECURE": "1"}, [["less"]]),
        ({"SYSTEMD_PAGER": "cat", "SUDO_UID": "1000", "SYSTEMD_PAGERSECURE": "no"}, []),
    ],
)
def test_pagers(environment: dict[str, str], words: list[list[str]]) -> None:
    assert list(screen.pagers(environment)) == words


@pytest.mark.parametrize(
    ("environment", "colour", "pager"),
    [
        ({"TERM": "xterm"}, True, True),
        ({"TERM": "xterm", "NO_COLOR": "1"}, False, True),
        ({"TERM": "dumb"}, False, False),
        ({}, False, False),
    ],
)
def test_what_a_terminal_is_given(
    environment: dict[str, str], colour: bool, pager: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    found = Screen.of(Namespace(no_pager=False, json="off"), environment)
    assert (found.colour, found.pager) == (colour, pager)
    assert not Screen.of(Namespace(no_pager=True, json="off"), environment).pager


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("", "list"),
        ("--no-pager", "list --no-pager"),
        ("-H root@a status x", "status -H root@a x"),
        ("--json short cert show f", "cert show --json short f"),
        ("--json list", "list --json=pretty"),
        ("list --json", "list --json=pretty"),
        ("list --json off", "list --json off"),
        ("--help", "--help"),
        ("config", "config"),
    ],
)
def test_options_before_the_command(typed: str, meant: str) -> None:
    assert s2ctl.command_first(s2ctl.with_json_mode(typed.split())) == meant.split()


@pytest.mark.parametrize("code", list(Code))
def test_errors_of_scistreamd(code: Code) -> None:
    error = bus.failure(names.error_name(code), "port: 1 is busy (by a (b) c)")
    assert (error.code, error.message, error.hint) == (code, "port: 1 is busy", "by a (b) c")
    assert bus.failure(names.error_name(code), "no hint").hint == ""


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("org.freedesktop.DBus.Error.ServiceUnknown", Code.UNAVAILABLE),
        ("org.freedesktop.DBus.Error.Spawn.ChildExited", Code.UNAVAILABLE),
        ("org.freedesktop.systemd1.UnitMasked", Code.UNAVAILABLE),
        ("org.freedesktop.DBus.Error.AccessDenied", Code.PERMISSION_DENIED),
        ("org.freedesktop.DBus.Error.NoReply", Code.DEADLINE_EXCEEDED),
        (names.UNKNOWN_OBJECT, Code.NOT_FOUND),
        (names.UNKNOWN_METHOD, Code.UNIMPLEMENTED),
        ("com.example.Whatever", Code.INTERNAL),
    ],
)
def test_errors_of_the_bus(name: str, code: Code) -> None:
    error = bus.failure(name, "why")
    assert error.code is code
    assert error.hint


def test_a_daemon_that_ends_is_no_slow_one() -> None:
    said = "Message recipient disconnected from message bus without replying"
    error = bus.failure("org.freedesktop.DBus.Error.NoReply", said)
    assert (error.code, error.message) == (Code.UNAVAILABLE, "scistreamd ended before it answered")


@pytest.mark.parametrize(
    ("signal", "event"),
    [
        (Signal(names.ROOT, names.MANAGER, "TunnelRemoved", (ID, PATH)), Event("removed", ID)),
        (Signal(names.ROOT, names.MANAGER, "TunnelAdded", (ID, PATH)), None),
        (
            Signal(names.ROOT, names.OBJECT_MANAGER, "InterfacesAdded", (PATH, {names.TUNNEL: {"Role": "PROD"}})),
            Event("added", ID, {"role": "PROD"}),
        ),
        (
            Signal(PATH, names.PROPERTIES, "PropertiesChanged", (names.TUNNEL, {"State": "failed"}, [])),
            Event("changed", ID, {"state": "failed"}),
        ),
        (Signal(names.ROOT, names.PROPERTIES, "PropertiesChanged", (names.MANAGER, {"FreePorts": 1}, [])), None),
        (Signal("/x", "org.freedesktop.DBus", "NameOwnerChanged", (names.SERVICE, ":1.1", "")), Event("stopped")),
        (Signal("/x", "org.freedesktop.DBus", "NameOwnerChanged", (names.SERVICE, "", ":1.2")), Event("started")),
    ],
)
def test_events(signal: Signal, event: Event | None) -> None:
    assert events.event_of(signal) == event


def test_events_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    events._tell(
        of_width(None), Event("changed", ID, {"id": ID, "state": "failed", "targets": ["a:1", "b:2"], "rate": 0})
    )
    events._tell(of_width(None), Event("changed", ID, {"expires_usec": 0}))
    told = {"id": ID, "label": "", "role": "PROD", "owner": "alice from this host by D-Bus", "created_usec": 5}
    events._tell(of_width(None), Event("added", ID, told))
    events._tell(of_width(None), Event("stopped"))
    lines = [line.split(" ", 1)[1] for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        f"{ID} changed state=failed targets=a:1,b:2 rate=no limit",
        f"{ID} changed ends=never",
        f"{ID} added   role=PROD owner=alice",
        "scistreamd   stopped",
    ]


def test_events_fit_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    told = {"id": ID, "label": "x", "role": "PROD", "listeners": ["192.0.2.100:5100"], "type": "Nginx"}
    events._tell(of_width(60), Event("added", ID, told))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 60
    assert " ".join(lines).split()[1:] == [
        ID, "added", "label=x", "role=PROD", "listeners=192.0.2.100:5100", "type=Nginx"
    ]  # fmt: skip


def test_ssh_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYSTEMD_SSH", "ssh 'it")
    with pytest.raises(UsageError, match="SYSTEMD_SSH"):
        remote.command("gate", "x")
    monkeypatch.delenv("SYSTEMD_SSH")
    assert remote.command("root@gate:2222", "x") == ["ssh", "-xT", "-p", "2222", "--", "root@gate", "x"]
    assert remote.command("[2001:db8::1]", "x") == ["ssh", "-xT", "--", "2001:db8::1", "x"]
    monkeypatch.setenv("SYSTEMD_SSH", "myssh -4")
    assert remote.command("gate", "x") == ["myssh", "-4", "-xT", "--", "gate", "x"]
    for host in ("-oProxyCommand=x", "a b", "a;b", "", "root@", "gate:x"):
        with pytest.raises(UsageError):
            remote.command(host, "x")


def test_bus_addresses() -> None:
    assert wire._path("unix:path=/run/a%20b,guid=1") == "/run/a b"
    assert wire._path("unix:abstract=x") == "\0x"
    with pytest.raises(UsageError):
        wire._path("tcp:host=127.0.0.1,port=1")
