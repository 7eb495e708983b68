"""What a listener on the wire can tell of TLS without any key: records, version, cipher (RFC 8446, 4 and 5.1)."""

from __future__ import annotations

from collections import Counter

_HEADER = 5
_LONGEST = 16384 + 256
_NAMES = {20: "change_cipher_spec", 21: "alert", 22: "handshake", 23: "application_data"}
_SERVER_HELLO = 2
_SUPPORTED_VERSIONS = 43
_VERSIONS = {0x0303: "TLS 1.2", 0x0304: "TLS 1.3"}
_CIPHERS = {
    0x1301: "TLS_AES_128_GCM_SHA256",
    0x1302: "TLS_AES_256_GCM_SHA384",
    0x1303: "TLS_CHACHA20_POLY1305_SHA256",
}


class Records:
    """Walks the record headers of one direction of a connection.

    ``whole`` is True while every byte so far belongs to a TLS record;
    ``count`` counts the records by their type.
    """

    def __init__(self) -> None:
        self.whole = True
        self.count: Counter[str] = Counter()
        self._head = b""
        self._body = 0

    def feed(self, data: memoryview) -> None:
        """Take the next bytes, in pieces of any size."""
        position = 0
        while self.whole and position < len(data):
            if self._body:
                step = min(self._body, len(data) - position)
                self._body -= step
            else:
                step = min(_HEADER - len(self._head), len(data) - position)
                self._head += data[position : position + step]
                if len(self._head) == _HEADER:
                    self._begin()
            position += step

    def _begin(self) -> None:
        kind, major, length = self._head[0], self._head[1], int.from_bytes(self._head[3:], "big")
        self._head = b""
        self.whole = kind in _NAMES and major == 3 and length <= _LONGEST
        if self.whole:
            self.count[_NAMES[kind]] += 1
            self._body = length


def server_hello(data: bytes) -> tuple[str, str] | None:
    """Version and cipher suite that a server chose, from the first bytes it sent; None where that is no ServerHello."""
    if len(data) < 44 or data[0] != 22 or data[5] != _SERVER_HELLO:
        return None
    version = int.from_bytes(data[9:11], "big")
    position = 44 + data[43]  # header 5, message 4, version 2, random 32, session id with its length
    cipher = int.from_bytes(data[position : position + 2], "big")
    extensions = data[position + 5 : position + 5 + int.from_bytes(data[position + 3 : position + 5], "big")]
    version = _supported_version(extensions) or version
    return _VERSIONS.get(version, f"version {version:#06x}"), _CIPHERS.get(cipher, f"cipher suite {cipher:#06x}")


def _supported_version(extensions: bytes) -> int | None:
    """TLS 1.3 names itself in an extension alone (RFC 8446, 4.2.1)."""
    while len(extensions) >= 4:
        kind, length = int.from_bytes(extensions[:2], "big"), int.from_bytes(extensions[2:4], "big")
        if kind == _SUPPORTED_VERSIONS:
            return int.from_bytes(extensions[4:6], "big")
        extensions = extensions[4 + length :]
    return None
