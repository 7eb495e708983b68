"""How much of the gateway one caller may take; docs/wire-protocol.md gives the reasons."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Bounds of the control port: sizes in bytes, times in seconds, counts as they are.

    ``connections`` count from accept on, before TLS. ``first_request_seconds``
    runs from the end of the handshake to the first complete request message.
    ``message_seconds`` is what one request message may take to arrive.
    ``idle_seconds`` closes connections without open streams. A peer that was
    silent for ``ping_seconds`` while a stream is open is sent an HTTP/2 PING
    and has ``ping_answer_seconds`` to be heard of. ``pending_bytes`` bounds
    the incomplete messages of one connection together. ``frames`` is a
    connection's credit of HTTP/2 frames, which grows by ``frames_per_second``
    and with each complete message, so that only traffic without requests ends it.
    """

    connections: int = 2048
    connections_per_peer: int = 512
    handshake_seconds: float = 10
    first_request_seconds: float = 10
    message_seconds: float = 10
    send_seconds: float = 30
    idle_seconds: float = 300
    ping_seconds: float = 20
    ping_answer_seconds: float = 20
    linger_seconds: float = 2
    message_bytes: int = 256 * 1024
    pending_bytes: int = 512 * 1024
    header_bytes: int = 16 * 1024
    streams: int = 1024
    frames: int = 5000
    frames_per_second: int = 500
