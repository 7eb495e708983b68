"""The commands of s2uc and s2ctl: each is there, explains itself, and fails as documented."""

from __future__ import annotations

import importlib
import inspect
import os
from pathlib import Path

import pytest

from scistreamd import __version__
from scistreamd.cli import output, requests, s2ctl, s2uc, uids
from scistreamd.cli.commands import Command, Tool, main
from scistreamd.cli.options import Parser
from scistreamd.model import Uid

COMMANDS = [(tool, command) for tool in (s2uc.TOOL, s2ctl.TOOL) for command in tool.commands]
UID = "0e9c1b0e-70a9-4c1f-9e56-0f9c9a4e6f11"


@pytest.mark.parametrize(("tool", "command"), COMMANDS, ids=lambda each: each.name)
def test_every_command_has_help_and_a_function(
    tool: Tool, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(tool, [*command.name.split(), "--help"])
    assert ended.value.code == 0
    assert command.summary in capsys.readouterr().out
    closure = inspect.getclosurevars(command.run).nonlocals
    if closure:
        assert callable(getattr(importlib.import_module(closure["module"]), closure["function"]))


CHANGING = {"update", "extend", "release", "cert create", "token revoke"}


@pytest.mark.parametrize("command", s2ctl.TOOL.commands, ids=lambda each: each.name)
def test_s2ctl_takes_the_options_of_systemctl_with_every_command(command: Command) -> None:
    parser = Parser()
    command.arguments(parser)
    known = set(parser._option_string_actions)
    assert {"-q", "--quiet", "--no-pager", "--no-legend"} <= known
    assert ("--json" in known) is (command.name not in CHANGING)


@pytest.mark.parametrize("name", ["inbound-request", "outbound_request", "prod-req", "check_auth", "release", "hello"])
def test_names_with_either_dash(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        s2uc.main([name, "--help"])
    assert f"usage: s2uc {name.replace('_', '-')} " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "status", "out", "err"),
    [
        ("logout", 0, "no token stored\n", ""),
        ("check-auth --ip 192.0.2.1", 16, "", "no token stored"),
        ("login", 3, "", "scope: whose tokens are wanted?"),
        ("--version", 0, f"s2uc, version {__version__}\n", ""),
        ("-v", 0, f"s2uc, version {__version__}\n", ""),
        ("", 2, "", "no command given"),
        ("--s2cs=x release", 2, "", "options follow the command"),
        ("releas", 2, "", "did you mean release?"),
        ("qqqq", 2, "", "one of: inbound-request"),
        ("release x", 2, "", "UID: not a UID"),
        (f"release {UID}0", 2, "", "UID: not a UID"),
        (f"release {UID} {UID}", 2, "", "unexpected argument '<uid>'"),
        ("release @/nowhere/uid", 5, "", "cannot read the UID from /nowhere/uid"),
        (f"release {UID} --s2cs 192.0.2.1:x", 2, "", "s2cs"),
        (f"release {UID} --s2cs 192.0.2.1:0 --no-tls", 2, "", "s2cs: port '0'"),
        (f"outbound-request {UID} 0.0.0.0:5100", 2, "", "put the inbound gateway's address in its place"),
        (f"outbound-request {UID} 192.0.2.1", 2, "", "LISTENER: '192.0.2.1' is not HOST:PORT"),
        (f"outbound-request {UID}", 2, "", "required: LISTENER"),
        ("inbound-request --remote-ip 127.1", 2, "", "remote-ip: '127.1' is not an IP address"),
        ("inbound-request --security ssl", 2, "", "one of: tls, psk-null, none"),
        ("inbound-request --type Hap;roxy", 2, "", "type: 'Hap;roxy'"),
        ("inbound-request --allow-from 192.0.2.1/24", 2, "", "allow-from: '192.0.2.1/24' is not a network"),
        ("inbound-request --rate -1", 2, "", "--rate"),
        ("inbound-request --num_conn 0", 2, "", "--num-conn: '0' is not a whole number from 1 to 65535"),
    ],
)
def test_without_a_gateway(words: str, status: int, out: str, err: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert s2uc.main(words.split()) == status
    said = capsys.readouterr()
    assert said.out == out
    assert err in said.err
    assert UID not in said.err
    assert not status or "\nhint: " in said.err


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("192.0.2.1:5007", "192.0.2.1", 5007),
        ("gate.example", "gate.example", 5000),
        ("192.0.2.1", "192.0.2.1", 5000),
        ("[::1]:7", "::1", 7),
        ("[::1]", "::1", 5000),
        ("::1", "::1", 5000),
    ],
)
def testcontrol_address(text: str, host: str, port: int) -> None:
    target = requests.control(text)
    assert (target.host, target.port) == (host, port)


def test_version_of_s2ctl(capsys: pytest.CaptureFixture[str]) -> None:
    assert s2ctl.main(["version"]) == 0
    assert capsys.readouterr().out == f"scistreamd {__version__}\n"


def test_what_others_say_is_made_harmless() -> None:
    assert output.harmless(f"no {UID.upper()} or {UID.replace('-', '')}\n\x1b[31m") == "no <uid> or <uid> ?[31m"


def test_a_uid_goes_to_what_is_no_file_without_replacing_it(tmp_path: Path) -> None:
    fifo, link, file = tmp_path / "fifo", tmp_path / "link", tmp_path / "file"
    os.mkfifo(fifo)
    link.symlink_to(file)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    try:
        for at_once in (True, False):
            with uids.kept_in(str(fifo), Uid.parse(UID), at_once=at_once) as keep:
                keep()
            assert os.read(reader, 100) == f"{UID}\n".encode()
    finally:
        os.close(reader)
    assert fifo.is_fifo()
    with uids.kept_in(str(link), Uid.parse(UID), at_once=False) as keep:
        keep()
    assert link.is_symlink()
    assert file.read_text() == f"{UID}\n"
