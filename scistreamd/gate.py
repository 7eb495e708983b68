"""The one gate below every front door: no step of the manager without a Grant.

A front door proves who calls (`Caller`) and asks the gate for one verb; the
gate answers with a `Grant`, which is the first argument of every method of the
manager, so that mypy reports a front door that forgot.
"""

from __future__ import annotations

import asyncio
import enum
import hashlib
import ipaddress
import shlex
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace

from scistreamd.config import Settings
from scistreamd.dataserver import DATA_SERVERS
from scistreamd.errors import BugError, Code, ScistreamError, invalid
from scistreamd.identity import Credentials, Identity
from scistreamd.interfaces import Authenticator, Authority, Network
from scistreamd.model import Caller, Endpoint, IPAddress, IPNetwork, Role, Security, Target
from scistreamd.policy import why_no_target
from scistreamd.rules import DEFAULT, LOOPBACK, PRIVATE, ROOT, Question, Reach, Rule, Ruling, decide, inside
from scistreamd.throttle import Throttle

# Credentials that were good lately: they are not held to what others from the same address do.
_REMEMBERED = 4096
# What counts as a failure of who is known: trying what is not theirs.
_TRYING = (Code.PERMISSION_DENIED, Code.NOT_FOUND)
# And of who is not: many may come from one address, and nobody's right to call is at stake.
_OF_STRANGERS = 0.1
# What callers do to prove who they are, by the scheme of the challenge.
_PROOFS = {
    "token": "bring a token of its operator (s2uc --token-file)",
    "mtls": "show a client certificate (s2uc --client-cert)",
    "oauth2": "log in: s2uc login",
}
_LOGIN = "s2uc login"
_LOGIN_OPTIONS = ("scope", "issuer", "client-id", "audience")


class Verb(enum.Enum):
    """What a caller may be allowed to do."""

    CREATE = "create"
    HELLO = "hello"
    UPDATE = "update"
    RELEASE = "release"
    REVEAL = "reveal"
    RELOAD = "reload"
    READ = "read"


@dataclass
class Decided:
    """Which policy rule decided a call, for the audit; empty before one did."""

    rule: str = ""


@dataclass(frozen=True)
class Grant:
    """The gate's permission for one call of one verb; ``decided`` is filled in when a rule decides."""

    caller: Caller
    verb: Verb
    decided: Decided = field(default_factory=Decided, compare=False)


