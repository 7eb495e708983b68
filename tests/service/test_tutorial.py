"""docs/tutorial.md as typed: every command on its host, every output as the document shows it."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.service.lab import Lab, Server, Typed, read

ROOT = Path(__file__).parent.parent.parent
TUTORIAL = ROOT / "docs" / "tutorial.md"
# The lines of the SciStream 1.2 tutorial that must work as they are, in its order.
LINES = [
    "s2cs --verbose --port=5007 --listener-ip=192.168.10.11 --type=Haproxy",
    "s2uc inbound_request --s2cs 192.168.10.11:5007 --remote_ip 192.168.10.10 --receiver_ports 5001 --mock True",
    's2cs --verbose --port=5007 --listener-ip=192.168.30.10 --type=Haproxy --client-id "abc" --client-secret "xyz"',
    's2uc login --scope "abc"',
    "s2uc outbound_request --s2cs 192.168.30.10:5007 --remote_ip 192.168.20.10 --receiver_ports 5100 "
    "4f8583bc-a4d3-11ee-9fd6-034d1fcbd7c3 192.168.10.11:5100",
    "iperf -s -p 5001",
    "ss -tlpn",
    "s2uc release 4f8583bc-a4d3-11ee-9fd6-034d1fcbd7c3 --s2cs 192.168.10.11:5007",
    "s2cs --type=Haproxy",
    "s2cs --port-range=10000-20000",
    "ps aux | grep s2",
    "openssl x509 -in server.crt -text -noout",
]


def test_the_document_has_every_line_of_the_old_tutorial() -> None:
    typed = iter(each.command.partition("; echo")[0] for each in read(TUTORIAL))
    for line in LINES:
        assert line in typed, f"missing, or not in its place: {line}"


@pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")
def test_every_command_prints_what_the_document_shows(tmp_path: Path) -> None:
    with Lab(tmp_path) as lab, ExitStack() as ends:
        for typed in read(TUTORIAL):
            _type(lab, typed, ends)


def _type(lab: Lab, typed: Typed, ends: ExitStack) -> None:
    if typed.file:
        lab.write(typed)
    elif typed.stays:
        with ExitStack() as interrupted:
            server = Server(lab, typed)
            (interrupted if typed.interrupted else ends).callback(_end, server)
            assert server.matches(), f"{typed.host}$ {typed.command}\n{server.output()}"
    else:
        output = lab.run(typed)
        assert typed.shows(output), f"{typed.host}$ {typed.command}\n{output}"


def _end(server: Server) -> None:
    assert server.end() == 0, server.typed.command
