"""A server that sends back what it receives: `python echo.py ADDRESS PORT`."""

from __future__ import annotations

import contextlib
import socket
import sys
import threading

_CHUNK = 65536


def _serve(connection: socket.socket) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with connection, contextlib.suppress(ConnectionError):
        while data := connection.recv(_CHUNK):
            connection.sendall(data)


def main() -> None:
    """Accept until killed, a thread for each connection."""
    with socket.create_server((sys.argv[1], int(sys.argv[2])), backlog=128) as listener:
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=_serve, args=(connection,), daemon=True).start()


if __name__ == "__main__":
    main()
