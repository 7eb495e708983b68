"""The ends of a stream, run on hosts of the lab by their own Python: an application that echoes, and its client.

stream_end.py echo PORT             serves until it is killed
stream_end.py stream ADDRESS PORT   streams both ways until SIGTERM; prints what went out and what came back
stream_end.py ask ADDRESS PORT      prints the port of the application that a new connection reaches
"""

from __future__ import annotations

import hashlib
import random
import signal
import socket
import sys
import threading
import time

_CHUNK = 32768
_PAUSE_SECONDS = 0.02
_SECONDS = 30


def echo(port: int) -> None:
    """Greet each client with the port in five digits, then give back what comes, to its end."""
    with socket.create_server(("", port)) as server:
        print("listening", flush=True)
        while True:
            threading.Thread(target=_serve, args=(server.accept()[0], port), daemon=True).start()


def _serve(client: socket.socket, port: int) -> None:
    with client:
        client.sendall(b"%05d" % port)
        while data := client.recv(_CHUNK):
            client.sendall(data)
        client.shutdown(socket.SHUT_WR)


def ask(address: str, port: int) -> None:
    """A short connection."""
    with socket.create_connection((address, port), _SECONDS) as client:
        print(int(client.recv(5, socket.MSG_WAITALL)))


def stream(address: str, port: int) -> None:
    """Bytes that are never the same twice; digests and counts of both directions must be equal at the end."""
    ending = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ending.set())
    with socket.create_connection((address, port), _SECONDS) as client:
        client.recv(5, socket.MSG_WAITALL)
        client.settimeout(None)
        print("streams", flush=True)
        came = _Count()
        reader = threading.Thread(target=_read, args=(client, came))
        reader.start()
        source, went = random.Random(port), _Count()
        while not ending.is_set():
            data = source.randbytes(_CHUNK)
            client.sendall(data)
            went.add(data)
            time.sleep(_PAUSE_SECONDS)
        client.shutdown(socket.SHUT_WR)
        reader.join()
    print(f"went {went} came {came}", flush=True)


class _Count:
    """How many bytes, and their digest."""

    def __init__(self) -> None:
        self.bytes = 0
        self.digest = hashlib.sha256()

    def add(self, data: bytes) -> None:
        self.bytes += len(data)
        self.digest.update(data)

    def __str__(self) -> str:
        return f"{self.bytes} {self.digest.hexdigest()}"


def _read(client: socket.socket, count: _Count) -> None:
    while data := client.recv(_CHUNK):
        count.add(data)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["echo", port]:
            echo(int(port))
        case ["stream", address, port]:
            stream(address, int(port))
        case ["ask", address, port]:
            ask(address, int(port))
