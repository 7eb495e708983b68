"""Requests to the kernel over netlink(7), one after the other, each with its answer or its error.

The messages are pyroute2's. Its own transactions are not used: in
0.7.2 (Debian 12) an error of any message but the last one goes unnoticed, and
since 0.9 it brings an event loop of its own.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from scistreamd.netattributes import attributes

NETLINK_ROUTE, NETLINK_NETFILTER = 0, 12
REQUEST, ACK, DUMP, EXCL, CREATE, APPEND = 0x1, 0x4, 0x300, 0x200, 0x400, 0x800

_SOL_NETLINK, _CAP_ACK, _EXT_ACK = 270, 10, 11
_ERROR, _DONE = 2, 3
_DUMP_INTERRUPTED = 0x10  # NLM_F_DUMP_INTR
_TRIES = 20
_CAPPED, _ACK_TLVS = 0x100, 0x200
_MESSAGE_ATTRIBUTE, _OFFSET_ATTRIBUTE = 1, 2  # NLMSGERR_ATTR_MSG, NLMSGERR_ATTR_OFFS
_NO_PROTOCOL = (errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT)
_HEADER = struct.Struct("=IHHII")
_RECEIVE = 1 << 18


@dataclass(frozen=True)
class Order:
    """A message to the kernel without its header: ``kind`` is its type there."""

    body: bytes
    kind: int
    flags: int = 0


def encoded(message: Any) -> bytes:
    """The body of one of pyroute2's messages."""
    message.encode()
    return bytes(message.data[_HEADER.size :])


class Refused(OSError):
    """The kernel's answer was an error; ``strerror`` has its own words where it gave any.

    ``part``: what it refused of the messages: that attribute with what follows it, or nothing where it does not say.
    """

    part = b""
    number = offset = 0  # of the message that was to change something; within it, with its header

    @property
    def is_of_none(self) -> bool:
        """Whether there is no such thing: so says socket(2) of a protocol, and nfnetlink, when asked, of its parts."""
        return self.errno in _NO_PROTOCOL or (self.errno == errno.EINVAL and not self.number)


class Netlink:
    """One socket; calls block for as long as the kernel works on them. Not for two threads at a time."""

    def __init__(self, protocol: int) -> None:
        """``protocol``: `NETLINK_ROUTE` or `NETLINK_NETFILTER`. Raises Refused where the kernel has no such thing."""
        try:
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        except OSError as problem:
            raise Refused(problem.errno, problem.strerror) from problem
        self._socket.bind((0, 0))
        # The kernel answers before send(2) returns; without an answer something is badly wrong.
        self._socket.settimeout(10)
        for option in (_CAP_ACK, _EXT_ACK):
            self._socket.setsockopt(_SOL_NETLINK, option, 1)
        self._number = 0
        self._interrupted = False  # whether what the last dump tells of changed meanwhile

    def close(self) -> None:
        """Close the socket; a table that it owns is gone then."""
        self._socket.close()

    def ask(self, order: Order) -> None:
        """Have the kernel do this one; raises Refused."""
        self._send(self._framed(replace(order, flags=order.flags | ACK)))
        self._finish(self._number)

    def dump(self, body: bytes, kind: int, answer: Callable[[bytes], Any], flags: int = DUMP) -> list[Any]:
        """All that the kernel answers to a request, each made by ``answer`` (a class of pyroute2) and decoded.

        Refused (EINTR) where it keeps changing while the kernel tells of it.
        """
        for _ in range(_TRIES):
            self._send(self._framed(Order(body, kind, flags)))
            found = []
            self._interrupted = False
            for data in self._answers(one=flags != DUMP):
                made = answer(data)
                made.decode()
                found.append(made)
            if not self._interrupted:
                return found
        raise Refused(errno.EINTR, os.strerror(errno.EINTR))

    def batch(self, orders: Sequence[Order], edge: bytes, edges: tuple[int, int]) -> None:
        """Have the kernel do all of these, or none: then this raises Refused.

        ``edge`` is the message that begins and ends a batch, ``edges`` are its types.
        """
        data = [self._framed(Order(edge, edges[0]))]
        for left, order in zip(reversed(range(len(orders))), orders, strict=True):
            # An answer to each would not fit into the receive buffer: errors come in any case, and one ACK at the end.
            data.append(self._framed(order if left else replace(order, flags=order.flags | ACK)))
        acknowledged = self._number
        data.append(self._framed(Order(edge, edges[1])))
        self._send(b"".join(data))
        try:
            self._finish(acknowledged)
        except Refused as problem:
            at = problem.number - self._number - 1  # from the last one, which is the number of the socket now
            problem.part = data[at][problem.offset :] if problem.offset and -len(data) <= at else b""
            raise

    def _framed(self, order: Order) -> bytes:
        self._number += 1
        length = _HEADER.size + len(order.body)
        return _HEADER.pack(length, order.kind, REQUEST | order.flags, self._number, 0) + order.body

    def _send(self, data: bytes) -> None:
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, max(1 << 18, 2 * len(data)))
        self._socket.send(data)

    def _finish(self, number: int) -> None:
        """Return when the message of this number is acknowledged; raise the first error of those up to it."""
        first: Refused | None = None
        while True:
            for _, kind, flags, of, body in self._received():
                if kind != _ERROR:
                    continue
                if first is None and (first := _error(flags, body)):
                    first.number = of
                if of >= number:
                    if first:
                        raise first
                    return

    def _answers(self, *, one: bool) -> Iterator[bytes]:
        """The messages that answer the last request; for a dump (not ``one``) until the kernel says that it is done."""
        while True:
            for data, kind, flags, of, body in self._received():
                if of != self._number:
                    continue
                self._interrupted = self._interrupted or bool(kind != _ERROR and flags & _DUMP_INTERRUPTED)
                if kind == _ERROR and (problem := _error(flags, body)):
                    raise problem
                if kind in (_DONE, _ERROR):
                    return
                yield data
                if one:
                    return

    def _received(self) -> Iterator[tuple[bytes, int, int, int, bytes]]:
        data = self._socket.recv(_RECEIVE)
        while len(data) >= _HEADER.size:
            length, kind, flags, number, _ = _HEADER.unpack_from(data)
            yield data[:length], kind, flags, number, data[_HEADER.size : length]
            data = data[length + 3 & ~3 :]


def _error(flags: int, body: bytes) -> Refused | None:
    (code,) = struct.unpack_from("=i", body)
    if code == 0:
        return None
    said: dict[int, bytes] = {}
    if flags & _ACK_TLVS:
        length = _HEADER.size if flags & _CAPPED else struct.unpack_from("=I", body, 4)[0]
        said = dict(attributes(body[4 + length :]))
    words = said.get(_MESSAGE_ATTRIBUTE, b"").rstrip(b"\0").decode(errors="replace")
    refused = Refused(-code, words or os.strerror(-code))
    refused.offset = int.from_bytes(said.get(_OFFSET_ATTRIBUTE, b""), sys.byteorder)
    return refused
