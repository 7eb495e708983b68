"""Interfaces as their XML has them: what is declared there, and the text that Introspect answers with."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from xml.etree import ElementTree

_INTERFACE = re.compile(r'<interface name="[^"]*">.*?</interface>', re.DOTALL)
_EMITS = "org.freedesktop.DBus.Property.EmitsChangedSignal"
_HEAD = """<!DOCTYPE node PUBLIC "-//freedesktop//DTD D-BUS Object Introspection 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/introspect.dtd">
"""

# D-Bus specification, "Standard interfaces".
STANDARD = """
  <interface name="org.freedesktop.DBus.Introspectable">
    <method name="Introspect">
      <arg name="xml_data" type="s" direction="out"/>
    </method>
  </interface>
  <interface name="org.freedesktop.DBus.Peer">
    <method name="Ping"/>
    <method name="GetMachineId">
      <arg name="machine_uuid" type="s" direction="out"/>
    </method>
  </interface>
  <interface name="org.freedesktop.DBus.Properties">
    <method name="Get">
      <arg name="interface_name" type="s" direction="in"/>
      <arg name="property_name" type="s" direction="in"/>
      <arg name="value" type="v" direction="out"/>
    </method>
    <method name="GetAll">
      <arg name="interface_name" type="s" direction="in"/>
      <arg name="properties" type="a{sv}" direction="out"/>
    </method>
    <method name="Set">
      <arg name="interface_name" type="s" direction="in"/>
      <arg name="property_name" type="s" direction="in"/>
      <arg name="value" type="v" direction="in"/>
    </method>
    <signal name="PropertiesChanged">
      <arg name="interface_name" type="s"/>
      <arg name="changed_properties" type="a{sv}"/>
      <arg name="invalidated_properties" type="as"/>
    </signal>
  </interface>
  <interface name="org.freedesktop.DBus.ObjectManager">
    <method name="GetManagedObjects">
      <arg name="objects" type="a{oa{sa{sv}}}" direction="out"/>
    </method>
    <signal name="InterfacesAdded">
      <arg name="object" type="o"/>
      <arg name="interfaces" type="a{sa{sv}}"/>
    </signal>
    <signal name="InterfacesRemoved">
      <arg name="object" type="o"/>
      <arg name="interfaces" type="as"/>
    </signal>
  </interface>
"""


@dataclass(frozen=True)
class Method:
    """A method with the signatures of what it takes and what it returns."""

    name: str
    takes: str
    gives: str


@dataclass(frozen=True)
class Property:
    """A property; ``emits`` is ``true``, ``false`` or ``const``, as the annotation says."""

    name: str
    signature: str
    emits: str


@dataclass(frozen=True)
class Interface:
    """One interface, and its own text in the XML."""

    name: str
    text: str
    methods: Mapping[str, Method]
    properties: Mapping[str, Property]
    signals: Mapping[str, str]


def interfaces(xml: str) -> Mapping[str, Interface]:
    """All interfaces of an XML text by name, the standard ones among them."""
    parsed = [_interface(found[0]) for found in _INTERFACE.finditer(STANDARD + xml)]
    return MappingProxyType({each.name: each for each in parsed})


def node(offered: Iterable[Interface], children: Iterable[str]) -> str:
    """The answer to Introspect: an object's interfaces, and the names of the objects below it."""
    lines = [f"  {each.text}" for each in offered] + [f'  <node name="{name}"/>' for name in children]
    return "\n".join([_HEAD + "<node>", *lines, "</node>", ""])


def _interface(text: str) -> Interface:
    element = ElementTree.fromstring(text)  # noqa: S314  (our own file, not the caller's)
    return Interface(
        element.attrib["name"],
        text,
        {each.attrib["name"]: _method(each) for each in element.iter("method")},
        {each.attrib["name"]: _property(each) for each in element.iter("property")},
        {each.attrib["name"]: "".join(arg.attrib["type"] for arg in each) for each in element.iter("signal")},
    )


def _method(element: ElementTree.Element) -> Method:
    def signature(direction: str) -> str:
        return "".join(arg.attrib["type"] for arg in element.iter("arg") if arg.attrib["direction"] == direction)

    return Method(element.attrib["name"], signature("in"), signature("out"))


def _property(element: ElementTree.Element) -> Property:
    emits = [each.attrib["value"] for each in element.iter("annotation") if each.attrib["name"] == _EMITS]
    return Property(element.attrib["name"], element.attrib["type"], emits[0] if emits else "true")
