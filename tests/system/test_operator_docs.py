"""The documents for operators, and the examples of the man pages, as typed on hosts with the project installed.

Each finds the hosts as its reader has them: with scistreamd as it comes, and nothing else.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.service.lab import HOSTS, Typed, read
from tests.system.host import Host
from tests.system.installed import as_installed
from tests.system.lab import Lab
from tests.system.project import packages as built
from tests.system.test_tutorial_lab import Server, Terminals
from tests.system.trees import Trees, home

pytestmark = pytest.mark.timeout(600)  # the first lab of a machine builds the base tree

ROOT = Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"
MAN = DOCS / "man"
GATEWAYS = ("producers2", "consumers2")
_EXAMPLE = re.compile(r"^```sh(?: on (\w+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
OLDER = "/root/older"
_SITE = "/etc/scistreamd/scistreamd.toml.d/site.toml"

# What a document says is there before its first line.
SITE = [
    Typed("producers2", file=_SITE, output=['advertise = "192.168.10.11"']),
    Typed("consumers2", file=_SITE, output=['listen.outbound = "192.168.30.10"']),
]
BEAMLINE = [
    *SITE,
    Typed("producers2", "s2ctl inbound -q --label beamline --uid-file vagrant/uid 192.168.10.10:5001", ["..."]),
    Typed("consumers2", "s2ctl outbound -q --label beamline @vagrant/uid 192.168.10.11:5100", ["..."]),
    Typed("producers2", "install -m 0644 /var/lib/scistreamd/control/server.crt vagrant/gateway.crt"),
    Typed("producer", "cp vagrant/uid vagrant/gateway.crt ."),
]
BEFORE = {
    "first-tunnel.md": [],
    "certificates.md": [],
    "firewalls.md": [],
    "backup.md": [],
    "troubleshooting.md": BEAMLINE,
    "install.md": [
        Typed("producers2", "apt-get purge -qy scistreamd scistream-client scistream-common scistreamd-doc", ["..."]),
        Typed("producer", "apt-get purge -qy scistreamd scistream-client scistream-common scistreamd-doc", ["..."]),
    ],
    "upgrade.md": [
        Typed("producers2", f"apt-get install -qy --allow-downgrades {OLDER}/*.deb", ["..."]),
        Typed(
            "producers2", "s2ctl inbound -q --label beamline --listen 192.168.10.11:5100 192.168.10.10:5001", ["..."]
        ),
    ],
    "uninstall.md": [],
}
# Documents about packages, and the hosts that have the files of packages in root's directory.
PACKAGED = {
    "install.md": ["producers2", "producer"],
    "upgrade.md": ["producers2"],
    "uninstall.md": ["producers2"],
}
# The same packages with another version: what differs between two real ones is tested beside this.
_AGE = f"""
mkdir {OLDER}
for package in /root/*.deb; do
    dpkg-deb --raw-extract $package /root/opened
    sed -i 's/^Version: .*/Version: 1.9.0-1/; s/(= [0-9][^)]*)/(= 1.9.0-1)/' /root/opened/DEBIAN/control
    dpkg-deb --build /root/opened {OLDER}
    rm -r /root/opened
done
"""


@pytest.fixture
def packages(lab: Lab) -> Iterator[Callable[[Host], AbstractContextManager[None]]]:
    """Lays the files of packages into the directory of a host's root; what was done with them is undone."""
    trees = Trees(home(), say=print)
    debs = built(trees)

    @contextmanager
    def laid(host: Host) -> Iterator[None]:
        words = ["tar", "-C", str(debs), "-cf", "-", *(path.name for path in debs.glob("*.deb"))]
        files = subprocess.run(words, stdout=subprocess.PIPE, check=True).stdout
        subprocess.run(host.command(["tar", "-xf", "-"]), input=files, check=True)
        host.run(["sh", "-ec", _AGE])
        try:
            yield
        finally:
            install = "DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends /root/*.deb"
            host.run(["sh", "-c", install])

    try:
        yield laid
    finally:
        trees.close()


