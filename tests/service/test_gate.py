"""The gate with this host's own resolver and routing tables."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterator, Set
from dataclasses import replace

import pytest

from scistreamd.config import Auth, Failures, Settings
from scistreamd.errors import Code, ScistreamError
from scistreamd.gate import Gate, Grant, Verb
from scistreamd.identity import Challenge, Credentials, Identity
from scistreamd.model import Caller, Endpoint, IPAddress, Role, Security, Target
from scistreamd.network import HostNetwork
from scistreamd.rulefile import join, parse, parse_some
from scistreamd.rules import Question

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


CALLER = Caller("gRPC", peer=LOOPBACK)


async def addresses(
    gate: Gate, *targets: str, role: Role = Role.CONS, caller: Caller = CALLER
) -> tuple[tuple[Endpoint, ...], ...]:
    question = Question("create", caller.identity, caller.peer, role=role)
    grant = Grant(caller, Verb.CREATE)
    _, found = await gate.targets(grant, question, [Target.parse(each) for each in targets])
    return found


async def refusal(gate: Gate, *targets: str, role: Role = Role.CONS, caller: Caller = CALLER) -> ScistreamError:
    with pytest.raises(ScistreamError) as caught:
        await addresses(gate, *targets, role=role, caller=caller)
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
    fine = await addresses(gate, "198.51.100.7:1", "[2001:db8::7]:2")
    assert [str(each) for one in fine for each in one] == ["198.51.100.7:1", "[2001:db8::7]:2"]


OWN = ipaddress.ip_address("192.0.2.53")


@pytest.fixture
def host() -> Iterator[HostNetwork]:
    """This host as if it had the address OWN too."""

    class Host(HostNetwork):
        async def local(self, addresses: Set[IPAddress]) -> frozenset[IPAddress]:
            return frozenset(addresses & {OWN}) | await super().local(addresses)

    made = Host(5)
    yield made
    made.close()


NEAR = Settings(lan=(ipaddress.ip_network("192.0.2.0/24"),))
HERE = Caller("gRPC", peer=OWN, reached=OWN)


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("target", [f"{OWN}:5300", f"[::ffff:{OWN}]:5300"])
async def test_the_gateway_itself_is_no_target_whoever_asks(host: HostNetwork, role: Role, target: str) -> None:
    gate = Gate(NEAR, host)
    elsewhere = Caller("gRPC", peer=ipaddress.ip_address("198.51.100.7"), reached=OWN)
    for caller in (HERE, elsewhere, CALLER, replace(CALLER, peer=None, user=0)):
        refused = await refusal(gate, target, role=role, caller=caller)
        assert refused.code is Code.PERMISSION_DENIED
        assert "gateway itself" in refused.message


async def test_s2cs_without_options_takes_the_address_that_its_own_host_dials(host: HostNetwork) -> None:
    """SciStream's example for containers has client, gateway and application on one host."""
    gate = Gate(NEAR, host)
    gate.for_own_host = True
    gate.control_ports = frozenset({5000})
    assert await addresses(gate, f"{OWN}:5300", role=Role.PROD, caller=HERE) == ((Endpoint(OWN, 5300),),)
    elsewhere = Caller("gRPC", peer=ipaddress.ip_address("198.51.100.7"), reached=OWN)
    by_loopback = replace(CALLER, reached=LOOPBACK)
    other_door = replace(HERE, reached=ipaddress.ip_address("192.0.2.54"))
    for target, caller in (
        *((f"{OWN}:5300", caller) for caller in (elsewhere, by_loopback, other_door)),
        *((f"{OWN}:{port}", HERE) for port in (5000, 5100, 5200)),  # the gateway's own ports
        ("127.0.0.1:5300", HERE),
        ("169.254.169.254:80", HERE),
    ):
        assert (await refusal(gate, target, role=Role.PROD, caller=caller)).code is Code.PERMISSION_DENIED


