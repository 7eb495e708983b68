"""``scistreamd policy test``: which rule decides a question, asked of the very gate that decides."""

from __future__ import annotations

import asyncio
import json
from argparse import Namespace
from typing import Any

from scistreamd import dataserver
from scistreamd.cli import output
from scistreamd.cli.options import Parser, UsageError, checked, integer, seconds
from scistreamd.config import Settings
from scistreamd.errors import Code, ScistreamError
from scistreamd.gate import Gate, Grant, Verb
from scistreamd.identity import ANONYMOUS, Identity
from scistreamd.model import Caller, Endpoint, Role, Security, Target, parse_address
from scistreamd.network import HostNetwork
from scistreamd.rules import NO_RULE, VERBS, Question, Rule

_ABOUT = """\
Say which rule of the configuration decides whether somebody may have a tunnel.
Names are resolved and addresses judged as the daemon does it; nothing is made."""

_EXAMPLES = """\
examples:
  scistreamd policy test --as user:alice@example.org --target 10.1.1.1:5000
  scistreamd policy test --as token:beamline7 --role CONS --from 192.0.2.7

Exit status: 0 where it is allowed, 7 where it is not, 2 for wrong usage."""

# What `[[policy]]` calls a kind of name, to the method that proves it.
_METHODS = {"user": "oauth2", "certificate": "mtls", "token": "token", "local": "local"}
_ROLES = {"PROD": Role.PROD, "CONS": Role.CONS, "INBOUND": Role.PROD, "OUTBOUND": Role.CONS}


def parser() -> Parser:
    """The options of the command."""
    made = Parser(prog="scistreamd policy test", description=_ABOUT, epilog=_EXAMPLES)
    add = made.add_argument
    add("--as", dest="who", metavar="KIND:NAME", type=_caller, default=None,
        help="who asks: user:, certificate:, token: or local: with a name (default: an anonymous one)")  # fmt: skip
    add("--group", metavar="NAME", action="append", default=[], help="a group that the user is in; may be repeated")
    add("--from", dest="source", metavar="ADDRESS", type=checked(parse_address), default=None, help="where from")
    add("--verb", choices=VERBS, default="create", help="what they want to do (default: create)")
    add("--role", metavar="ROLE", type=_role, default=Role.PROD, help="PROD (inbound, the default) or CONS (outbound)")
    add("--target", metavar="HOST:PORT", type=checked(Target.parse), action="append", default=[],
        help="what the tunnel is to forward to; may be repeated")  # fmt: skip
    add("--type", metavar="TYPE", type=checked(dataserver.parse_type), default=None, help="the data server type")
    add("--security", metavar="MODE", type=checked(Security.parse), default=None, help="the security mode")
    add("--num-conn", metavar="N", type=integer(1, 65535), default=1, help="how many listeners (default: 1)")
    add("--rate", metavar="KB/S", type=integer(0, 2**31 - 1), default=0, help="the rate asked for (default: none)")
    add("--lifetime", metavar="TIME", type=seconds, default=0, help="the lifetime asked for (default: none)")
    add("--config", metavar="FILE", help="the configuration to judge by (default: the daemon's)")
    made.add_boolean("--json", help="print a JSON object")
    return made


def run(options: Namespace, settings: Settings) -> int:
    """Print the answer; the exit status."""
    found = asyncio.run(_ask(options, settings))
    if options.json:
        output.result(json.dumps(found, indent=2))
    else:
        output.result(_sentence(found))
    return 0 if found["allowed"] else Code.PERMISSION_DENIED.exit_status


async def _ask(options: Namespace, settings: Settings) -> dict[str, Any]:
    network = HostNetwork(settings.times.resolve)
    gate = Gate(settings, network)
    caller = _asking(options)
    grant = Grant(caller, Verb(options.verb))
    kind = options.type or dataserver.parse_type(settings.default_type)
    question = Question(
        options.verb,
        caller.identity,
        caller.peer,
        role=options.role,
        type=kind.name,
        security=options.security or settings.default_security,
        count=max(options.num_conn, len(options.target)),
        rate=options.rate,
        lifetime=options.lifetime,
    )
    try:
        rule = gate.permit(grant, question)
        addresses: tuple[tuple[Endpoint, ...], ...] = ()
        if options.target:
            rule, addresses = await gate.targets(grant, question, options.target)
    except ScistreamError as problem:
        if problem.code is not Code.PERMISSION_DENIED:
            raise
        return {"allowed": False, "rule": grant.decided.rule, "reason": problem.message, "hint": problem.hint}
    finally:
        network.close()
    return {"allowed": True, "rule": rule.name, **_granted(rule, options, addresses)}


def _asking(options: Namespace) -> Caller:
    if options.who is None:
        identity = None
    else:
        method, name = options.who
        identity = Identity(method, name, name, groups=frozenset(options.group))
    return Caller("policy test", peer=options.source, identity=identity)


def _granted(rule: Rule, options: Namespace, addresses: tuple[tuple[Endpoint, ...], ...]) -> dict[str, Any]:
    most = rule.ceilings
    limits = {
        "max_rate": most.rate,
        "max_lifetime": most.lifetime,
        "max_tunnels": most.tunnels,
        "max_listeners": most.listeners,
        "max_connections": most.connections,
    }
    return {
        "limits": {name: limit for name, limit in limits.items() if limit},
        "listeners": str(rule.listeners or ""),
        "addresses": {
            str(target): [str(each.address) for each in found]
            for target, found in zip(options.target, addresses, strict=False)
        },
    }


def _sentence(found: dict[str, Any]) -> str:
    if not found["allowed"]:
        by = "" if found["rule"] == NO_RULE.name else f" by rule {found['rule']}"
        return f"refused{by}: {found['reason']}"
    limits = ", ".join(f"{name} {limit}" for name, limit in found["limits"].items())
    return f"allowed by rule {found['rule']}" + (f", with {limits}" if limits else "")


def _caller(text: str) -> tuple[str, str] | None:
    kind, colon, name = text.partition(":")
    if text == ANONYMOUS:
        return None
    if kind not in _METHODS or not colon or not name:
        raise UsageError(f"--as: {text!r} is not KIND:NAME", f"KIND is one of: {', '.join(_METHODS)}")
    return _METHODS[kind], name


def _role(text: str) -> Role:
    if text.upper() not in _ROLES:
        raise UsageError(f"--role: {text!r} is neither PROD nor CONS")
    return _ROLES[text.upper()]