@pytest.fixture
def hosts(lab: Lab) -> Iterator[Lab]:
    """The lab's hosts; at the end as fresh as they were."""
    before = {host.name: _files(host) for host in lab.hosts()}
    with ExitStack() as undo:
        for name in GATEWAYS:
            undo.enter_context(as_installed(lab[name]))
            undo.callback(_without_firewall, lab[name])
        yield lab
    for host in lab.hosts():
        host.run(["rm", "-rf", "--", *(_files(host) - before[host.name])])
        assert host.state() == "running"


def _files(host: Host) -> set[str]:
    return set(
        host.run(
            ["find", "/root", "/vagrant", "-mindepth", "1", "-maxdepth", "1", "-not", "-name", ".*"]
        ).stdout.split()
    )


def _without_firewall(host: Host) -> None:
    host.run(["systemctl", "disable", "--quiet", "--now", "nftables"])
    host.run(["nft", "flush", "ruleset"])


def test_every_document_with_commands_is_played() -> None:
    prompts = re.compile(rf"^(?:{'|'.join(HOSTS)})[$#] ", re.MULTILINE)
    played = {path.name for path in DOCS.glob("*.md") if prompts.search(path.read_text())}
    assert played == {*BEFORE, "tutorial.md"}


@pytest.mark.parametrize("name", BEFORE)
def test_every_command_prints_what_the_document_shows(
    name: str, hosts: Lab, packages: Callable[[Host], AbstractContextManager[None]], tmp_path: Path
) -> None:
    with ExitStack() as undo:
        for host in PACKAGED.get(name, []):
            undo.enter_context(packages(hosts[host]))
        play(Terminals(hosts, tmp_path), [*BEFORE[name], *read(DOCS / name)])


def play(terminals: Terminals, lines: list[Typed]) -> None:
    with ExitStack() as ends:
        for typed in lines:
            type_in(terminals, typed, ends)


def type_in(terminals: Terminals, typed: Typed, ends: ExitStack) -> None:
    if typed.file:
        terminals.write(typed)
    elif typed.stays:
        server = Server(terminals, typed)
        ends.callback(server.end)
        assert server.matches(), f"{typed.host}# {typed.command}\n{server.output()}"
    else:
        output = terminals.run(typed)
        assert typed.shows(output), f"{typed.host}# {typed.command}\n{output}"


def examples(page: Path) -> list[tuple[str, str]]:
    """Host and line of each command in a man page's examples."""
    found = _EXAMPLE.findall(page.read_text())
    assert all(host for host, _ in found), f"{page.name}: say on which host: ```sh on producers2"
    return [(host, line) for host, body in found for line in body.splitlines()]


def test_examples_of_man_pages_about_the_service_work(hosts: Lab, tmp_path: Path) -> None:
    for file in SITE:
        type_in(Terminals(hosts, tmp_path), file, ExitStack())
    pages = [MAN / f"{name}.md" for name in ("scistreamd.8", "org.scistream.scistreamd1.5", "s2ctl.1")]
    for page in (*pages, DOCS / "s2ctl.md"):
        for host, line in examples(page):
            # In the directory that all hosts share, as if the UID's file were copied.
            said = hosts[host].run(["bash", "-c", line], cwd="/vagrant").stdout
            assert said or line.startswith(("systemctl reload", "journalctl")), line
        hosts["producers2"].run(["s2ctl", "release", "--all", "--quiet"])
    assert hosts["consumers2"].run(["s2ctl", "list", "--quiet"]).stdout == ""


def test_examples_of_man_pages_about_s2cs_and_s2uc_work(hosts: Lab) -> None:
    create, serve = (line for _, line in examples(MAN / "s2cs.8.md"))
    hosts["producers2"].run(["bash", "-c", create], cwd="/vagrant")
    with ExitStack() as ends:
        for host, line in (("producers2", serve), ("consumers2", serve.replace("192.168.10.11", "192.168.30.10"))):
            server = ends.enter_context(hosts[host].start(["bash", "-c", f"exec {line}"], cwd="/vagrant"))
            hosts[host].wait_until(lambda server=server: "Server started" in server.output(), "serving")  # type: ignore[misc]
        for host, line in examples(MAN / "s2uc.1.md"):
            said = hosts[host].run(["bash", "-c", line], cwd="/vagrant").stdout
            assert "Listeners: " in said or "Release completed" in said, line
