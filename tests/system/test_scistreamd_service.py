"""scistreamd.service on a real host: activation, sandbox, reload, restart, idle exit, a configuration that is wrong."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.system.host import Host
from tests.system.installed import CONFIG, DROP_INS, as_installed
from tests.system.lab import Lab

pytestmark = pytest.mark.timeout(600)  # the first lab of a machine builds the base tree

_SUBPROCESS = "/usr/share/doc/scistreamd/examples/scistreamd-subprocess.conf"
_NAME = "org.scistream.scistreamd1"
_CERTIFICATE = "/var/lib/scistreamd/control/server.crt"
_OPEN = 'require_auth = false\nport_range = "5100-5109"\n'
REQUEST = ["s2uc", "inbound-request", "--s2cs", "127.0.0.1:5000", "--server-cert", _CERTIFICATE]
REQUEST += ["--remote-ip", "192.168.10.10", "--receiver-ports", "5001", "--uid-file", "/root/uid"]


@pytest.fixture
def gateway(lab: Lab) -> Iterator[Host]:
    """The inbound gateway's host with scistreamd as it was installed, and as it was installed at the end."""
    with as_installed(lab["producers2"]) as host:
        yield host


def shown(host: Host, name: str, unit: str = "scistreamd.service") -> str:
    return host.run(["systemctl", "show", "--value", "-p", name, unit]).stdout.strip()


def request(host: Host, *words: str) -> str:
    """An inbound request from the gateway itself; what it printed."""
    return host.run([*REQUEST, *words]).stdout


def release(host: Host) -> None:
    host.run(["s2uc", "release", "@/root/uid", "--s2cs", "127.0.0.1:5000", "--server-cert", _CERTIFICATE])


def start(host: Host) -> None:
    """The first connection starts it."""
    host.run(["bash", "-c", "echo > /dev/tcp/127.0.0.1/5000"])
    host.wait_until(lambda: shown(host, "ActiveState") == "active", "active")


def wait_started_anew(host: Host, before: str) -> None:
    host.wait_until(
        lambda: shown(host, "InvocationID") != before and shown(host, "ActiveState") == "active", "started again"
    )


def counted(host: Host) -> str:
    """The status line, without what it warns of."""
    return shown(host, "StatusText").partition(";")[0]


def test_the_first_connection_starts_it_and_the_status_tells(gateway: Host) -> None:
    assert shown(gateway, "ActiveState") == "inactive"
    listening = gateway.run(["ss", "-Htln", "sport = :5000"]).stdout
    assert "*:5000" in listening
    start(gateway)
    assert counted(gateway) == "0 tunnels, 101 ports free"
    assert shown(gateway, "WatchdogTimestampMonotonic") != "0"
    log = ["-t", "scistreamd", "-p", "info", "-o", "cat"]
    serves = "\nserves: 0 tunnels, 101 ports free"
    gateway.wait_until(lambda: serves in f"\n{gateway.journal(*log)}", "told in the log")
    fingerprint = gateway.run(["s2ctl", "cert", "show", _CERTIFICATE]).stdout
    digest = re.search(r"sha256: (\S+)", fingerprint)
    assert digest is not None
    assert digest[1] in gateway.journal("-u", "scistreamd")
    assert "192.168.10.11" in fingerprint
    gateway.run(["systemctl", "daemon-reexec"])
    request(gateway)
    gateway.wait_until(lambda: counted(gateway) == "1 tunnel, 100 ports free", "told of the tunnel")
    release(gateway)
    gateway.wait_until(lambda: counted(gateway) == "0 tunnels, 101 ports free", "told of its end")
    assert gateway.run(["ls", "/var/lib/scistreamd/tunnels"]).stdout == ""


