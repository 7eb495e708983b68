"""The D-Bus front door on a bus of its own: methods, options, errors, properties, signals."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from dbus_next import Message, MessageFlag, Variant

import scistreamd
from scistreamd import introspection, names
from scistreamd.bus import Bus
from scistreamd.bus_door import interface_xml
from scistreamd.bus_wire import hang_up
from scistreamd.counts import Counts, Health, Rates, Totals
from scistreamd.errors import Code, ScistreamError
from scistreamd.model import ChangeKind, PortRange, Role, State, Uid
from scistreamd.portcheck import Look, Socket, overlap
from tests.service.bus_kit import ME, Client, Door, PrivateBus, Refused, connected, door, until, variant

ERROR = f"{names.SERVICE}.Error"
UID = "11111111-2222-4333-8444-555555555555"


@pytest_asyncio.fixture
async def private(tmp_path: Path) -> AsyncIterator[PrivateBus]:
    bus = PrivateBus(tmp_path)
    await bus.start()
    yield bus
    await bus.stop()


@pytest_asyncio.fixture
async def scene(private: PrivateBus) -> AsyncIterator[Door]:
    async with door(private) as made:
        yield made


@pytest_asyncio.fixture
async def client(scene: Door) -> AsyncIterator[Client]:
    async with connected(scene.private.address) as made:
        yield made


async def inbound(client: Client, *targets: str, **options: Variant) -> Any:
    named = {name.replace("_", "-"): value for name, value in options.items()}
    return await client.manager("CreateInbound", "asa{sv}", list(targets or ("192.0.2.1:5001",)), named)


async def refusal(call: Any, code: Code) -> str:
    with pytest.raises(Refused) as caught:
        await call
    assert caught.value.name == names.error_name(code)
    assert "Traceback" not in caught.value.text
    return caught.value.text


async def test_create_show_and_release(scene: Door, client: Client) -> None:
    uid, path, listeners = await inbound(client, "192.0.2.1:5001", "[2001:db8::1]:5002", label=variant("s", "detector"))
    assert path == names.tunnel_path(Uid.parse(uid).id)
    assert listeners == ["127.0.0.1:27800", "127.0.0.1:27801"]
    assert await client.manager("GetTunnel", "s", Uid.parse(uid).id) == [path]
    assert await client.manager("GetTunnel", "s", uid) == [path]
    [[row]] = await client.manager("ListTunnels")
    targets = ["192.0.2.1:5001", "[2001:db8::1]:5002"]
    assert row == [Uid.parse(uid).id, "PROD", "active", listeners, targets, "Haproxy", ME, path]
    shown = await client.properties(path, names.TUNNEL)
    assert shown == {
        "Id": Uid.parse(uid).id,
        "Label": "detector",
        "Role": "PROD",
        "State": "active",
        "Type": "Haproxy",
        "Security": "tls",
        "Listeners": listeners,
        "Targets": targets,
        "Rate": 0,
        "Unit": "",
        "Owner": ME,
        "CreatedUSec": 1_700_000_000_000_000,
        "ExpiresUSec": 0,
        "Result": "",
        "Warnings": ["beware"],
        "Connections": 0,
        "BytesIn": 0,
        "BytesOut": 0,
    }
    assert await client.tunnel(path, "GetUid") == [uid]
    assert await client.tunnel(path, "Release", "a{sv}", {"drain": variant("t", 7)}) == []
    assert scene.tunnels.calls[-1][0] == "end"
    assert scene.tunnels.calls[-1][3] == 7
    assert await client.manager("ListTunnels") == [[]]


async def test_outbound_by_uid_and_release_by_uid(scene: Door, client: Client) -> None:
    [path, listeners] = await client.manager("CreateOutbound", "sasa{sv}", UID, ["198.51.100.7:5100"], {})
    assert path == names.tunnel_path(Uid.parse(UID).id)
    assert listeners == ["127.0.0.1:27800"]
    assert scene.tunnels.calls[0][2] is Role.CONS
    assert await client.manager("Release", "sa{sv}", UID.replace("-", ""), {}) == []
    assert "ended" in await refusal(client.manager("Release", "sa{sv}", UID, {}), Code.NOT_FOUND)


async def test_every_option_reaches_the_manager(scene: Door, client: Client) -> None:
    await inbound(
        client,
        uid=variant("s", UID),
        type=variant("s", "nginx"),
        listen=variant("as", ["127.0.0.1:27805", "::1"]),
        rate=variant("t", 1000),
        security=variant("s", "none"),
        lifetime=variant("t", 60),
        allow_from=variant("as", ["192.0.2.0/24", "2001:db8::/32"]),
        label=variant("s", "Messgerät 7"),
    )
    _, grant, _, _, options, uid = scene.tunnels.calls[0]
    assert uid == Uid.parse(UID)
    assert (options.data_server, options.security.value, options.rate, options.lifetime) == ("nginx", "none", 1000, 60)
    assert [str(each) for each in options.allow_from] == ["192.0.2.0/24", "2001:db8::/32"]
    assert [(str(each.address), each.port) for each in options.listen] == [("127.0.0.1", 27805), ("::1", 0)]
    assert (options.label, options.exact_ports) == ("Messgerät 7", True)
    assert (grant.caller.user, str(grant.caller)) == (os.geteuid(), ME)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"colour": variant("s", "red")}, "'colour' is not an option here"),
        ({"drain": variant("t", 1)}, "'drain' is not an option here"),
        ({"rate": variant("u", 5)}, "rate: has the type u (it takes t)"),
        ({"rate": variant("t", 2**64 - 1)}, "rate: "),
        ({"lifetime": variant("t", 10**12)}, "lifetime: "),
        ({"lifetime": variant("s", "60")}, "lifetime: has the type s (it takes t)"),
        ({"uid": variant("s", "no-uid")}, "uid: not a UID"),
        ({"type": variant("as", ["Nginx"])}, "type: has the type as"),
        ({"type": variant("s", "")}, "type: '' is not"),
        ({"security": variant("s", "rot13")}, "security: 'rot13' is not"),
        ({"listen": variant("as", ["127.0.0.1:0"])}, "listen[0]: port '0'"),
        ({"listen": variant("as", ["::1", "example.org"])}, "listen[1]: "),
        ({"listen": variant("s", "127.0.0.1")}, "listen: has the type s (it takes as)"),
        ({"allow-from": variant("as", ["192.0.2.1/24"])}, "allow-from[0]: "),
        ({"label": variant("s", "two\nlines")}, "label: "),
        ({"label": variant("s", "x" * 65)}, "label: "),
        ({"label": variant("v", Variant("s", "x"))}, "label: has the type v"),
    ],
)
async def test_bad_options_are_named(scene: Door, client: Client, options: dict[str, Variant], told: str) -> None:
    call = client.manager("CreateInbound", "asa{sv}", ["192.0.2.1:5001"], options)
    assert told in await refusal(call, Code.INVALID_ARGUMENT)
    assert scene.tunnels.calls == []


@pytest.mark.parametrize(
    ("targets", "told"),
    [
        ([], "targets: empty"),
        (["192.0.2.1"], "targets[0]: "),
        (["192.0.2.1:1", "a;b:1"], "targets[1]: "),
        (["192.0.2.1:1"] * 1001, "targets: 1001 entries"),
    ],
)
async def test_bad_targets_are_named(scene: Door, client: Client, targets: list[str], told: str) -> None:
    call = client.manager("CreateInbound", "asa{sv}", targets, {})
    assert told in await refusal(call, Code.INVALID_ARGUMENT)
    assert scene.tunnels.calls == []


async def test_outbound_takes_no_uid_among_its_options(client: Client) -> None:
    call = client.manager("CreateOutbound", "sasa{sv}", UID, ["192.0.2.1:1"], {"uid": variant("s", UID)})
    assert "'uid' is not an option here" in await refusal(call, Code.INVALID_ARGUMENT)


async def test_a_uid_in_the_wrong_place_is_in_no_message(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    for call in (
        inbound(client, UID),
        inbound(client, label=variant("s", UID + "\n")),
        client.manager("Release", "sa{sv}", UID + "x", {}),
        client.manager("GetTunnel", "s", UID),
    ):
        with pytest.raises(Refused) as caught:
            await call
        assert UID not in caught.value.text
    assert UID not in caplog.text


async def test_update(scene: Door, client: Client) -> None:
    _, path, _ = await inbound(client)
    assert await client.tunnel(path, "Update", "asa{sv}", ["192.0.2.9:7"], {}) == []
    assert (await client.properties(path, names.TUNNEL))["Targets"] == ["192.0.2.9:7"]
    assert await client.tunnel(path, "Update", "asa{sv}", [], {"lifetime": variant("t", 90)}) == []
    assert (await client.properties(path, names.TUNNEL))["ExpiresUSec"] == 90_000_000
    assert [call[0] for call in scene.tunnels.calls] == ["create", "retarget", "extend"]
    assert await client.tunnel(path, "Update", "asa{sv}", [], {"rate": variant("t", 0)}) == []
    assert await client.tunnel(path, "Update", "asa{sv}", [], {"rate": variant("t", 5)}) == []
    assert (await client.properties(path, names.TUNNEL))["Rate"] == 5
    await refusal(client.tunnel(path, "Update", "asa{sv}", [], {}), Code.INVALID_ARGUMENT)
    await refusal(client.tunnel(path, "Update", "asa{sv}", [], {"label": variant("s", "x")}), Code.INVALID_ARGUMENT)
    assert [call[0] for call in scene.tunnels.calls[3:]] == ["hold_to", "hold_to"]


async def test_methods_of_a_tunnel_that_has_ended(scene: Door, client: Client) -> None:
    path = names.tunnel_path("0" * 12)
    for member, signature, body in (("Update", "asa{sv}", ([], {})), ("Release", "a{sv}", ({},)), ("GetUid", "", ())):
        await refusal(client.tunnel(path, member, signature, *body), Code.NOT_FOUND)
    with pytest.raises(Refused, match=names.UNKNOWN_OBJECT):
        await client.properties(path, names.TUNNEL)


async def test_the_gateways_properties(scene: Door, client: Client) -> None:
    await inbound(client)
    assert await client.properties(names.ROOT, names.MANAGER) == {
        "Version": scistreamd.__version__,
        "ListenerAddress": "127.0.0.1",
        "PortRange": [27800, 27809],
        "FreePorts": 9,
        "DefaultType": "Haproxy",
        "Types": ["Haproxy", "Nginx", "Stunnel", "HaproxySubprocess", "NginxSubprocess", "StunnelSubprocess"],
        "NTunnels": 1,
        "Warnings": [],
    }
    [ports] = await client.raw(names.ROOT, names.PROPERTIES, "Get", "ss", names.MANAGER, "PortRange")
    assert (ports.signature, ports.value) == ("(qq)", [27800, 27809])


async def test_properties_have_the_types_of_the_xml(client: Client) -> None:
    _, path, _ = await inbound(client)
    declared = introspection.interfaces(interface_xml())
    for at, interface in ((names.ROOT, names.MANAGER), (path, names.TUNNEL)):
        [found] = await client.raw(at, names.PROPERTIES, "GetAll", "s", interface)
        expected = {each.name: each.signature for each in declared[interface].properties.values()}
        assert {name: each.signature for name, each in found.items()} == expected


async def test_counters(scene: Door, client: Client) -> None:
    """The three properties, both methods, and what stands in their place where nothing can be seen."""
    _, path, _ = await inbound(client)
    await inbound(client)
    tunnel_id = names.tunnel_id(path) or ""
    scene.counted.values[tunnel_id] = Counts(
        connections=2,
        connections_total=7,
        plain=Totals(1 << 40, 5, 6, 7),
        wan=Totals(8, 9, 10, 11),
        retransmits=3,
        rates=Rates((1.5, 2.5, 3.5), (4.5, 5.5, 6.5)),
        health=Health(1, 250, 10, 99),
        used=1_700_000_000.5,
        estimated=True,
    )
    properties = {"Connections": 2, "BytesIn": 1 << 40, "BytesOut": 5}
    assert (await client.properties(path, names.TUNNEL)).items() >= properties.items()
    for name, value in properties.items():
        [found] = await client.raw(path, names.PROPERTIES, "Get", "ss", names.TUNNEL, name)
        assert found.value == value
    [objects] = await client.raw(names.ROOT, names.OBJECT_MANAGER, "GetManagedObjects")
    assert objects[path][names.TUNNEL]["BytesIn"].value == 1 << 40
    [rows] = await client.manager("ListCounters")
    rates = [[1.5, 2.5, 3.5], [4.5, 5.5, 6.5]]
    assert rows[0] == [tunnel_id, 2, 7, 1 << 40, 5, 6, 7, *rates, 250, 3, 10, 99, True]
    assert rows[1][1:] == [0, 0, 0, 0, 0, 0, [], [], 0, 0, 0, 0, False]
    [told] = await client.raw(path, names.TUNNEL, "GetCounters")
    assert {name: each.value for name, each in told.items()} == {
        "connections": 2, "connections-total": 7, "bytes-in": 1 << 40, "bytes-out": 5, "packets-in": 6,
        "packets-out": 7, "rates-in": rates[0], "rates-out": rates[1], "used-usec": 1_700_000_000_500_000,
        "estimated": True, "wan-bytes-in": 8, "wan-bytes-out": 9, "wan-packets-in": 10, "wan-packets-out": 11,
        "wan-connections": 1, "wan-retransmits": 3, "wan-rtt-usec": 250, "wan-cwnd": 10, "wan-delivery-rate": 99,
    }  # fmt: skip


async def test_counters_that_cannot_be_seen_are_left_out_or_say_why(scene: Door, client: Client) -> None:
    _, path, _ = await inbound(client)
    scene.counted.problem = ScistreamError(Code.UNAVAILABLE, "the kernel tells nothing", "modprobe tcp_diag")
    counters = {"Connections", "BytesIn", "BytesOut"}
    assert not counters & (await client.properties(path, names.TUNNEL)).keys()
    [objects] = await client.raw(names.ROOT, names.OBJECT_MANAGER, "GetManagedObjects")
    assert not counters & objects[path][names.TUNNEL].keys()
    for name in counters:
        call = client.raw(path, names.PROPERTIES, "Get", "ss", names.TUNNEL, name)
        assert "modprobe tcp_diag" in await refusal(call, Code.UNAVAILABLE)
    await refusal(client.manager("ListCounters"), Code.UNAVAILABLE)
    await refusal(client.tunnel(path, "GetCounters", "", *[]), Code.UNAVAILABLE)


async def test_properties_cannot_be_set(client: Client) -> None:
    for interface, name, error in (
        (names.MANAGER, "NTunnels", names.PROPERTY_READ_ONLY),
        (names.MANAGER, "Colour", names.UNKNOWN_PROPERTY),
        (names.TUNNEL, "Label", names.UNKNOWN_INTERFACE),
    ):
        with pytest.raises(Refused, match=error):
            await client.raw(names.ROOT, names.PROPERTIES, "Set", "ssv", interface, name, variant("u", 5))


async def test_check_ports(scene: Door, client: Client) -> None:
    await inbound(client)
    scene.busy[27803] = "in use by another program"
    other = Socket("tcp", ipaddress.ip_address("0.0.0.0"), 27803, owner="sshd[7] (user root)")
    scene.tunnels.look = Look((other,), (27000, 28000), "27801")
    had = "sshd[7] (user root) has tcp 0.0.0.0:27803, which is every address"
    warned = [overlap(scene.tunnels.look, PortRange(27800, 27809))]
    assert "ip_local_reserved_ports=27801,27800-27809" in warned[0]
    common = {"warnings": warned, "firewall": ""}
    nobody, told_off = {"sockets": [], **common}, {"sockets": [had], **common}
    [answers] = await client.manager("CheckPorts", "aq", [27800, 27803, 27804, 80])
    told = [{name: each.value for name, each in answer.items()} for answer in answers]
    tunnel_id = next(iter(scene.tunnels.views))
    assert told == [
        {"port": 27800, "in-range": True, "free": False, "reason": f"tunnel {tunnel_id} listens on it", **nobody},
        {"port": 27803, "in-range": True, "free": False, "reason": had, **told_off},
        {"port": 27804, "in-range": True, "free": True, "reason": "", **nobody},
        {
            "port": 80,
            "in-range": False,
            "free": True,
            "reason": "outside the range 27800-27809",
            "sockets": [],
            "warnings": [],
            "firewall": "",
        },
    ]
    assert {name: each.signature for name, each in answers[0].items()} == {
        "port": "q", "in-range": "b", "free": "b", "reason": "s", "sockets": "as", "warnings": "as", "firewall": "s",
    }  # fmt: skip
    [answers] = await client.manager("CheckPorts", "aq", [])
    assert [answer["port"].value for answer in answers] == list(range(27800, 27810))
    await refusal(client.manager("CheckPorts", "aq", [0]), Code.INVALID_ARGUMENT)


async def test_reload_tells_of_what_it_changed(scene: Door, client: Client) -> None:
    await client.listen()
    assert await client.manager("Reload") == []
    assert scene.reloads == 1
    [signal] = await client.hears("PropertiesChanged")
    assert signal.body == [names.MANAGER, {"DefaultType": variant("s", "Nginx")}, []]


async def test_signals_for_every_change(scene: Door, client: Client) -> None:
    await client.listen()
    uid, path, _ = await inbound(client)
    tunnel_id = Uid.parse(uid).id
    [added] = await client.hears("InterfacesAdded")
    assert (added.path, added.interface) == (names.ROOT, names.OBJECT_MANAGER)
    assert added.body[0] == path
    shown = {name: each.value for name, each in added.body[1][names.TUNNEL].items()}
    counters = {"Connections": 0, "BytesIn": 0, "BytesOut": 0}
    assert shown | counters == await client.properties(path, names.TUNNEL)
    [signal] = await client.hears("TunnelAdded")
    assert (signal.path, signal.interface, signal.body) == (names.ROOT, names.MANAGER, [tunnel_id, path])
    [signal] = await client.hears("PropertiesChanged")
    assert (signal.path, signal.body[1]) == (names.ROOT, {"FreePorts": variant("u", 9), "NTunnels": variant("u", 1)})

    # As if another front door had done it.
    failed = replace(scene.tunnels.view(tunnel_id), state=State.FAILED, result="it said\0no \ud800")
    scene.tunnels.change(ChangeKind.CHANGED, failed)
    scene.tunnels.change(ChangeKind.CHANGED, failed)
    signal = (await client.hears("PropertiesChanged", 2))[-1]
    changed = {"State": variant("s", "failed"), "Result": variant("s", "it said\N{REPLACEMENT CHARACTER}no ?")}
    assert (signal.path, signal.body) == (path, [names.TUNNEL, changed, []])

    await client.tunnel(path, "Release", "a{sv}", {})
    [removed] = await client.hears("InterfacesRemoved")
    assert (removed.path, removed.body) == (names.ROOT, [path, [names.TUNNEL]])
    [signal] = await client.hears("TunnelRemoved")
    assert (signal.path, signal.body) == (names.ROOT, [tunnel_id, path])
    await client.hears("PropertiesChanged", 3)
    assert not [each for each in client.heard if uid in str(each.body)]


async def test_a_burst_fills_the_socket_and_breaks_nothing(scene: Door, client: Client) -> None:
    """More than the bus reads while we write: 2 MB in one turn of the event loop."""
    await client.listen()
    await inbound(client)
    [view] = scene.tunnels.tunnels()
    for number in range(500):
        warned = replace(view, id=f"{number:012x}", listeners=(), warnings=("x" * 3000,))
        scene.tunnels.change(ChangeKind.ADDED, warned)
    await client.hears("TunnelAdded", 501)
    [objects] = await client.raw(names.ROOT, names.OBJECT_MANAGER, "GetManagedObjects")
    assert len(objects) == 501
    assert (await client.properties(names.ROOT, names.MANAGER))["NTunnels"] == 501


async def test_a_signal_that_cannot_be_sent_upsets_nobody(
    scene: Door, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    await inbound(client)
    [view] = scene.tunnels.tunnels()
    scene.tunnels.change(ChangeKind.CHANGED, replace(view, rate=-1))
    assert "cannot tell of PropertiesChanged" in caplog.text
    scene.tunnels.change(ChangeKind.CHANGED, view)
    assert await client.manager("GetTunnel", "s", view.id)


async def test_object_manager(client: Client) -> None:
    _, path, _ = await inbound(client)
    [objects] = await client.raw(names.ROOT, names.OBJECT_MANAGER, "GetManagedObjects")
    assert list(objects) == [path]
    assert list(objects[path]) == [names.TUNNEL]
    shown = {name: each.value for name, each in objects[path][names.TUNNEL].items()}
    assert shown == await client.properties(path, names.TUNNEL)


async def test_introspection_is_the_text_of_the_xml(scene: Door, client: Client) -> None:
    _, path, _ = await inbound(client)
    declared = introspection.interfaces(interface_xml())
    for at, interface in ((names.ROOT, names.MANAGER), (path, names.TUNNEL)):
        [xml] = await client.raw(at, names.INTROSPECTABLE, "Introspect")
        assert declared[interface].text in xml
        assert declared[interface].text in interface_xml()
    seen = []
    at = "/"
    while at != path:
        [xml] = await client.raw(at, names.INTROSPECTABLE, "Introspect")
        [name] = [line.split('"')[1] for line in xml.splitlines() if line.startswith("  <node name=")]
        at = f"{at.rstrip('/')}/{name}"
        seen.append(name)
    assert seen == ["org", "scistream", "scistreamd1", "tunnel", path.rpartition("/")[2]]


@pytest.mark.parametrize(
    ("path", "interface", "member", "signature", "body", "error"),
    [
        ("/nowhere", None, "Ring", "", [], names.UNKNOWN_OBJECT),
        (names.ROOT, "org.example.Other", "Ring", "", [], names.UNKNOWN_INTERFACE),
        (names.ROOT, names.TUNNEL, "GetUid", "", [], names.UNKNOWN_INTERFACE),
        (names.ROOT, names.MANAGER, "Ring", "", [], names.UNKNOWN_METHOD),
        (names.ROOT, names.MANAGER, "ListTunnels", "s", ["x"], names.INVALID_ARGS),
        (names.ROOT, names.MANAGER, "Release", "s", ["x"], names.INVALID_ARGS),
        (names.ROOT, names.PROPERTIES, "Get", "s", [names.MANAGER], names.INVALID_ARGS),
        (names.ROOT, names.PROPERTIES, "Get", "ss", ["org.example.Other", "X"], names.UNKNOWN_INTERFACE),
        (names.ROOT, names.PROPERTIES, "Get", "ss", [names.MANAGER, "X"], names.UNKNOWN_PROPERTY),
        (names.ROOT, names.PEER, "Ring", "", [], names.UNKNOWN_METHOD),
    ],
)
async def test_what_is_not_there(
    client: Client, path: str, interface: str | None, member: str, signature: str, body: list[Any], error: str
) -> None:
    with pytest.raises(Refused) as caught:
        await client.raw(path, interface, member, signature, *body)
    assert caught.value.name == error


async def test_peer_and_a_call_without_interface(client: Client) -> None:
    ids = [
        each.read_text().strip() for each in map(Path, ("/etc/machine-id", "/var/lib/dbus/machine-id")) if each.exists()
    ]
    for interface in (names.PEER, None):
        assert await client.raw("/any/where", interface, "Ping") == []
        [machine] = await client.raw(names.ROOT, interface, "GetMachineId")
        assert machine == ids[0]
    assert await client.raw(names.ROOT, None, "ListTunnels") == [[]]
    assert await client.raw(names.ROOT, names.PROPERTIES, "GetAll", "s", names.INTROSPECTABLE) == [{}]


async def test_a_refusal_is_short(client: Client) -> None:
    with pytest.raises(Refused) as caught:
        await client.raw(names.ROOT, names.PROPERTIES, "GetAll", "s", "x" * 70000)
    assert len(caught.value.text) < 2000


async def test_no_traceback_leaves(
    scene: Door, client: Client, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> Any:
        raise ZeroDivisionError("secret inside")

    monkeypatch.setattr(scene.tunnels, "tunnels", broken)
    text = await refusal(client.manager("ListTunnels"), Code.INTERNAL)
    assert "secret inside" not in text
    incident = text.partition("(incident ")[2].split()[0]
    assert f"incident {incident} in ListTunnels" in caplog.text

    caplog.clear()
    monkeypatch.setattr(scene.tunnels, "tunnels", lambda: ())
    monkeypatch.setattr(scene.tunnels, "find", lambda text: "no such\0path")
    assert await refusal(client.manager("GetTunnel", "s", "x"), Code.INTERNAL) == "internal error"
    assert "cannot answer GetTunnel" in caplog.text


async def test_concurrent_callers_keep_their_own_sender(scene: Door) -> None:
    scene.tunnels.pause.clear()
    async with connected(scene.private.address) as one, connected(scene.private.address) as two:
        asked = [
            asyncio.create_task(inbound(each, label=variant("s", each.connection.unique_name))) for each in (one, two)
        ]
        await until(lambda: len(scene.tunnels.calls) == 2)
        assert await two.manager("ListTunnels") == [[]]  # nobody is blocked
        scene.tunnels.pause.set()
        await asyncio.gather(*asked)
        for call in scene.tunnels.calls:
            assert call[1].caller.bus_name == call[4].label


async def test_one_caller_cannot_have_calls_without_end(scene: Door, client: Client) -> None:
    scene.tunnels.pause.clear()
    tasks = [asyncio.create_task(inbound(client)) for _ in range(70)]
    refused = []
    for task in tasks[64:]:
        with pytest.raises(Refused) as caught:
            await task
        refused.append(caught.value.name)
    assert set(refused) == {names.LIMITS_EXCEEDED}
    async with connected(scene.private.address) as other:
        assert await other.manager("ListTunnels") == [[]]
    scene.tunnels.pause.set()
    await asyncio.gather(*tasks[:64], return_exceptions=True)
    assert await client.manager("GetTunnel", "s", next(iter(scene.tunnels.views)))


async def test_a_message_that_takes_long_to_read_is_not_read(scene: Door, client: Client) -> None:
    with pytest.raises(Refused) as caught:
        await inbound(client, *["x" * 60] * 10_000)
    assert caught.value.name == names.LIMITS_EXCEEDED
    longest = [("x" * 60 + ".") * 4 + "example:65535"] * 1000
    assert await client.tunnel((await inbound(client))[1], "Update", "asa{sv}", longest, {}) == []
    await refusal(client.manager("CheckPorts", "aq", [5100] * 5000), Code.INVALID_ARGUMENT)


async def test_no_reply_where_none_is_wanted(scene: Door, client: Client) -> None:
    message = Message(
        names.SERVICE, names.ROOT, names.MANAGER, "Reload", flags=MessageFlag.NO_REPLY_EXPECTED,
    )  # fmt: skip
    assert await client.connection.call(message) is None
    await until(lambda: scene.reloads)
    assert await client.manager("ListTunnels") == [[]]


async def test_changes_leave_an_audit_line_and_reading_none(
    scene: Door, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "scistreamd.audit")
    uid, path, _ = await inbound(client)
    await client.manager("ListTunnels")
    await client.tunnel(path, "Release", "a{sv}", {})
    await refusal(inbound(client, "nonsense"), Code.INVALID_ARGUMENT)
    lines = [record.getMessage() for record in caplog.records if record.name == "scistreamd.audit"]
    made = f"{ME} tunnel={Uid.parse(uid).id}: OK"
    assert lines[:2] == [f"CreateInbound by {made}", f"Release by {made}"]
    assert lines[2].startswith(f"CreateInbound by {ME} tunnel=-: INVALID_ARGUMENT targets[0]: ")
    assert len(lines) == 3


async def test_a_lost_bus_is_found_again(private: PrivateBus, caplog: pytest.LogCaptureFixture) -> None:
    async with door(private) as scene:
        async with connected(private.address) as client:
            _, path, _ = await inbound(client)
        await private.stop()
        scene.tunnels.change(ChangeKind.CHANGED, replace(scene.tunnels.tunnels()[0], label="told to nobody"))
        await private.start()
        async with connected(private.address) as client:
            while True:
                try:
                    assert (await client.properties(path, names.TUNNEL))["Label"] == "told to nobody"
                    break
                except Refused as refused:
                    assert refused.name == "org.freedesktop.DBus.Error.ServiceUnknown"
                    await asyncio.sleep(0.05)
            await client.listen()
            await client.tunnel(path, "Release", "a{sv}", {})
            await client.hears("InterfacesRemoved")
    assert "the connection to D-Bus is lost" in caplog.text


async def test_a_name_that_is_taken_and_a_bus_that_is_not_there(scene: Door, tmp_path: Path) -> None:
    second = Bus(scene.private.address)
    with pytest.raises(ScistreamError, match="another scistreamd has it") as caught:
        await second.serve(scene.api.answer)
    assert caught.value.code is Code.FAILED_PRECONDITION
    await second.close()
    nowhere = Bus(f"unix:path={tmp_path}/nowhere")
    with pytest.raises(ScistreamError, match="no connection to") as caught:
        await nowhere.serve(scene.api.answer)
    assert caught.value.code is Code.UNAVAILABLE
    await nowhere.close()


async def test_closing_ends_calls_that_are_under_way(private: PrivateBus) -> None:
    async with connected(private.address) as client:
        async with door(private) as scene:
            scene.tunnels.pause.clear()
            asked = asyncio.create_task(inbound(client))
            await until(lambda: scene.tunnels.calls)
        with pytest.raises(Refused, match="NoReply"):
            await asked


async def test_who_leaves_the_bus_is_noticed(scene: Door) -> None:
    async with connected(scene.private.address) as client:
        name = client.connection.unique_name
        assert name
        leaving = asyncio.create_task(scene.bus.gone(name))
        await client.manager("ListTunnels")
        assert not leaving.done()
        await hang_up(client.connection)
        await asyncio.wait_for(leaving, 60)
    await asyncio.wait_for(scene.bus.gone(name), 60)
    with pytest.raises(ScistreamError) as caught:
        await scene.bus.user_of(name)
    assert caught.value.code is Code.CANCELLED
