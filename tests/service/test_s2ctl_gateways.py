"""s2ctl and two real gateways, each on a bus of its own: a stream from the first command to the last."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from scistreamd.bus import Bus
from scistreamd.bus_door import BusDoor
from scistreamd.cli import s2ctl
from scistreamd.config import Settings
from scistreamd.daemon import Gateway, Plugged
from scistreamd.errors import Code
from scistreamd.model import PortRange
from scistreamd.runtime import runtime_directory
from tests.service.bus_kit import Judge, PrivateBus

LOOPBACK = ipaddress.ip_address("127.0.0.1")


@contextlib.asynccontextmanager
async def gateway(directory: Path, ports: PortRange) -> AsyncIterator[str]:
    """A gateway; the address of its bus."""
    directory.mkdir()
    private = PrivateBus(directory)
    await private.start()
    bus = Bus(private.address)
    settings = Settings(listen_inbound=LOOPBACK, listen_outbound=LOOPBACK, port_range=ports, default_type="Nginx")
    doors = [lambda manager, gate, counters: BusDoor(bus, manager, gate, lambda: None, LOOPBACK, counters=counters)]
    with runtime_directory() as runtime:
        made = Gateway(settings, runtime, LOOPBACK, Plugged(authority=Judge(), doors=doors))
        await made.start([], None)
        try:
            yield private.address
        finally:
            await made.close()
            await private.stop()


@contextlib.asynccontextmanager
async def application(greeting: bytes) -> AsyncIterator[str]:
    """A server that says one thing and hangs up; its address."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(greeting)
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        host, port = server.sockets[0].getsockname()
        yield f"{host}:{port}"


async def heard(listener: str) -> bytes:
    host, _, port = listener.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    data = await reader.read()
    writer.close()
    await writer.wait_closed()
    return data


async def test_a_stream_from_s2ctl_to_s2ctl(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def run(address: str, *words: str, status: int = 0) -> str:
        capsys.readouterr()
        ended = await asyncio.to_thread(s2ctl.main, ["--address", address, *words])
        out, err = capsys.readouterr()
        assert ended == status, err
        return out

    file = tmp_path / "uid"
    async with (
        gateway(tmp_path / "a", PortRange(27860, 27869)) as producer,
        gateway(tmp_path / "b", PortRange(27870, 27879)) as consumer,
        application(b"first") as first,
        application(b"second") as second,
    ):
        inbound = json.loads(await run(producer, "inbound", first, "--uid-file", str(file), "--json=short"))
        outbound = json.loads(
            await run(consumer, "outbound", f"@{file}", *inbound["listeners"], "--label", "run7", "--json=short")
        )
        assert (inbound["id"], inbound["role"]) == (outbound["id"], "PROD")
        assert await heard(outbound["listeners"][0]) == b"first"
        await run(producer, "update", inbound["id"], second)
        assert await heard(outbound["listeners"][0]) == b"second"
        assert "ends: never" in await run(consumer, "extend", "run7", "never")
        assert "1 tunnel: 1 active" in await run(consumer, "status")
        port = outbound["listeners"][0].rpartition(":")[2]
        assert outbound["id"] in await run(consumer, "check", port, status=Code.RESOURCE_EXHAUSTED.exit_status)
        assert file.read_text() == await run(producer, "show", "--reveal-uid", inbound["id"][:6])
        for address, tunnel in ((producer, f"@{file}"), (consumer, "run7")):
            await run(address, "release", tunnel)
            assert await run(address, "list", "-q") == ""
            assert "10 of 10 free." in await run(address, "check")
        await run(producer, "show", inbound["id"], status=Code.NOT_FOUND.exit_status)
