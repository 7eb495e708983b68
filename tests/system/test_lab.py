"""The lab itself: its hosts, its topology, and how commands run in them."""

from __future__ import annotations

import signal
import subprocess
from itertools import pairwise

import pytest

from scistreamd import __version__
from tests.system.host import Host
from tests.system.lab import Lab
from tests.system.tools import LabError
from tests.system.wires import HOSTS, addresses

pytestmark = pytest.mark.timeout(600)  # the first lab of a machine builds the base tree


def pings(host: Host, address: str) -> bool:
    return host.run(["ping", "-c", "1", "-W", "1", address], check=False).returncode == 0


@pytest.mark.parametrize("name", HOSTS)
def test_hosts_run_systemd_dbus_and_polkit(lab: Lab, name: str) -> None:
    host = lab[name]
    assert host.state() == "running"
    assert host.run(["cat", "/proc/1/comm"]).stdout == "systemd\n"
    assert host.run(["hostname"]).stdout == f"{name}\n"
    assert host.run(["busctl", "--json=short", "call", *DBUS, "GetId"]).stdout.startswith('{"type":"s"')
    assert "org.freedesktop.systemd1.manage-units" in host.run(["pkaction"]).stdout


DBUS = ("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus")


@pytest.mark.parametrize("name", HOSTS)
def test_only_the_addresses_of_the_tutorial_and_the_control_port_alone(lab: Lab, name: str) -> None:
    shown = lab[name].run(["ip", "-brief", "-4", "address", "show", "scope", "global"]).stdout
    assert [word.partition("/")[0] for word in shown.split() if "/" in word] == addresses(name)
    listeners = lab[name].run(["ss", "-Htln"]).stdout.splitlines()
    assert [line.split()[3] for line in listeners] == ["*:5000"]


def test_neighbours_reach_each_other(lab: Lab) -> None:
    for left, right in pairwise(HOSTS):
        for host, neighbour in ((lab[left], right), (lab[right], left)):
            host.wait_until(lambda: pings(host, neighbour), f"in reach of {neighbour}")  # noqa: B023


def test_the_outbound_gateway_reaches_the_inbound_listener(lab: Lab) -> None:
    host = lab["consumers2"]
    host.wait_until(lambda: pings(host, "192.168.10.11"), "in reach of the inbound listener")


def test_no_path_from_end_to_end_not_even_with_routes(lab: Lab) -> None:
    """Without gateways that forward, a route is of no use: the stream needs the tunnel."""
    producer, consumer = lab["producer"], lab["consumer"]
    assert not pings(consumer, "192.168.10.10")
    assert not pings(producer, "192.168.30.11")
    producer.run(["ip", "route", "add", "default", "via", "192.168.10.11"])
    consumer.run(["ip", "route", "add", "default", "via", "192.168.30.10"])
    try:
        assert not pings(consumer, "192.168.10.10")
        assert not pings(producer, "192.168.30.11")
        assert not pings(consumer, "192.168.20.10")
    finally:
        producer.run(["ip", "route", "del", "default"])
        consumer.run(["ip", "route", "del", "default"])


def test_the_project_is_installed_from_its_packages(lab: Lab) -> None:
    for host in lab.hosts():
        for tool in ("scistreamd", "s2cs", "s2uc", "s2ctl"):
            assert __version__ in host.run([tool, "--version"]).stdout
            assert "scistream" in host.run(["dpkg", "--search", f"/usr/bin/{tool}"]).stdout
        assert host.run(["dpkg", "--verify", "scistreamd", "scistream-client", "scistream-common"]).stdout == ""


def test_services_of_one_host_are_not_those_of_another(lab: Lab) -> None:
    """Each has control groups of its own: the end of a service on one host leaves its namesake alone."""
    unit = "namesake.service"
    first, second = lab["producer"], lab["consumer"]
    for host in (first, second):
        host.run(["systemd-run", f"--unit={unit}", "sleep", "infinity"])
    try:
        first.run(["systemctl", "stop", unit])
        assert second.run(["systemctl", "is-active", unit]).stdout == "active\n"
        assert "sleep" in second.run(["systemctl", "status", "--no-pager", unit]).stdout
    finally:
        second.run(["systemctl", "stop", unit])


