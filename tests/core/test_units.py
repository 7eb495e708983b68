"""Every property of a tunnel's units, as systemd is told: tables with no surprise in them."""

from __future__ import annotations

import ipaddress
import re
import shlex
import signal
import subprocess
import sys
from pathlib import PurePosixPath

import pytest

from scistreamd import units
from scistreamd.dataserver import DATA_SERVERS
from scistreamd.errors import BugError
from scistreamd.interfaces import DataServer
from scistreamd.model import Endpoint, Role, Security
from scistreamd.plans import Bind, LogSays, Places, Plan, Program
from scistreamd.unit_properties import Limits

ID = "0123456789ab"
RUNTIME = PurePosixPath("/run/scistreamd")
PLACES = Places(RUNTIME / ID / "config", RUNTIME / ID / "secrets", RUNTIME / ID / "scratch")
ABOUT = {
    "Documentation": ("as", ["man:scistreamd(8)", "man:s2ctl(1)"]),
    "CollectMode": ("s", "inactive-or-failed"),
}
SOCKET = {
    **ABOUT,
    "Description": ("s", "SciStream tunnel 0123456789ab: listeners"),
    "Listen": ("a(ss)", [["Stream", "192.0.2.1:5100"], ["Stream", "[2001:db8::1]:5101"]]),
    "Slice": ("s", "scistream.slice"),
    "Wants": ("as", ["scistream-0123456789ab-end.timer"]),
    "BindIPv6Only": ("s", "ipv6-only"),
    "Backlog": ("u", 4096),
    "KeepAlive": ("b", True),
    "KeepAliveTimeUSec": ("t", 60_000_000),
    "TriggerLimitIntervalUSec": ("t", 0),
    "TriggerLimitBurst": ("u", 0),
}
SERVICE = {
    **ABOUT,
    "Description": ("s", "SciStream tunnel 0123456789ab: data server"),
    "Slice": ("s", "scistream.slice"),
    "Type": ("s", "exec"),
    "ExecStart": ("a(sasb)", [["/bin/sh", ["/bin/sh", "/run/scistreamd/0123456789ab/config/run.sh"], False]]),
    "TimeoutStopUSec": ("t", 5_000_000),
    "NonBlocking": ("b", True),
    "SuccessExitStatus": ("(aiai)", [[143], []]),
    "Restart": ("s", "always"),
    "RestartUSec": ("t", 500_000),
    "StartLimitIntervalUSec": ("t", 0),
    "PartOf": ("as", ["scistream-0123456789ab.socket"]),
    "OnSuccess": ("as", ["scistream-0123456789ab-end.service"]),
    "OnSuccessJobMode": ("s", "fail"),
    "TemporaryFileSystem": ("a(ss)", [["/run/scistreamd", "mode=0755"]]),
    "BindReadOnlyPaths": ("a(ssbt)", [
        [*2 * ["/run/scistreamd/0123456789ab/config"], False, 16384],
        [*2 * ["/run/scistreamd/0123456789ab/secrets/ca.pem"], True, 16384],
        [*2 * ["/run/scistreamd/0123456789ab/secrets/leaf.pem"], True, 16384],
        [*2 * ["/run/scistreamd/0123456789ab/secrets/psk.txt"], True, 16384],
    ]),
    "ExecStartPre": ("a(sasb)", [["/usr/bin/find", [
        "/usr/bin/find", "/proc/1/root/run/scistreamd/0123456789ab/secrets", "-type", "f", "-exec", "chown",
        "--reference=/proc/1/root/run/scistreamd/0123456789ab/scratch", "--", "{}", "+",
    ], False]]),
    "PermissionsStartOnly": ("b", True),
    "RuntimeDirectory": ("as", ["scistreamd/0123456789ab/scratch"]),
    "RuntimeDirectoryMode": ("u", 0o711),
    "BindPaths": ("a(ssbt)", [[*2 * ["/run/scistreamd/0123456789ab/scratch"], False, 16384]]),
    "DynamicUser": ("b", True),
    "NoNewPrivileges": ("b", True),
    "CapabilityBoundingSet": ("t", 0),
    "AmbientCapabilities": ("t", 0),
    "PrivateUsers": ("b", True),
    "PrivateTmp": ("b", True),
    "PrivateDevices": ("b", True),
    "DevicePolicy": ("s", "closed"),
    "ProtectSystem": ("s", "strict"),
    "ProtectHome": ("s", "yes"),
    "ProtectProc": ("s", "invisible"),
    "ProcSubset": ("s", "pid"),
    "ProtectClock": ("b", True),
    "ProtectHostname": ("b", True),
    "ProtectKernelLogs": ("b", True),
    "ProtectKernelModules": ("b", True),
    "ProtectKernelTunables": ("b", True),
    "ProtectControlGroups": ("b", True),
    "MemoryDenyWriteExecute": ("b", True),
    "LockPersonality": ("b", True),
    "RestrictNamespaces": ("t", 0),
    "RestrictRealtime": ("b", True),
    "RestrictSUIDSGID": ("b", True),
    "RemoveIPC": ("b", True),
    "KeyringMode": ("s", "private"),
    "UMask": ("u", 0o077),
    "RestrictAddressFamilies": ("(bas)", [True, ["AF_INET", "AF_INET6", "AF_UNIX"]]),
    "SystemCallArchitectures": ("as", ["native"]),
    "SystemCallFilter": ("(bas)", [True, ["@system-service"]]),
    "SystemCallFilter, again": ("(bas)", [False, ["@privileged", "@resources"]]),
    "SystemCallErrorNumber": ("i", 1),
    "MemoryMax": ("t", 1073741824),
    "TasksMax": ("t", 4200),
    "LimitNOFILE": ("t", 65536),
    "LimitCORE": ("t", 0),
    "LimitCORESoft": ("t", 0),
    "SyslogIdentifier": ("s", "scistream-0123456789ab"),
    "LogExtraFields": ("aay", [b"TUNNEL_ID=0123456789ab"]),
}  # fmt: skip
TIMER = {
    **ABOUT,
    "Description": ("s", "SciStream tunnel 0123456789ab: end of its time"),
    "TimersMonotonic": ("a(st)", [["OnActiveSec", 300_000_000]]),
    "AccuracyUSec": ("t", 100_000),
    "RemainAfterElapse": ("b", False),
    "BindsTo": ("as", ["scistream-0123456789ab.socket"]),
    "After": ("as", ["scistream-0123456789ab.socket"]),
}
END = {
    **ABOUT,
    "Description": ("s", "SciStream tunnel 0123456789ab: ends"),
    "Type": ("s", "oneshot"),
    "ExecStart": ("a(sasb)", [["/bin/true", ["/bin/true"], False]]),
    "Conflicts": ("as", ["scistream-0123456789ab.socket", "scistream-0123456789ab.service"]),
}


