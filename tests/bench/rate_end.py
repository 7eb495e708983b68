"""An end of a stream, run on a host of the lab by its own Python, that says how much came when.

rate_end.py serve PORT (sink|source) CONNECTIONS SECONDS
rate_end.py dial ADDRESS PORT (sink|source) CONNECTIONS SECONDS

A sink prints, as one line of JSON, pairs of seconds since its first byte and bytes until then, and ends
after so many SECONDS; a source sends as fast as it can, until it is killed.
"""

from __future__ import annotations

import contextlib
import json
import selectors
import socket
import sys
import threading
import time
from collections.abc import Sequence

_CHUNK = 1 << 18
_SAMPLE_SECONDS = 0.25


def serve(port: int, role: str, count: int, seconds: float) -> None:
    """Wait for so many connections; a sink receives on each at once."""
    with socket.create_server(("", port), backlog=64) as server:
        print("listening", flush=True)
        if role == "sink":
            print(json.dumps(_receive([], seconds, server)), flush=True)
        else:
            _push_on([server.accept()[0] for _ in range(count)])


def dial(address: str, port: int, role: str, count: int, seconds: float) -> None:
    """Make so many connections."""
    ends = [socket.create_connection((address, port)) for _ in range(count)]
    if role == "sink":
        print(json.dumps(_receive(ends, seconds)), flush=True)
    else:
        _push_on(ends)


def _push_on(ends: Sequence[socket.socket]) -> None:
    pushing = [threading.Thread(target=_push, args=(each,), daemon=True) for each in ends]
    for each in pushing:
        each.start()
    for each in pushing:
        each.join()


def _push(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while True:
            end.sendall(bytes(_CHUNK))


def _receive(
    ends: Sequence[socket.socket], seconds: float, server: socket.socket | None = None
) -> list[tuple[float, int]]:
    watched, total, buffer = selectors.DefaultSelector(), 0, bytearray(_CHUNK)
    for each in (*ends, *filter(None, [server])):
        watched.register(each, selectors.EVENT_READ)
    samples: list[tuple[float, int]] = []
    first = 0.0
    while not samples or samples[-1][0] < seconds:
        for key, _ in watched.select(_SAMPLE_SECONDS / 5):
            if key.fileobj is server:
                watched.register(server.accept()[0], selectors.EVENT_READ)
            else:
                total += key.fileobj.recv_into(buffer)  # type: ignore[union-attr]
        now = time.monotonic()
        first = first or (now if total else 0.0)
        if first and now - first >= _SAMPLE_SECONDS * len(samples):
            samples.append((round(now - first, 4), total))
    return samples


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["serve", port, role, count, seconds]:
            serve(int(port), role, int(count), float(seconds))
        case ["dial", address, port, role, count, seconds]:
            dial(address, int(port), role, int(count), float(seconds))
