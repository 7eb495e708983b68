"""allow-from: real clients from allowed and other addresses, each layer that enforces it alone and all together."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

import pytest

from scistreamd.config import Settings
from scistreamd.errors import Code, ScistreamError
from scistreamd.gate import Gate, Grant, Verb
from scistreamd.guard import Guard
from scistreamd.interfaces import Flow, Told, Traffic
from scistreamd.kernel import kernel_traffic
from scistreamd.keys import TunnelKeys
from scistreamd.manager import Manager
from scistreamd.model import Caller, Endpoint, IPNetwork, Listen, Options, PortRange, Role, Security, Target
from scistreamd.network import HostNetwork
from scistreamd.nfttable import NftTable
from scistreamd.plans import Bind
from scistreamd.process import ProcessLauncher
from scistreamd.process_held import ProcessHeld
from scistreamd.runtime import runtime_directory
from tests.service.netns_kit import in_netns, run

LOOPBACK = ipaddress.ip_address("127.0.0.1")
ANY = ipaddress.ip_address("::")
CALLER = Caller("test", peer=LOOPBACK, reached=LOOPBACK)
SETTINGS = Settings(
    listen_inbound=ANY,
    port_range=PortRange(26200, 26209),
    allowed_security=frozenset(Security),
)
FRIENDS = ("10.0.0.1/32", "10.0.0.8/29", "2001:db8::/64")
WORD = b"through\n"


class BareLauncher(ProcessLauncher):
    """Stands for a launcher whose listeners take everyone, as socket units do."""

    @property
    def filters_sources(self) -> bool:
        return False

    async def hold(self, tunnel_id: str, binds: Sequence[Bind], told: Told) -> ProcessHeld:
        return await super().hold(tunnel_id, [replace(each, allow_from=()) for each in binds], told)


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(WORD)
    with contextlib.suppress(ConnectionResetError):
        await writer.drain()
        await reader.read()
    writer.close()


@contextlib.asynccontextmanager
async def gateway(*, filters: bool, nft: bool) -> AsyncIterator[tuple[Manager, Target]]:
    for address in ("10.0.0.1", "10.0.0.9", "10.0.0.2", "2001:db8::1", "2001:db8:1::1"):
        run("ip", "address", "add", address, "dev", "lo", *(["nodad"] if ":" in address else []))
    network = HostNetwork(5)
    # Its judgement of targets is another matter.
    gate = Gate(replace(SETTINGS, listen_inbound=LOOPBACK, listen_outbound=LOOPBACK), network)
    application = await asyncio.start_server(serve, "127.0.0.1", 26299)
    async with contextlib.AsyncExitStack() as undo:
        runtime = undo.enter_context(runtime_directory())
        launcher = ProcessLauncher(runtime) if filters else BareLauncher(runtime)
        traffic: tuple[Traffic, ...] = (
            await undo.enter_async_context(kernel_traffic(Settings(), lasting=False)) if nft else ()
        )
        manager = Manager(SETTINGS, gate, TunnelKeys(), lambda kind: launcher, ANY, traffic=traffic)
        undo.push_async_callback(manager.close)
        undo.callback(network.close)
        undo.callback(application.close)
        yield manager, Target.parse("127.0.0.1:26299")


async def reaches(source: str, port: int, seconds: float = 20) -> str:
    """``through``, ``refused`` (at once), ``silence`` (no answer), or ``cut`` (connected, and then ended)."""
    far = "2001:db8::1" if ":" in source else "10.0.0.1"
    try:
        opened = asyncio.open_connection(far, port, local_addr=(source, 0))
        reader, writer = await asyncio.wait_for(opened, seconds)
    except ConnectionRefusedError:
        return "refused"
    except asyncio.TimeoutError:
        return "silence"
    except ConnectionResetError:
        return "cut"
    try:
        return "through" if await reader.readline() == WORD else "cut"
    except ConnectionResetError:
        return "cut"
    finally:
        writer.close()


async def create(manager: Manager, target: Target, kind: str, allowed: Sequence[str], role: Role = Role.PROD) -> int:
    networks: tuple[IPNetwork, ...] = tuple(map(ipaddress.ip_network, allowed))
    security = Security.TLS if kind.startswith("Stunnel") else Security.NONE
    listen = (Listen(ipaddress.ip_address("10.0.0.1")),) if role is Role.CONS else ()
    asked = Options(data_server=kind, security=security, allow_from=networks, listen=listen)
    _, view = await manager.create(Grant(CALLER, Verb.CREATE), role, (target,), asked)
    return view.listeners[0].port


FRIENDLY, OTHER = ("10.0.0.1", "10.0.0.9", "2001:db8::1"), ("10.0.0.2", "2001:db8:1::1", "127.0.0.1")


async def outcome(port: int, others: str) -> dict[str, str]:
    """How each is met; where ``others`` are to meet silence, they are not waited for as long as on a busy machine."""
    patience = [20] * len(FRIENDLY) + [0.7 if others == "silence" else 20] * len(OTHER)
    sources = (*FRIENDLY, *OTHER)
    found = await asyncio.gather(
        *(reaches(source, port, seconds) for source, seconds in zip(sources, patience, strict=True))
    )
    return dict(zip(sources, found, strict=True))


def judged(friends: str, others: str) -> dict[str, str]:
    return {**dict.fromkeys(FRIENDLY, friends), **dict.fromkeys(OTHER, others)}


@pytest.mark.parametrize(
    ("filters", "nft", "kind", "others"),
    [
        (True, True, "Haproxy", "refused"),
        (False, True, "Haproxy", "refused"),
        (False, True, "Nginx", "refused"),
        (True, False, "Haproxy", "silence"),
        (True, False, "Nginx", "silence"),
        (False, False, "Haproxy", "cut"),
        (False, False, "Nginx", "cut"),
    ],
)
@in_netns
async def test_who_is_let_in(filters: bool, nft: bool, kind: str, others: str) -> None:
    async with gateway(filters=filters, nft=nft) as (manager, target):
        open_to_all = await create(manager, target, kind, ())
        assert await outcome(open_to_all, "through") == judged("through", "through")
        port = await create(manager, target, kind, FRIENDS)
        assert await outcome(port, others) == judged("through", others)


@pytest.mark.parametrize(("filters", "nft", "others"), [(True, True, "refused"), (True, False, "silence")])
@in_netns
async def test_stunnel_refuses_before_tls(filters: bool, nft: bool, others: str) -> None:
    async with gateway(filters=filters, nft=nft) as (manager, target):
        port = await create(manager, target, "Stunnel", FRIENDS)
        # A client that says nothing is dropped by Stunnel itself, but only after it was accepted.
        found = await outcome(port, others)
        assert {source for source, how in found.items() if how == others} == set(OTHER)
        assert others not in {found[source] for source in FRIENDLY}


@in_netns
async def test_on_the_outbound_side_too() -> None:
    async with gateway(filters=False, nft=True) as (manager, target):
        port = await create(manager, target, "Haproxy", ["10.0.0.9"], Role.CONS)
        found = [await reaches(source, port) for source in ("10.0.0.9", "10.0.0.1", "10.0.0.2")]
        assert found == ["through", "refused", "refused"]


@in_netns
async def test_streams_of_before_go_on_while_rules_change() -> None:
    async with gateway(filters=False, nft=True) as (manager, target):
        port = await create(manager, target, "Haproxy", FRIENDS)
        reader, writer = await asyncio.open_connection("10.0.0.1", port, local_addr=("10.0.0.1", 0))
        assert await reader.readline() == WORD
        others = [await create(manager, target, "Nginx", ["10.0.0.2"]) for _ in range(3)]
        assert await reaches("10.0.0.2", others[2]) == "through"
        writer.write_eof()
        assert await reader.read() == b""
        writer.close()


@in_netns
async def test_without_nftables_what_refuses_nobody_by_itself_is_not_made() -> None:
    async with contextlib.AsyncExitStack() as undo:
        table = NftTable("scistream", lasting=True)
        undo.push_async_callback(table.close)
        run("nft", "add table inet scistream")  # one that is not ours
        guard = Guard(table)
        bind = Bind(Endpoint(LOOPBACK, 26200), allow_from=(ipaddress.ip_network("10.0.0.0/8"),))
        flow = Flow("0123456789ab", Role.PROD, (bind,), allow_from=bind.allow_from)
        with pytest.raises(ScistreamError, match="allow-from: this data server type refuses nobody") as caught:
            await guard.apply(flow)
        assert caught.value.code is Code.FAILED_PRECONDITION
        assert await guard.apply(replace(flow, guarded=True)) == ()
        assert "not enforced" in (await guard.reconcile([flow]))[flow.tunnel_id][0]
        assert await guard.reconcile([replace(flow, guarded=True)]) == {}


@in_netns
async def test_after_a_crash_the_rules_of_tunnels_that_are_gone_go_too() -> None:
    networks = (ipaddress.ip_network("10.0.0.0/8"),)
    flows = [
        Flow(name * 12, Role.PROD, (Bind(Endpoint(LOOPBACK, port), True, networks),), allow_from=networks)
        for name, port in (("a", 26200), ("b", 26201))
    ]
    before = NftTable("scistream", lasting=True)
    guard = Guard(before)
    for flow in flows:
        await guard.apply(flow)
    await before.close()
    after = NftTable("scistream", lasting=True)
    guard = Guard(after)
    await guard.reconcile(flows[1:])
    assert await after.chains() == {"guard": 3, "guard-bbbbbbbbbbbb": 3}
    await guard.forget("b" * 12)
    assert run("nft", "list", "ruleset") == ""
    await guard.reconcile([])
    await after.close()
