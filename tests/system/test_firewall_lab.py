"""The firewall check of the service as it is installed: in its sandbox, on D-Bus and at the command line."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.system.host import Host
from tests.system.installed import CONFIG, as_installed
from tests.system.lab import Lab

pytestmark = pytest.mark.timeout(600)  # the first lab of a machine builds the base tree

_RULES = """\
table inet site {
    chain in {
        type filter hook input priority 0; policy accept;
        ct state established,related accept
        iifname "eth1" tcp dport 5100-5200 drop comment "closed to the world"
    }
}
"""


@pytest.fixture
def gateway(lab: Lab) -> Iterator[Host]:
    with as_installed(lab["producers2"]) as host:
        host.write("/root/site.nft", _RULES)
        host.run(["nft", "-f", "/root/site.nft"])
        try:
            yield host
        finally:
            host.run(["nft", "delete", "table", "inet", "site"], check=False)


def make(host: Host, *words: str) -> str:
    return host.run(["s2ctl", "inbound", *words, "192.168.10.10:5001"], check=False).stderr


def test_a_blocked_listener_is_warned_of_everywhere(gateway: Host) -> None:
    rule = '`iifname "eth1" tcp dport 5100-5200 drop comment "closed to the world"` in table inet site chain in'
    said = make(gateway, "--listen", "192.168.20.10:5100")
    assert rule in said
    [tunnel] = json.loads(gateway.run(["s2ctl", "list", "--json"]).stdout)
    shown = gateway.run(["s2ctl", "show", tunnel["id"]]).stdout
    assert rule in " ".join(shown.split())
    assert rule in gateway.journal("-u", "scistreamd", "-p", "warning")
    gateway.run(["s2ctl", "release", tunnel["id"]])
    assert "firewall" not in make(gateway, "--listen", "192.168.10.11:5101")
    gateway.run(["s2ctl", "release", "--all"], check=False)


def test_require_refuses_it(gateway: Host) -> None:
    gateway.write(CONFIG, 'firewall = "require"\n')
    gateway.run(["systemctl", "restart", "scistreamd"])
    said = make(gateway, "--listen", "192.168.20.10:5100")
    assert "the firewall blocks 192.168.20.10:5100" in said
    assert "`nft insert rule inet site in tcp dport 5100-5200 accept` lets them in" in said
    assert json.loads(gateway.run(["s2ctl", "list", "--json"]).stdout) == []


def test_what_was_opened_closes_with_the_listeners_where_no_daemon_runs(gateway: Host) -> None:
    gateway.write(CONFIG, 'firewall = "manage"\n')
    gateway.run(["systemctl", "restart", "scistreamd"])
    assert "opens firewalld alone, which does not run here" in make(gateway, "--listen", "192.168.20.10:5100")
    [tunnel] = json.loads(gateway.run(["s2ctl", "list", "--json"]).stdout)
    script, done = f"/run/scistreamd/{tunnel['id']}.closing", "/root/closed"
    gateway.write(script, f"touch {done}\nrm {script}\n")
    gateway.run(["systemctl", "stop", "scistreamd.socket", "scistreamd.service"])
    gateway.run(["systemctl", "stop", "scistream.slice"])
    gateway.run(["rm", done])
    assert gateway.run(["ls", "/run/scistreamd"]).stdout == f"{tunnel['id']}\n"
