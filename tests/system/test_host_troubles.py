"""What befalls a gateway's host: a reboot, a power cut, a disk that is full or read-only, units stopped by hand."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from tests.system.gateways import (
    APPLICATION,
    OTHER_APPLICATION,
    PRODUCER,
    STATE,
    TYPES,
    Field,
    field_of,
    gateway,
    listed,
    one,
    restarted,
    shown,
)
from tests.system.host import Host
from tests.system.lab import Lab

pytestmark = pytest.mark.timeout(600)  # the first lab of a machine builds the base tree

KEPT = ("id", "label", "role", "state", "type", "security", "listeners", "targets", "owner", "created_usec")


def kept(host: Host) -> list[dict[str, object]]:
    """What must be the same after a reboot."""
    return [{name: each[name] for name in KEPT} for each in listed(host)]


def test_tunnels_come_back_after_a_reboot_and_after_a_power_cut(lab: Lab) -> None:
    with field_of(lab) as field:
        near, far = field.near, field.far
        ports = {kind: field.tunnel(kind, "--lifetime", "1h", "--label", kind)[2] for kind in TYPES}
        near.run(["s2ctl", "inbound", "-q", "--lifetime", "2", f"{PRODUCER}:{APPLICATION}"])
        near.wait_until(lambda: len(listed(near)) == len(TYPES), "rid of the short one")
        before, uid = kept(near), near.run(["s2ctl", "show", "--reveal-uid", "Nginx"]).stdout
        near.reboot()
        near.wait_until(lambda: shown(near, "ActiveState") == "active", "serving again by itself")
        assert kept(near) == before
        assert near.run(["s2ctl", "show", "--reveal-uid", "Nginx"]).stdout == uid
        assert all(0 < each["expires_usec"] - each["created_usec"] <= 3_605_000_000 for each in listed(near))
        behind = kept(far)
        far.cut_power()
        far.boot()
        far.wait_until(lambda: shown(far, "ActiveState") == "active", "serving again by itself")
        assert kept(far) == behind
        for kind, port in ports.items():
            assert field.ask(port) == APPLICATION, kind
        for host in (near, far):
            host.run(["s2ctl", "release", "-q", "--all"])


@contextlib.contextmanager
def small_disk(host: Host) -> Iterator[None]:
    """A small file system of its own under the state directory."""
    host.run(["systemctl", "stop", "scistreamd.service", "scistreamd.socket"])
    host.run(["mkdir", "-p", STATE])
    host.run(["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", STATE])
    host.run(["systemctl", "start", "scistreamd.socket"])
    try:
        yield
    finally:
        host.run(["systemctl", "stop", "scistreamd.service", "scistreamd.socket"])
        host.run(["umount", STATE])
        host.run(["systemctl", "start", "scistreamd.socket"])


def refusal(host: Host) -> str:
    """What is said to whoever asks for a new tunnel."""
    before = kept(host)
    refused = host.run(["s2ctl", "inbound", f"{PRODUCER}:{APPLICATION}"], check=False)
    assert refused.returncode == 9, refused.stdout
    assert kept(host) == before
    return refused.stderr


def goes_on(field: Field, tunnel: str, port: int) -> None:
    """The tunnel works, and an update that cannot be written down changes nothing."""
    assert field.ask(port) == APPLICATION
    update = ["s2ctl", "update", "-q", tunnel, f"{PRODUCER}:{OTHER_APPLICATION}"]
    assert field.near.run(update, check=False).returncode == 9
    assert field.ask(port) == APPLICATION
    assert one(field.near, tunnel)["targets"] == [f"{PRODUCER}:{APPLICATION}"]


def test_a_full_disk_and_a_read_only_one_refuse_new_tunnels_and_harm_none(lab: Lab) -> None:
    with field_of(lab) as field, small_disk(field.near):
        near = field.near
        (inbound, _, port), (second, _, _) = field.tunnel("Haproxy"), field.tunnel("Nginx")
        near.run(["dd", "if=/dev/zero", f"of={STATE}/filler", "bs=4096"], check=False)
        assert "No space left on device" in (said := refusal(near))
        assert f"make room on, or writable, the disk of {STATE}/tunnels" in said
        goes_on(field, inbound, port)
        near.run(["rm", f"{STATE}/filler"])
        near.run(["s2ctl", "release", "-q", near.run(["s2ctl", "inbound", "-q", f"{PRODUCER}:1"]).stdout.strip()])
        near.run(["mount", "-o", "remount,ro", STATE])
        assert "Read-only file system" in refusal(near)
        goes_on(field, inbound, port)
        near.run(["s2ctl", "release", "-q", second])
        restarted(near, ["systemctl", "kill", "-s", "KILL", "scistreamd"])
        assert [each["id"] for each in listed(near)] == [inbound], "what was released does not come back"
        near.run(["mount", "-o", "remount,rw", STATE])
        restarted(near, ["systemctl", "restart", "scistreamd"])
        assert near.run(["ls", f"{STATE}/tunnels"]).stdout == f"{inbound}.json\n"
        for host in (near, field.far):
            host.run(["s2ctl", "release", "-q", "--all"])


def test_what_is_stopped_by_hand_has_ended_whether_the_daemon_runs_or_not(lab: Lab) -> None:
    with gateway(lab["producers2"]) as host:

        def make() -> str:
            return host.run(["s2ctl", "inbound", "-q", f"{PRODUCER}:{APPLICATION}"]).stdout.strip()

        for stopped in ("scistream-{}.service", "scistream-{}.socket", "scistream.slice"):
            tunnel, unit = make(), stopped
            host.run(["systemctl", "stop", unit.format(tunnel)])
            host.wait_until(lambda: listed(host) == [], "told of the end")
            said = "was stopped on this host"
            host.wait_until(lambda: said in host.journal(f"TUNNEL_ID={tunnel}"), "heard of in the journal")  # noqa: B023
            tunnel = make()
            host.run(["systemctl", "stop", "scistreamd.service"])
            host.run(["systemctl", "stop", unit.format(tunnel)])
            # The listener closes a moment after systemctl has returned, and the daemon may be there before.
            host.wait_until(lambda: listed(host) == [], "free of what does not come back with the daemon")
        # A lifetime keeps its time without the daemon.
        host.run(["s2ctl", "extend", "-q", make(), "3"])
        host.run(["systemctl", "stop", "scistreamd.service", "scistreamd.socket"])
        units = ["systemctl", "list-units", "--plain", "--no-legend", "scistream-*.s*"]
        host.wait_until(lambda: host.run(units).stdout == "", "ended in time")
        host.run(["systemctl", "start", "scistreamd.socket"])
        assert listed(host) == []
