"""Who has ports: what the kernel says beside what it does, in a network namespace of our own."""

from __future__ import annotations

import ipaddress
import itertools
import os
import socket
from dataclasses import replace
from pathlib import Path

from scistreamd.interfaces import PortsBusy
from scistreamd.model import Endpoint, PortRange
from scistreamd.plans import Bind
from scistreamd.portcheck import Look, Socket, absent, findings, numbers, overlap, runs
from scistreamd.portview import PortView
from scistreamd.sockets import hold
from tests.service.netns_kit import in_netns, run

ADDRESSES = [ipaddress.ip_address(text) for text in ("0.0.0.0", "::", "127.0.0.1", "127.0.0.2", "::1", "2001:db8::1")]
PORT = 5100


async def seen(*, programs: bool = True) -> Look:
    view = PortView()
    try:
        return await view.look(programs=programs)
    finally:
        view.close()


def occupied(address: ipaddress.IPv4Address | ipaddress.IPv6Address, only_v6: bool, kind: int) -> socket.socket:
    made = socket.socket(socket.AF_INET6 if address.version == 6 else socket.AF_INET, kind)
    if address.version == 6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only_v6)
    made.bind((str(address), PORT))
    if kind == socket.SOCK_STREAM:
        made.listen()
    return made


@in_netns
async def test_what_is_said_to_be_in_the_way_is_what_the_kernel_refuses() -> None:
    run("ip", "address", "add", "2001:db8::1/128", "dev", "lo", "nodad")
    agreed = {True: 0, False: 0}
    for theirs, only_v6, kind in itertools.product(ADDRESSES, (False, True), (socket.SOCK_STREAM, socket.SOCK_DGRAM)):
        if only_v6 and theirs.version == 4:
            continue
        with occupied(theirs, only_v6, kind):
            look = await seen(programs=False)
            for ours, udp in itertools.product(ADDRESSES, (False, True)):
                endpoint = Endpoint(ours, PORT)
                try:
                    for each in hold([Bind(endpoint, udp)], 60):
                        each.close()
                    refused = False
                except PortsBusy:
                    refused = True
                assert bool(look.in_the_way(endpoint, udp=udp)) is refused, (theirs, only_v6, kind, ours, udp)
                agreed[refused] += 1
    assert min(agreed.values()) > 50


@in_netns
async def test_who_it_is() -> None:
    with occupied(ADDRESSES[0], False, socket.SOCK_STREAM):
        [mine] = (await seen()).by_port()[PORT]
        assert f"[{os.getpid()}] (user root)" in str(mine)
        assert str(mine).endswith(f" has tcp 0.0.0.0:{PORT}, which is every address")
        [mine] = (await seen(programs=False)).by_port()[PORT]
        assert mine.owner == "a program of user root"


@in_netns
async def test_ephemeral_ports_and_the_line_that_cures_them() -> None:
    settings = Path("/proc/sys/net/ipv4")
    (settings / "ip_local_port_range").write_text("5000 5150")
    (settings / "ip_local_reserved_ports").write_text("5110-5112")
    look = await seen()
    warning = overlap(look, PortRange(5100, 5200))
    assert "may take 5100-5109, 5113-5150: ephemeral ports are 5000-5150" in warning
    line = warning.partition("sysctl -w net.ipv4.ip_local_reserved_ports=")[2].split()[0]
    assert line == "5110-5112,5100-5200"
    (settings / "ip_local_reserved_ports").write_text(line)
    assert overlap(await seen(), PortRange(5100, 5200)) == ""
    assert overlap(look, PortRange(5151, 5200)) == ""


@in_netns
async def test_addresses_that_are_not_there() -> None:
    run("ip", "address", "add", "192.0.2.1/32", "peer", "192.0.2.9", "dev", "lo")
    look = await seen()
    given = [("listen.inbound", ipaddress.ip_address(text)) for text in ("192.0.2.1", "192.0.2.9", "0.0.0.0", "::1")]
    [line] = absent(look, [*given, ("listen.outbound", None)])
    assert line.startswith("listen.inbound: 192.0.2.9 is not an address of this host")


@in_netns
async def test_all_that_an_operator_should_know_of_a_range() -> None:
    with occupied(ADDRESSES[2], False, socket.SOCK_STREAM):
        look = replace(await seen(), ephemeral=None)
        [line] = findings(look, PortRange(5099, 5101), ADDRESSES[0], ())
        assert line.startswith("port 5100: ")
        assert findings(look, PortRange(5099, 5101), ADDRESSES[0], {5100}) == []
        assert findings(look, PortRange(5099, 5101), ADDRESSES[3], ()) == []


def test_lists_of_ports() -> None:
    assert numbers("\n") == set()
    assert numbers("8080,9000-9002\n") == {8080, 9000, 9001, 9002}
    assert runs({5, 1, 2, 3, 9, 8}) == "1-3, 5, 8-9"
    assert runs([]) == ""
    assert overlap(Look(), PortRange(1, 2)) == ""
    assert Socket("tcp", ipaddress.ip_address("::ffff:127.0.0.1"), 1).takes(ADDRESSES[2])