class Gate:
    """Decides who may do what, with how much of it, and to which addresses."""

    def __init__(
        self,
        settings: Settings,
        network: Network,
        authority: Authority | None = None,
        authenticators: Sequence[Authenticator] = (),
    ) -> None:
        """``authority`` decides about users of this host who are not root; None: there are no such callers.

        ``authenticators``: who may vouch for callers of the control port, in the order in which they are asked.
        """
        self._settings = settings
        self._network = network
        self._authority = authority
        self._authenticators = tuple(authenticators)
        self._throttle = Throttle(settings.auth.failures)
        self._proven: OrderedDict[bytes, None] = OrderedDict()
        # Whether a listener of the control port can be reached from other hosts; the composition root knows.
        self.public = False
        # The ports of those listeners; it knows them, too.
        self.control_ports: frozenset[int] = frozenset()
        # Whether a caller on this very host may name the address of it that he dialled as a target.
        self.for_own_host = False
        # What else the composition root has to say to the operator.
        self.beware: tuple[str, ...] = ()

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the operator should know of who is served, while other hosts can reach the control port, and of more."""
        strict = self._settings.require_auth
        if not self.public or (self._authenticators and strict):
            return self.beware
        if self._authenticators:
            return ("require_auth = false: callers who prove nothing are served as well", *self.beware)
        if strict:
            return ("no authentication is configured: requests of other hosts are refused", *self.beware)
        return ("NO AUTHENTICATION: whoever reaches the control port may use this gateway", *self.beware)

    async def identify(self, caller: Caller, credentials: Credentials) -> Caller:
        """The caller with the identity that the first authenticator who knows the credentials vouches for.

        Without credentials, or without authenticators, the caller as it came.
        Raises UNAUTHENTICATED where nobody knows them, UNAVAILABLE where
        nobody does and one could not be asked, and RESOURCE_EXHAUSTED where
        this peer, or who it proves to be, has failed too often lately.
        """
        if not credentials or not self._authenticators:
            self._throttle.check(_stranger(caller), _OF_STRANGERS)
            return caller
        peer, digest = _network(caller.peer), _digest(credentials)
        if digest not in self._proven:
            self._throttle.check(peer)
        try:
            known = replace(caller, identity=await self._identity(credentials))
        except ScistreamError as problem:
            if problem.code is Code.UNAUTHENTICATED:
                self._proven.pop(digest, None)
                self._throttle.fail(peer)
            raise
        self._remember(digest)
        self._throttle.check(known.principal)
        return known

    def failed(self, caller: Caller, code: Code) -> None:
        """A call of this caller has ended so; who tries what is not theirs is slowed down."""
        if code not in _TRYING:
            return
        if caller.identity is not None:
            self._throttle.fail(caller.principal)
        else:
            self._throttle.fail(_stranger(caller), _OF_STRANGERS)

    def _remember(self, digest: bytes) -> None:
        self._proven[digest] = None
        self._proven.move_to_end(digest)
        if len(self._proven) > _REMEMBERED:
            self._proven.popitem(last=False)

    async def _identity(self, credentials: Credentials) -> Identity:
        unavailable: ScistreamError | None = None
        for each in self._authenticators:
            try:
                identity = await each.identify(credentials)
            except ScistreamError as problem:
                if problem.code is Code.UNAUTHENTICATED:
                    raise self._unauthenticated(problem.message, problem.hint) from None
                if problem.code is not Code.UNAVAILABLE:
                    raise
                unavailable = unavailable or problem
                continue
            if identity is not None:
                return identity
        raise unavailable or self._unauthenticated("these credentials are not valid here", self._proofs())

    def _proofs(self) -> str:
        """What callers can do, by the ways that are configured."""
        schemes = {each.challenge.scheme for each in self._authenticators}
        return ", or ".join(proof for scheme, proof in _PROOFS.items() if scheme in schemes)

    def _login_options(self) -> str:
        """Which login is wanted, as options of `s2uc login`; empty where there is none."""
        for each in self._authenticators:
            if each.challenge.scheme == "oauth2":
                named = dict(each.challenge.parameters)
                options = ((name, named.get(name.replace("-", "_"))) for name in _LOGIN_OPTIONS)
                return "".join(f" --{name} {shlex.quote(value)}" for name, value in options if value)
        return ""

    def _unauthenticated(self, message: str, hint: str) -> ScistreamError:
        # Two may ask for the same, as those of one provider do.
        challenges = list(dict.fromkeys(str(each.challenge) for each in self._authenticators))
        if hint.endswith(_LOGIN):
            # For people whose client shows nothing but the message.
            hint = f"{hint}{self._login_options()}"
        return ScistreamError(Code.UNAUTHENTICATED, message, hint, challenges)

    def admit(self, caller: Caller, verb: Verb) -> Grant:
        """Allow the verb, or raise UNAUTHENTICATED or PERMISSION_DENIED.

        Who has proved nothing is served where the operator opened the gateway,
        else on loopback alone, and nowhere where there is a way to prove it.
        """
        if self._authenticators and caller.identity is None and self._settings.require_auth:
            raise self._unauthenticated("this gateway wants to know who asks", self._proofs())
        here = caller.peer is None or caller.peer.is_loopback
        if self._settings.require_auth and caller.identity is None and not here:
            raise ScistreamError(
                Code.UNAUTHENTICATED,
                "this gateway has no authentication configured, so it serves its own host alone",
                "the operator sets up how callers prove who they are, by [auth.oauth2], [auth.tokens] or [auth.mtls] "
                "in scistreamd.toml, or opens it to everybody: require_auth = false",
            )
        return Grant(caller, verb)

    @property
    def settings(self) -> Settings:
        """The settings in force now."""
        return self._settings

    def reconfigure(self, settings: Settings, authenticators: Sequence[Authenticator] | None = None) -> None:
        """Judge by other settings from now on, and ask other authenticators where some are given."""
        self._settings = settings
        self._throttle.limits = settings.auth.failures
        if authenticators is not None:
            self._authenticators = tuple(authenticators)
            self._proven.clear()

    async def authorize(self, caller: Caller, verb: Verb, owner: str | None = None) -> Grant:
        """Allow a user of this host the verb: root always, others as the authority decides.

        ``owner``: the principal whose tunnel it is; None where the
        verb concerns no tunnel that exists. Raises PERMISSION_DENIED.
        """
        if caller.user != 0:
            if self._authority is None or caller.user is None:
                raise ScistreamError(Code.PERMISSION_DENIED, f"{verb.value}: only root may, on this gateway")
            await self._authority.check(caller, verb.value, own=owner in (None, caller.principal))
        return Grant(caller, verb)

    def security(self, asked: Security | None, possible: frozenset[Security]) -> Security:
        """The security mode of a new tunnel: as asked where the operator allows it, else the default.

        ``possible``: the modes of its data server type.
        """
        mode = asked or self._settings.default_security
        allowed = self._settings.allowed_security
        if mode not in allowed:
            raise ScistreamError(
                Code.PERMISSION_DENIED,
                f"security: the gateway does not allow {mode.value}, but {_names(allowed)}",
                f"the operator may: security.allowed in scistreamd.toml, or s2cs --allow-security {mode.value}",
            )
        if mode not in possible:
            able = " or ".join(server.name for server in DATA_SERVERS if mode in server.securities)
            raise invalid(
                "security", f"this data server type cannot do {mode.value}, but {_names(possible)}", f"{able} can"
            )
        return mode

    def administers(self, caller: Caller) -> bool:
        """Whether other people's tunnels are the caller's to change, too."""
        if caller.user is not None:
            return caller.user == 0
        who = self._settings.administrators
        return who is not None and caller.identity is not None and who.fits(caller.identity)

    def permit(self, grant: Grant, question: Question) -> Rule:
        """The policy rule that allows what is known of a tunnel so far; PERMISSION_DENIED where none does.

        ``question`` has no targets yet; `targets` asks again with them.
        """
        ruling = self._ruling(grant, question, ())
        self._insist(ruling)
        return ruling.rule

    async def check_literals(self, grant: Grant, question: Question, targets: Iterable[Target]) -> None:
        """Judge the targets that are addresses already; names are judged by `targets`."""
        literal = {target: (target.address,) for target in targets if target.address is not None}
        await self._judge(grant, question, literal)

    async def judge(self, grant: Grant, question: Question, targets: Mapping[Target, Sequence[Endpoint]]) -> Rule:
        """The policy rule that allows what is asked of a tunnel whose targets are known, by the addresses that they
        have; PERMISSION_DENIED where none does."""
        found = {target: tuple(each.address for each in endpoints) for target, endpoints in targets.items()}
        return await self._judge(grant, question, found)

    async def targets(
        self, grant: Grant, question: Question, targets: Sequence[Target]
    ) -> tuple[Rule, tuple[tuple[Endpoint, ...], ...]]:
        """Resolve each name once and judge every address of every target: the rule that allows, and the addresses.

        The data server is given these addresses only, so that a later DNS
        answer changes nothing. Raises PERMISSION_DENIED naming the target, or
        INVALID_ARGUMENT where a name has no address.
        """
        names = list({target.host for target in targets if target.address is None})
        found = dict(zip(names, await asyncio.gather(*map(self._network.resolve, names)), strict=True))
        of_target = {target: found.get(target.host) or (_literal(target),) for target in targets}
        rule = await self._judge(grant, question, of_target)
        return rule, tuple(tuple(Endpoint(each, target.port) for each in of_target[target]) for target in targets)

    async def _judge(self, grant: Grant, question: Question, of_target: Mapping[Target, tuple[IPAddress, ...]]) -> Rule:
        """What policy says, and below it what no rule opens that does not name it."""
        judged = tuple(
            (target, tuple(Endpoint(address, target.port) for address in addresses))
            for target, addresses in of_target.items()
        )
        every = {address for addresses in of_target.values() for address in addresses}
        ruling = self._ruling(grant, replace(question, targets=judged), await self._lan(every))
        alone = self._settings.loopback_only
        own = frozenset() if alone else await self._network.local(every)
        dialled = await self._dialled(grant)
        named = () if ruling.reason else self._named(ruling.rule, question.role)
        for target, endpoints in judged:
            for endpoint in endpoints:
                reason = why_no_target(endpoint.address, own=endpoint.address in own, loopback_gateway=alone)
                if reason and not self._opened(endpoint, dialled) and not any(each.names(endpoint) for each in named):
                    raise _no_target(target, endpoint.address, reason)
        self._insist(ruling)
        return ruling.rule

    def _ruling(self, grant: Grant, question: Question, lan: Sequence[IPNetwork]) -> Ruling:
        # Who may rewrite the rules is not held by them.
        root = grant.caller.user == 0
        ruling = Ruling(ROOT) if root else decide(self._settings.policy or (DEFAULT,), question, lan)
        grant.decided.rule = ruling.rule.name
        return ruling

    def _insist(self, ruling: Ruling) -> None:
        if not ruling.reason:
            return
        if self._settings.policy:
            message, hint = ruling.reason, "the operator's `scistreamd policy test` says which rule decides"
        else:
            message = ruling.reason.replace(f"policy {DEFAULT.name} does not reach", "inbound tunnels do not reach")
            hint = "the operator names the facility's networks: lan in scistreamd.toml, or s2cs --lan"
        raise ScistreamError(Code.PERMISSION_DENIED, message, hint)

    def _named(self, rule: Rule, role: Role | None) -> list[Reach]:
        """What the operator has named: in the rule, or in `lan` where the rule means that."""
        reaches = rule.targets if role is None else rule.reach(role)
        networks = self._settings.lan or ()
        return [
            named
            for reach in reaches
            for named in ([replace(reach, network=each) for each in networks] if reach.is_lan else [reach])
        ]

    async def _dialled(self, grant: Grant) -> IPAddress | None:
        """The address of this host that the caller, on this very host, has dialled, where that is open to him."""
        caller = grant.caller
        if not self.for_own_host or caller.peer is None or caller.peer.is_loopback:
            return None
        return caller.reached if await self._network.local({caller.peer}) else None

    def _opened(self, endpoint: Endpoint, dialled: IPAddress | None) -> bool:
        """Whether it is an application of the caller's at the address that he dialled, and nothing of the gateway."""
        ours = endpoint.port in self.control_ports or endpoint.port in self._settings.port_range
        return endpoint.address == dialled and not ours

    async def _lan(self, addresses: Set[IPAddress]) -> tuple[IPNetwork, ...]:
        """The networks that `lan` stands for, as far as these addresses need them."""
        configured = self._settings.lan
        if configured is not None:
            return configured
        near = (*PRIVATE, *LOOPBACK) if self._settings.loopback_only else PRIVATE
        if all(inside(address, near) for address in addresses):
            return near
        return (*near, *await self._network.attached())


def _network(peer: IPAddress | None) -> str:
    """Whose failures count together: an address, of IPv6 the network that one host usually has."""
    if isinstance(peer, ipaddress.IPv6Address):
        return str(ipaddress.IPv6Network((peer, 64), strict=False))
    return str(peer)


def _stranger(caller: Caller) -> str:
    return f"who has proved nothing at {_network(caller.peer)}"


def _digest(credentials: Credentials) -> bytes:
    return hashlib.sha256(credentials.token.encode() + b"\0" + credentials.certificate).digest()


def _literal(target: Target) -> IPAddress:
    if target.address is None:
        raise BugError("a name without addresses")
    return target.address


def _no_target(target: Target, address: IPAddress, reason: str) -> ScistreamError:
    resolved = "" if target.address else f" resolves to {address}, which"
    return ScistreamError(
        Code.PERMISSION_DENIED,
        f"target {target}{resolved} {reason}",
        "name the host that runs the application; the operator opens this one by a rule, or lan, that names it",
    )


def _names(modes: Iterable[Security]) -> str:
    return " or ".join(sorted(mode.value for mode in modes))
