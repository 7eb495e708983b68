"""A connection to a D-Bus bus: whole messages out, whole messages in, one after the other.

The D-Bus specification, "Message Protocol" and "Authentication Protocol".
dbus-next gives the messages their bytes. Its own connection is not used: its
event loop costs a command time, and it never returns where the other side
hangs up during authentication, as an ssh that fails does.
"""

from __future__ import annotations

import io
import os
import socket
import struct
import time
from urllib.parse import unquote

from dbus_next._private.unmarshaller import Unmarshaller
from dbus_next.errors import InvalidMessageError, InvalidSignatureError
from dbus_next.message import Message

from scistreamd.cli.options import UsageError
from scistreamd.model import shown

_PREFIX = 16  # up to and including the length of the header fields
_MAX_MESSAGE = 128 * 1024 * 1024
_MAX_LINE = 512
_CHUNK = 64 * 1024


class BrokenError(Exception):
    """The other side hung up, or sent what is no D-Bus."""


class Connection:
    """A connected socket with D-Bus on it; closed by `close`, or as a context manager."""

    def __init__(self, sock: socket.socket) -> None:
        """Takes over ``sock``, which is connected and on which nothing was said yet."""
        self._socket = sock
        self._received = bytearray()
        self._serial = 0

    def authenticate(self, seconds: float) -> None:
        """Say who we are, by the user id; BrokenError, or TimeoutError after so long."""
        deadline = time.monotonic() + seconds
        user = str(os.geteuid()).encode().hex()
        self._write(b"\0AUTH EXTERNAL " + user.encode() + b"\r\n")
        answer = self._line(deadline)
        if not answer.startswith(b"OK"):
            raise BrokenError("the bus does not accept this user")
        self._write(b"BEGIN\r\n")

    def send(self, message: Message) -> int:
        """Send a message whole; returns its serial number."""
        self._serial += 1
        message.serial = self._serial
        self._write(bytes(message._marshall()))
        return self._serial

    def receive(self, seconds: float | None) -> Message:
        """The next message; BrokenError, or TimeoutError where none comes within ``seconds``."""
        deadline = None if seconds is None else time.monotonic() + seconds
        self._fill(_PREFIX, deadline)
        size = _size(bytes(self._received[:_PREFIX]))
        self._fill(size, deadline)
        frame = bytes(self._received[:size])
        del self._received[:size]
        return _parsed(frame)

    def close(self) -> None:
        """Hang up; safe to call twice."""
        self._socket.close()

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _line(self, deadline: float) -> bytes:
        while b"\r\n" not in self._received:
            if len(self._received) > _MAX_LINE:
                raise BrokenError("what answers is no D-Bus")
            self._fill(len(self._received) + 1, deadline)
        line, _, rest = bytes(self._received).partition(b"\r\n")
        self._received[:] = rest
        return line

    def _fill(self, size: int, deadline: float | None) -> None:
        """Receive until ``size`` bytes are there."""
        while len(self._received) < size:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise TimeoutError
            self._socket.settimeout(left)
            try:
                data = self._socket.recv(max(_CHUNK, size - len(self._received)))
            except ConnectionError as problem:
                raise BrokenError(str(problem.strerror)) from None
            if not data:
                raise BrokenError("it hung up")
            self._received += data

    def _write(self, data: bytes) -> None:
        self._socket.settimeout(None)
        try:
            self._socket.sendall(data)
        except ConnectionError as problem:
            raise BrokenError(str(problem.strerror)) from None


def _size(prefix: bytes) -> int:
    """The length of the message that starts like this: header, padding to 8 bytes, body."""
    order = {ord("l"): "<", ord("B"): ">"}.get(prefix[0])
    if order is None or prefix[3] != 1:
        raise BrokenError("what answers is no D-Bus")
    body, _, fields = struct.unpack_from(f"{order}III", prefix, 4)
    size: int = _PREFIX + (fields + 7) // 8 * 8 + body
    if size > _MAX_MESSAGE:
        raise BrokenError("the message is longer than D-Bus allows")
    return size


def _parsed(frame: bytes) -> Message:
    try:
        unmarshaller = Unmarshaller(io.BytesIO(frame))
        message = unmarshaller.unmarshall()
    except (ValueError, IndexError, EOFError, InvalidMessageError, InvalidSignatureError) as problem:
        raise BrokenError("the bus sent a damaged message") from problem
    if not isinstance(message, Message):
        raise BrokenError("the bus sent a damaged message")
    return message


def connect(address: str) -> Connection:
    """A connection to the first of the addresses (separated by ``;``) that somebody listens on.

    Raises UsageError for what is no UNIX socket, and OSError of the last address.
    """
    problem: OSError = FileNotFoundError(2, os.strerror(2))
    for each in address.split(";"):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.connect(_path(each))
        except OSError as error:
            sock.close()
            problem = error
        except UsageError:
            sock.close()
            raise
        else:
            return Connection(sock)
    raise problem


def _path(address: str) -> str:
    """Where ``unix:path=…`` or ``unix:abstract=…`` is (D-Bus specification, "Server Addresses")."""
    transport, _, rest = address.partition(":")
    pairs = dict(part.partition("=")[::2] for part in rest.split(","))
    if transport == "unix" and pairs.get("path"):
        return unquote(pairs["path"])
    if transport == "unix" and pairs.get("abstract"):
        return "\0" + unquote(pairs["abstract"])
    raise UsageError(f"address: {shown(address)} is no bus on a UNIX socket", "for example unix:path=/run/bus")
