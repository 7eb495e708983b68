"""No secret in any log, error, D-Bus property, unit, argument or file that others may read, and in no core dump."""

from __future__ import annotations

import base64
import json
import re
import uuid
from pathlib import Path

import pytest

from tests.system.gateways import STATE, TYPES, gateway, shown
from tests.system.host import Host
from tests.system.lab import Lab

pytestmark = pytest.mark.timeout(600)  # the first lab of a machine builds the base tree

_HERE = Path(__file__).parent
_CONFIGURATION = '[log]\nlevel = "debug"\n[auth.tokens]\nfile = "/etc/scistreamd/tokens"\n'
_FILES = ("secret_caller.py", "secret_search.py", "secrets.json", "needles")


def forms(uid: uuid.UUID) -> list[str]:
    """How a UID may be written; the search minds no case."""
    encoded = base64.b64encode(uid.bytes).decode()
    return [str(uid), uid.hex, encoded.rstrip("="), base64.urlsafe_b64encode(uid.bytes).decode().rstrip("=")]


def found(host: Host, needles: list[str]) -> list[str]:
    """Every place on the host that holds one of them."""
    host.write("/root/needles", "\n".join(needles))
    return host.run(["python3", "/root/secret_search.py"], timeout=300).stdout.splitlines()


def call(host: Host, what: str) -> str:
    """Run the client with the libraries that the package brings; what it printed."""
    modules = host.run(["sed", "-n", 's/^sys.path.insert(0, "\\(.*\\)")$/\\1/p', "/usr/bin/scistreamd"]).stdout.strip()
    return host.run(["env", f"PYTHONPATH={modules}", "python3", "/root/secret_caller.py", what]).stdout


def core_limits(host: Host, unit: str) -> set[str]:
    """The limits of core dumps of all processes of a unit."""
    group = shown(host, "ControlGroup", unit)
    script = (
        f"for pid in $(cat /sys/fs/cgroup{group}/cgroup.procs /sys/fs/cgroup/systemd{group}/cgroup.procs 2>/dev/null)"
    )
    lines = host.run(["sh", "-c", f"{script}; do grep 'core file' /proc/$pid/limits; done"]).stdout.splitlines()
    return {" ".join(line.split()[4:6]) for line in lines}


def private_key_of(host: Host, tunnel: str) -> list[str]:
    """A line of the tunnel's own private key, which no other file has."""
    pem = host.run(["cat", f"/run/scistreamd/{tunnel}/secrets/leaf.pem"]).stdout
    return [re.split(r"-+BEGIN PRIVATE KEY-+\n", pem)[1].split("\n")[1]]


def test_no_secret_stands_where_others_look(lab: Lab) -> None:
    host = lab["producers2"]
    with gateway(host, _CONFIGURATION):
        for name in _FILES[:2]:
            host.write(f"/root/{name}", (_HERE / name).read_text())
        try:
            host.run(["bash", "-c", "echo > /dev/tcp/127.0.0.1/5000"])  # it starts, and makes its certificate
            host.wait_until(lambda: shown(host, "ActiveState") == "active", "started")
            token = host.run(["s2ctl", "token", "create", "detector"]).stdout.split()[-1]
            for kind in TYPES:
                _live(host, kind, token)
        finally:
            host.run(["rm", "-f", *(f"/root/{name}" for name in _FILES)])


def _live(host: Host, kind: str, token: str) -> None:
    """One tunnel's life, with a search in the middle and one after the end."""
    uid = uuid.uuid4()
    needles = [*forms(uid), token]
    host.write("/root/secrets.json", json.dumps({"uid": str(uid), "token": token, "type": kind}))
    said = call(host, "begin")
    assert said.count("refused") == 15
    [path] = host.run(["ls", f"{STATE}/tunnels"]).stdout.split()
    tunnel = path.removesuffix(".json")
    service = f"scistream-{tunnel}.service"
    on_the_bus = ["busctl", "call", "org.scistream.scistreamd1", "/org/scistream/scistreamd1"]
    wrong = host.run([*on_the_bus, "org.scistream.scistreamd1.Manager", "GetTunnel", "s", f"{uid}0"], check=False)
    # A stranger at the listener, a data server that crashes, a daemon that does.
    host.run(["bash", "-c", "exec 3<>/dev/tcp/192.168.10.11/5100; echo x >&3; timeout 1 cat <&3"], check=False)
    for unit in (service, "scistreamd.service"):
        _crash(host, unit)
    for unit in (service, "scistreamd.service"):
        host.wait_until(lambda: bool(core_limits(host, unit)), "running again")  # noqa: B023
        assert core_limits(host, unit) == {"0 0"}
    key = private_key_of(host, tunnel)
    assert not [each for each in needles if each in (said + wrong.stdout + wrong.stderr).lower()]
    # In the books, for root; in the key of the tunnel, for its data server. Nowhere else.
    assert found(host, needles) == [f"root {STATE}/tunnels/{path}"]
    assert found(host, key) == [f"root /run/scistreamd/{tunnel}/secrets/leaf.pem"]
    call(host, "end")
    host.wait_until(lambda: shown(host, "ActiveState", service) == "inactive", "released")
    assert found(host, [*needles, *key]) == []
    assert not host.run(["sh", "-c", "find / -xdev -name 'core*' -size +100k -newer /root/needles"], check=False).stdout


