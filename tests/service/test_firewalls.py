"""Real firewalls of Debian: what we say of them, against packets; and openings in firewalld."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from scistreamd import host_view, nft_dump
from scistreamd.config import FirewallMode
from scistreamd.firewall import Firewall
from scistreamd.firewalld import Firewalld
from scistreamd.interfaces import Flow
from scistreamd.model import Endpoint, IPNetwork, PortRange, Role
from scistreamd.nft.judgement import Judgement, judge
from scistreamd.plans import Bind
from tests.service.arena import HOST4, HOST6, PORT, Arena, Knock, is_possible
from tests.service.walls import Walls, walls_tree
from tests.system.trees import Trees, home

pytestmark = [
    pytest.mark.skipif(not is_possible(), reason="network namespaces need root"),
    pytest.mark.timeout(600),  # the first one installs Debian packages into a tree
]

PORTS = PortRange(5100, 5200)
# An image with one program and its libraries.
_IMAGE = """
set -eu
mkdir /tmp/image
for file in /usr/bin/sleep $(ldd /usr/bin/sleep | grep -o '/[^ ]*'); do cp --parents -L $file /tmp/image; done
tar -C /tmp/image -c . | docker import - image
"""
WILDCARD = ipaddress.ip_address("::")
PUBLISHED = 8080
PEER4, PEER6 = "10.1.0.2", "fd01::2"
FILTER_EXAMPLES = (
    # /etc/nftables.conf as Debian installs it
    "table inet filter { chain input { type filter hook input priority filter; }\n"
    "chain forward { type filter hook forward priority filter; }\n"
    "chain output { type filter hook output priority filter; }\n}",
)


@pytest.fixture(scope="module")
def layers() -> Iterator[list[Path]]:
    trees = Trees(home(), print)
    try:
        yield walls_tree(trees)
    finally:
        trees.close()


@pytest.fixture
def arena() -> Iterator[Arena]:
    with Arena() as arena:
        yield arena


@pytest.fixture
def walls(arena: Arena, layers: list[Path]) -> Iterator[Walls]:
    place = home() / f"walls-{os.getpid()}.test"  # on a file system that overlays can write to
    shutil.rmtree(place, ignore_errors=True)
    try:
        with Walls(arena.host, layers, place) as walls:
            yield walls
    finally:
        shutil.rmtree(place, ignore_errors=True)


@pytest.fixture
def firewalld(walls: Walls) -> Walls:
    walls.run("dbus-daemon --system --fork --nopidfile")
    start_firewalld(walls)
    return walls


def start_firewalld(walls: Walls) -> None:
    walls.start("firewalld --nofork --nopid", "firewall-cmd --state")


def judged(arena: Arena, port: int, *allow_from: str) -> Judgement:
    networks: Sequence[IPNetwork] = [ipaddress.ip_network(each) for each in allow_from]
    ruleset, host = arena.host.run(nft_dump.read), arena.host.run(host_view.look)
    return judge(ruleset, host, Endpoint(WILDCARD, port), networks, PORTS)


def agree(arena: Arena, counts: Counter[str], ports: Sequence[int] = (PORT,)) -> None:
    """What is said of each peer of eth0 is what its packets meet; for ports that are listened on."""
    for port in ports:
        knocks = [each for each in arena.knocks(port) if each.device == "eth0"]
        said = {each.source: judged(arena, port, each.source) for each in knocks}

        def word(knock: Knock, said: dict[str, Judgement] = said) -> str:
            return said[knock.source].verdict

        arena.knock(knocks, word)
        for knock in knocks:
            if port != PORT and word(knock) != "dnat":
                continue  # nobody listens there
            counts[word(knock)] += 1
            fits = knock.came != "accept" if word(knock) == "dnat" else word(knock) in ("unknown", knock.came)
            assert fits, f"{knock}: {said[knock.source]}\n{arena.host.call('nft', 'list', 'ruleset')}"


@pytest.mark.parametrize("zone", ["public", "drop", "trusted", "internal"])
def test_zones_of_firewalld(arena: Arena, firewalld: Walls, zone: str) -> None:
    counts = Counter[str]()
    firewalld.run(f"firewall-cmd --zone={zone} --change-interface=eth0")
    agree(arena, counts)
    if zone != "trusted":
        said = judged(arena, PORT, "10.1.0.0/24")
        assert said.blocked
        assert said.cure == f"firewall-cmd --zone={zone} --add-port=5100-5200/tcp"
        firewalld.run(said.cure)
        agree(arena, counts)
        assert not judged(arena, PORT, "10.1.0.0/24").blocked
    firewalld.run(
        f"firewall-cmd --zone={zone} --add-rich-rule='rule family=ipv4 source address=10.1.0.77 reject' && "
        "firewall-cmd --zone=block --add-source=192.0.2.0/24"
    )
    agree(arena, counts)
    assert counts["accept"] and counts["reject"] and not counts["unknown"]


def test_ufw(arena: Arena, walls: Walls) -> None:
    counts = Counter[str]()
    walls.run("ufw --force enable")
    agree(arena, counts)
    said = judged(arena, PORT, "10.1.0.0/24")
    assert said.blocked
    assert said.cure == "ufw allow proto tcp from 10.1.0.0/24 to any port 5100:5200"
    walls.run(said.cure)
    agree(arena, counts)
    for rule in ("limit 5100/tcp", "deny from 198.51.100.200", "allow in on eth0 to any port 5100 proto tcp"):
        walls.run(f"ufw {rule}")
        agree(arena, counts)
    assert counts["accept"] and counts["drop"] and not counts["unknown"]


def test_docker_takes_the_ports_that_it_publishes(arena: Arena, walls: Walls) -> None:
    counts = Counter[str]()
    walls.start("dockerd -s vfs --userland-proxy=false --cgroup-parent scistream-walls", "docker info")
    try:
        walls.run(_IMAGE)
        assert not judged(arena, PUBLISHED).blocked
        walls.run(f"docker run -d --name one -p {PUBLISHED}:80 image /usr/bin/sleep 1000")
        said = judged(arena, PUBLISHED)
        assert (said.verdict, "DOCKER" in said.rule, "dnat to 172.17.0.2:80" in said.rule) == ("dnat", True, True)
        agree(arena, counts, [PORT, PUBLISHED])
        walls.run("docker rm -f one")
        agree(arena, counts)
        assert not judged(arena, PUBLISHED).blocked
    finally:
        walls.works("docker rm -f one; kill $(pidof dockerd)")
        walls.works("find /sys/fs/cgroup -depth -type d -path '*/scistream-walls*' -exec rmdir {} +")
    assert counts["accept"] and counts["dnat"] and not counts["unknown"]


@pytest.mark.parametrize("text", FILTER_EXAMPLES)
def test_rules_that_come_with_nftables(arena: Arena, text: str) -> None:
    counts = Counter[str]()
    arena.rules(text)
    agree(arena, counts)
    assert set(counts) == {"accept"}


# Openings


def flow(name: str, *allow_from: str, port: int = PORT, address: str = HOST4) -> Flow:
    networks = tuple(ipaddress.ip_network(each) for each in allow_from)
    bind = Bind(Endpoint(ipaddress.ip_address(address), port))
    return Flow(name, Role.PROD, (bind,), allow_from=networks)


def manage(
    arena: Arena, walls: Walls, work: Callable[[Firewall], Coroutine[Any, Any, None]], runtime: Path | None = None
) -> None:
    """Run it with a daemon's part that opens firewalld, in the host's namespace and on its bus."""

    async def life() -> None:
        firewall = Firewall(FirewallMode.MANAGE, PORTS, Firewalld(PORTS, runtime))
        try:
            await work(firewall)
        finally:
            await firewall.close()

    def run() -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("DBUS_SYSTEM_BUS_ADDRESS", walls.bus)
            asyncio.run(life())

    arena.host.run(run)


def rich_rules(walls: Walls, zone: str = "drop") -> list[str]:
    return [each for each in walls.run(f"firewall-cmd --zone={zone} --list-rich-rules").split("\n") if each]


def reaches(arena: Arena, source: str, target: str = HOST4) -> bool:
    """Whether it is let in; silence is given the time that a machine under load may take."""
    return came(arena, source, target, "accept") == {"accept"}


def shut_out(arena: Arena, source: str, target: str = HOST4) -> bool:
    """Whether it is not let in."""
    return "accept" not in came(arena, source, target, "drop")


def came(arena: Arena, source: str, target: str, expected: str) -> set[str]:
    """What came of knocking."""
    knocks = [each for each in arena.knocks() if (each.source, each.target) == (source, target)]
    arena.knock(knocks, lambda _: expected)
    return {each.came for each in knocks}


def test_an_opening_lasts_as_long_as_its_tunnel(arena: Arena, firewalld: Walls) -> None:
    firewalld.run("firewall-cmd --zone=drop --change-interface=eth0")
    foreign = 'rule priority="2626" family="ipv4" source address="203.0.113.0/24" port port="80" protocol="tcp" accept'
    firewalld.run(f"firewall-cmd --zone=drop --add-rich-rule='{foreign}'")
    before = rich_rules(firewalld)

    async def life(firewall: Firewall) -> None:
        assert await firewall.apply(flow("aaaaaaaaaaaa", "10.1.0.2/32")) == ()
        assert len(rich_rules(firewalld)) == len(before) + 1
        assert reaches(arena, PEER4) and shut_out(arena, "10.1.0.77") and shut_out(arena, PEER6, HOST6)
        assert await firewall.apply(flow("bbbbbbbbbbbb", address="::")) == ()
        assert reaches(arena, "10.1.0.77") and reaches(arena, PEER6, HOST6)
        await firewall.forget("bbbbbbbbbbbb")
        assert reaches(arena, PEER4) and shut_out(arena, "10.1.0.77")
        # Reloaded and started anew, it knows nothing of runtime rules but those that we make again.
        firewalld.run("firewall-cmd --permanent --zone=drop --add-interface=eth0 && firewall-cmd --reload")
        await until(lambda: reaches(arena, PEER4))
        firewalld.run("kill $(pidof -x firewalld); while firewall-cmd --state 2>/dev/null; do sleep 0.1; done")
        start_firewalld(firewalld)
        await until(lambda: reaches(arena, PEER4))
        await firewall.forget("aaaaaaaaaaaa")
        assert rich_rules(firewalld) == []
        assert shut_out(arena, PEER4)

    manage(arena, firewalld, life)


async def until(held: Callable[[], bool]) -> None:
    """Wait for it, with the event loop free."""
    deadline = time.monotonic() + 90
    while not held():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)


def test_a_crash_leaves_no_opening_and_nothing_of_others_goes(arena: Arena, firewalld: Walls, tmp_path: Path) -> None:
    firewalld.run("firewall-cmd --zone=drop --change-interface=eth0")
    foreign = 'rule family="ipv4" source address="203.0.113.0/24" port port="5101" protocol="tcp" accept'
    firewalld.run(
        f"firewall-cmd --zone=drop --add-rich-rule='{foreign}' && firewall-cmd --zone=drop --add-port=5102/tcp"
    )

    async def crash(firewall: Firewall) -> None:
        await firewall.apply(flow("aaaaaaaaaaaa"))
        await firewall.apply(flow("bbbbbbbbbbbb", port=5103))
        await firewall.apply(flow("cccccccccccc", "10.1.0.0/24", port=5104))

    manage(arena, firewalld, crash, tmp_path)
    assert len(rich_rules(firewalld)) == 4
    # What a socket unit runs where its tunnel ends without a daemon.
    script = tmp_path / "cccccccccccc.closing"
    firewalld.run(script.read_text())
    assert len(rich_rules(firewalld)) == 3

    async def another(firewall: Firewall) -> None:
        """On 5100 somebody listens, as for another gateway."""
        await firewall.reconcile([])
        assert len(rich_rules(firewalld)) == 2

    manage(arena, firewalld, another)
    assert reaches(arena, PEER4)

    async def again(firewall: Firewall) -> None:
        assert await firewall.reconcile([flow("aaaaaaaaaaaa")]) == {"aaaaaaaaaaaa": ()}
        assert [each.name for each in tmp_path.iterdir()] == ["aaaaaaaaaaaa.closing"]
        assert len(rich_rules(firewalld)) == 2
        assert reaches(arena, PEER4)
        await firewall.forget("aaaaaaaaaaaa")

    manage(arena, firewalld, again, tmp_path)
    assert not list(tmp_path.iterdir())
    assert rich_rules(firewalld) == [foreign]
    assert firewalld.run("firewall-cmd --zone=drop --list-ports") == "5102/tcp\n"


def test_what_an_opening_cannot_undo_is_told(arena: Arena, firewalld: Walls) -> None:
    arena.host.call("nft", "add table inet mine; add chain inet mine in { type filter hook input priority 20; }; "
                    "add rule inet mine in tcp dport 5100 drop")  # fmt: skip

    async def life(firewall: Firewall) -> None:
        [warning] = await firewall.apply(flow("aaaaaaaaaaaa"))
        assert "dropped by `tcp dport 5100 drop` in table inet mine chain in" in warning
        await firewall.forget("aaaaaaaaaaaa")

    manage(arena, firewalld, life)


def test_an_opening_lets_in_nobody_whom_a_rule_refuses(arena: Arena, firewalld: Walls) -> None:
    firewalld.run(
        "firewall-cmd --zone=drop --change-interface=eth0 && "
        "firewall-cmd --zone=drop --add-rich-rule='rule family=ipv4 source address=10.1.0.77 drop'"
    )

    async def life(firewall: Firewall) -> None:
        assert await firewall.apply(flow("aaaaaaaaaaaa")) == ()
        assert reaches(arena, PEER4) and shut_out(arena, "10.1.0.77")
        [warning] = await firewall.apply(flow("aaaaaaaaaaaa", "10.1.0.77/32"))
        assert "10.1.0.77/32 is dropped" in warning
        await firewall.forget("aaaaaaaaaaaa")

    manage(arena, firewalld, life)


def test_without_firewalld_there_is_nothing_to_open(arena: Arena, walls: Walls) -> None:
    arena.rules("table inet f { chain i { type filter hook input priority 0; policy drop; }\n}")

    async def life(firewall: Firewall) -> None:
        [warning] = await firewall.apply(flow("aaaaaaaaaaaa"))
        assert (
            "which does not run here" in warning and "`nft insert rule inet f i tcp dport 5100-5200 accept`" in warning
        )

    walls.run("dbus-daemon --system --fork --nopidfile")
    manage(arena, walls, life)
