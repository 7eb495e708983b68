"""Calls to scistreamd on the bus, their answers and failures; and the signals that come in."""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from dbus_next.constants import MessageFlag, MessageType
from dbus_next.message import Message
from dbus_next.signature import Variant

from scistreamd import names
from scistreamd.cli.ctl.wire import BrokenError, Connection
from scistreamd.errors import Code, ScistreamError

# As sd-bus and libdbus wait; what changes something may take longer, and a person's password any time.
READ_SECONDS = 25.0
CHANGE_SECONDS = 180.0

START = "systemctl start scistreamd; a gateway that s2cs runs has no D-Bus: use s2uc for it"
_BUS = "org.freedesktop.DBus"
_BUS_PATH = "/org/freedesktop/DBus"
_CODES = {names.error_name(code): code for code in Code}
# Messages end with their hint in parentheses, which may hold one more pair.
_HINTED = re.compile(r"(.+?) \(((?:[^()]|\([^()]*\))*)\)", re.DOTALL)
_ERROR = f"{_BUS}.Error."
_NO_START = (f"{_ERROR}Spawn.", "org.freedesktop.systemd1.")
_SILENT = (f"{_ERROR}NoReply", f"{_ERROR}TimedOut", f"{_ERROR}Timeout")
_LEFT = "disconnected from message bus"  # as dbus-daemon says of a service that goes
_ASK_ANOTHER = "ask as root, or as a member of the group scistream"
_ONE_VERSION = "are s2ctl and scistreamd of one version?"
# Errors of the bus and of the standard interfaces: code, and what to do.
_STANDARD = {
    f"{_ERROR}AccessDenied": (Code.PERMISSION_DENIED, _ASK_ANOTHER),
    f"{_ERROR}InteractiveAuthorizationRequired": (Code.PERMISSION_DENIED, _ASK_ANOTHER),
    names.UNKNOWN_OBJECT: (Code.NOT_FOUND, "s2ctl list shows the tunnels"),
    names.LIMITS_EXCEEDED: (Code.RESOURCE_EXHAUSTED, "end some of this user's other commands on the bus"),
    names.UNKNOWN_METHOD: (Code.UNIMPLEMENTED, _ONE_VERSION),
    names.UNKNOWN_INTERFACE: (Code.UNIMPLEMENTED, _ONE_VERSION),
    names.UNKNOWN_PROPERTY: (Code.UNIMPLEMENTED, _ONE_VERSION),
    names.INVALID_ARGS: (Code.UNIMPLEMENTED, _ONE_VERSION),
}


@dataclass(frozen=True)
class Signal:
    """A signal, with plain values in ``body``."""

    path: str
    interface: str
    member: str
    body: tuple[Any, ...]


