"""Policy rules: who may have which tunnels; decided by the first rule that fits.

Pure: the question brings everything, addresses resolved. `rulefile` reads
rules from the configuration. Which addresses are no targets at all, says
`policy.why_no_target`; a rule opens those only where it names them.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from scistreamd.identity import Identity
from scistreamd.model import Endpoint, IPAddress, IPNetwork, Options, PortRange, Role, Security, Target

# What a rule may speak of; `hello` is not: whoever knows the UID may say it.
VERBS = ("create", "update", "release", "reveal")
ALL_PORTS = PortRange(1, 65535)

# RFC 1918 and RFC 4193; `lan` has these and the attached networks unless it is configured.
PRIVATE: tuple[IPNetwork, ...] = tuple(
    ipaddress.ip_network(text) for text in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")
)
LOOPBACK: tuple[IPNetwork, ...] = (ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128"))
# A rule names such an address only with a network that lies in one of these whole.
_SPECIAL: tuple[IPNetwork, ...] = tuple(
    ipaddress.ip_network(text) for text in ("127.0.0.0/8", "::1/128", "169.254.0.0/16", "fe80::/10")
)


@dataclass(frozen=True)
class Who:
    """Whom a rule is about: one of the names fits. No name at all: everyone who has proved to be somebody.

    ``anonymous``: and those who have proved nothing.
    """

    users: frozenset[str] = frozenset()
    groups: frozenset[str] = frozenset()
    domains: frozenset[str] = frozenset()
    certificates: frozenset[str] = frozenset()
    tokens: frozenset[str] = frozenset()
    local: frozenset[str] = frozenset()
    anonymous: bool = False

    def fits(self, identity: Identity | None) -> bool:
        """Whether this caller is meant; None is one who has proved nothing."""
        if identity is None:
            return self.anonymous
        if not any((self.users, self.groups, self.domains, self.certificates, self.tokens, self.local)):
            return True
        named = {
            "oauth2": self.users,
            "mtls": self.certificates,
            "token": self.tokens,
            "local": self.local,
        }.get(identity.method, frozenset())
        if named & (identity.names | {identity.key}):
            return True
        return identity.method == "oauth2" and bool(self.groups & identity.groups or self.domains & identity.domains)


@dataclass(frozen=True)
class Reach:
    """Targets that a rule allows. ``network`` None: the gateway's `lan`; ``everything``: any address."""

    network: IPNetwork | None = None
    ports: PortRange = ALL_PORTS
    everything: bool = False

    @property
    def is_lan(self) -> bool:
        """Whether the gateway's `lan` says which."""
        return self.network is None and not self.everything

    def covers(self, endpoint: Endpoint, lan: Sequence[IPNetwork]) -> bool:
        """Whether the endpoint is among them."""
        if endpoint.port not in self.ports:
            return False
        if self.everything:
            return True
        return inside(endpoint.address, lan if self.network is None else [self.network])

    def names(self, endpoint: Endpoint) -> bool:
        """Whether it means this very address, or a network of addresses that are no targets by default."""
        if self.network is None or not self.covers(endpoint, ()):
            return False
        return self.network.num_addresses == 1 or any(_within(self.network, special) for special in _SPECIAL)

    def __str__(self) -> str:
        where = "any" if self.everything else str(self.network or "lan")
        if self.ports == ALL_PORTS:
            return where
        ports = str(self.ports.first) if len(self.ports) == 1 else str(self.ports)
        return f"[{where}]:{ports}" if ":" in where else f"{where}:{ports}"


# Where a rule says nothing of targets: an inbound tunnel serves the facility, an outbound one's peer is anywhere.
DEFAULT_REACH = {Role.PROD: (Reach(),), Role.CONS: (Reach(everything=True),)}


@dataclass(frozen=True)
class Ceilings:
    """The most that a tunnel under a rule may have; 0 is no ceiling.

    ``rate`` in kB/s, ``lifetime`` in seconds, ``tunnels`` of one identity at a
    time, ``listeners`` of a tunnel, ``connections`` of a tunnel at a time.
    """

    rate: int = 0
    lifetime: int = 0
    tunnels: int = 0
    listeners: int = 0
    connections: int = 0

    def limit(self, options: Options) -> Options:
        """The options of a tunnel that stays below: what was asked for, and the ceiling where nothing was."""
        return replace(
            options,
            rate=self.rate_of(options.rate),
            lifetime=self.lifetime_of(options.lifetime or 0) or None,
            connections=_least(options.connections, self.connections),
        )

    def rate_of(self, rate: int) -> int:
        """A rate that stays below; 0: no limit."""
        return _least(rate, self.rate)

    def lifetime_of(self, seconds: int) -> int:
        """A lifetime that stays below; 0: no end."""
        return _least(seconds, self.lifetime)


def _least(asked: int, ceiling: int) -> int:
    """The lower of two limits, either of which may be none (0)."""
    return min(asked or ceiling, ceiling or asked)


@dataclass(frozen=True)
class Rule:
    """One rule. An empty field fits everything, but for ``targets`` (`DEFAULT_REACH`)."""

    name: str
    allow: bool = True
    who: Who = field(default_factory=Who)
    sources: tuple[IPNetwork, ...] = ()
    verbs: frozenset[str] = frozenset()
    roles: frozenset[Role] = frozenset()
    targets: tuple[Reach, ...] = ()
    listeners: PortRange | None = None
    types: frozenset[str] = frozenset()
    securities: frozenset[Security] = frozenset()
    ceilings: Ceilings = field(default_factory=Ceilings)

    def reach(self, role: Role) -> tuple[Reach, ...]:
        """The targets that it is about, for a role."""
        return self.targets or DEFAULT_REACH[role]