async def test_lan_opens_what_it_names_alone(host: HostNetwork) -> None:
    named = Settings(lan=(ipaddress.ip_network(f"{OWN}/32"), ipaddress.ip_network("127.0.0.0/8")))
    for settings in (named, replace(named, policy=join((), parse([{"anonymous": True, "targets": ["lan:5300"]}])))):
        gate = Gate(settings, host)
        for target in (f"{OWN}:5300", "127.0.0.1:5300"):
            assert await addresses(gate, target, role=Role.PROD)
    assert (await refusal(Gate(named, host), f"{OWN}:5300", role=Role.CONS)).code is Code.PERMISSION_DENIED
    assert (await refusal(Gate(NEAR, host), f"{OWN}:5300", role=Role.PROD)).code is Code.PERMISSION_DENIED


async def test_an_address_in_other_clothes_is_judged_as_what_it_is(network: HostNetwork) -> None:
    rules = [{"effect": "deny", "anonymous": True, "targets": ["10.9.0.0/16"]}, {"anonymous": True, "targets": ["any"]}]
    gate = Gate(Settings(policy=join((), parse(rules))), network)
    assert (await refusal(gate, "[::ffff:10.9.0.5]:80")).code is Code.PERMISSION_DENIED
    [found] = await addresses(gate, "[::ffff:10.8.0.5]:80")
    assert [str(each) for each in found] == ["10.8.0.5:80"]


async def test_local_is_what_the_kernel_delivers_here(network: HostNetwork) -> None:
    local = {ipaddress.ip_address(each) for each in ["127.0.0.1", "127.9.9.9", "::1"]}
    others = {ipaddress.ip_address(each) for each in ["198.51.100.7", "2001:db8::7", "203.0.113.1"]}
    assert await network.local(local | others) == local


async def test_a_gateway_on_loopback_may_target_loopback_and_no_more(network: HostNetwork) -> None:
    alone = Settings(listen_inbound=LOOPBACK, listen_outbound=LOOPBACK)
    gate = Gate(alone, network)
    for role in Role:
        [found] = await addresses(gate, "localhost:7", role=role)
        assert {str(each.address) for each in found} <= {"127.0.0.1", "::1"}
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
    assert caught.value.challenges == ('token realm="alice"', 'token realm="bob"')
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


async def test_strangers_at_an_address_are_slowed_down_when_they_keep_trying(network: HostNetwork) -> None:
    auth = Auth(failures=Failures(burst=3, per_minute=1))
    gate = Gate(Settings(auth=auth, require_auth=False), network, None, [Authenticator("a", ALICE)])
    gate.failed(FAR, Code.INVALID_ARGUMENT)
    for _ in range(29):
        assert await gate.identify(FAR, Credentials()) == FAR
        gate.failed(FAR, Code.NOT_FOUND)
    gate.failed(FAR, Code.PERMISSION_DENIED)
    with pytest.raises(ScistreamError) as caught:
        await gate.identify(FAR, Credentials())
    assert caught.value.code is Code.RESOURCE_EXHAUSTED
    elsewhere = replace(FAR, peer=ipaddress.ip_address("192.0.2.10"))
    assert await gate.identify(elsewhere, Credentials()) == elsewhere
    assert (await gate.identify(FAR, Credentials("a"))).identity == ALICE