def _crash(host: Host, unit: str) -> None:
    """Return when systemd has started it again, which it notices in its own time."""
    before = shown(host, "InvocationID", unit)
    host.run(["systemctl", "kill", "-s", "SEGV", unit])
    host.wait_until(
        lambda: shown(host, "InvocationID", unit) != before and shown(host, "ActiveState", unit) == "active",
        "started again",
    )


# Data servers as children of s2cs, and the modes that scistreamd does not allow by itself; Nginx has UDP then.
_BY_HAND = (("root", "Stunnel", "psk-null"), ("detector", "Nginx", "none"))


def test_none_where_s2cs_is_run_by_hand(lab: Lab) -> None:
    host = lab["producers2"]
    for name in _FILES[:2]:
        host.write(f"/root/{name}", (_HERE / name).read_text())
    host.run(["useradd", "detector"])
    try:
        host.run(
            ["sh", "-c", "install -d -o detector /srv/s2cs && cd /srv/s2cs && s2ctl cert create --ip 192.168.10.11"]
        )
        host.run(["chown", "detector", "/srv/s2cs/server.key"])
        for user, kind, security in _BY_HAND:
            _by_hand(host, user, kind, security)
    finally:
        host.run(["rm", "-rf", "/srv/s2cs", *(f"/root/{name}" for name in _FILES)])
        host.run(["userdel", "detector"])


def _by_hand(host: Host, user: str, kind: str, security: str) -> None:
    """One tunnel of an s2cs in the foreground, with a search in the middle and one after the release."""
    uid, token, unit = uuid.uuid4(), uuid.uuid4().hex, "secrets-s2cs.service"
    needles = [*forms(uid), token]
    known = {"host": "192.168.10.11", "port": 5050, "certificate": "/srv/s2cs/server.crt", "security": security}
    host.write("/root/secrets.json", json.dumps({"uid": str(uid), "token": token, "type": kind, **known}))
    run = ["systemd-run", "--quiet", f"--unit={unit}", "-p", f"User={user}", "-p", "WorkingDirectory=/srv/s2cs"]
    run += ["s2cs", "--verbose", "--port=5050", "--listener-ip=192.168.10.11", "--allow-security=tls,psk-null,none"]
    host.run(run)
    try:
        host.wait_until(lambda: ":5050" in host.run(["ss", "-Htln"]).stdout, "listening")
        said = call(host, "begin")
        assert said.count("refused") == 14
        assert not [each for each in needles if each in said.lower()]
        assert core_limits(host, unit) == {"0 0"}
        # The key of this mode is the UID itself: in a file of its own for the data server.
        places = found(host, needles)
        assert [each.rpartition("/")[2] for each in places] == (["psk.txt"] if security == "psk-null" else [])
        assert all(each.startswith("root ") for each in places)
        call(host, "end")
        assert found(host, needles) == []
    finally:
        host.run(["systemctl", "stop", unit])


def test_the_search_finds_what_is_planted(lab: Lab) -> None:
    """Else it would prove nothing."""
    host, marker = lab["producers2"], uuid.uuid4().hex
    with gateway(host):
        host.write("/root/secret_search.py", (_HERE / "secret_search.py").read_text())
        try:
            host.run(["logger", f"a log line with {marker}"])
            host.run(["sh", "-c", f"echo {marker.upper()} >/tmp/planted; chmod 644 /tmp/planted"])
            ask = ["s2ctl", "inbound", "-q", "--label", marker, "--listen", "192.168.10.11", "192.168.10.10:7001"]
            host.run(ask)
            with (
                host.start(["sh", "-c", "sleep 660; true", marker]),
                host.start(["env", f"X={marker}", "sleep", "661"]),
            ):
                for sleeping in ("sleep 660", "sleep 661"):
                    asked = ["pgrep", "-fx", sleeping]
                    host.wait_until(lambda: host.run(asked, check=False).stdout, sleeping)  # noqa: B023
                places = found(host, [marker])
            assert {"journal", "bus", "cmdline of sh", "environ of sleep", "world /tmp/planted"} <= set(places)
        finally:
            host.run(["s2ctl", "release", "--all", "-q"])
            host.run(["rm", "-f", "/tmp/planted", "/root/secret_search.py", "/root/needles"])
