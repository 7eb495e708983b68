"""The names on D-Bus are ABI: DESIGN's list, the XML, the handlers, and the files for bus and polkit agree."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from scistreamd import introspection, names
from scistreamd.bus_api import BusApi
from scistreamd.errors import Code
from scistreamd.gate import Verb

ROOT = Path(__file__).parent.parent.parent
DBUS = ROOT / "dbus"
XML = (DBUS / f"{names.SERVICE}.xml").read_text()
INTERFACES = introspection.interfaces(XML)

MANAGER = """
CreateInbound(targets as, options a{sv}) -> uid s, tunnel o, listeners as
CreateOutbound(uid s, remote_listeners as, options a{sv}) -> tunnel o, listeners as
Release(id_or_uid s, options a{sv})
GetTunnel(id_or_uid s) -> tunnel o
ListTunnels() -> tunnels a(sssasassso)
ListCounters() -> counters a(sutttttadadututb)
CheckPorts(ports aq) -> answers aa{sv}
TestPath(uid s, listener s, options a{sv}) -> result a{sv}
Reload()
property Version s const
property ListenerAddress s true
property PortRange (qq) true
property FreePorts u true
property DefaultType s true
property Types as const
property NTunnels u true
property Warnings as true
signal TunnelAdded(id s, path o)
signal TunnelRemoved(id s, path o)
"""
TUNNEL = """
Update(targets as, options a{sv})
Release(options a{sv})
GetCounters() -> counters a{sv}
GetUid() -> uid s
Test(options a{sv}) -> results aa{sv}
property Id s true
property Label s true
property Role s true
property State s true
property Type s true
property Security s true
property Listeners as true
property Targets as true
property Rate t true
property Unit s true
property Owner s true
property CreatedUSec t true
property ExpiresUSec t true
property Connections u false
property BytesIn t false
property BytesOut t false
property Result s true
property Warnings as true
"""


def written(interface: introspection.Interface) -> str:
    """An interface as the literals above have it."""
    element = ElementTree.fromstring(interface.text)

    def arguments(of: ElementTree.Element, direction: str) -> str:
        chosen = [arg for arg in of.iter("arg") if arg.get("direction", "") == direction]
        return ", ".join(f"{arg.attrib['name']} {arg.attrib['type']}" for arg in chosen)

    lines = [""]
    for method in element.iter("method"):
        gives = arguments(method, "out")
        lines.append(f"{method.attrib['name']}({arguments(method, 'in')})" + (f" -> {gives}" if gives else ""))
    lines += [f"property {each.name} {each.signature} {each.emits}" for each in interface.properties.values()]
    lines += [f"signal {signal.attrib['name']}({arguments(signal, '')})" for signal in element.iter("signal")]
    return "\n".join([*lines, ""])


@pytest.mark.parametrize(("name", "literal"), [(names.MANAGER, MANAGER), (names.TUNNEL, TUNNEL)])
def test_the_interfaces_literally(name: str, literal: str) -> None:
    assert written(INTERFACES[name]) == literal


def test_the_xml_has_these_interfaces_and_no_others() -> None:
    declared = [each.attrib["name"] for each in ElementTree.fromstring(XML).iter("interface")]
    assert declared == [names.MANAGER, names.TUNNEL]
    assert all(INTERFACES[name].text in XML for name in declared)


def test_every_method_has_its_handler_and_no_other() -> None:
    # Peer is answered by the connection, on every path.
    declared = {
        (each.name, method) for each in INTERFACES.values() for method in each.methods if each.name != names.PEER
    }
    table = BusApi._table(object.__new__(BusApi))
    assert set(table) == declared


def test_every_property_is_readable_only() -> None:
    accesses = {each.attrib["access"] for each in ElementTree.fromstring(XML).iter("property")}
    assert accesses == {"read"}


def test_errors_are_named_in_the_xml() -> None:
    said = XML.partition("CODE being one of ")[2].partition(";")[0].split()
    assert [names.error_name(code) for code in Code] == [f"{names.SERVICE}.Error.{each}" for each in said]


def test_the_verbs_are_polkits_actions() -> None:
    actions = [each.attrib["id"] for each in ElementTree.parse(DBUS / f"{names.SERVICE}.policy").iter("action")]
    verbs = [verb for verb in Verb if verb not in (Verb.HELLO, Verb.READ)]  # D-Bus has no hello, and everyone reads
    assert actions == [names.action(verb.value) for verb in verbs]
    rules = (DBUS / f"{names.SERVICE}.rules").read_text()
    assert '["create", "update", "release", "reveal"]' in rules
    assert f'"{names.SERVICE}."' in rules


def test_no_default_lets_anybody_in_without_an_administrator() -> None:
    policy = ElementTree.parse(DBUS / f"{names.SERVICE}.policy")
    given = {default.text for defaults in policy.iter("defaults") for default in defaults}
    assert given == {"auth_admin", "auth_admin_keep"}


def test_the_bus_files_have_our_name() -> None:
    policy = ElementTree.parse(DBUS / f"{names.SERVICE}.conf")
    assert [each.attrib.get("own") or each.attrib["send_destination"] for each in policy.iter("allow")] == [
        names.SERVICE
    ] * 2
    service = (DBUS / f"{names.SERVICE}.service").read_text().splitlines()
    assert f"Name={names.SERVICE}" in service
    assert "SystemdService=scistreamd.service" in service


def test_paths() -> None:
    assert names.tunnel_id(names.tunnel_path("0123456789ab")) == "0123456789ab"
    for path in (names.ROOT, names.TUNNELS, names.tunnel_path("0123456789AB"), names.tunnel_path("0123456789ab/x")):
        assert names.tunnel_id(path) is None
