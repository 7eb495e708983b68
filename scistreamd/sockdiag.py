"""The door to the kernel's sock_diag(7): which TCP connections there are, and which have just ended.

linux/sock_diag.h, linux/inet_diag.h, linux/tcp.h. Small own code, for pyroute2
0.7 knows nothing of the messages that tell of ended sockets, and takes thirty
times as long to decode one, which would be most of what the daemon does.
No capability is needed.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator

from scistreamd.errors import Code, ScistreamError
from scistreamd.sock import CARRYING, MAPPED, Sock

_NETLINK_SOCK_DIAG = 4
_SOL_NETLINK = 270
_NETLINK_ADD_MEMBERSHIP = 1
_SO_RCVBUFFORCE = 33
_ENDED_GROUPS = (1, 3)  # SKNLGRP_INET_TCP_DESTROY, SKNLGRP_INET6_TCP_DESTROY
_EVENT_BUFFER = 4 << 20  # some thousand sockets that end at the same moment
_CHUNK = 1 << 18

_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr
_ERROR, _DONE, _BY_FAMILY = 2, 3, 20
_REQUEST_DUMP = 0x301  # NLM_F_REQUEST | NLM_F_DUMP
_REQUEST = struct.Struct("=BBBxI48x")  # struct inet_diag_req_v2
_INFO = 2  # INET_DIAG_INFO
_FAMILIES = (socket.AF_INET, socket.AF_INET6)
_STATES = sum(1 << state for state in CARRYING)

_MESSAGE = struct.Struct("=BBxxHH16s16sIQ4xIIII")  # struct inet_diag_msg
_ATTRIBUTE = struct.Struct("=HH")
# struct tcp_info as far as tcpi_bytes_retrans (Linux 4.19): rtt, snd_cwnd, total_retrans, bytes_acked, bytes_received,
# segs_out, segs_in, delivery_rate, bytes_sent, bytes_retrans.
_TCP_INFO = struct.Struct("=68xI8xI16xI16xQQII16xQ32xQQ")
_UNSEEN = "the kernel does not tell of TCP connections"
_HINT = "it needs sock_diag with tcp_info of Linux 4.19 or later (CONFIG_INET_TCP_DIAG; modprobe tcp_diag)"


class SockDiag:
    """`interfaces.Sockets` of the network namespace that we are in."""

    def __init__(self) -> None:
        """Opens nothing yet."""
        self._ended: socket.socket | None = None

    def open(self) -> int:
        """Hear of sockets that end from now on; the descriptor that becomes readable then. Raises ScistreamError."""
        try:
            listener = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG)
        except OSError as problem:
            raise _unseen(problem) from problem
        self._ended = listener
        try:
            _enlarge(listener)
            listener.setblocking(False)
            listener.bind((0, 0))
            for group in _ENDED_GROUPS:
                listener.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, group)
        except OSError as problem:
            self.close()
            raise _unseen(problem) from problem
        return listener.fileno()

    def close(self) -> None:
        """Hear of nothing more; safe to call twice."""
        if self._ended is not None:
            self._ended.close()
            self._ended = None

    def ended(self) -> tuple[list[Sock], bool]:
        """The sockets that have ended since the last call; whether some were lost, for they were too many."""
        found: list[Sock] = []
        lost = False
        while self._ended is not None:
            try:
                data = self._ended.recv(_CHUNK)
            except BlockingIOError:
                break
            except OSError as problem:
                if problem.errno != errno.ENOBUFS:
                    raise
                lost = True
                continue
            found += [sock for _, message in _messages(data) if (sock := _sock(message))]
        return found, lost

    def dump(self) -> list[Sock]:
        """All connected TCP sockets as they are now. Raises ScistreamError where the kernel tells nothing."""
        try:
            with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as asked:
                return [sock for family in _FAMILIES for sock in _dump(asked, family)]
        except OSError as problem:
            raise _unseen(problem) from problem


def _enlarge(listener: socket.socket) -> None:
    """Room for many messages: as much as we may have."""
    try:
        listener.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _EVENT_BUFFER)
    except PermissionError:  # an ordinary user gets what net.core.rmem_max allows
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _EVENT_BUFFER)


def _unseen(problem: OSError) -> ScistreamError:
    return ScistreamError(Code.UNAVAILABLE, f"{_UNSEEN}: {problem.strerror}", _HINT)


def _dump(asked: socket.socket, family: int) -> Iterator[Sock]:
    request = _REQUEST.pack(family, socket.IPPROTO_TCP, 1 << (_INFO - 1), _STATES)
    asked.send(_HEADER.pack(_HEADER.size + len(request), _BY_FAMILY, _REQUEST_DUMP, 0, 0) + request)
    while True:
        for kind, message in _messages(asked.recv(_CHUNK)):
            if kind in (_DONE, _ERROR):
                number = -struct.unpack_from("=i", message)[0] if len(message) >= 4 else 0
                if number:
                    raise OSError(number, os.strerror(number))
                return
            if sock := _sock(message):
                yield sock


def _messages(data: bytes) -> Iterator[tuple[int, memoryview]]:
    """The messages of one datagram: type, and what follows the header."""
    view, offset = memoryview(data), 0
    while offset + _HEADER.size <= len(data):
        length, kind, *_ = _HEADER.unpack_from(data, offset)
        yield kind, view[offset + _HEADER.size : offset + length]
        offset += (length + 3) & ~3


def _sock(message: memoryview) -> Sock | None:
    """One socket; None for a listener that has ended, and one that waits for its end without a program (TIME_WAIT)."""
    (family, state, local_port, remote_port, local, remote, _, cookie, unread, unsent, user, inode) = (
        _MESSAGE.unpack_from(message)
    )
    info = _info(message[_MESSAGE.size :])
    if info is None or not remote_port:
        return None
    if len(info) < _TCP_INFO.size:
        raise OSError(errno.EOPNOTSUPP, "its tcp_info is too short")
    rtt, cwnd, retransmits, acked, received, out, into, delivery_rate, sent, again = _TCP_INFO.unpack_from(info)
    if family == socket.AF_INET:
        local, remote = MAPPED + local[:4], MAPPED + remote[:4]
    return Sock(
        cookie, state, local, socket.ntohs(local_port), remote, socket.ntohs(remote_port), user, inode != 0,
        acked, received, sent - again, unread, unsent, out, into, retransmits, rtt, cwnd, delivery_rate,
    )  # fmt: skip


def _info(data: memoryview) -> memoryview | None:
    """INET_DIAG_INFO, where it is there."""
    offset = 0
    while offset + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if kind == _INFO:
            return data[offset + _ATTRIBUTE.size : offset + length]
        offset += (max(length, _ATTRIBUTE.size) + 3) & ~3
    return None
