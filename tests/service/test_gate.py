"""The gate with this host's own resolver and routing tables."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterator
from dataclasses import replace

import pytest

from scistreamd.config import Settings
from scistreamd.errors import Code, ScistreamError
from scistreamd.gate import Gate, Grant, Verb
from scistreamd.identity import Challenge, Credentials, Identity
from scistreamd.model import Caller, Security, Target
from scistreamd.network import HostNetwork

LOOPBACK = ipaddress.ip_address("127.0.0.1")


@pytest.fixture
def network() -> Iterator[HostNetwork]:
    made = HostNetwork(5)
    yield made
    made.close()


def own_addresses() -> list[str]:
    """Addresses of this host beside loopback and link-local ones, found without the code under test."""
    names = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None)}
    return sorted(str(name) for name in names if not ipaddress.ip_address(name).is_loopback)


async def refusal(gate: Gate, *targets: str) -> ScistreamError:
    with pytest.raises(ScistreamError) as caught:
        await gate.addresses([Target.parse(each) for each in targets])
    return caught.value


async def test_a_gateway_in_the_open_forwards_to_other_hosts_only(network: HostNetwork) -> None:
    gate = Gate(Settings(), network)
    for target in [
        "127.0.0.1:1",
        "[::1]:1",
        "localhost:1",
        *(f"{each}:1" for each in own_addresses() if ":" not in each),
    ]:
        refused = await refusal(gate, "198.51.100.7:1", target)
        assert refused.code is Code.PERMISSION_DENIED
        assert target in refused.message
    fine = await gate.addresses([Target.parse("198.51.100.7:1"), Target.parse("[2001:db8::7]:2")])
    assert [str(each) for one in fine for each in one] == ["198.51.100.7:1", "[2001:db8::7]:2"]


async def test_local_is_what_the_kernel_delivers_here(network: HostNetwork) -> None:
    local = {ipaddress.ip_address(each) for each in ["127.0.0.1", "127.9.9.9", "::1"]}
    others = {ipaddress.ip_address(each) for each in ["198.51.100.7", "2001:db8::7", "203.0.113.1"]}
    assert await network.local(local | others) == local


async def test_a_gateway_on_loopback_may_target_loopback_and_no_more(network: HostNetwork) -> None:
    alone = Settings(listen_inbound=LOOPBACK, listen_outbound=LOOPBACK)
    gate = Gate(alone, network)
    [addresses] = await gate.addresses([Target.parse("localhost:7")])
    assert {str(each.address) for each in addresses} <= {"127.0.0.1", "::1"}
    assert (await refusal(gate, "169.254.169.254:80")).code is Code.PERMISSION_DENIED
    half = replace(alone, listen_outbound=None)
    assert (await refusal(Gate(half, network), "127.0.0.1:7")).code is Code.PERMISSION_DENIED


@pytest.mark.parametrize("name", ["no.such.host.invalid:1", "a.invalid:1"])
async def test_a_name_that_does_not_resolve(network: HostNetwork, name: str) -> None:
    refused = await refusal(Gate(Settings(), network), name)
    assert refused.code is Code.INVALID_ARGUMENT
    assert name.rpartition(":")[0] in refused.message


def test_security_by_default_and_by_leave(network: HostNetwork) -> None:
    every = frozenset(Security)
    assert Gate(Settings(), network).security(None, every) is Security.TLS
    with pytest.raises(ScistreamError, match="does not allow none, but tls") as caught:
        Gate(Settings(), network).security(Security.NONE, every)
    assert caught.value.code is Code.PERMISSION_DENIED
    open_gate = Gate(Settings(default_security=Security.NONE, allowed_security=every), network)
    assert open_gate.security(None, every) is Security.NONE
    assert open_gate.security(Security.TLS, every) is Security.TLS
    with pytest.raises(ScistreamError, match="cannot do none"):
        open_gate.security(None, frozenset({Security.TLS}))


@pytest.mark.parametrize("peer", ["127.0.0.1", "127.9.9.9", "::1", None])
def test_who_has_proved_nothing_is_served_on_loopback(network: HostNetwork, peer: str | None) -> None:
    caller = Caller("gRPC", peer=ipaddress.ip_address(peer) if peer else None)
    for verb in Verb:
        assert Gate(Settings(), network).admit(caller, verb) == Grant(caller, verb)


@pytest.mark.parametrize("peer", ["192.0.2.9", "2001:db8::9", "fe80::1"])
def test_who_has_proved_nothing_is_not_served_elsewhere_unless_opened(network: HostNetwork, peer: str) -> None:
    caller = Caller("gRPC", peer=ipaddress.ip_address(peer))
    gate = Gate(Settings(), network)
    for verb in Verb:
        with pytest.raises(ScistreamError) as caught:
            gate.admit(caller, verb)
        assert caught.value.code is Code.UNAUTHENTICATED
        assert "require_auth = false" in caught.value.hint
    assert gate.admit(replace(caller, identity=Identity("token", "1", "somebody")), Verb.CREATE)
    gate.reconfigure(Settings(require_auth=False))
    assert gate.admit(caller, Verb.CREATE)


ALICE = Identity("token", "1", "alice")


class Authenticator:
    """Vouches for one token, does not know others, and may be out of reach."""

    def __init__(self, token: str, identity: Identity, *, reachable: bool = True) -> None:
        self.challenge = Challenge("token", (("realm", identity.name),))
        self.token, self.identity, self.reachable = token, identity, reachable

    async def identify(self, credentials: Credentials) -> Identity | None:
        if not self.reachable:
            raise ScistreamError(Code.UNAVAILABLE, "the provider does not answer")
        return self.identity if credentials.token == self.token else None


FAR = Caller("gRPC", peer=ipaddress.ip_address("192.0.2.9"))


async def test_the_first_authenticator_that_knows_the_credentials_decides(network: HostNetwork) -> None:
    bob = Identity("token", "2", "bob")
    gate = Gate(
        Settings(), network, None, [Authenticator("a", ALICE), Authenticator("a", bob), Authenticator("b", bob)]
    )
    assert (await gate.identify(FAR, Credentials("a"))).identity == ALICE
    assert (await gate.identify(FAR, Credentials("b"))).identity == bob
    assert await gate.identify(FAR, Credentials()) == FAR
    with pytest.raises(ScistreamError) as caught:
        await gate.identify(FAR, Credentials("c"))
    assert caught.value.code is Code.UNAUTHENTICATED
    assert caught.value.challenges == ('token realm="alice"', 'token realm="bob"', 'token realm="bob"')
    assert Gate(Settings(), network).admit(replace(FAR, identity=ALICE), Verb.CREATE)


async def test_a_provider_out_of_reach_fails_closed_and_hides_no_other(network: HostNetwork) -> None:
    gone = Authenticator("a", ALICE, reachable=False)
    gate = Gate(Settings(), network, None, [gone, Authenticator("b", ALICE)])
    assert (await gate.identify(FAR, Credentials("b"))).identity == ALICE
    with pytest.raises(ScistreamError) as caught:
        await gate.identify(FAR, Credentials("a"))
    assert caught.value.code is Code.UNAVAILABLE


def test_where_one_can_prove_oneself_loopback_must_too(network: HostNetwork) -> None:
    gate = Gate(Settings(), network, None, [Authenticator("a", ALICE)])
    here = Caller("gRPC", peer=ipaddress.ip_address("127.0.0.1"))
    with pytest.raises(ScistreamError) as caught:
        gate.admit(here, Verb.CREATE)
    assert caught.value.code is Code.UNAUTHENTICATED
    assert caught.value.challenges
    gate.reconfigure(Settings(require_auth=False))
    assert gate.admit(here, Verb.CREATE)
