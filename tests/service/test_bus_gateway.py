"""The D-Bus front door over the real manager: tunnels that carry data, and docs/dbus.md line by line by busctl."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import os
import pwd
import re
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import pytest_asyncio

from scistreamd import names
from scistreamd.bus import Bus
from scistreamd.bus_door import BusDoor
from scistreamd.config import Settings
from scistreamd.daemon import Gateway, Plugged
from scistreamd.errors import Code
from scistreamd.gate import Verb
from scistreamd.model import Caller, Options, PortRange, Role, Target, Uid
from scistreamd.runtime import runtime_directory
from tests.service.bus_kit import ME, Client, Judge, PrivateBus, Refused, connected, until, variant

LOOPBACK = ipaddress.ip_address("127.0.0.1")
SETTINGS = Settings(
    listen_inbound=LOOPBACK, listen_outbound=LOOPBACK, port_range=PortRange(27820, 27829), default_type="Nginx"
)
DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "dbus.md"
LINES = re.findall(r"^busctl .*$", DOCUMENT.read_text(), re.MULTILINE)


@dataclass
class Scene:
    """A gateway on a bus of its own."""

    gateway: Gateway
    private: PrivateBus
    client: Client

    @property
    def environment(self) -> dict[str, str]:
        """Where the private bus stands in for that of the system."""
        return {**os.environ, "DBUS_SYSTEM_BUS_ADDRESS": self.private.address, "LC_ALL": "C.UTF-8"}

    async def busctl(self, line: str) -> tuple[int, str, str]:
        """Type one line; exit status, output, errors."""
        process = await asyncio.create_subprocess_shell(
            line,
            env=self.environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
        return process.returncode or 0, out.decode(), err.decode()

    async def works(self, line: str) -> str:
        """Type one line that must succeed, and give its output."""
        status, out, err = await self.busctl(line)
        assert (status, err) == (0, ""), line
        return out


@pytest_asyncio.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    private = PrivateBus(tmp_path)
    await private.start()
    bus = Bus(private.address)
    plugged = Plugged(
        authority=Judge(),
        doors=[lambda manager, gate, counters: BusDoor(bus, manager, gate, lambda: None, LOOPBACK, counters=counters)],
    )
    with runtime_directory() as runtime:
        gateway = Gateway(SETTINGS, runtime, LOOPBACK, plugged)
        await gateway.start([], None)
        try:
            async with connected(private.address) as client:
                yield Scene(gateway, private, client)
        finally:
            await gateway.close()
            await private.stop()


@contextlib.asynccontextmanager
async def application() -> AsyncIterator[str]:
    """A server that gives back what it gets; its address."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.read(100))
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        host, port = server.sockets[0].getsockname()
        yield f"{host}:{port}"


async def echoed(listener: str) -> bytes:
    host, _, port = listener.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"a frame of data")
    got = await reader.read(100)
    writer.close()
    await writer.wait_closed()
    return got


async def test_a_stream_through_two_tunnels(scene: Scene) -> None:
    # The two sides of a stream have one UID, so they need two gateways; the second one has no bus.
    other = Settings(
        listen_inbound=LOOPBACK, listen_outbound=LOOPBACK, port_range=PortRange(27830, 27839), default_type="Nginx"
    )
    with runtime_directory() as runtime:
        consumer = Gateway(other, runtime, LOOPBACK, Plugged())
        try:
            async with application() as target:
                uid, path, listeners = await scene.client.manager("CreateInbound", "asa{sv}", [target], {})
                grant = consumer.gate.admit(Caller("test", peer=LOOPBACK, reached=LOOPBACK), Verb.CREATE)
                remote = tuple(Target.parse(text) for text in listeners)
                _, view = await consumer.manager.create(grant, Role.CONS, remote, Options(), Uid.parse(uid))
                assert await echoed(str(view.listeners[0])) == b"a frame of data"
                shown = await scene.client.properties(path, names.TUNNEL)
                assert (shown["State"], shown["Owner"]) == ("active", ME)
                await scene.client.manager("Release", "sa{sv}", uid, {})
        finally:
            await consumer.close()
    with pytest.raises(Refused, match=names.error_name(Code.NOT_FOUND)):
        await scene.client.tunnel(path, "GetUid")
    assert scene.gateway.manager.free_ports == len(SETTINGS.port_range)


async def test_callers_wait_until_the_tunnels_of_the_daemon_before_are_known(tmp_path: Path) -> None:
    """The name is there from the start, for the bus waits for that; answers are not."""
    private = PrivateBus(tmp_path)
    await private.start()
    bus = Bus(private.address)
    with runtime_directory() as runtime:
        gateway = Gateway(SETTINGS, runtime, LOOPBACK, Plugged())
        door = BusDoor(bus, gateway.manager, gateway.gate, lambda: None, LOOPBACK, counters=gateway.meter)
        try:
            async with connected(private.address) as client:
                for ends in (False, True):
                    await door.open()
                    asked = asyncio.create_task(client.manager("ListTunnels", "", *[]))
                    assert await client.has_owner(names.SERVICE)
                    await asyncio.sleep(0.1)
                    assert not asked.done()
                    if ends:
                        await door.close()
                        with pytest.raises(Refused, match="before it has served"):
                            await asked
                    else:
                        door.serve()
                        assert await asked == [[]]
                        await door.close()
                        door = BusDoor(
                            bus, gateway.manager, gateway.gate, lambda: None, LOOPBACK, counters=gateway.meter
                        )
        finally:
            await gateway.close()
            await private.stop()


