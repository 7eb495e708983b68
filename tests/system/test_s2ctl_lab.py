"""s2ctl on real hosts: whom polkit lets do what, passwords asked for on a terminal, the journal, ssh, completion."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator

import pytest

from tests.system.gateways import APPLICATION, PRODUCER, gateway, listed, shown
from tests.system.host import ENVIRONMENT, Host
from tests.system.lab import Lab

pytestmark = pytest.mark.timeout(600)  # the first lab of a machine builds the base tree

MEMBER, OTHER, ADMINISTRATOR = "alice", "bob", "carol"
PASSWORD = "correct horse"
TARGET = f"{PRODUCER}:{APPLICATION}"
DENIED, UNAVAILABLE = 7, 14
GATEWAY = "192.168.20.10"
_SECONDS = 90
_RETYPE_SECONDS = 15


@pytest.fixture
def host(lab: Lab) -> Iterator[Host]:
    """The inbound gateway with a member of the group, an administrator, and somebody who is neither."""
    with gateway(lab["producers2"]) as host:
        for user, group in ((MEMBER, "scistream"), (OTHER, "users"), (ADMINISTRATOR, "sudo")):
            host.run(["useradd", "--create-home", "--shell", "/bin/bash", "--groups", group, user])
        host.run(["sh", "-c", f"echo '{ADMINISTRATOR}:{PASSWORD}' | chpasswd"])
        try:
            yield host
            host.run(["s2ctl", "release", "--all", "-q"])
        finally:
            for user in (MEMBER, OTHER, ADMINISTRATOR):
                host.run(["userdel", "--force", "--remove", user], check=False)


def run_as(host: Host, user: str, *words: str) -> subprocess.CompletedProcess[str]:
    return host.run(["runuser", "-u", user, "--", *words], cwd="/", check=False)


def made(host: Host, user: str = "root") -> str:
    """A tunnel of the user's."""
    done = run_as(host, user, "s2ctl", "inbound", "-q", TARGET)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_everyone_reads_and_polkit_says_who_changes(host: Host) -> None:
    roots = made(host)
    for user in ("nobody", OTHER, MEMBER):
        assert roots in run_as(host, user, "s2ctl", "list").stdout
        assert "State: active" in run_as(host, user, "s2ctl", "status", "-n", "0", roots).stdout
        for words in (["release", roots], ["update", roots, TARGET], ["extend", roots, "1h"]):
            refused = run_as(host, user, "s2ctl", *words)
            assert refused.returncode == DENIED, words
            assert "may not on other people's tunnels" in refused.stderr
        assert run_as(host, user, "s2ctl", "show", "--reveal-uid", roots).returncode == DENIED
        reload = run_as(host, user, "busctl", "call", "--allow-interactive-authorization=no", *MANAGER, "Reload")
        assert "PermissionDenied" in reload.stderr or "reload" in reload.stderr, reload.stderr
    for user in ("nobody", OTHER):
        refused = run_as(host, user, "s2ctl", "inbound", TARGET)
        assert refused.returncode == DENIED
        assert "hint: " in refused.stderr
    own = made(host, MEMBER)
    assert run_as(host, MEMBER, "s2ctl", "extend", own, "1h").returncode == 0
    assert len(run_as(host, MEMBER, "s2ctl", "show", "--reveal-uid", own).stdout.strip()) == 36
    assert run_as(host, MEMBER, "s2ctl", "release", own).returncode == 0
    theirs = made(host, MEMBER)
    host.run(["s2ctl", "release", theirs])
    assert [each["id"] for each in listed(host)] == [roots]


MANAGER = ("org.scistream.scistreamd1", "/org/scistream/scistreamd1", "org.scistream.scistreamd1.Manager")


@contextlib.contextmanager
def ssh_to(host: Host, far: Host, *users: str) -> Iterator[None]:
    """Root of the other host may log in as these users."""
    far.run(["sh", "-c", "mkdir -p -m 700 /root/.ssh && ssh-keygen -q -t ed25519 -N '' -f /root/.ssh/id_ed25519"])
    try:
        key = far.run(["cat", "/root/.ssh/id_ed25519.pub"]).stdout
        for user in users:
            home = host.run(["sh", "-c", f"echo ~{user}"]).stdout.strip()
            host.run(["install", "-d", "-m", "700", "-o", user, f"{home}/.ssh"])
            host.write(f"{home}/.ssh/authorized_keys", key)
        host.run(["systemctl", "start", "ssh"])
        far.write("/root/.ssh/known_hosts", far.run(["ssh-keyscan", GATEWAY]).stdout)
        yield
    finally:
        far.run(["rm", "-rf", "/root/.ssh"])
        host.run(["systemctl", "stop", "ssh"])
        host.run(["rm", "-rf", "/root/.ssh"])


