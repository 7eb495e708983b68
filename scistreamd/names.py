"""Every name that scistreamd has on D-Bus; changing one breaks its users.

The names stand in dbus/org.scistream.scistreamd1.xml too, and in the files for
the bus and for polkit beside it; tests/core/test_introspection.py compares.
"""

from __future__ import annotations

import re

from scistreamd.errors import Code

SERVICE = "org.scistream.scistreamd1"
ROOT = "/org/scistream/scistreamd1"
TUNNELS = f"{ROOT}/tunnel"
MANAGER = f"{SERVICE}.Manager"
TUNNEL = f"{SERVICE}.Tunnel"

INTROSPECTABLE = "org.freedesktop.DBus.Introspectable"
PROPERTIES = "org.freedesktop.DBus.Properties"
OBJECT_MANAGER = "org.freedesktop.DBus.ObjectManager"
PEER = "org.freedesktop.DBus.Peer"

# Errors of the D-Bus specification, for what concerns the call and not the tunnel.
FAILED = "org.freedesktop.DBus.Error.Failed"
INVALID_ARGS = "org.freedesktop.DBus.Error.InvalidArgs"
LIMITS_EXCEEDED = "org.freedesktop.DBus.Error.LimitsExceeded"
PROPERTY_READ_ONLY = "org.freedesktop.DBus.Error.PropertyReadOnly"
UNKNOWN_INTERFACE = "org.freedesktop.DBus.Error.UnknownInterface"
UNKNOWN_METHOD = "org.freedesktop.DBus.Error.UnknownMethod"
UNKNOWN_OBJECT = "org.freedesktop.DBus.Error.UnknownObject"
UNKNOWN_PROPERTY = "org.freedesktop.DBus.Error.UnknownProperty"

_TUNNEL_PATH = re.compile(re.escape(TUNNELS) + r"/([0-9a-f]{12})", re.ASCII)


def tunnel_path(tunnel_id: str) -> str:
    """The object path of a tunnel."""
    return f"{TUNNELS}/{tunnel_id}"


def tunnel_id(path: str) -> str | None:
    """The id in the object path of a tunnel, or None where the path is no such one."""
    found = _TUNNEL_PATH.fullmatch(path)
    return found[1] if found else None


def error_name(code: Code) -> str:
    """``org.scistream.scistreamd1.Error.NotFound`` for NOT_FOUND."""
    return f"{SERVICE}.Error.{code.name.title().replace('_', '')}"


def action(verb: str) -> str:
    """The polkit action of a verb."""
    return f"{SERVICE}.{verb}"


# The options a{sv} of the methods, with the D-Bus type of each.
OPTION_SIGNATURES = {
    "uid": "s",
    "type": "s",
    "listen": "as",
    "rate": "t",
    "security": "s",
    "lifetime": "t",
    "allow-from": "as",
    "label": "s",
    "drain": "t",
    "throughput": "t",
}
