"""How methods of systemd are called on the bus, and what goes wrong then: the words of `systemd1`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dbus_next import Message, MessageType, Variant
from dbus_next.aio import MessageBus

from scistreamd.errors import Code, ScistreamError
from scistreamd.unit_properties import Property

NAME = "org.freedesktop.systemd1"
ROOT = "/org/freedesktop/systemd1"
MANAGER = f"{NAME}.Manager"
DBUS = "org.freedesktop.DBus"
PROPERTIES = "org.freedesktop.DBus.Properties"
CALL_SECONDS = 30
_NO_REPLY = "org.freedesktop.DBus.Error.NoReply"
_DENIED = ("org.freedesktop.DBus.Error.AccessDenied", "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired")


class UnitError(Exception):
    """systemd refused a call; ``name`` is the D-Bus error."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


class JobError(Exception):
    """A job did not end as ``done``; ``result`` as in JobRemoved: failed, canceled, dependency, timeout, ..."""

    def __init__(self, unit: str, result: str) -> None:
        super().__init__(f"{unit}: the job's result is {result}")
        self.result = result


class Disconnected(ScistreamError):
    """The bus went away during a call, of which nothing is known then."""

    def __init__(self) -> None:
        super().__init__(Code.UNAVAILABLE, "the connection to the system bus was lost", "try again")


@dataclass(frozen=True)
class Method:
    """A method of an object, and the D-Bus signature of its arguments."""

    path: str
    interface: str
    member: str
    signature: str


async def ask(bus: MessageBus, name: str, method: Method, body: list[Any]) -> list[Any]:
    """One method call; raises Disconnected, PERMISSION_DENIED or UnitError."""
    message = Message(
        destination=name,
        path=method.path,
        interface=method.interface,
        member=method.member,
        signature=method.signature,
        body=body,
    )
    try:
        reply = await asyncio.wait_for(bus.call(message), CALL_SECONDS)
    except (OSError, EOFError, asyncio.TimeoutError) as problem:
        raise Disconnected from problem
    if reply is None:
        raise Disconnected
    if reply.message_type is MessageType.ERROR:
        text = str(reply.body[0]) if reply.body else ""
        if reply.error_name in _DENIED:
            raise ScistreamError(
                Code.PERMISSION_DENIED, f"systemd refuses to start and stop units for this user: {text}", "run as root"
            )
        if reply.error_name == _NO_REPLY:  # systemd is being executed anew
            raise Disconnected
        raise UnitError(str(reply.error_name), text)
    return list(reply.body)


def manager(member: str, signature: str) -> Method:
    """A method of systemd's manager object."""
    return Method(ROOT, MANAGER, member, signature)


def disconnect(bus: MessageBus) -> None:
    """End the connection; dbus-next 0.2.3 ends it without closing its socket."""
    with contextlib.suppress(OSError):
        bus.disconnect()
    bus._finalize(None)
    bus._sock.close()


def variants(properties: Sequence[Property]) -> list[list[Any]]:
    """As the bus takes them."""
    return [[each.name, Variant(each.signature, each.value)] for each in properties]


def unit_path(unit: str) -> str:
    """The object of a unit: sd_bus_path_encode(3) of its name."""
    escaped = "".join(
        char if char.isascii() and char.isalnum() and not (index == 0 and char.isdigit()) else f"_{ord(char):02x}"
        for index, char in enumerate(unit)
    )
    return f"{ROOT}/unit/{escaped}"