def test_firewall_rules_work_inside_units(lab: Lab) -> None:
    """A unit's capabilities are within those of PID 1, which nspawn gives CAP_NET_ADMIN only when told."""
    host = lab["producers2"]
    in_unit = ["systemd-run", "--quiet", "--wait", "--pipe", "nft"]
    host.run([*in_unit, "add", "table", "inet", "lab"])
    assert "table inet lab" in host.run([*in_unit, "list", "tables"]).stdout
    host.run([*in_unit, "delete", "table", "inet", "lab"])
    assert host.run(["nft", "list", "tables"]).stdout == ""


def test_the_hosts_share_the_vagrant_directory(lab: Lab) -> None:
    lab["producers2"].write("/root/vagrant/note", "shared\n")
    assert lab["consumer"].run(["cat", "vagrant/note"]).stdout == "shared\n"
    lab["consumer"].run(["rm", "vagrant/note"])


def test_commands_report_output_status_and_time(lab: Lab) -> None:
    host = lab["producer"]
    assert host.run(["pwd"], cwd="/usr/bin").stdout == "/usr/bin\n"
    with pytest.raises(LabError, match=r"(?s)producer.*exit status 3.*told"):
        host.run(["sh", "-c", "echo told; exit 3"])
    with pytest.raises(subprocess.TimeoutExpired):
        host.run(["sleep", "947"], timeout=0.3)
    host.wait_until(lambda: not running(host, "sleep 947"), "without the command that timed out")


def test_background_commands_end_as_they_are_told(lab: Lab) -> None:
    host = lab["producer"]
    script = "trap 'echo caught; exit 4' INT; echo begun; while :; do sleep 0.05; done"
    trapping = host.start(["bash", "-c", script])
    host.wait_until(lambda: trapping.output() == "begun\n", "begun")
    trapping.send(signal.SIGINT)
    host.wait_until(lambda: trapping.output() == "begun\ncaught\n", "caught")
    assert trapping.stop() == 4
    with host.start(["sleep", "948"]):
        host.wait_until(lambda: running(host, "sleep 948"), "running")
    host.wait_until(lambda: not running(host, "sleep 948"), "ended")


def running(host: Host, command: str) -> bool:
    return host.run(["pgrep", "-fx", command], check=False).returncode == 0


def test_the_journal_tells_what_a_service_said(lab: Lab) -> None:
    host = lab["consumers2"]
    host.run(["systemd-run", "--wait", "--unit=speaker", "echo", "heard in the journal"])
    host.wait_until(lambda: "heard in the journal" in host.journal("-u", "speaker"), "heard")


def test_what_never_happens_is_told_with_the_journal(lab: Lab) -> None:
    with pytest.raises(LabError, match=r"producer: not pigs flying within 0.1 s\n.*systemd"):
        lab["producer"].wait_until(lambda: False, "pigs flying", seconds=0.1)


def test_a_host_keeps_its_disk_over_a_reboot_and_a_power_cut(lab: Lab) -> None:
    host = lab["consumer"]
    host.write("/var/lib/note", "kept\n")
    boot = ["cat", "/proc/sys/kernel/random/boot_id"]
    leader = host.leader()
    host.reboot()
    assert host.leader() != leader
    assert host.run(["cat", "/var/lib/note"]).stdout == "kept\n"
    host.cut_power()
    assert host.state() == ""
    with pytest.raises(LabError, match="consumer is not running"):
        host.run(boot)
    host.boot()
    assert host.state() == "running"
    assert host.run(["cat", "/var/lib/note"]).stdout == "kept\n"
    host.wait_until(lambda: pings(host, "consumers2"), "in reach of its neighbour")
    host.run(["rm", "/var/lib/note"])