def test_a_call_on_the_bus_starts_it_and_reload_answers_with_what_is_wrong(gateway: Host) -> None:
    manager = [_NAME, "/org/scistream/scistreamd1", f"{_NAME}.Manager"]
    assert shown(gateway, "ActiveState") == "inactive"
    assert gateway.run(["busctl", "get-property", *manager, "FreePorts"]).stdout == "u 101\n"
    gateway.wait_until(lambda: shown(gateway, "ActiveState") == "active", "started by the call")
    assert shown(gateway, "ActiveState", "scistreamd.socket") == "active"
    gateway.write(CONFIG, _OPEN)
    gateway.run(["busctl", "call", *manager, "Reload"])
    assert gateway.run(["busctl", "get-property", *manager, "FreePorts"]).stdout == "u 10\n"
    gateway.wait_until(lambda: counted(gateway) == "0 tunnels, 10 ports free", "told of the new range")
    gateway.write(CONFIG, "prot_range = 5\n")
    refused = gateway.run(["busctl", "call", *manager, "Reload"], check=False)
    assert "prot_range: no such key" in refused.stderr
    assert gateway.run(["busctl", "get-property", *manager, "FreePorts"]).stdout == "u 10\n"


def test_the_sandbox(gateway: Host) -> None:
    start(gateway)
    rating = gateway.run(["systemd-analyze", "security", "--no-pager", "scistreamd.service"]).stdout
    exposure = re.search(r"exposure level for scistreamd.service: ([0-9.]+)", rating)
    assert exposure is not None
    assert float(exposure[1]) <= 2.0
    units = gateway.run(["sh", "-c", "dpkg -L scistreamd | grep systemd/system/"]).stdout.split()
    assert len(units) >= 4
    verified = gateway.run(["systemd-analyze", "verify", *units])
    assert (verified.stdout, verified.stderr) == ("", "")


def test_tunnels_outlive_restart_and_kill(gateway: Host) -> None:
    start(gateway)
    request(gateway)
    socket = gateway.run(["systemctl", "list-units", "--plain", "--no-legend", "scistream-*.socket"]).stdout.split()[0]
    tunnel = socket.removeprefix("scistream-").removesuffix(".socket")
    for way in (["restart", "scistreamd"], ["kill", "-s", "KILL", "scistreamd"]):
        before = shown(gateway, "InvocationID")
        gateway.run(["systemctl", *way])
        wait_started_anew(gateway, before)
        assert counted(gateway) == "1 tunnel, 100 ports free"
        assert shown(gateway, "ActiveState", socket) == "active"
    assert "goes on" in gateway.journal(f"TUNNEL_ID={tunnel}")
    release(gateway)
    gateway.wait_until(lambda: shown(gateway, "ActiveState", socket) == "inactive", "rid of the listener")


def test_reload_takes_up_the_file_and_fails_where_it_is_wrong(gateway: Host) -> None:
    start(gateway)
    request(gateway)
    gateway.write(CONFIG, _OPEN)
    gateway.run(["systemctl", "reload", "scistreamd"])
    gateway.wait_until(lambda: counted(gateway) == "1 tunnel, 9 ports free", "reloaded")
    gateway.write(CONFIG, "prot_range = 5\n")
    assert gateway.run(["systemctl", "reload", "scistreamd"], check=False).returncode == 1
    assert "did you mean port_range?" in gateway.journal("-u", "scistreamd")
    gateway.wait_until(lambda: counted(gateway) == "1 tunnel, 9 ports free", "going on as before")
    assert shown(gateway, "ActiveState") == "active"
    release(gateway)


def test_a_wrong_configuration_turns_callers_away_and_the_socket_stays(gateway: Host) -> None:
    gateway.write(CONFIG, "x")
    for _ in range(3):
        gateway.run(["bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/5000; timeout 20 cat <&3"], check=False)
    assert shown(gateway, "ActiveState", "scistreamd.socket") == "active"
    assert "line 1" in gateway.journal("-t", "scistreamd")
    gateway.wait_until(lambda: "line 1" in shown(gateway, "StatusText"), "told why in the status")
    gateway.wait_until(lambda: shown(gateway, "ActiveState") == "failed", "at rest until the next caller")
    assert shown(gateway, "NRestarts") == "0"
    gateway.write(CONFIG, _OPEN)
    start(gateway)
    assert counted(gateway) == "0 tunnels, 10 ports free"


