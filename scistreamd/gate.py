"""The one gate below every front door: no step of the manager without a Grant.

A front door proves who calls (`Caller`) and asks the gate for one verb; the
gate answers with a `Grant`, which is the first argument of every method of the
manager, so that mypy reports a front door that forgot.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace

from scistreamd.config import Settings
from scistreamd.dataserver import DATA_SERVERS
from scistreamd.errors import BugError, Code, ScistreamError, invalid
from scistreamd.identification import Identification
from scistreamd.identity import Credentials
from scistreamd.interfaces import Authenticator, Authority, Network
from scistreamd.model import Caller, Endpoint, IPAddress, IPNetwork, Role, Security, Target
from scistreamd.policy import why_no_target
from scistreamd.rules import DEFAULT, LOOPBACK, PRIVATE, ROOT, Question, Reach, Rule, Ruling, decide, inside


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
        self._identification = Identification(settings, authenticators)
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
        known = self._identification.possible
        if not self.public or (known and strict):
            return self.beware
        if known:
            return ("require_auth = false: callers who prove nothing are served as well", *self.beware)
        if strict:
            return ("no authentication is configured: requests of other hosts are refused", *self.beware)
        return ("NO AUTHENTICATION: whoever reaches the control port may use this gateway", *self.beware)

    async def identify(self, caller: Caller, credentials: Credentials) -> Caller:
        """See `Identification.identify`."""
        return await self._identification.identify(caller, credentials)

    def failed(self, caller: Caller, code: Code) -> None:
        """See `Identification.failed`."""
        self._identification.failed(caller, code)

    def admit(self, caller: Caller, verb: Verb) -> Grant:
        """Allow the verb, or raise UNAUTHENTICATED or PERMISSION_DENIED.

        Who has proved nothing is served where the operator opened the gateway,
        else on loopback alone, and nowhere where there is a way to prove it.
        """
        who = self._identification
        if who.possible and caller.identity is None and self._settings.require_auth:
            raise who.unauthenticated("this gateway wants to know who asks", who.proofs())
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
        self._identification.reconfigure(settings, authenticators)

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
