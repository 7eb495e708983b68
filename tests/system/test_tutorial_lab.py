"""docs/tutorial.md as typed, on real hosts with what the project installs."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path, PurePosixPath

import pytest

from tests.service import lab as tutorial
from tests.service.lab import Typed
from tests.system.host import ENVIRONMENT, Host, send_inside
from tests.system.lab import Lab

pytestmark = pytest.mark.timeout(600)  # the first lab of a machine builds the base tree

DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "tutorial.md"


class Terminals(tutorial.Lab):
    """What a reader types, in the hosts of a real lab instead of network namespaces of this one."""

    def __init__(self, lab: Lab, directory: Path) -> None:
        super().__init__(directory)
        self._hosts = lab

    def home(self, host: str) -> Path:
        """Commands enter their directory in the host; here they have none."""
        return Path("/")

    def environment(self) -> dict[str, str]:
        """That of a login in the host."""
        return ENVIRONMENT

    def words(self, typed: Typed) -> list[str]:
        """The command on its host, by a shell as a reader has it."""
        if "journalctl" in typed.command or "s2ctl" in typed.command:
            self._hosts[typed.host].journal("-n", "1")  # what was said before is there for who types it
        return self._hosts[typed.host].command(super().words(typed)[-3:])

    def write(self, typed: Typed) -> None:
        """Write a file of the document, in the home directory of its host where it has no other."""
        path = PurePosixPath("/root", typed.file)
        self._hosts[typed.host].run(["mkdir", "-p", str(path.parent)])
        self._hosts[typed.host].write(str(path), "\n".join(typed.output) + "\n")


class Server(tutorial.Server):
    """A command that stays in a host."""

    def end(self, number: int = 2) -> int:
        """End it as Ctrl-C does; returns its exit status."""
        send_inside(self.process, number)
        self.process.wait(90)
        return super().end(number)


def test_every_command_prints_what_the_document_shows(lab: Lab, tmp_path: Path) -> None:
    terminals = Terminals(lab, tmp_path)
    before = {host.name: _files(host) for host in lab.hosts()}
    with ExitStack() as ends:
        for host in lab.hosts():
            ends.callback(host.run, ["systemctl", "start", "scistreamd.socket"])
            host.run(["systemctl", "stop", "scistreamd.socket"])
        for typed in tutorial.read(DOCUMENT):
            _type(terminals, typed, ends)
    _nothing_is_left(lab, before)


def _type(terminals: Terminals, typed: Typed, ends: ExitStack) -> None:
    if typed.file:
        terminals.write(typed)
    elif typed.stays:
        with ExitStack() as interrupted:
            server = Server(terminals, typed)
            (interrupted if typed.interrupted else ends).callback(_end, server)
            assert server.matches(), f"{typed.host}$ {typed.command}\n{server.output()}"
    else:
        output = terminals.run(typed)
        assert typed.shows(output), f"{typed.host}$ {typed.command}\n{output}"


def _end(server: Server) -> None:
    assert server.end() == 0, server.typed.command


def _files(host: Host) -> set[str]:
    return set(host.run(["ls", "/root"]).stdout.split())


def _nothing_is_left(lab: Lab, before: dict[str, set[str]]) -> None:
    for host in lab.hosts():
        assert host.run(["ss", "-Htln", "sport != :5000"]).stdout == "", host.name
        assert host.run(["pgrep", "-l", "s2cs|haproxy|nginx|stunnel|iperf"], check=False).stdout == "", host.name
        assert host.state() == "running"
        host.run(["sh", "-c", "rm -f /root/server.* /root/producers2.* /root/vagrant/*"])
        assert _files(host) - before[host.name] <= {"vagrant"}