def bind(address: str, port: int, udp: bool = False) -> Bind:
    return Bind(Endpoint(ipaddress.ip_address(address), port), udp)


def made(*binds: Bind, closes: bool = False) -> tuple[units.Unit, ...]:
    return units.tunnel_units(
        ID, binds, PLACES, RUNTIME, keepalive_idle=60, reserved_seconds=300, limits=Limits(), closes=closes
    )


def table(unit: units.Unit) -> dict[str, tuple[str, object]]:
    found: dict[str, tuple[str, object]] = {}
    for each in unit.properties:
        found[f"{each.name}, again" if each.name in found else each.name] = (each.signature, each.value)
    return found


def test_the_four_units_of_a_tunnel() -> None:
    tables = {unit.name: table(unit) for unit in made(bind("192.0.2.1", 5100), bind("2001:db8::1", 5101))}
    assert list(tables) == [f"scistream-{ID}{end}" for end in (".socket", ".service", "-end.timer", "-end.service")]
    assert list(tables.values()) == [SOCKET, SERVICE, TIMER, END]


def test_a_script_runs_once_the_listeners_are_closed() -> None:
    tables = [table(unit) for unit in made(bind("192.0.2.1", 5100), bind("2001:db8::1", 5101), closes=True)]
    script = f"/run/scistreamd/{ID}.closing"
    words = ["/bin/sh", "-c", f"test ! -e {script} || . {script}"]
    assert tables[0] == SOCKET | {"ExecStopPost": ("a(sasb)", [["/bin/sh", words, False]])}
    assert tables[1:] == [SERVICE, TIMER, END]


