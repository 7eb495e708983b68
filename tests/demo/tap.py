"""A wiretap without privileges: a relay that reads every byte it passes on.

    python -m tests.demo.tap LISTEN TARGET MARKER

It says where it listens on its first line, relays until its standard input
ends, and then prints what it saw as JSON: for each connection and direction
the bytes, how often MARKER was among them, whether all of it was TLS, and how
far the first MiB could be compressed (ciphertext cannot).
"""

from __future__ import annotations

import json
import socket
import sys
import threading
import zlib
from contextlib import ExitStack, suppress
from typing import Any

from tests.demo.addresses import connect, listen, parse, shown
from tests.demo.tls import Records, server_hello

_BUFFER = 1 << 20
_SAMPLE = 1 << 20
_HELLO = 4096


class Direction:
    """One direction of a connection: passed on, and scanned for the marker across the seams of its pieces."""

    def __init__(self, marker: bytes) -> None:
        self._marker = marker
        self._overlap = len(marker) - 1
        self._end = 0
        self._buffer = bytearray(self._overlap + _BUFFER)
        self._sample = bytearray()
        self.bytes = 0
        self.markers = 0
        self.records = Records()
        self.error = ""

    def pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        """Copy until the source ends, then end the sink's direction."""
        try:
            while size := source.recv_into(self.room()):
                sink.sendall(self.take(size))
        except OSError as problem:
            self.error = str(problem)
        with suppress(OSError):  # the other side is gone already
            sink.shutdown(socket.SHUT_WR)

    def room(self) -> memoryview:
        """Where the next bytes go: behind the last ones of the piece before, which may begin a marker."""
        kept = min(self._overlap, self._end)
        self._buffer[:kept] = self._buffer[self._end - kept : self._end]
        self._end = kept
        return memoryview(self._buffer)[kept : kept + _BUFFER]

    def take(self, size: int) -> memoryview:
        """Look at the ``size`` bytes that came into the room, and return them."""
        start, self._end = self._end, self._end + size
        fresh = memoryview(self._buffer)[start : self._end]
        self.markers += self._buffer.count(self._marker, 0, self._end)
        self.bytes += size
        self._sample += fresh[: _SAMPLE - len(self._sample)]
        self.records.feed(fresh)
        return fresh

    def first(self) -> bytes:
        """The first bytes that came."""
        return bytes(self._sample[:_HELLO])

    def report(self) -> dict[str, Any]:
        """What was seen, as plain data."""
        packed = len(zlib.compress(bytes(self._sample), 1)) / len(self._sample) if self._sample else 1.0
        return {
            "bytes": self.bytes,
            "markers": self.markers,
            "all_tls": self.records.whole and self.bytes > 0,
            "records": dict(self.records.count),
            "compresses_to": round(packed, 3),
            "error": self.error,
        }


class Connection:
    """One tapped connection: two directions, a thread each."""

    def __init__(self, near: socket.socket, far: socket.socket, marker: bytes) -> None:
        self._sockets = (near, far)
        self.towards, self.back = Direction(marker), Direction(marker)
        self._threads = [
            threading.Thread(target=self.towards.pass_on, args=(near, far)),
            threading.Thread(target=self.back.pass_on, args=(far, near)),
        ]
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """Close both sides and wait for the threads."""
        for each in self._sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for each in self._sockets:
            each.close()

    def report(self) -> dict[str, Any]:
        """Both directions, and what the server chose, as plain data."""
        chosen = server_hello(self.back.first())
        return {
            "protocol": chosen[0] if chosen else "",
            "cipher": chosen[1] if chosen else "",
            "towards": self.towards.report(),
            "back": self.back.report(),
        }


def serve(listener: socket.socket, target: tuple[str, int], marker: bytes) -> list[dict[str, Any]]:
    """Relay what comes in until the listener is shut down; returns the reports."""
    connections: list[Connection] = []
    with ExitStack() as ends:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:  # EINVAL: it was shut down
                break
            try:
                far = connect(target)
            except OSError as problem:
                print(f"tap: {shown(target)}: {problem}", file=sys.stderr)
                near.close()
                continue
            connections.append(Connection(near, far, marker))
            ends.callback(connections[-1].end)
    return [each.report() for each in connections]


def main(argv: list[str]) -> int:
    """Run the tap as the module's docstring says."""
    listener = listen(parse(argv[0]))
    print(f"listening on {shown(listener.getsockname())}", flush=True)

    def until_stdin_ends() -> None:
        sys.stdin.read()
        listener.shutdown(socket.SHUT_RDWR)

    watch = threading.Thread(target=until_stdin_ends)
    watch.start()
    with listener:
        reports = serve(listener, parse(argv[1]), argv[2].encode())
    watch.join()
    print(json.dumps(reports))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
