"""Whose a tunnel is, and who may do what with it: the questions that the manager puts to the gate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from scistreamd.errors import Code, ScistreamError
from scistreamd.gate import Gate, Grant, Verb
from scistreamd.model import Caller, Endpoint, Options, Role, Security, State, Target, TunnelView, Uid
from scistreamd.registry import Registry, no_tunnel
from scistreamd.rules import Question, Rule
from scistreamd.tunnel import Tunnel


class Rights:
    """The gate's answers about the tunnels of one gateway."""

    def __init__(self, registry: Registry, gate: Gate) -> None:
        self._registry = registry
        self._gate = gate

    # What the gate says; it raises PERMISSION_DENIED or UNAUTHENTICATED

    def permit(self, grant: Grant, tunnel: Tunnel, verb: Verb) -> Rule:
        """The rule by which the caller may do this with the tunnel, whatever its targets."""
        return self._gate.permit(grant, self._question(grant, tunnel, verb))

    async def targets(
        self, grant: Grant, tunnel: Tunnel, verb: Verb, targets: Sequence[Target]
    ) -> tuple[Rule, tuple[tuple[Endpoint, ...], ...]]:
        """The rule by which the tunnel may lead to these targets, and their addresses, every one judged."""
        return await self._gate.targets(grant, self._question(grant, tunnel, verb), targets)

    async def literal_targets(self, grant: Grant, tunnel: Tunnel, targets: Sequence[Target]) -> None:
        """Judge those of the targets that are addresses already, before the tunnel is made."""
        await self._gate.check_literals(grant, self._question(grant, tunnel, Verb.CREATE), targets)

    async def amend(self, grant: Grant, tunnel: Tunnel, *, rate: int = 0, lifetime: int = 0) -> Rule:
        """The rule by which it may have another rate (kB/s) or lifetime (s): one that covers its targets, too."""
        asked = replace(self._question(grant, tunnel, Verb.UPDATE), rate=rate, lifetime=lifetime)
        return await self._gate.judge(grant, asked, dict(zip(tunnel.targets, tunnel.addresses, strict=True)))

    async def path(self, grant: Grant, target: Target, security: Security | None) -> tuple[Security, Endpoint]:
        """The security mode and first address of an outbound tunnel that the caller could make to ``target``."""
        mode = self._gate.security(security, frozenset(Security))
        caller = grant.caller
        question = Question(Verb.CREATE.value, caller.identity, caller.peer, role=Role.CONS, security=mode, count=1)
        _, [addresses] = await self._gate.targets(grant, question, [target])
        return mode, addresses[0]

    def _question(self, grant: Grant, tunnel: Tunnel, verb: Verb) -> Question:
        """What the caller wants of the tunnel, as policy sees it; the targets are left to the gate."""
        principal = tunnel.owner.principal
        # What it has by default, by a ceiling or from before is not asked for, and is brought below another ceiling.
        asked = Options() if tunnel.state is State.ACTIVE else tunnel.options
        return Question(
            verb.value,
            grant.caller.identity,
            grant.caller.peer,
            role=tunnel.role,
            type=tunnel.type.name,
            security=tunnel.security,
            count=tunnel.count,
            ports=tuple(tunnel.ports),
            rate=asked.rate,
            lifetime=asked.lifetime or 0,
            tunnels=sum(each is not tunnel and each.owner.principal == principal for each in self._registry),
        )

    # Whose a tunnel is

    def own(self, grant: Grant, views: Sequence[TunnelView], *, everyone: bool = False) -> tuple[TunnelView, ...]:
        """Those of ``views`` that are the caller's; ``everyone``: all, and PERMISSION_DENIED but for administrators."""
        if everyone and not self._gate.administers(grant.caller):
            raise ScistreamError(
                Code.PERMISSION_DENIED, "everyone: only administrators see other people's tunnels", "leave it out"
            )
        return tuple(view for view in views if everyone or self.owns(grant, view))

    def owns(self, grant: Grant, view: TunnelView) -> bool:
        """Whether the tunnel is the caller's.

        Callers who have proved nothing share what was made from their address.
        """
        caller = grant.caller
        return view.principal == caller.principal and (caller.identity is not None or view.peer == caller.peer)

    def own_id(self, grant: Grant, name: str, *, change: bool) -> str:
        """The id of the caller's tunnel that an id or a UID names; NOT_FOUND for every other, there or not.

        To ``change`` one, callers who have proved nothing show that they know its UID.
        """
        tunnel_id, knows_uid = self._registry.parse(name)
        tunnel, caller = self._registry.get(tunnel_id), grant.caller
        mine, administers = self._ours(tunnel, caller)
        near = (caller if tunnel is None else tunnel.owner).peer == caller.peer
        shown = caller.identity is not None or knows_uid or (not change and near)
        if tunnel is not None and tunnel.announced and ((mine and shown) or administers):
            return tunnel_id
        raise no_tunnel("name it by its UID, or log in" if caller.identity is None else "s2uc list shows yours")

    def owned(self, grant: Grant, uid: Uid) -> Tunnel:
        """The tunnel of a UID where it is the caller's to change; else NOT_FOUND, whether or not there is one."""
        tunnel = self._registry.of_uid(uid)
        mine, administers = self._ours(tunnel, grant.caller)
        if tunnel is None or not (mine or administers):
            raise no_tunnel()
        return tunnel

    def _ours(self, tunnel: Tunnel | None, caller: Caller) -> tuple[bool, bool]:
        """Whether the caller made it, and whether he may change everybody's.

        Takes the same steps whether there is a tunnel or not, so that no clock tells.
        """
        owner = caller if tunnel is None else tunnel.owner
        return owner.principal == caller.principal, self._gate.administers(caller)