async def test_inbound_tunnels_serve_the_facility_and_outbound_ones_reach_any_peer(network: HostNetwork) -> None:
    gate = Gate(Settings(), network)
    for inside in ("10.1.2.3:1", "172.16.9.9:1", "192.168.7.7:1", "[fd12::7]:1"):
        assert await addresses(gate, inside, role=Role.PROD)
    refused = await refusal(gate, "10.1.2.3:1", "203.0.113.7:1", role=Role.PROD)
    assert (refused.code, "203.0.113.7:1" in refused.message) == (Code.PERMISSION_DENIED, True)
    assert "lan" in refused.hint
    assert await addresses(gate, "203.0.113.7:1", role=Role.CONS)
    named = Settings(lan=(ipaddress.ip_network("203.0.113.0/24"),))
    assert await addresses(Gate(named, network), "203.0.113.7:1", role=Role.PROD)
    assert (await refusal(Gate(named, network), "10.1.2.3:1", role=Role.PROD)).code is Code.PERMISSION_DENIED
    root = replace(CALLER, peer=None, user=0)
    assert await addresses(gate, "203.0.113.7:1", role=Role.PROD, caller=root)
    assert (await refusal(gate, "127.0.0.1:1", role=Role.PROD, caller=root)).code is Code.PERMISSION_DENIED


async def test_the_attached_networks_are_those_of_the_interfaces(network: HostNetwork) -> None:
    attached = await network.attached()
    assert ipaddress.ip_network("127.0.0.0/8") in attached
    assert all(each.num_addresses > 1 for each in attached)


@pytest.mark.parametrize(
    ("special", "named"),
    [
        ("127.0.0.1:80", "127.0.0.1:80"),
        ("127.0.0.1:80", "127.0.0.0/8:80"),
        ("[::1]:80", "[::1]:80"),
        ("169.254.9.9:80", "169.254.0.0/16"),
    ],
)
async def test_what_is_no_target_is_opened_by_a_rule_that_names_it_alone(
    network: HostNetwork, special: str, named: str
) -> None:
    def gate(*rules: dict[str, object]) -> Gate:
        return Gate(Settings(policy=join((), parse(list(rules)))), network)

    anybody = {"anonymous": True}
    assert await addresses(gate({**anybody, "targets": [named]}), special)
    for wide in ("any", "0.0.0.0/0", "::/0", "any:80"):
        assert (await refusal(gate({**anybody, "targets": [wide]}), special)).code is Code.PERMISSION_DENIED
    # Named for another, wide for this one: the rule that decides must be the one that names.
    both = gate({"user": "alice", "targets": [named]}, {**anybody, "targets": ["any"]})
    assert (await refusal(both, special)).code is Code.PERMISSION_DENIED
    assert (await refusal(gate({**anybody, "targets": [named]}), "127.0.0.1:81")).code is Code.PERMISSION_DENIED or (
        ":80" not in named
    )


def test_the_grant_tells_the_audit_which_rule_decided(network: HostNetwork) -> None:
    rules = join((), parse([{"name": "alices", "user": "alice"}, {"name": "no bobs", "user": "bob", "effect": "deny"}]))
    gate = Gate(Settings(policy=rules), network)
    for name, rule, allowed in (("alice", "alices", True), ("bob", "no bobs", False), ("carol", "none", False)):
        identity = Identity("oauth2", f"issuer#{name}", name)
        grant = Grant(replace(CALLER, identity=identity), Verb.CREATE)
        question = Question("create", identity, CALLER.peer, role=Role.PROD)
        if allowed:
            gate.permit(grant, question)
        else:
            with pytest.raises(ScistreamError) as caught:
                gate.permit(grant, question)
            assert caught.value.code is Code.PERMISSION_DENIED
        assert grant.decided.rule == rule


def test_administrators_are_named(network: HostNetwork) -> None:
    alice = replace(CALLER, identity=Identity("oauth2", "1", "alice@example.org", groups=frozenset({"operators"})))
    assert not Gate(Settings(), network).administers(alice)
    for names in ({"user": "alice@example.org"}, {"group": ["operators"]}, {"domain": "EXAMPLE.org"}):
        gate = Gate(Settings(administrators=parse_some(names, "auth.administrators")), network)
        assert gate.administers(alice)
        assert not gate.administers(replace(alice, identity=replace(alice.identity or ALICE, method="token")))
        assert not gate.administers(CALLER)
    assert Gate(Settings(), network).administers(replace(CALLER, user=0))
    assert not Gate(Settings(), network).administers(replace(CALLER, user=1000))