async def test_other_front_doors_are_told_of_and_options_are_obeyed(scene: Scene) -> None:
    await scene.client.listen()
    listen = {"listen": variant("as", ["127.0.0.1:27825"]), "lifetime": variant("t", 3600)}
    [uid, path, listeners] = await scene.client.manager("CreateInbound", "asa{sv}", ["192.168.10.10:5001"], listen)
    assert listeners == ["127.0.0.1:27825"]
    assert (await scene.client.properties(path, names.TUNNEL))["ExpiresUSec"] > 0
    await scene.client.hears("InterfacesAdded")
    with pytest.raises(Refused, match=names.error_name(Code.RESOURCE_EXHAUSTED)):
        await scene.client.manager("CreateInbound", "asa{sv}", ["192.168.10.10:5001"], listen)
    with pytest.raises(Refused, match=names.error_name(Code.PERMISSION_DENIED)):
        await scene.client.manager(
            "CreateInbound", "asa{sv}", ["192.168.10.10:5001"], {"security": variant("s", "none")}
        )
    grant = scene.gateway.gate.admit(Caller("test", peer=LOOPBACK, reached=LOOPBACK), Verb.RELEASE)
    await scene.gateway.manager.end(grant, Uid.parse(uid).id, 0)
    await until(lambda: [Uid.parse(uid).id, path] in [each.body for each in scene.client.told("TunnelRemoved")])
    assert await scene.client.manager("ListTunnels") == [[]]


async def test_ports_are_probed(scene: Scene) -> None:
    await scene.client.manager("CreateInbound", "asa{sv}", ["192.168.10.10:5001"], {})
    with socket.socket() as other:
        other.bind(("127.0.0.1", 27828))
        other.listen()
        [answers] = await scene.client.manager("CheckPorts", "aq", [])
    reasons = {answer["port"].value: answer["reason"].value for answer in answers}
    assert "listens on it" in reasons[27820]
    assert reasons[27828].endswith(f"(user {pwd.getpwuid(os.geteuid()).pw_name}) has tcp 127.0.0.1:27828")
    assert {port for port, reason in reasons.items() if not reason} == set(SETTINGS.port_range) - {27820, 27828}


async def test_a_reload_is_told_of(scene: Scene) -> None:
    await scene.client.listen()
    scene.gateway.reconfigure(replace(SETTINGS, default_type="stunnel"))
    [signal] = await scene.client.hears("PropertiesChanged")
    assert signal.body == [names.MANAGER, {"DefaultType": variant("s", "Stunnel")}, []]


async def prepared(scene: Scene, line: str, uid: str) -> None:
    """What a line needs here and would find on the hosts of the document."""
    if "CreateOutbound" in line:
        # There it is typed on the other gateway, which has no tunnel of this UID yet.
        await scene.client.manager("Release", "sa{sv}", uid, {})
    if "drain" in line:
        # The line before has released the tunnel in the other way.
        await scene.client.manager("CreateInbound", "asa{sv}", ["192.168.10.10:5001"], {"uid": variant("s", uid)})


@contextlib.asynccontextmanager
async def monitor(scene: Scene) -> AsyncIterator[asyncio.subprocess.Process]:
    """The line of the document that watches, typed and listening."""
    process = await asyncio.create_subprocess_shell(
        "exec " + next(line for line in LINES if " monitor " in line),
        env=scene.environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stderr
        assert b"Monitoring" in await process.stderr.readline()
        yield process
    finally:
        process.terminate()
        await process.wait()


async def test_every_line_of_the_document(scene: Scene) -> None:
    """In their order; UID and ID stand for what the first line has answered."""
    uid, shown = "", {}
    async with monitor(scene) as watching:
        for line in LINES:
            if " monitor " in line:
                continue
            await prepared(scene, line, uid)
            tunnel_id = Uid.parse(uid).id if uid else ""
            typed = re.sub(r"(?<= )UID(?= )", uid, re.sub(r"(?<=[ /])ID\b", tunnel_id, line))
            # The other gateway: here nothing listens there, which an outbound tunnel tries at once.
            typed = typed.replace("192.168.10.11", "127.0.0.1").replace("192.168.30.10:5100", "127.0.0.1:27825")
            shown[line] = await scene.works(typed)
            uid = uid or re.findall(r'"([0-9a-f-]{36})"', shown[line])[0]
        assert watching.stdout
        seen = b""
        while b"Member=TunnelRemoved" not in seen.partition(b"Member=PropertiesChanged")[2]:
            seen += await watching.stdout.read(4096)
    assert b"Member=TunnelAdded" in seen
    assert scene.gateway.manager.tunnels() == ()
    [listed] = [json.loads(out) for line, out in shown.items() if "ListTunnels" in line]
    assert listed["type"] == "a(sssasassso)"
    assert listed["data"][0][0][:3] == [Uid.parse(uid).id, "CONS", "active"]
    [ports] = [out for line, out in shown.items() if "FreePorts" in line]
    assert ports == "u 9\n(qq) 27820 27829\n"
    [state] = [out for line, out in shown.items() if " State " in line]
    assert state == 's "active"\nas 1 "127.0.0.1:27825"\n'
    [told] = [out for line, out in shown.items() if "GetUid" in line]
    assert told == f's "{uid}"\n'


async def test_busctl_shows_errors_as_people_read_them(scene: Scene) -> None:
    line = LINES[0].replace("192.168.10.10:5001", "192.168.10.10")
    status, _, err = await scene.busctl(line)
    assert status == 1
    assert err.startswith("Call failed: targets[0]: '192.168.10.10' is not HOST:PORT (as in ")
