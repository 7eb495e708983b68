"""docs/dbus.md as typed, on two gateways with scistreamd as it comes: busctl and systemctl are enough."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.system.gateways import OUTBOUND_ADDRESS, PRODUCER, gateway
from tests.system.host import Host
from tests.system.lab import Lab

pytestmark = pytest.mark.timeout(600)  # the first lab of a machine builds the base tree

DOCUMENT = (Path(__file__).parent.parent.parent / "docs" / "dbus.md").read_text()
LINES = [line for block in re.findall(r"^```sh\n(.*?)^```$", DOCUMENT, re.M | re.S) for line in block.splitlines()]


class Reader:
    """Types the lines, with what the answers gave in the place of UID, ID and the listener."""

    def __init__(self, near: Host, far: Host) -> None:
        self._near, self._far = near, far
        self.uid = self.listener = self.id = ""

    def type(self, line: str) -> str:
        """What the line printed; LabError where it fails."""
        host = self._far if " CreateOutbound " in line or " Test " in line else self._near
        typed = re.sub(r"(?<= )UID(?= )", self.uid, re.sub(r"(?<=[ /=-])ID\b", self.id, line))
        typed = typed.replace("192.168.10.11:5100", self.listener)
        if line.startswith("journalctl"):
            host.journal("-n", "1")  # what was said before is there for who types it
        said = host.run(["bash", "-c", typed], cwd="/").stdout
        if " CreateInbound " in line:
            self.uid, path, self.listener = re.findall(r'"([^"]*)"', said)
            self.id = path.rpartition("/")[2]
        return said


def test_every_line_works_and_changes_are_told(lab: Lab) -> None:
    create, monitor = LINES[0], next(line for line in LINES if " monitor " in line)
    with gateway(lab["producers2"]) as near, gateway(lab["consumers2"]) as far, near.start(monitor.split()) as watching:
        near.wait_until(lambda: "Monitoring bus" in watching.output(), "watching")
        reader = Reader(near, far)
        said = {}
        for line in LINES:
            ending = " Release " in line or " stop " in line
            if ending and ended(near, reader.id):
                reader.type(create)
            said[line] = "" if line == monitor else reader.type(line)
            if ending:  # systemd closes the listener once the service is down, which is when `systemctl stop` returns
                near.wait_until(lambda: ended(near, reader.id), f"without the listener after {line}")
        far.run(["s2ctl", "release", "--all"])
        near.wait_until(lambda: watching.output().count("Member=TunnelRemoved") == 3, "told of three ends")
    [made] = [out for line, out in said.items() if " CreateOutbound " in line]
    assert f"{OUTBOUND_ADDRESS}:5100" in made
    [units] = [out for line, out in said.items() if "list-units" in line]
    assert units.count("SciStream tunnel") >= 2
    [tested] = [out for line, out in said.items() if " Test " in line]
    assert '"ok" b true' in tested
    assert PRODUCER in next(out for line, out in said.items() if line.startswith("journalctl"))


def ended(host: Host, tunnel: str) -> bool:
    """Whether its listener has gone."""
    return not host.run(["systemctl", "list-units", "--plain", "--no-legend", f"scistream-{tunnel}.socket"]).stdout
