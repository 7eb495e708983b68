"""From messages and metadata to `scistreamd.model` types, and back: pure functions.

Every parser raises ScistreamError(INVALID_ARGUMENT) that names the field as
the wire calls it (``num_conn``, ``remote_listeners[3]``, ``scistream-label``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from scistreamd import options
from scistreamd.control import scistream_pb2 as pb
from scistreamd.errors import invalid
from scistreamd.identity import Credentials
from scistreamd.model import Answer, IPNetwork, Options, Role, Security, Target, Uid, shown
from scistreamd.options import MAX_LIFETIME

# What we say beside an answer, percent-encoded; deployed clients do not look there.
HINT, WARNING, CHALLENGE = "scistream-hint", "scistream-warning", "scistream-challenge"
AUTHORIZATION = "authorization"
# What deployed clients send when they have no token.
NO_TOKEN = "INVALID_TOKEN"  # noqa: S105
PREFIX = "scistream-"
TYPE = "scistream-type"
SECURITY = "scistream-security"
LIFETIME = "scistream-lifetime"
LABEL = "scistream-label"
ALLOW_FROM = "scistream-allow-from"
EXACT_PORTS = "scistream-exact-ports"
RATE_POLICY = "scistream-rate-policy"
KEYS = (TYPE, SECURITY, LIFETIME, LABEL, ALLOW_FROM, EXACT_PORTS, RATE_POLICY)

Metadata = Iterable[tuple[str, str | bytes]]

_DIGITS = re.compile(r"[0-9]{1,9}", re.ASCII)
_BROKEN_ESCAPE = re.compile(r"%(?![0-9a-fA-F]{2})", re.ASCII)


@dataclass(frozen=True)
class ReqCall:
    """A parsed ``req``."""

    uid: Uid
    role: Role
    count: int
    options: Options


@dataclass(frozen=True)
class HelloCall:
    """A parsed ``hello``; ``entries`` are targets (PROD) or wished listeners (CONS)."""

    uid: Uid
    role: Role
    entries: tuple[Target, ...]


@dataclass(frozen=True)
class UpdateCall:
    """A parsed ``update``; ``role`` is None from older clients."""

    uid: Uid
    role: Role | None
    targets: tuple[Target, ...]


def parse_req(message: pb.Request, metadata: Metadata = ()) -> ReqCall:
    """``req``: all four fields, and the options in the metadata."""
    uid = Uid.parse(message.uid)
    role = Role.parse(message.role)
    if not 1 <= message.num_conn <= 65535:
        raise invalid(
            "num_conn", f"{message.num_conn} is not a number from 1 to 65535", "one listener for each of them"
        )
    if message.rate < 0:
        raise invalid("rate", f"{message.rate} is negative", "kB/s, 0 for no limit")
    return ReqCall(uid, role, message.num_conn, parse_options(metadata, message.rate))


def parse_hello(message: pb.Hello, metadata: Metadata = ()) -> HelloCall:
    """``hello``: only an outbound one may name no ports."""
    refuse_options(metadata, "hello")
    uid, role = Uid.parse(message.uid), Role.parse(message.role)
    entries = options.targets(message.prod_listeners, "prod_listeners", empty=role is Role.CONS)
    return HelloCall(uid, role, entries)


def parse_update(message: pb.UpdateTargets, metadata: Metadata = ()) -> UpdateCall:
    """``update``: at least one target."""
    refuse_options(metadata, "update")
    uid = Uid.parse(message.uid)
    role = Role.parse(message.role) if message.role else None
    return UpdateCall(uid, role, options.targets(message.remote_listeners, "remote_listeners", empty=False))


def parse_release(message: pb.Release, metadata: Metadata = ()) -> Uid:
    """``release``: whose tunnel ends."""
    refuse_options(metadata, "release")
    return Uid.parse(message.uid)


def credentials(metadata: Metadata, certificate: bytes) -> Credentials:
    """What a call brought to prove who it is from; deployed clients send a bare token, RFC 6750 has ``Bearer``."""
    given = [value for key, value in metadata if key == AUTHORIZATION and isinstance(value, str)]
    if len(given) > 1:
        raise invalid(AUTHORIZATION, "given more than once")
    text = given[0].strip() if given else ""
    scheme, _, rest = text.partition(" ")
    token = rest.strip() if scheme.lower() == "bearer" else text
    return Credentials("" if token == NO_TOKEN else token, certificate)


def response(answer: Answer) -> pb.Response:
    """What ``req`` and ``update`` answer."""
    return pb.Response(
        listeners=[str(endpoint) for endpoint in answer.listeners],
        prod_listeners=[str(target) for target in answer.targets],
    )


def app_response(role: Role, answer: Answer) -> pb.AppResponse:
    """What ``hello`` answers; the texts are those of SciStream 1.2, which scripts may read."""
    text = "Sending Prod listeners..." if role is Role.PROD else "Sending listeners..."
    return pb.AppResponse(message=text, listeners=[str(endpoint) for endpoint in answer.listeners])


def parse_options(metadata: Metadata, rate: int = 0) -> Options:
    """The options of a ``req``; ``rate`` (kB/s) counts only where the policy says ``enforce``."""
    found = _own(metadata)
    enforce = RATE_POLICY in found and _rate_policy(found[RATE_POLICY])
    return Options(
        data_server=options.data_server(found[TYPE], TYPE) if TYPE in found else None,
        security=Security.parse(found[SECURITY], SECURITY) if SECURITY in found else None,
        lifetime=_lifetime(found[LIFETIME]) if LIFETIME in found else None,
        label=_label(found[LABEL]) if LABEL in found else "",
        allow_from=_networks(found[ALLOW_FROM]) if ALLOW_FROM in found else (),
        exact_ports=_flag(found[EXACT_PORTS], EXACT_PORTS) if EXACT_PORTS in found else False,
        rate=rate if enforce else 0,
        sent_rate=0 if enforce else rate,
    )


def refuse_options(metadata: Metadata, call: str) -> None:
    """No option is ignored: a call that takes none says so."""
    for key in _own(metadata):
        raise invalid(key, f"has no meaning in {call}", "options go with req")


def _own(metadata: Metadata) -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in metadata:
        if not key.startswith(PREFIX):
            continue
        if key not in KEYS or isinstance(value, bytes):
            raise invalid("metadata", f"{shown(key)} is not an option of this gateway", f"one of: {', '.join(KEYS)}")
        if key in found:
            raise invalid(key, "given more than once")
        found[key] = value
    return found


def _lifetime(text: str) -> int:
    if not _DIGITS.fullmatch(text) or not 1 <= int(text) <= MAX_LIFETIME:
        raise invalid(
            LIFETIME,
            f"{shown(text)} is not a number of seconds",
            f"from 1 to {MAX_LIFETIME}; without it there is no end",
        )
    return int(text)


def _label(text: str) -> str:
    if _BROKEN_ESCAPE.search(text) or not text.isascii():
        raise invalid(LABEL, f"{shown(text)} is not ASCII", "percent-encode its UTF-8, and % itself as %25")
    try:
        decoded = unquote_to_bytes(text).decode("utf-8")
    except UnicodeDecodeError:
        raise invalid(LABEL, f"{shown(text)} is not percent-encoded UTF-8", "encode its UTF-8 octets") from None
    return options.label(decoded, LABEL)


def _networks(text: str) -> tuple[IPNetwork, ...]:
    return tuple(options.network(part.strip(), f"{ALLOW_FROM}[{index}]") for index, part in enumerate(text.split(",")))


def _flag(text: str, name: str) -> bool:
    if text not in ("true", "false"):
        raise invalid(name, f"{shown(text)} is neither true nor false", "leave the key out for false")
    return text == "true"


def _rate_policy(text: str) -> bool:
    if text != "enforce":
        raise invalid(RATE_POLICY, f"{shown(text)} is not a rate policy", "enforce, or leave the key out")
    return True