def test_children_of_the_daemon_need_the_drop_in_and_work_with_it(gateway: Host) -> None:
    start(gateway)
    for kind in ("Haproxy", "Nginx", "Stunnel"):
        refused = gateway.run([*REQUEST, "--type", f"{kind}Subprocess"], check=False)
        assert refused.returncode == 9
        assert "CAP_SETUID" in refused.stderr
        assert "install -D" in refused.stderr
    gateway.run(["install", "-D", "-t", DROP_INS, _SUBPROCESS])
    gateway.run(["systemctl", "daemon-reload"])
    gateway.run(["systemctl", "restart", "scistreamd"])
    for kind in ("Haproxy", "Nginx", "Stunnel"):
        made = gateway.run([*REQUEST, "--type", f"{kind}Subprocess"])
        assert "is a child of the daemon, and ends with it" in made.stderr
        assert int(gateway.run(["ps", "-o", "uid=", "-C", kind.lower()]).stdout.split()[0]) >= 61184
        release(gateway)
    gateway.run(["systemctl", "stop", "scistreamd"])
    assert gateway.run(["ls", "/run/scistreamd"]).stdout == ""


def test_idle_exit_leaves_tunnels_running_and_the_next_caller_starts_it(gateway: Host) -> None:
    gateway.write(CONFIG, "idle_exit = 1\n" + _OPEN)
    start(gateway)
    request(gateway)
    gateway.wait_until(lambda: shown(gateway, "ActiveState") == "inactive", "gone when it was idle")
    assert shown(gateway, "Result") == "success"
    assert (
        "scistream-" in gateway.run(["systemctl", "list-units", "--plain", "--no-legend", "scistream-*.socket"]).stdout
    )
    for _ in range(5):
        request(gateway, "--uid-file", "/root/other")
        gateway.run(["s2uc", "release", "@/root/other", "--s2cs", "127.0.0.1:5000", "--server-cert", _CERTIFICATE])
    release(gateway)


def test_idle_exit_loses_no_call_on_the_bus(gateway: Host) -> None:
    """Calls that come about when it goes: each is answered, by that daemon or by the next."""
    gateway.write(CONFIG, "idle_exit = 0.2\n" + _OPEN)
    ask = f"busctl get-property {_NAME} /org/scistream/scistreamd1 {_NAME}.Manager FreePorts"
    script = f"for pause in $(seq 0.20 0.01 0.50); do {ask} || exit 1; sleep $pause; done"
    assert gateway.run(["sh", "-c", script], timeout=400).stdout.split("\n")[:-1] == ["u 10"] * 31
    assert gateway.journal("-u", "scistreamd").count("nothing to do") > 3


def test_strangers_are_not_served_until_it_is_opened(lab: Lab, gateway: Host) -> None:
    start(gateway)
    lab["producer"].write("/root/vagrant/gateway.crt", gateway.run(["cat", _CERTIFICATE]).stdout)
    ask = ["s2uc", "inbound-request", "--s2cs", "192.168.10.11:5000", "--server-cert", "/root/vagrant/gateway.crt"]
    ask += ["--remote-ip", "192.168.10.10", "--receiver-ports", "5001", "--uid-file", "/root/uid"]
    try:
        refused = lab["producer"].run(ask, check=False)
        assert refused.returncode == 16
        assert "require_auth = false" in refused.stderr
        gateway.write(CONFIG, _OPEN)
        gateway.run(["systemctl", "reload", "scistreamd"])
        gateway.wait_until(lambda: "reloaded" in gateway.journal("-u", "scistreamd"), "reloaded")
        assert "192.168.10.11:51" in lab["producer"].run(ask).stdout
        lab["producer"].run(["s2uc", "release", "@/root/uid", *ask[2:6]])
    finally:
        lab["producer"].run(["rm", "-f", "/root/vagrant/gateway.crt", "/root/uid"])


def test_at_boot_it_starts_only_where_tunnels_are_to_be_brought_back(gateway: Host) -> None:
    gateway.reboot()
    assert shown(gateway, "ActiveState", "scistreamd.socket") == "active"
    assert shown(gateway, "ActiveState") == "inactive"
    start(gateway)
    request(gateway)
    gateway.reboot()
    gateway.wait_until(lambda: shown(gateway, "ActiveState") == "active", "started at boot")
    assert counted(gateway) == "1 tunnel, 100 ports free"
    release(gateway)