class Bus:
    """A bus on which scistreamd is, or can be started by a call."""

    def __init__(self, connection: Connection, *, interactive: bool = False) -> None:
        """``interactive``: polkit may ask this user for a password during a call that changes something."""
        self._connection = connection
        self._interactive = interactive
        self._replies: dict[int, Message] = {}
        self._signals: deque[Signal] = deque()

    def hello(self, seconds: float = READ_SECONDS) -> None:
        """Enter the bus; the first thing to do."""
        try:
            self._connection.authenticate(seconds)
        except (BrokenError, TimeoutError) as problem:
            raise _lost(problem, "the connection to the bus could not be made") from None
        self._ask_bus("Hello")

    def match(self, rule: str) -> None:
        """Receive the signals that the rule selects."""
        self._ask_bus("AddMatch", "s", rule)

    def read(self, path: str, interface: str, member: str, signature: str = "", *body: Any) -> list[Any]:
        """Call a method that changes nothing; returns plain values."""
        message = Message(names.SERVICE, path, interface, member, signature=signature, body=list(body))
        return self._answer(self._transmit(message), READ_SECONDS)

    def start(self, path: str, interface: str, member: str, signature: str = "", *body: Any) -> int:
        """Begin a call that changes something; `finish` ends it. Several may be under way."""
        flags = MessageFlag.ALLOW_INTERACTIVE_AUTHORIZATION if self._interactive else MessageFlag.NONE
        message = Message(names.SERVICE, path, interface, member, flags=flags, signature=signature, body=list(body))
        return self._transmit(message)

    def finish(self, serial: int, seconds: float = CHANGE_SECONDS) -> list[Any]:
        """The answer to a call that was begun; ``seconds`` do not count while a password may be asked for."""
        return self._answer(serial, None if self._interactive else seconds)

    def signals(self) -> Iterator[Signal]:
        """The signals that were asked for, as they come; ends only by an exception."""
        while True:
            while self._signals:
                yield self._signals.popleft()
            self._take(self._receive(None))

    def _ask_bus(self, member: str, signature: str = "", *body: Any) -> None:
        message = Message(_BUS, _BUS_PATH, _BUS, member, signature=signature, body=list(body))
        self._answer(self._transmit(message), READ_SECONDS)

    def _transmit(self, message: Message) -> int:
        try:
            return self._connection.send(message)
        except BrokenError as problem:
            raise _lost(problem) from None

    def _answer(self, serial: int, seconds: float | None) -> list[Any]:
        deadline = None if seconds is None else time.monotonic() + seconds
        while serial not in self._replies:
            self._take(self._receive(None if deadline is None else max(0.0, deadline - time.monotonic())))
        reply = self._replies.pop(serial)
        if reply.message_type is MessageType.ERROR:
            text = reply.body[0] if reply.body and isinstance(reply.body[0], str) else ""
            raise failure(reply.error_name or "", text)
        return [plain(value) for value in reply.body]

    def _receive(self, seconds: float | None) -> Message:
        try:
            return self._connection.receive(seconds)
        except (BrokenError, TimeoutError) as problem:
            raise _lost(problem) from None

    def _take(self, message: Message) -> None:
        if message.message_type is MessageType.SIGNAL:
            body = tuple(plain(value) for value in message.body)
            self._signals.append(Signal(message.path or "", message.interface or "", message.member or "", body))
        elif message.reply_serial is not None:
            self._replies[message.reply_serial] = message


def plain(value: Any) -> Any:
    """A value of dbus-next without its variants."""
    if isinstance(value, Variant):
        return plain(value.value)
    if isinstance(value, list):
        return [plain(each) for each in value]
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    return value


def failure(name: str, text: str) -> ScistreamError:
    """The failure behind a D-Bus error, with what to do about it."""
    if name in _CODES:
        parts = _HINTED.fullmatch(text)
        return ScistreamError(_CODES[name], *(parts.groups() if parts else (text,)))
    if name in (f"{_ERROR}ServiceUnknown", f"{_ERROR}NameHasNoOwner"):
        return ScistreamError(Code.UNAVAILABLE, "no scistreamd is on this bus", START)
    if name.startswith(_NO_START):
        message = f"scistreamd could not be started: {text}"
        return ScistreamError(Code.UNAVAILABLE, message, "systemctl status scistreamd says why")
    if name in _SILENT and _LEFT in text:
        return ScistreamError(
            Code.UNAVAILABLE, "scistreamd ended before it answered", "try again; s2ctl list starts it"
        )
    if name in _SILENT:
        return _lost(TimeoutError())
    code, hint = _STANDARD.get(name, (Code.INTERNAL, "journalctl -u scistreamd may say more"))
    return ScistreamError(code, text or name, hint)


def _lost(problem: Exception, what: str = "the connection to the bus was lost") -> ScistreamError:
    if isinstance(problem, TimeoutError):
        hint = "journalctl -u scistreamd may say more"
        return ScistreamError(Code.DEADLINE_EXCEEDED, "scistreamd does not answer in time", hint)
    return ScistreamError(Code.UNAVAILABLE, f"{what}: {problem}", "try again; with -H: does ssh reach that host?")
