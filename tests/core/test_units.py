"""Every property of a tunnel's units, as systemd is told: tables with no surprise in them."""

from __future__ import annotations

import dataclasses
import ipaddress
import re
import signal
from pathlib import PurePosixPath

import pytest

from scistreamd import units
from scistreamd.dataserver import DATA_SERVERS
from scistreamd.errors import BugError
from scistreamd.interfaces import Bind, DataServer, LogSays, Places, Plan, Program
from scistreamd.model import Endpoint, Role, Security
from scistreamd.unit_properties import Limits

ID = "0123456789ab"
RUNTIME = PurePosixPath("/run/scistreamd")
PLACES = Places(RUNTIME / ID / "config", units.credentials(ID), RUNTIME / ID / "scratch")
HOST = units.HostPlaces(RUNTIME, RUNTIME / ID / "secrets", RUNTIME / ID / "environment")
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
    "Environment": ("as", ["SCISTREAM_RUN=sleep infinity"]),
    "EnvironmentFiles": ("a(sb)", [["/run/scistreamd/0123456789ab/environment", True]]),
    "ExecStart": ("a(sasb)", [["/usr/bin/env", ["/usr/bin/env", "$SCISTREAM_RUN"], False]]),
    "TimeoutStopUSec": ("t", 5_000_000),
    "NonBlocking": ("b", True),
    "SuccessExitStatus": ("(aiai)", [[143], []]),
    "Restart": ("s", "always"),
    "RestartUSec": ("t", 500_000),
    "StartLimitIntervalUSec": ("t", 0),
    "PartOf": ("as", ["scistream-0123456789ab.socket"]),
    "OnSuccess": ("as", ["scistream-0123456789ab-end.service"]),
    "OnFailure": ("as", ["scistream-0123456789ab-end.service"]),
    "OnSuccessJobMode": ("s", "fail"),
    "OnFailureJobMode": ("s", "fail"),
    "TemporaryFileSystem": ("a(ss)", [["/run/scistreamd", "mode=0755"]]),
    "BindReadOnlyPaths": ("a(ssbt)", [[*2 * ["/run/scistreamd/0123456789ab/config"], False, 16384]]),
    "RuntimeDirectory": ("as", ["scistreamd/0123456789ab/scratch"]),
    "RuntimeDirectoryMode": ("u", 0o711),
    "BindPaths": ("a(ssbt)", [[*2 * ["/run/scistreamd/0123456789ab/scratch"], False, 16384]]),
    "LoadCredential": ("a(ss)", [
        ["ca.pem", "/run/scistreamd/0123456789ab/secrets/ca.pem"],
        ["leaf.pem", "/run/scistreamd/0123456789ab/secrets/leaf.pem"],
        ["psk.txt", "/run/scistreamd/0123456789ab/secrets/psk.txt"],
    ]),
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


def made(*binds: Bind) -> tuple[units.Unit, ...]:
    return units.tunnel_units(
        ID, binds, PLACES, HOST, keepalive_idle=60, reserved_seconds=300, limits=Limits()
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


@pytest.mark.parametrize("server", DATA_SERVERS, ids=lambda server: server.name)
def test_every_data_server_can_be_told_by_an_environment_file(server: DataServer) -> None:
    program = server.render(PLAN, PLACES)
    lines = units.environment(program).splitlines()
    assert lines[0] == f"SCISTREAM_RUN={' '.join(program.argv)}"
    assert lines[1:] == [f"{name}={value}" for name, value in program.environment.items()]


@pytest.mark.parametrize("word", ["two words", "", "a\nb", "$HOME", "'quoted'", 'a"b', "back\\slash", "#", "%d"])
def test_what_systemd_would_change_is_a_bug(word: str) -> None:
    program = Program(("sleep", word), {}, {}, LogSays("ready"), signal.SIGHUP, None)
    with pytest.raises(BugError):
        units.environment(program)
    with pytest.raises(BugError):
        units.environment(dataclasses.replace(program, argv=("sleep",), environment={"NGINX": word}))
