"""A file in flight: made on the fly by one end, checked by the other, on no disk.

    python -m tests.demo.stream receive LISTEN MARKER
    python -m tests.demo.stream send TARGET MEBIBYTES MARKER

Both ends print ``BYTES bytes, SHA-256 HEX``. The sender ends its direction
when all is sent; the receiver then answers with what it got, the marker in
front, so that both directions of the wire carry it.
"""

from __future__ import annotations

import hashlib
import random
import socket
import sys
import time

from tests.demo.addresses import SECONDS, connect, listen, parse, shown

BLOCK = 1 << 20
_ROW = 128
_ANSWER = 4096


def block(marker: bytes, rng: random.Random) -> bytearray:
    """One MiB of rows of readings, as a detector's text format might have them, the marker in each."""
    rows = []
    for number in range(BLOCK // _ROW):
        row = b"%s row %05d " % (marker, number)
        readings = b" ".join(b"%04d" % rng.randrange(10000) for _ in range(_ROW // 5))
        rows.append((row + readings)[: _ROW - 1] + b"\n")
    return bytearray(b"".join(rows))


def send(target: str, mebibytes: int, marker: bytes) -> int:
    """Send so much, then compare what the receiver says with what was sent; 1 where it differs."""
    content, digest = block(marker, random.Random()), hashlib.sha256()
    started = time.monotonic()
    with connect(parse(target)) as stream:
        for number in range(mebibytes):
            content[:8] = number.to_bytes(8, "big")  # so that no two blocks are alike
            digest.update(content)
            stream.sendall(content)
        stream.shutdown(socket.SHUT_WR)
        answer = _read_all(stream)
    seconds = time.monotonic() - started
    sent = summary(mebibytes * BLOCK, digest.hexdigest())
    got = answer.decode("ascii", "replace").partition(": ")[2].strip()
    print(f"sent      {sent}")
    print(f"confirmed {got or 'nothing'}")
    print(f"{mebibytes * BLOCK * 8 / seconds / 1e9:.2f} Gbit/s over {seconds:.1f} s")
    return 0 if got == sent else 1


def receive(listener: socket.socket, marker: bytes) -> int:
    """Take one stream to its end and answer with its length and hash."""
    digest, size = hashlib.sha256(), 0
    buffer = bytearray(BLOCK)
    listener.settimeout(SECONDS)
    stream, _ = listener.accept()
    with stream:
        stream.settimeout(SECONDS)
        while got := stream.recv_into(buffer):
            digest.update(memoryview(buffer)[:got])
            size += got
        said = summary(size, digest.hexdigest())
        stream.sendall(marker + b": " + said.encode() + b"\n")
    print(f"received  {said}", flush=True)
    return 0


def summary(size: int, digest: str) -> str:
    """The line that both ends print."""
    return f"{size} bytes, SHA-256 {digest}"


def _read_all(stream: socket.socket) -> bytes:
    answer = b""
    while len(answer) < _ANSWER and (piece := stream.recv(_ANSWER)):
        answer += piece
    return answer


def main(argv: list[str]) -> int:
    """Run one end as the module's docstring says."""
    try:
        if argv[0] == "send":
            return send(argv[1], int(argv[2]), argv[3].encode())
        with listen(parse(argv[1])) as listener:
            print(f"listening on {shown(listener.getsockname())}", flush=True)
            return receive(listener, argv[2].encode())
    except OSError as problem:
        print(f"stream: {problem}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