def on_terminal(far: Host, user: str, line: str, password: str) -> tuple[int, str]:
    """Log in, with a terminal, type a line, and the password when it is asked for; exit status and screen.

    By ssh, for polkit takes pkttyagent, as systemctl starts it too, in a session of logind alone.
    """
    words = far.command(["ssh", "-tt", f"{user}@{GATEWAY}", line], "/")
    with subprocess.Popen(words, env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin and process.stdout
        os.set_blocking(process.stdout.fileno(), False)
        screen, due, deadline = "", 0.0, time.monotonic() + _SECONDS
        while process.poll() is None and time.monotonic() < deadline:
            screen += (process.stdout.read() or b"").decode()
            asked = "Password: " in screen and "AUTHENTICATION COMPLETE" not in screen and "FAILED" not in screen
            if asked and not due:
                # pkttyagent forgets what is typed before it has switched the echo off, just after it has asked.
                due = time.monotonic() + 0.3
            elif asked and time.monotonic() > due:
                process.stdin.write(f"{password}\n".encode())
                process.stdin.flush()
                due = time.monotonic() + _RETYPE_SECONDS
            time.sleep(0.05)
        process.kill()
        screen += (process.stdout.read() or b"").decode()
    return process.returncode, screen


def test_a_password_is_asked_for_on_a_terminal(lab: Lab, host: Host) -> None:
    far = lab["consumers2"]
    with ssh_to(host, far, MEMBER, OTHER):
        status, screen = on_terminal(far, OTHER, f"s2ctl inbound -q {TARGET}", PASSWORD)
        assert status == 0, screen
        assert "AUTHENTICATION COMPLETE" in screen
        assert "Authentication is required to make a SciStream tunnel." in screen
        [tunnel] = listed(host)
        assert tunnel["owner"].startswith(OTHER)
        status, screen = on_terminal(far, MEMBER, f"s2ctl release {tunnel['id']}", "wrong")
        assert status == DENIED, screen
        assert "AUTHENTICATION FAILED" in screen
        status, screen = on_terminal(far, MEMBER, f"s2ctl release --no-ask-password {tunnel['id']}", "")
        assert (status, "Password" in screen) == (DENIED, False), screen
        status, screen = on_terminal(far, MEMBER, f"s2ctl inbound -q {TARGET}", "")
        assert (status, "Password" in screen) == (0, False), "her own need none"
        status, screen = on_terminal(far, MEMBER, f"s2ctl release {tunnel['id']}", PASSWORD)
        assert status == 0, screen
        assert "AUTHENTICATION COMPLETE" in screen


def test_the_journal_of_a_tunnel_also_after_its_end(host: Host) -> None:
    tunnel = made(host)
    host.run(["s2ctl", "update", "-q", tunnel, f"{PRODUCER}:7009"])
    host.run(["systemctl", "kill", "-s", "KILL", f"scistream-{tunnel}.service"])
    host.wait_until(lambda: "started it again" in host.run(["s2ctl", "logs", tunnel]).stdout, "told of the crash")
    with host.start(["s2ctl", "logs", "-f", tunnel]) as following:
        host.run(["s2ctl", "release", "-q", tunnel])
        host.wait_until(lambda: "released by root" in following.output(), "told of the end")
    said = host.run(["s2ctl", "logs", "--no-pager", "-n", "200", tunnel]).stdout
    for words in (f"forwards to {TARGET}", "forwards to 192.168.10.10:7009", "data server.", "released by root"):
        assert words in said, words
    assert "Scheduled restart job" in said, "systemd's own lines"


def test_another_host_over_ssh(lab: Lab, host: Host) -> None:
    far, tunnel = lab["consumers2"], made(host)
    with ssh_to(host, far, MEMBER, "root"):
        assert tunnel in far.run(["s2ctl", "-H", GATEWAY, "list", "-q"]).stdout
        logs = ["s2ctl", "-H", f"root@{GATEWAY}", "logs", tunnel]
        far.wait_until(lambda: "forwards to" in far.run(logs).stdout, "told of the tunnel's log")
        ask = ["s2ctl", "-H", f"{MEMBER}@{GATEWAY}"]
        own = far.run([*ask, "inbound", "-q", TARGET]).stdout.strip()
        assert far.run([*ask, "release", tunnel], check=False).returncode == DENIED
        far.run([*ask, "release", own])
        refused = far.run(["s2ctl", "-H", f"stranger@{GATEWAY}", "list"], check=False)
        assert refused.returncode == UNAVAILABLE


def test_the_first_call_starts_scistreamd_and_where_it_cannot_s2ctl_says_what_to_do(host: Host) -> None:
    host.run(["systemctl", "stop", "scistreamd.service"])
    assert host.run(["s2ctl", "list", "-q"]).stdout == ""
    host.wait_until(lambda: shown(host, "ActiveState") == "active", "started by the call")
    host.run(["systemctl", "mask", "--runtime", "--now", "scistreamd.service"])
    try:
        refused = host.run(["s2ctl", "list"], check=False)
        assert refused.returncode == UNAVAILABLE
        assert "systemctl" in refused.stderr.partition("hint: ")[2], refused.stderr
    finally:
        host.run(["systemctl", "unmask", "--runtime", "scistreamd.service"])


def test_completion_knows_the_ids(host: Host) -> None:
    tunnel = made(host)
    script = """
    source /usr/share/bash-completion/bash_completion
    source /usr/share/bash-completion/completions/s2ctl
    COMP_WORDS=(s2ctl show "") COMP_CWORD=2 COMP_LINE="s2ctl show " COMP_POINT=11
    $(complete -p s2ctl | grep -o -- '-F [^ ]*' | cut -d' ' -f2)
    echo "${COMPREPLY[@]}"
    """
    assert tunnel in host.run(["runuser", "-u", OTHER, "--", "bash", "-c", script], cwd="/").stdout.split()
