"""Scenes of the systemd launcher: run inside a host, as the daemon would be, with the name of one as the argument.

A scene asserts what it sees; nothing of it may be left when it ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import ipaddress
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

from scistreamd import dataserver
from scistreamd.errors import Code, ScistreamError
from scistreamd.interfaces import EndedMeanwhile, PortsBusy, Told
from scistreamd.keys import TunnelKeys
from scistreamd.model import Endpoint, Role, Security, Uid
from scistreamd.plans import Bind, Plan, Program
from scistreamd.sockets import Keep
from scistreamd.systemd1 import Systemd1
from scistreamd.systemd_held import SystemdHeld
from scistreamd.systemd_launcher import SystemdLauncher
from scistreamd.units import Names

RUNTIME = Path("/run/scistreamd")
LOOPBACK = ipaddress.ip_address("127.0.0.1")
PORT, FURTHER_PORT, APPLICATION, OTHER_APPLICATION = 5100, 5101, 7001, 7002
TYPES = ("Haproxy", "Nginx", "Stunnel")
SECONDS = 60

Scene = Callable[[SystemdLauncher], Awaitable[None]]
SCENES: dict[str, Scene] = {}


def scene(function: Scene) -> Scene:
    """One that can be asked for by its name."""
    SCENES[function.__name__] = function
    return function


class Ear:
    """What the manager would be told."""

    def __init__(self) -> None:
        self.failed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    @property
    def told(self) -> Told:
        return Told(failed=self.failed.set_result, ended=self.ended.set_result)

    @property
    def heard(self) -> bool:
        return self.failed.done() or self.ended.done()


class Tunnel:
    """A tunnel as the manager would keep it; both roles of a stream share the UID that keys come from."""

    def __init__(self, kind: str, role: Role, *ports: int, secret: Uid | None = None, udp: bool = False) -> None:
        self.uid = Uid.random()
        self.secret = secret or self.uid
        self.role = role
        self.security = Security.NONE if udp else Security.TLS
        self.binds = [Bind(endpoint(port), udp) for port in ports]
        self.server = dataserver.parse_type(kind).server
        self.names = Names(self.uid.id)
        self.generation = 0
        self.ear = Ear()

    def program(self, launcher: SystemdLauncher, *targets: int) -> Program:
        self.generation += 1
        spread = tuple((endpoint(targets[index % len(targets)]),) for index in range(len(self.binds)))
        plan = Plan(self.uid.id, self.role, self.security, tuple(self.binds), spread, self.generation)
        return self.server.render(plan, launcher.places(self.uid.id))

    @property
    def keys(self) -> dict[str, bytes]:
        return dict(TunnelKeys().files(self.secret, self.role, self.security))


def endpoint(port: int) -> Endpoint:
    return Endpoint(LOOPBACK, port)


def call(*argv: str) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()


def active(unit: str) -> bool:
    return call("systemctl", "show", "--value", "-p", "ActiveState", unit) == "active"


def substate(unit: str) -> str:
    return call("systemctl", "show", "--value", "-p", "SubState", unit)


async def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def application(port: int, word: bytes) -> AsyncIterator[None]:
    """Greets with ``word`` and echoes."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            writer.write(word)
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(echo, str(LOOPBACK), port)
    try:
        yield
    finally:
        server.close()