def test_udp_follows_tcp_and_the_wildcard_takes_ipv4_as_well() -> None:
    socket = table(made(bind("::", 5100, udp=True), bind("::", 5101, udp=True))[0])
    assert socket["Listen"][1] == [[kind, f"[::]:{port}"] for port in (5100, 5101) for kind in ("Stream", "Datagram")]
    assert socket["BindIPv6Only"][1] == "both"


def test_a_further_time_limit_is_a_further_timer() -> None:
    timer, end = units.end_units(ID, 2, 0.25)
    assert (timer.name, end.name) == (f"scistream-{ID}-end2.timer", f"scistream-{ID}-end2.service")
    assert table(timer)["TimersMonotonic"][1] == [["OnActiveSec", 250_000]]
    assert table(end) == END
    assert units.timer_number(timer.name) == 2
    assert units.timer_number(f"scistream-{ID}-end.timer") == 0


def test_no_unit_can_be_told_a_time_that_is_over() -> None:
    assert table(units.end_units(ID, 1, -5)[0])["TimersMonotonic"][1] == [["OnActiveSec", 1]]


@pytest.mark.parametrize(
    ("unit", "tunnel"),
    [
        (f"scistream-{ID}.socket", ID),
        (f"scistream-{ID}.service", ID),
        (f"scistream-{ID}-end.service", ""),
        ("scistream-0123456789AB.service", ""),
        ("scistream-daemon.service", ""),
        (f"scistream-{ID}.service.d", ""),
    ],
)
def test_whose_unit_is_this(unit: str, tunnel: str) -> None:
    assert units.tunnel_of(unit) == tunnel


def test_only_timers_have_a_number() -> None:
    with pytest.raises(BugError):
        units.timer_number(f"scistream-{ID}.service")


def test_no_signature_of_a_unit_is_unknown_to_dbus() -> None:
    for unit in made(bind("192.0.2.1", 5100)):
        for each in unit.properties:
            assert re.fullmatch(r"[sbtui]|a[sy]|as|aay|\(bas\)|\(aiai\)|a\([sab t]+\)", each.signature), each


PLAN = Plan(
    ID, Role.PROD, Security.TLS, (bind("192.0.2.1", 5100),), ((Endpoint(ipaddress.ip_address("192.0.2.2"), 7000),),)
)


def in_a_shell(text: str) -> list[str]:
    """The words and the variable NGINX that a program started by the script sees."""
    show = "import os, sys; print(os.environ.get('NGINX'), *sys.argv[1:], sep='\\0', end='')"
    stand_in = text.replace("exec ", f"exec {shlex.quote(sys.executable)} -c {shlex.quote(show)} ")
    return subprocess.run(["sh", "-c", stand_in], check=True, capture_output=True, text=True).stdout.split("\0")


@pytest.mark.parametrize("server", DATA_SERVERS, ids=lambda server: server.name)
def test_every_data_server_gets_its_words_and_variables(server: DataServer) -> None:
    program = server.render(PLAN, PLACES)
    assert in_a_shell(units.script(program)) == [str(program.environment.get("NGINX")), *program.argv]


def test_a_library_is_loaded_into_the_data_server_and_not_into_the_shell() -> None:
    program = Program(("sleep", "1"), {"NGINX": "3;"}, {}, LogSays("ready"), signal.SIGHUP, None, library="some")
    text = units.script(program, "/usr/lib/with space/some.so")
    assert text == "export NGINX='3;'\nexport LD_PRELOAD='/usr/lib/with space/some.so'\nexec sleep 1\n"
    assert "LD_PRELOAD" not in units.script(program)


def test_no_word_is_changed_by_the_shell() -> None:
    words = ("two words", "", "a\nb", "$HOME", "'quoted'", 'a"b', "back\\slash", "#", "%d", "`id`", ";", "*")
    program = Program(("sleep", *words), {"NGINX": "".join(words)}, {}, LogSays("ready"), signal.SIGHUP, None)
    assert in_a_shell(units.script(program)) == ["".join(words), "sleep", *words]


def test_no_command_of_a_unit_has_a_variable_or_a_specifier() -> None:
    """systemd 252 writes them down escaped, and reads them back after a daemon-reload as something else."""
    for unit in made(bind("192.0.2.1", 5100)):
        for each in unit.properties:
            if each.name.startswith("Exec"):
                assert not set("$%\\") & set(str(each.value))