# In force while nobody wrote a rule: whoever the gate admits, also those it admits without a proof.
DEFAULT = Rule("default", who=Who(anonymous=True))
# What decides where no rule fits.
NO_RULE = Rule("none", allow=False)
# Root of this host is under no rule.
ROOT = Rule("root", targets=(Reach(everything=True),))


@dataclass(frozen=True)
class Question:
    """What somebody wants to do, as far as it is known.

    ``role`` and what follows are those of the tunnel; ``type`` is the name of
    the data server. ``targets`` pairs each target with the addresses that it
    has now; None where they are not known yet, as in `req`. ``ports`` are the
    listeners, once there are some. ``rate`` and ``lifetime`` are 0 where there
    is no limit; ``tunnels`` is how many others the caller has.
    """

    verb: str
    identity: Identity | None
    source: IPAddress | None
    role: Role | None = None
    type: str = ""
    security: Security | None = None
    count: int = 0
    ports: tuple[int, ...] = ()
    rate: int = 0
    lifetime: int = 0
    tunnels: int = 0
    targets: tuple[tuple[Target, tuple[Endpoint, ...]], ...] | None = None


@dataclass(frozen=True)
class Ruling:
    """What was decided and by which rule; ``reason`` says why not, for people, and is empty where it is allowed."""

    rule: Rule
    reason: str = ""


def decide(rules: Sequence[Rule], question: Question, lan: Sequence[IPNetwork]) -> Ruling:
    """The ruling of the first rule that fits the question; no rule that fits is a no.

    While the targets are not known, a ceiling of a rule that is about some targets leaves the question to later rules.
    """
    missed, above = "", None
    for rule in rules:
        if not _fits(rule, question):
            continue
        if not rule.allow:
            if _touches(rule, question, lan):
                return above or Ruling(rule, f"policy {rule.name} forbids {_asked(question)}")
        elif outside := _outside(rule, question, lan):
            missed = missed or f"policy {rule.name} does not reach {outside}"
        elif (excess := _excess(rule, question)) and question.targets is None and rule.targets:
            above = above or Ruling(rule, excess)
        else:
            return Ruling(rule, excess)
    return above or Ruling(NO_RULE, missed or f"no policy rule allows {_asked(question)}")


def inside(address: IPAddress, networks: Sequence[IPNetwork]) -> bool:
    """Whether the address is in one of the networks."""
    return any(address.version == network.version and address in network for network in networks)


def _fits(rule: Rule, question: Question) -> bool:
    """Everything but the targets."""
    return (
        rule.who.fits(question.identity)
        and (not rule.sources or (question.source is not None and inside(question.source, rule.sources)))
        and (not rule.verbs or question.verb in rule.verbs)
        and (question.role is None or not rule.roles or question.role in rule.roles)
        and (not question.type or not rule.types or question.type in rule.types)
        and (question.security is None or not rule.securities or question.security in rule.securities)
        and (rule.listeners is None or all(port in rule.listeners for port in question.ports))
    )


def _touches(rule: Rule, question: Question, lan: Sequence[IPNetwork]) -> bool:
    """Whether a rule that refuses is about one of the targets; of targets not known yet it says nothing."""
    endpoints = [each for _, found in question.targets or () for each in found]
    return not rule.targets or any(reach.covers(each, lan) for reach in rule.targets for each in endpoints)


def _outside(rule: Rule, question: Question, lan: Sequence[IPNetwork]) -> str:
    """The first target that a rule which allows does not cover, for people; empty where it covers all."""
    if question.role is None or question.targets is None:
        return ""
    reach = rule.reach(question.role)
    for target, endpoints in question.targets:
        for endpoint in endpoints:
            if not any(each.covers(endpoint, lan) for each in reach):
                return f"{target}" + ("" if target.address else f" ({endpoint.address})")
    return ""


def _excess(rule: Rule, question: Question) -> str:
    """Which ceiling the question is above, for people, or an empty string; who ends a tunnel takes nothing."""
    if question.verb not in ("create", "update"):
        return ""
    most = rule.ceilings
    over = (
        ("rate", question.rate, most.rate, "kB/s"),
        ("lifetime", question.lifetime, most.lifetime, "s"),
        ("listeners", question.count, most.listeners, ""),
        ("tunnels", question.tunnels + 1 if question.verb == "create" else 0, most.tunnels, ""),
    )
    for what, asked, limit, unit in over:
        if limit and asked > limit:
            return f"policy {rule.name} allows at most {what} {limit} {unit}".rstrip() + f", this is {asked}"
    return ""


def _asked(question: Question) -> str:
    who = question.identity or "those who have proved nothing"
    tunnel = {Role.PROD: "an inbound tunnel", Role.CONS: "an outbound tunnel", None: "a tunnel"}[question.role]
    source = f" from {question.source}" if question.source else ""
    return f"{who}{source} to {question.verb} {tunnel}"


def _within(network: IPNetwork, other: IPNetwork) -> bool:
    if isinstance(network, ipaddress.IPv4Network) and isinstance(other, ipaddress.IPv4Network):
        return network.subnet_of(other)
    if isinstance(network, ipaddress.IPv6Network) and isinstance(other, ipaddress.IPv6Network):
        return network.subnet_of(other)
    return False