@contextlib.asynccontextmanager
async def stream(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection(str(LOOPBACK), port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def greeting(port: int) -> bytes:
    """What the application at the end of the tunnel greets with; empty where the connection is closed."""
    async with stream(port) as (reader, _):
        try:
            return await asyncio.wait_for(reader.read(1), SECONDS)
        except ConnectionError:
            return b""


@contextlib.asynccontextmanager
async def held(launcher: SystemdLauncher, tunnel: Tunnel) -> AsyncIterator[SystemdHeld]:
    made = await launcher.hold(tunnel.uid.id, tunnel.binds, tunnel.ear.told)
    try:
        yield made
    finally:
        await made.close()


def units() -> list[str]:
    """All in systemd's memory."""
    listed = call("systemctl", "list-units", "--all", "--plain", "--no-legend", "scistream-*.*")
    return [line.split()[0] for line in listed.splitlines()]


def timers() -> str:
    """Those that run."""
    return call("systemctl", "list-units", "--plain", "--no-legend", "scistream-*.timer")


def listeners() -> list[int]:
    shown = call("ss", "-Htln", f"sport >= {PORT} and sport <= {FURTHER_PORT}")
    return sorted(int(line.split()[3].rpartition(":")[2]) for line in shown.splitlines())


async def assert_nothing_left() -> None:
    assert listeners() == []
    assert units() == []
    assert not [path for path in RUNTIME.iterdir() if path.is_dir()]


def both(kind: str) -> tuple[Tunnel, Tunnel]:
    """Two tunnels of one stream, on one host: from FURTHER_PORT through PORT to the application."""
    inbound = Tunnel(kind, Role.PROD, PORT)
    return inbound, Tunnel(kind, Role.CONS, FURTHER_PORT, secret=inbound.secret)


# The scenes


async def _streams(launcher: SystemdLauncher, kind: str) -> None:
    inbound, outbound = both(kind)
    async with (
        application(APPLICATION, b"1"),
        application(OTHER_APPLICATION, b"2"),
        held(launcher, inbound) as near,
        held(launcher, outbound) as far,
    ):
        assert near.unit == inbound.names.service
        early = asyncio.create_task(greeting(FURTHER_PORT))
        await until(lambda: active(outbound.names.service), "waits")
        await near.serve(inbound.program(launcher, APPLICATION), inbound.keys)
        await far.serve(outbound.program(launcher, PORT), outbound.keys)
        assert await early == b"1"
        async with stream(FURTHER_PORT) as (reader, writer):
            assert await reader.readexactly(1) == b"1"
            pid = call("systemctl", "show", "--property=MainPID", "--value", near.unit).strip()
            library = inbound.server.library
            assert not library or f"/{library}." in Path(f"/proc/{pid}/maps").read_text()
            await near.serve(inbound.program(launcher, OTHER_APPLICATION), inbound.keys)
            assert await greeting(FURTHER_PORT) == b"2"
            writer.write(b"runs on")
            assert await asyncio.wait_for(reader.readexactly(7), SECONDS) == b"runs on"
        call("systemctl", "kill", "--signal=KILL", inbound.names.service)
        while not (again := await greeting(FURTHER_PORT)):  # what was on its way through the dead one is lost
            pass
        assert again == b"2"
        assert not inbound.ear.heard and not outbound.ear.heard


@scene
async def haproxy_streams(launcher: SystemdLauncher) -> None:
    """From an early connection to a killed data server."""
    await _streams(launcher, "Haproxy")


@scene
async def nginx_streams(launcher: SystemdLauncher) -> None:
    """From an early connection to a killed data server."""
    await _streams(launcher, "Nginx")


@scene
async def stunnel_streams(launcher: SystemdLauncher) -> None:
    """From an early connection to a killed data server."""
    await _streams(launcher, "Stunnel")


@scene
async def udp(launcher: SystemdLauncher) -> None:
    """nginx gets the UDP socket behind the TCP one."""
    tunnel = Tunnel("Nginx", Role.PROD, PORT, udp=True)
    async with held(launcher, tunnel) as one:
        await one.serve(tunnel.program(launcher, APPLICATION), tunnel.keys)
        with socket.socket(type=socket.SOCK_DGRAM) as target, socket.socket(type=socket.SOCK_DGRAM) as client:
            target.bind((str(LOOPBACK), APPLICATION))
            target.settimeout(SECONDS)
            client.sendto(b"datagram", (str(LOOPBACK), PORT))
            assert await asyncio.to_thread(target.recv, 100) == b"datagram"


@scene
async def armour(launcher: SystemdLauncher) -> None:
    """systemd's own judgement, and what others on the host can reach."""
    for kind in TYPES:
        tunnel = Tunnel(kind, Role.PROD, PORT)
        async with held(launcher, tunnel) as one:
            await one.serve(tunnel.program(launcher, APPLICATION), tunnel.keys)
            verdict = call("systemd-analyze", "security", "--no-pager", tunnel.names.service).splitlines()[-1]
            exposure = float(verdict.partition(": ")[2].split()[0])
            print(kind, exposure)
            assert exposure <= 1.5, verdict
            assert "[WARNING]" not in call("journalctl", "--output=cat", "--unit", tunnel.names.service)
            told = call("systemctl", "show", "--all", tunnel.names.service, tunnel.names.socket)
            told += call("systemctl", "cat", tunnel.names.service, tunnel.names.socket)
            for word in (tunnel.uid.reveal(), tunnel.uid.reveal().replace("-", ""), "PRIVATE KEY"):
                assert word not in told
            root = RUNTIME / tunnel.uid.id
            assert root.stat().st_mode & 0o777 == 0o700 and root.stat().st_uid == 0
            owner = (root / "scratch").stat().st_uid
            assert owner >= 61184, "the data server's own user"
            keys = list((root / "secrets").iterdir())
            assert len(keys) == 2 and (root / "secrets").stat().st_mode & 0o777 == 0o700
            assert {(each.stat().st_mode & 0o777, each.stat().st_uid) for each in keys} == {(0o600, owner)}


@scene
async def keys_for_units_of_before(launcher: SystemdLauncher) -> None:
    """A scistreamd before this one made the directory for everybody, and units that do not give keys away."""
    tunnel = Tunnel("Nginx", Role.PROD, PORT)
    async with held(launcher, tunnel) as one:
        secrets = RUNTIME / tunnel.uid.id / "secrets"
        secrets.chmod(0o755)
        assert await SystemdLauncher(launcher.systemd, RUNTIME).adopt(
            tunnel.uid.id, tunnel.binds, None, tunnel.ear.told
        )
        await one.serve(tunnel.program(launcher, APPLICATION), tunnel.keys)
        assert {each.stat().st_mode & 0o777 for each in (secrets, *secrets.iterdir())} == {0o755, 0o644}


@scene
async def what_operators_see(launcher: SystemdLauncher) -> None:
    """Slice, description, documentation, and the journal by TUNNEL_ID."""
    tunnel = Tunnel("Stunnel", Role.PROD, PORT)
    async with held(launcher, tunnel) as one:
        await one.serve(tunnel.program(launcher, APPLICATION), tunnel.keys)
        for unit in (tunnel.names.socket, tunnel.names.service):
            shown = call("systemctl", "show", "-p", "Slice,Documentation,Description,Transient", unit)
            assert "Slice=scistream.slice" in shown and "man:scistreamd(8)" in shown and "Transient=yes" in shown
            assert f"Description=SciStream tunnel {tunnel.uid.id}" in shown
        log = ("journalctl", "--output=cat", f"TUNNEL_ID={tunnel.uid.id}")
        await until(lambda: "Service [" in call(*log), "its own lines")


@scene
async def ports_of_others(launcher: SystemdLauncher) -> None:
    """All or nothing, and the port is named."""
    with socket.create_server((str(LOOPBACK), FURTHER_PORT)):
        tunnel = Tunnel("Haproxy", Role.PROD, PORT, FURTHER_PORT)
        try:
            await launcher.hold(tunnel.uid.id, tunnel.binds, tunnel.ear.told)
        except PortsBusy as busy:
            assert busy.ports == (FURTHER_PORT,)
        else:
            raise AssertionError("another program's port was held")
        assert listeners() == [FURTHER_PORT]
        # Taken between the look and the start: the socket unit fails.
        try:
            with launcher.keep([]) as kept:
                await launcher.start_units(tunnel.uid.id, tunnel.binds, kept)
        except PortsBusy as busy:
            assert busy.ports == (FURTHER_PORT,)
        else:
            raise AssertionError("another program's port was held")
        await launcher.stop_units(tunnel.uid.id)


@scene
async def held_against_others(launcher: SystemdLauncher) -> None:
    """The socket unit keeps the port, and a second tunnel of the same name is refused."""
    tunnel = Tunnel("Haproxy", Role.PROD, PORT)
    async with held(launcher, tunnel):
        with socket.socket() as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                other.bind((str(LOOPBACK), PORT))
                other.listen()
            except OSError:
                pass
            else:
                raise AssertionError("the port was not held")
        try:
            await launcher.hold(tunnel.uid.id, [Bind(endpoint(FURTHER_PORT))], tunnel.ear.told)
        except ScistreamError as refused:
            assert refused.code is Code.ALREADY_EXISTS, refused
        else:
            raise AssertionError("two tunnels of one id")
        assert (RUNTIME / tunnel.uid.id / "config").is_dir(), "the files are the first one's"
        assert listeners() == [PORT]


class Prowler(threading.Thread):
    """Another program that tries to bind a port all the time."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self.port, self.caught, self.over = port, 0, threading.Event()

    def run(self) -> None:
        while not self.over.is_set():
            with socket.socket() as mine, contextlib.suppress(OSError):
                mine.bind((str(LOOPBACK), self.port))
                self.caught += 1


@scene
async def nobody_gets_in_between(launcher: SystemdLauncher) -> None:
    """From the moment that a port was to be had until the socket unit listens on it."""
    tunnel, prowler, keep = Tunnel("Haproxy", Role.PROD, PORT), Prowler(FURTHER_PORT), launcher.keep
    further = Bind(endpoint(FURTHER_PORT))

    def keep_against(binds: Sequence[Bind]) -> Keep:
        kept = keep(binds)
        if further in binds:
            prowler.start()
        return kept

    async with held(launcher, tunnel) as one:
        setattr(launcher, "keep", keep_against)  # noqa: B010  # mypy takes no method's place
        await one.rebind([further, *tunnel.binds])
        prowler.over.set()
        prowler.join()
        assert prowler.caught == 0
        assert listeners() == [PORT, FURTHER_PORT]
        assert not tunnel.ear.heard


@scene
async def a_port_that_is_lost(launcher: SystemdLauncher) -> None:
    """A tunnel whose listeners are gone when they are changed has ended; it is told why."""
    tunnel, stop = Tunnel("Haproxy", Role.PROD, PORT), launcher.systemd.stop
    async with held(launcher, tunnel) as one:
        with socket.socket() as thief:
            thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)

            async def stop_and_steal(unit: str) -> None:
                await stop(unit)
                if unit == tunnel.names.socket and not tunnel.ear.heard:
                    with contextlib.suppress(OSError):  # it has it
                        thief.bind((str(LOOPBACK), PORT))
                        thief.listen()

            setattr(launcher.systemd, "stop", stop_and_steal)  # noqa: B010
            try:
                await one.rebind([Bind(endpoint(FURTHER_PORT))])
            except ScistreamError as lost:
                assert lost.code is Code.RESOURCE_EXHAUSTED and str(PORT) in lost.message, lost
            else:
                raise AssertionError("the port was not held")
        setattr(launcher.systemd, "stop", stop)  # noqa: B010
        assert "listeners were lost" in await asyncio.wait_for(tunnel.ear.ended, SECONDS)
    assert listeners() == []


@scene
async def other_listeners(launcher: SystemdLauncher) -> None:
    """`rebind`, to a free port and to a busy one."""
    tunnel = Tunnel("Haproxy", Role.PROD, PORT)
    async with held(launcher, tunnel) as one:
        await one.rebind([Bind(endpoint(FURTHER_PORT))])
        assert listeners() == [FURTHER_PORT]
        with socket.create_server((str(LOOPBACK), PORT)):
            try:
                await one.rebind([Bind(endpoint(PORT)), Bind(endpoint(FURTHER_PORT))])
            except PortsBusy as busy:
                assert busy.ports == (PORT,)
            else:
                raise AssertionError("another program's port was held")
        assert listeners() == [FURTHER_PORT]
        tunnel.binds = [Bind(endpoint(FURTHER_PORT)), Bind(endpoint(PORT))]
        await one.rebind(tunnel.binds)
        async with application(APPLICATION, b"1"), application(OTHER_APPLICATION, b"2"):
            tunnel.security = Security.NONE
            await one.serve(tunnel.program(launcher, APPLICATION, OTHER_APPLICATION), {})
            assert await greeting(FURTHER_PORT) == b"1"
            assert await greeting(PORT) == b"2"
        assert not tunnel.ear.heard


async def _stopped(launcher: SystemdLauncher, stop: Callable[[Tunnel], str], serve: bool) -> None:
    tunnel = Tunnel("Haproxy", Role.PROD, PORT)
    one = await launcher.hold(tunnel.uid.id, tunnel.binds, tunnel.ear.told)
    if serve:
        await one.serve(tunnel.program(launcher, APPLICATION), tunnel.keys)
    call("systemctl", "stop", stop(tunnel))
    why = await asyncio.wait_for(tunnel.ear.ended, SECONDS)
    assert "was stopped on this host" in why and tunnel.names.socket in why, why
    await one.close()
    assert not tunnel.ear.failed.done()
    await assert_nothing_left()


@scene
async def stopped_by_hand(launcher: SystemdLauncher) -> None:
    """Stopping either unit, or the slice, ends the tunnel, and is told."""
    await _stopped(launcher, lambda tunnel: tunnel.names.service, serve=True)
    await _stopped(launcher, lambda tunnel: tunnel.names.socket, serve=True)
    await _stopped(launcher, lambda tunnel: tunnel.names.socket, serve=False)
    await _stopped(launcher, lambda tunnel: "scistream.slice", serve=True)


@scene
async def stopped_by_hand_and_badly(launcher: SystemdLauncher) -> None:
    """A data server that has to be killed at its stop ends its tunnel as well."""
    tunnel = Tunnel("Nginx", Role.PROD, PORT)
    one = await launcher.hold(tunnel.uid.id, tunnel.binds, tunnel.ear.told)
    await one.serve(tunnel.program(launcher, APPLICATION), tunnel.keys)
    (RUNTIME / tunnel.uid.id / "config" / "run.sh").write_text("trap '' TERM\nwhile :; do sleep 1; done\n")
    call("systemctl", "restart", tunnel.names.service)
    assert not tunnel.ear.heard
    call("systemctl", "stop", "--no-block", tunnel.names.service)
    await until(lambda: substate(tunnel.names.service) == "stop-sigterm", "told to stop")
    call("systemctl", "kill", "--signal=KILL", tunnel.names.service)
    assert "was stopped on this host" in await asyncio.wait_for(tunnel.ear.ended, SECONDS)
    await one.close()


@scene
async def restarted_by_hand(launcher: SystemdLauncher) -> None:
    """`systemctl restart` is no end."""
    tunnel = Tunnel("Nginx", Role.PROD, PORT)
    async with held(launcher, tunnel) as one:
        await one.serve(tunnel.program(launcher, APPLICATION), tunnel.keys)
        call("systemctl", "restart", tunnel.names.service)
        await one.serve(tunnel.program(launcher, APPLICATION), tunnel.keys)
        assert listeners() == [PORT]
        assert not tunnel.ear.heard


@scene
async def times(launcher: SystemdLauncher) -> None:
    """A limit ends the tunnel; a further one takes its place; none can be had again."""
    tunnel = Tunnel("Haproxy", Role.PROD, PORT)
    one = await launcher.hold(tunnel.uid.id, tunnel.binds, tunnel.ear.told)
    await one.serve(tunnel.program(launcher, APPLICATION), tunnel.keys)
    await until(lambda: not timers(), "a tunnel that serves has no end by itself")
    await one.limit(1)
    await one.limit(100)
    await one.limit(0)
    await until(lambda: not timers(), "no limit")
    await one.limit(1)
    began = time.monotonic()
    assert await asyncio.wait_for(tunnel.ear.ended, SECONDS) == "its time is over"
    assert time.monotonic() - began > 0.8
    await one.close()


@scene
async def reserved_for_too_long(launcher: SystemdLauncher) -> None:
    """Listeners that nobody serves on come free, and it is told why."""
    tunnel = Tunnel("Haproxy", Role.PROD, PORT)
    one = await SystemdLauncher(launcher.systemd, RUNTIME, reserved_seconds=1).hold(
        tunnel.uid.id, tunnel.binds, tunnel.ear.told
    )
    assert await asyncio.wait_for(tunnel.ear.ended, SECONDS) == "its time is over"
    await one.close()


@scene
async def a_caller_that_goes_away(launcher: SystemdLauncher) -> None:
    """Nothing stays of a hold that is cancelled, wherever it is."""
    for wait in (0, 0.001, 0.003, 0.01):
        tunnel = Tunnel("Haproxy", Role.PROD, PORT)
        holding = asyncio.create_task(launcher.hold(tunnel.uid.id, tunnel.binds, tunnel.ear.told))
        await asyncio.sleep(wait)
        holding.cancel()
        try:
            one = await holding
        except asyncio.CancelledError:
            pass
        else:
            await one.close()
        await assert_nothing_left()


@scene
async def time_without_a_daemon(launcher: SystemdLauncher) -> None:
    """Reserved ports come free, and a served tunnel ends, when nobody is there to do it."""
    short = SystemdLauncher(launcher.systemd, RUNTIME, reserved_seconds=1)
    waiting, serving = Tunnel("Haproxy", Role.PROD, PORT), Tunnel("Haproxy", Role.PROD, FURTHER_PORT)
    await short.hold(waiting.uid.id, waiting.binds, waiting.ear.told)
    other = await short.hold(serving.uid.id, serving.binds, serving.ear.told)
    await other.serve(serving.program(launcher, APPLICATION), serving.keys)
    await other.limit(2)
    await launcher.systemd.close()
    await until(lambda: not units(), "they end")
    assert listeners() == []
    assert not waiting.ear.heard and not serving.ear.heard
    await launcher.systemd.open()
    for tunnel in (waiting, serving):
        with contextlib.suppress(EndedMeanwhile):
            await launcher.adopt(tunnel.uid.id, tunnel.binds, None, tunnel.ear.told)
            raise AssertionError("it is adopted, and has ended")
        assert await launcher.adopt(tunnel.uid.id, tunnel.binds, None, tunnel.ear.told) is None


@scene
async def a_data_server_that_cannot_start(launcher: SystemdLauncher) -> None:
    """Its own reason is told, the port stays held, and a better program is taken."""
    for kind in TYPES:
        tunnel = Tunnel(kind, Role.PROD, PORT)
        async with held(launcher, tunnel) as one, application(APPLICATION, b"1"):
            tunnel.security = Security.NONE if kind != "Stunnel" else Security.TLS
            good = tunnel.program(launcher, APPLICATION)
            bad = dataclasses.replace(good, config=dict.fromkeys(good.config, "nonsense here;\n"))
            try:
                await one.serve(bad, tunnel.keys)
            except ScistreamError as refused:
                assert refused.code is Code.FAILED_PRECONDITION
                print(kind, refused.message)
                assert "ended at start (exit status 1)" in refused.message and "nonsense" in refused.message, (
                    refused.message
                )
            else:
                raise AssertionError("nonsense was served")
            assert listeners() == [PORT]
            await one.serve(good, tunnel.keys)
            assert not tunnel.ear.heard


@scene
async def a_program_that_is_missing(launcher: SystemdLauncher) -> None:
    """What is not there cannot run."""
    tunnel = Tunnel("Haproxy", Role.PROD, PORT)
    async with held(launcher, tunnel) as one:
        program = tunnel.program(launcher, APPLICATION)
        try:
            await one.serve(dataclasses.replace(program, argv=("no-such-program",)), tunnel.keys)
        except ScistreamError as refused:
            assert "no-such-program" in refused.message and refused.code is Code.FAILED_PRECONDITION, refused
        else:
            raise AssertionError("it was served")


@scene
async def a_retarget_that_is_refused(launcher: SystemdLauncher) -> None:
    """The data server runs on as it was, also after a crash."""
    for kind in TYPES:
        tunnel = Tunnel(kind, Role.PROD, PORT)
        async with held(launcher, tunnel) as one, application(APPLICATION, b"1"):
            if kind != "Stunnel":
                tunnel.security = Security.NONE
            await one.serve(tunnel.program(launcher, APPLICATION), tunnel.keys)
            again = tunnel.program(launcher, APPLICATION)
            try:
                await one.serve(
                    dataclasses.replace(again, config=dict.fromkeys(again.config, "nonsense here;\n")), tunnel.keys
                )
            except ScistreamError as refused:
                assert "did not take its new configuration" in refused.message, refused.message
                assert "nonsense" in refused.message, refused.message
            else:
                raise AssertionError("nonsense was served")
            call("systemctl", "kill", "--signal=KILL", tunnel.names.service)
            if kind != "Stunnel":
                while not await greeting(PORT):
                    pass
            await one.serve(tunnel.program(launcher, APPLICATION), tunnel.keys)
            assert not tunnel.ear.heard


@scene
async def a_crash_loop(launcher: SystemdLauncher) -> None:
    """It is told once, with the last words, and the port stays held until the tunnel is released."""
    tunnel = Tunnel("Haproxy", Role.PROD, PORT)
    async with held(launcher, tunnel) as one:
        await one.serve(tunnel.program(launcher, APPLICATION), tunnel.keys)
        (RUNTIME / tunnel.uid.id / "config" / "haproxy.cfg").write_text("nonsense here;\n")
        call("systemctl", "kill", "--signal=KILL", tunnel.names.service)
        why = await asyncio.wait_for(tunnel.ear.failed, SECONDS)
        print(why)
        assert "times in a row (exit status 1)" in why and why.count("nonsense") == 1
        assert listeners() == [PORT]
        assert not tunnel.ear.ended.done()


@scene
async def taken_over(launcher: SystemdLauncher) -> None:
    """A daemon that comes after goes on with what it finds, as if it had made it."""
    inbound, outbound = both("Haproxy")
    tokens = [await launcher.hold(each.uid.id, each.binds, each.ear.told) for each in (inbound, outbound)]
    program = inbound.program(launcher, APPLICATION)
    await tokens[0].serve(program, inbound.keys)
    await tokens[0].limit(100)
    await launcher.systemd.close()  # the first daemon is gone
    systemd = Systemd1()
    await systemd.open()
    after = SystemdLauncher(systemd, RUNTIME)
    assert await after.strangers([inbound.uid.id, outbound.uid.id]) == []
    strangers = await after.strangers([inbound.uid.id])
    assert strangers == [outbound.names.service, outbound.names.socket], strangers
    inbound.ear, outbound.ear = Ear(), Ear()
    near = await after.adopt(inbound.uid.id, inbound.binds, program, inbound.ear.told)
    far = await after.adopt(outbound.uid.id, outbound.binds, None, outbound.ear.told)
    assert near is not None and far is not None
    async with application(APPLICATION, b"1"), application(OTHER_APPLICATION, b"2"):
        await far.serve(outbound.program(after, PORT), outbound.keys)
        assert await greeting(FURTHER_PORT) == b"1"
        pid = call("systemctl", "show", "--value", "-p", "MainPID", inbound.names.service)
        await near.serve(inbound.program(after, OTHER_APPLICATION), inbound.keys)
        assert await greeting(FURTHER_PORT) == b"2"
        assert pid == call("systemctl", "show", "--value", "-p", "MainPID", inbound.names.service), "it was reloaded"
    await near.limit(1)
    assert await asyncio.wait_for(inbound.ear.ended, SECONDS) == "its time is over"
    call("systemctl", "stop", outbound.names.service)
    await asyncio.wait_for(outbound.ear.ended, SECONDS)
    await near.close()
    await far.close()
    assert await after.adopt(inbound.uid.id, inbound.binds, program, inbound.ear.told) is None
    await systemd.close()
    await launcher.systemd.open()


@scene
async def drained(launcher: SystemdLauncher) -> None:
    """Streams end by themselves; the last one's end is the tunnel's."""
    for kind in ("Haproxy", "Nginx"):
        tunnel = Tunnel(kind, Role.PROD, PORT)
        tunnel.security = Security.NONE
        async with held(launcher, tunnel) as one, application(APPLICATION, b"1"):
            await one.serve(tunnel.program(launcher, APPLICATION), tunnel.keys)
            async with stream(PORT) as (reader, writer):
                assert await reader.readexactly(1) == b"1"
                closing = asyncio.create_task(one.drain(SECONDS))
                await asyncio.sleep(0.5)
                writer.write(b"runs on")
                assert await asyncio.wait_for(reader.readexactly(7), SECONDS) == b"runs on"
                assert not closing.done()
            began = time.monotonic()
            await closing
            assert time.monotonic() - began < SECONDS / 2, "it ended with its last stream"
        assert not tunnel.ear.heard
        await assert_nothing_left()


@scene
async def the_bus_comes_back(launcher: SystemdLauncher) -> None:
    """What happened while the connection was lost is told when it is there again."""
    tunnel = Tunnel("Haproxy", Role.PROD, PORT)
    one = await launcher.hold(tunnel.uid.id, tunnel.binds, tunnel.ear.told)
    await one.serve(tunnel.program(launcher, APPLICATION), tunnel.keys)
    lost = launcher.systemd._bus
    assert lost is not None
    lost._sock.shutdown(socket.SHUT_RDWR)
    call("systemctl", "stop", tunnel.names.socket)
    await asyncio.wait_for(tunnel.ear.ended, SECONDS)
    await one.close()
    assert launcher.systemd._bus is not lost


@scene
async def systemd_is_reloaded(launcher: SystemdLauncher) -> None:
    """As packages do it when they are installed: tunnels run on, and are watched as before."""
    waiting, serving = Tunnel("Nginx", Role.PROD, FURTHER_PORT), Tunnel("Nginx", Role.PROD, PORT)
    serving.security = Security.NONE
    async with held(launcher, waiting) as other, application(APPLICATION, b"1"), application(OTHER_APPLICATION, b"2"):
        one = await launcher.hold(serving.uid.id, serving.binds, serving.ear.told)
        await one.serve(serving.program(launcher, APPLICATION), {})
        async with stream(PORT) as (reader, writer):
            assert await reader.readexactly(1) == b"1"
            for word in ("daemon-reload", "daemon-reexec", "daemon-reload"):
                await asyncio.to_thread(call, "systemctl", word)
                await one.serve(serving.program(launcher, OTHER_APPLICATION), {})
                assert await greeting(PORT) == b"2"
            writer.write(b"runs on")
            assert await asyncio.wait_for(reader.readexactly(7), SECONDS) == b"runs on"
        assert not waiting.ear.heard and not serving.ear.heard
        await other.serve(waiting.program(launcher, APPLICATION), waiting.keys)
        await one.limit(100)
        call("systemctl", "kill", "--signal=KILL", serving.names.service)
        while not (again := await greeting(PORT)):
            pass
        assert again == b"2"
        call("systemctl", "stop", serving.names.service)
        assert "was stopped" in await asyncio.wait_for(serving.ear.ended, SECONDS)
        await one.close()
        assert not waiting.ear.heard


@scene
async def many(launcher: SystemdLauncher) -> None:
    """Forty at a time."""
    tunnels = [Tunnel("Nginx", Role.PROD, 5200 + number) for number in range(40)]
    began = time.monotonic()
    every = await asyncio.gather(*(launcher.hold(each.uid.id, each.binds, each.ear.told) for each in tunnels))
    held_by = time.monotonic()
    pairs = zip(tunnels, every, strict=True)
    await asyncio.gather(*(one.serve(each.program(launcher, APPLICATION), each.keys) for each, one in pairs))
    served_by = time.monotonic()
    await asyncio.gather(*(one.close() for one in every))
    print(f"hold {held_by - began:.2f} serve {served_by - held_by:.2f} close {time.monotonic() - served_by:.2f} s")
    assert not any(each.ear.heard for each in tunnels)


@scene
async def more_than_the_bus_lets_one_ask_at_once(launcher: SystemdLauncher) -> None:
    """It refuses the 129th call that waits for its reply."""
    tunnels = [Tunnel("Nginx", Role.PROD, 5200 + number) for number in range(150)]
    every = await asyncio.gather(*(launcher.hold(each.uid.id, each.binds, each.ear.told) for each in tunnels))
    after = SystemdLauncher(launcher.systemd, RUNTIME)
    async with after.survey():
        adopted = await asyncio.gather(*(after.adopt(each.uid.id, each.binds, None, each.ear.told) for each in tunnels))
        # Between the look and now: it is told at the end.
        await asyncio.to_thread(call, "systemctl", "stop", tunnels[0].names.socket)
    assert all(adopted)
    await asyncio.wait_for(tunnels[0].ear.ended, SECONDS)
    assert not any(each.ear.heard for each in tunnels[1:])
    await asyncio.gather(*(one.close() for one in adopted if one))
    assert every


async def run(names: Sequence[str]) -> None:
    RUNTIME.mkdir(mode=0o700, exist_ok=True)
    systemd = Systemd1()
    await systemd.open()
    try:
        for name in names:
            print(f"== {name}", flush=True)
            await SCENES[name](SystemdLauncher(systemd, RUNTIME))
            await assert_nothing_left()
    finally:
        await systemd.close()
    left = asyncio.all_tasks() - {asyncio.current_task()}
    assert not left, left


if __name__ == "__main__":
    asyncio.run(run(sys.argv[1:] or list(SCENES)))
