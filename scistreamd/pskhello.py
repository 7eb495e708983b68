"""The first word of a TLS 1.2 client with pre-shared keys, and whether a server takes it up.

RFC 5246 (7.4.1), RFC 5489 and RFC 4785 (the cipher suites). Python's ssl module
has no pre-shared keys before 3.13; the first word needs none.
"""

from __future__ import annotations

import os

_HANDSHAKE, _CLIENT_HELLO, _SERVER_HELLO = 22, 1, 2
_TLS_1_0, _TLS_1_2 = b"\x03\x01", b"\x03\x03"
# ECDHE_PSK_WITH_NULL_SHA, _SHA256, _SHA384; PSK_WITH_NULL_SHA, _SHA256, _SHA384.
_SUITES = bytes.fromhex("c039 c03a c03b 002c 00b0 00b1")
# supported_groups: x25519, P-256, P-384; ec_point_formats: uncompressed (RFC 8422).
_EXTENSIONS = bytes.fromhex("000a 0008 0006 001d 0017 0018000b 0002 0100")


def client_hello() -> bytes:
    """One record with a ClientHello that offers what psk-null is made of."""
    body = _TLS_1_2 + os.urandom(32) + b"\0" + _vector(_SUITES) + b"\1\0" + _vector(_EXTENSIONS)
    message = bytes([_CLIENT_HELLO]) + len(body).to_bytes(3, "big") + body
    return bytes([_HANDSHAKE]) + _TLS_1_0 + _vector(message)


def is_server_hello(answer: bytes) -> bool:
    """Whether the answer begins with a ServerHello of TLS 1.2."""
    return len(answer) > 5 and answer[0] == _HANDSHAKE and answer[1:3] == _TLS_1_2 and answer[5] == _SERVER_HELLO


def _vector(content: bytes) -> bytes:
    return len(content).to_bytes(2, "big") + content
