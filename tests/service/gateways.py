"""Real gateways: s2cs processes on loopback addresses, and deployed-manners clients that drive them.

The client speaks with grpcio and messages encoded by hand, so that nothing of
our own wire code can hide a mistake.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc
import grpc.aio

BIN = Path(sys.executable).parent
Fields = dict[int, list[str] | str | int]


def encode(fields: Fields) -> bytes:
    """A protobuf message of strings and varints (protobuf.dev, Encoding)."""
    out = b""
    for number, value in fields.items():
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, int):
                out += _varint(number << 3) + _varint(each & (1 << 64) - 1)
            else:
                raw = each.encode()
                out += _varint(number << 3 | 2) + _varint(len(raw)) + raw
    return out


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def decode(raw: bytes) -> dict[int, list[str]]:
    """The string fields of a message, all repeated."""
    found: dict[int, list[str]] = {}
    while raw:
        number, length = raw[0] >> 3, raw[1]
        assert raw[0] & 7 == 2
        assert length < 0x80
        found.setdefault(number, []).append(raw[2 : 2 + length].decode())
        raw = raw[2 + length :]
    return found


@dataclass
class Gateway:
    """A running s2cs."""

    address: str
    port: int
    certificate: Path
    process: asyncio.subprocess.Process
    log: Path

    @property
    def s2cs(self) -> str:
        return f"{self.address}:{self.port}"

    def channel(self) -> grpc.aio.Channel:
        credentials = grpc.ssl_channel_credentials(self.certificate.read_bytes())
        return grpc.aio.secure_channel(self.s2cs, credentials)

    def children(self) -> list[int]:
        task = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in task.read_text().split()]


async def run(*argv: str | Path, cwd: Path, text: str = "") -> tuple[int, str, str]:
    """Run a command; its exit status, stdout and stderr."""
    child = await asyncio.create_subprocess_exec(
        *map(str, argv),
        cwd=cwd,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(child.communicate(text.encode()), 100)
    return child.returncode or 0, out.decode(), err.decode()


async def s2uc(where: Path, *argv: str, text: str = "") -> tuple[int, str, str]:
    """Run s2uc in the directory ``where``."""
    return await run(BIN / "s2uc", *argv, cwd=where, text=text)


@contextlib.asynccontextmanager
async def gateway(where: Path, address: str, *options: str) -> AsyncIterator[Gateway]:
    """An s2cs on ``address``, with a certificate of its own, that ends at the end without a trace."""
    home = where / address.replace(":", "-")
    home.mkdir(exist_ok=True)
    if not (home / "server.crt").exists():
        status, _, err = await run(BIN / "s2ctl", "cert", "create", "--ip", address, cwd=home)
        assert status == 0, err
    log = home / "log"
    with log.open("ab") as output:
        process = await asyncio.create_subprocess_exec(
            BIN / "s2cs",
            f"--listener-ip={address}",
            "--port=0",
            *options,
            cwd=home,
            stdout=asyncio.subprocess.PIPE,
            stderr=output,
        )
    assert process.stdout is not None
    try:
        first = (await asyncio.wait_for(process.stdout.readline(), 60)).decode()
        assert "gRPC Server started on" in first, first + log.read_text()
        yield Gateway(address, int(first.rpartition(":")[2]), home / "server.crt", process, log)
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        status = await asyncio.wait_for(process.wait(), 60)
        process._transport.close()  # type: ignore[attr-defined]  # asyncio leaves its pipe to the collector
    assert status == 0, log.read_text()
    assert "Traceback" not in log.read_text(), log.read_text()


class Deployed:
    """Calls as SciStream 1.2 clients make them."""

    def __init__(self, channel: grpc.aio.Channel, token: str = "INVALID_TOKEN") -> None:
        self._channel = channel
        self._token = token

    async def call(self, method: str, fields: Fields, metadata: Sequence[tuple[str, str]] = ()) -> dict[int, list[str]]:
        raw = self._channel.unary_unary(f"/scistream.Control/{method}")
        reply = await raw(encode(fields), metadata=(("authorization", self._token), *metadata))
        return decode(reply)

    async def request(
        self, uid: str, role: str, count: int, entries: list[str], metadata: Sequence[tuple[str, str]] = ()
    ) -> list[str]:
        """req and hello as s2uc 1.2 sends them, but for its sleep; the listeners."""
        asked = asyncio.ensure_future(self.call("req", {1: uid, 2: role, 3: count, 4: 10000}, metadata))
        await self.call("hello", {1: uid, 2: entries, 3: "PROD"})
        return (await asked)[1]

    async def update(self, uid: str, targets: list[str], role: str) -> dict[int, list[str]]:
        return await self.call("update", {1: uid, 2: targets, 3: role})

    async def release(self, uid: str) -> None:
        await self.call("release", {1: uid})


def split(endpoint: str) -> tuple[str, int]:
    host, _, port = endpoint.rpartition(":")
    return host.strip("[]"), int(port)


@contextlib.asynccontextmanager
async def application(reply: bytes, address: str = "127.0.0.1") -> AsyncIterator[str]:
    """A server that answers each line with ``reply`` and the line; yields its address and port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while line := await reader.readline():
                writer.write(reply + line)
                await writer.drain()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    server = await asyncio.start_server(serve, address, 0)
    async with server:
        host, port = server.sockets[0].getsockname()[:2]
        yield f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def say(endpoint: str, line: bytes = b"hello\n") -> bytes:
    """One line through a tunnel, and the answer."""
    reader, writer = await asyncio.open_connection(*split(endpoint))
    try:
        writer.write(line)
        return await asyncio.wait_for(reader.readline(), 60)
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
