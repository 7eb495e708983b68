"""What a test asks an inbound data server over TLS: how quickly it answers, and how much it takes.

HTTP/1.1 (RFC 9112), as `dataserver.answer` says. On a socket that does not block, for a peer
that answers while it is still being sent to must be heard, or both wait for each other.
"""

from __future__ import annotations

import os
import select
import ssl
import time
from collections import deque
from dataclasses import dataclass

from scistreamd.dataserver.answer import ANSWER_NAME, BODY_HEADER, MOST_BODY

_REQUESTS = 3
_CHUNK = 128 * 1024
_MOST_HEAD = 4096
_FIRST_BODY = 32 * 1024
_QUICK = 0.05
# Bodies that may be under way: enough for the fattest path with the small bodies that HAProxy takes.
_MOST_UNANSWERED = 2048
# After the time is over, what is under way is waited for so long; a thin path then counts what was answered.
_LAST_ANSWERS = 5.0


class NotOurs(Exception):
    """It answers, but not as a data server that answers tests."""


@dataclass(frozen=True)
class Answers:
    """The quickest answer in seconds, and how long a body may be."""

    seconds: float
    body: int


class Talk:
    """Requests and answers on a TLS connection, which is made not to block, until ``deadline`` (`time.monotonic`)."""

    def __init__(self, line: ssl.SSLSocket, deadline: float) -> None:
        self._line = line
        self._line.setblocking(False)
        self._deadline = deadline
        self._heard = bytearray()
        # What `pour` has seen answered, in bytes and seconds, also where it fails.
        self.taken, self.took = 0, 0.0

    def ask(self) -> Answers:
        """The quickest of a few answers. NotOurs, TimeoutError, ssl.SSLError or OSError where it does not answer so."""
        took, body = [], 0
        for _ in range(_REQUESTS):
            began = time.monotonic()
            left = memoryview(_request("GET", 0))
            while (answered := self._answer()) is None:
                self._wait(bool(left))
                left = left[self._send(left) :]
                self._hear()
            took.append(time.monotonic() - began)
            body = answered
        return Answers(min(took), body)

    def pour(self, most_body: int, seconds: float) -> None:
        """Send for so long; ``taken`` are the bytes of all bodies that were answered, ``took`` until the last was."""
        block = memoryview(os.urandom(_CHUNK))
        began = time.monotonic()
        self._deadline = began + seconds + _LAST_ANSWERS
        size, sent_at = min(_FIRST_BODY, most_body), began
        unanswered: deque[int] = deque()
        head, left = memoryview(b""), 0
        while True:
            now = time.monotonic()
            if not head and not left:
                if now >= began + seconds and not unanswered:
                    break
                if now < began + seconds and len(unanswered) < _MOST_UNANSWERED:
                    # Small bodies on a thin path, so that some are answered; large ones where they cost time.
                    size = min(2 * size, most_body) if now - sent_at < _QUICK else size
                    head, left, sent_at = memoryview(_request("POST", size)), size, now
                    unanswered.append(size)
            if now >= self._deadline:
                break
            self._wait(bool(head or left), 0.2)
            if head:
                head = head[self._send(head) :]
            elif left:
                left -= self._send(block[: min(left, _CHUNK)])
            self._hear()
            while unanswered and self._answer() is not None:
                self.taken, self.took = self.taken + unanswered.popleft(), time.monotonic() - began

    def _wait(self, to_send: bool, most: float = 3600.0) -> None:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        if not self._line.pending():
            select.select([self._line], [self._line] if to_send else [], [], min(left, most))

    def _send(self, data: memoryview) -> int:
        if not data:
            return 0
        try:
            return self._line.send(data)
        except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
            return 0

    def _hear(self) -> None:
        try:
            data = self._line.recv(_CHUNK)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return
        if not data:
            raise ConnectionResetError("it ended the connection")
        self._heard += data

    def _answer(self) -> int | None:
        """How long a body may be, by the next answer; None where it is not here yet."""
        head, end, rest = bytes(self._heard).partition(b"\r\n\r\n")
        if not end:
            if len(head) > _MOST_HEAD or not head.startswith(b"HTTP/1.1 "[: len(head)]):
                raise NotOurs
            return None
        fields = _fields(head)
        try:
            length, body = int(fields["content-length"]), int(fields[BODY_HEADER.lower()])
        except (KeyError, ValueError):
            raise NotOurs from None
        if not head.startswith(b"HTTP/1.1 200 ") or not 0 < body <= MOST_BODY or not 0 <= length <= _MOST_HEAD:
            raise NotOurs
        if len(rest) < length:
            return None
        del self._heard[: len(head) + len(end) + length]
        return body


def _fields(head: bytes) -> dict[str, str]:
    lines = head.decode("latin-1").split("\r\n")[1:]
    return {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _request(method: str, length: int) -> bytes:
    body = f"Content-Length: {length}\r\n" if length else ""
    return f"{method} / HTTP/1.1\r\nHost: {ANSWER_NAME}\r\n{body}\r\n".encode("ascii")
