"""Values of options that several front doors take: judged here once, whatever they arrive in.

Each parser takes the value and the option's name as its front door calls it,
and raises ScistreamError(INVALID_ARGUMENT) with that name.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence

from scistreamd.errors import invalid
from scistreamd.model import IPNetwork, Target, shown

MAX_ENTRIES = 1000
MAX_LIFETIME = 10 * 365 * 24 * 3600
MAX_LABEL = 64

_CIDR = re.compile(r"[0-9a-fA-F.:]+(/[0-9]{1,3})?", re.ASCII)
# What looks like a UID and is none: the ids of clients, scopes and tenants at providers of logins.
PUBLIC = r"https?://\S+|(?:--(?:scope|issuer|client-id|audience)|\bscope|\bis not for) \S+"
_SECRET = re.compile(rf"(?P<public>{PUBLIC})|[0-9a-f-]{{16,}}", re.ASCII | re.IGNORECASE)


def veiled(text: str) -> str:
    """A message without what may be a UID, or most of one: people put theirs into the wrong field."""
    return _SECRET.sub(lambda found: found["public"] or "***", text)


def targets(entries: Sequence[str], name: str, *, empty: bool) -> tuple[Target, ...]:
    """A list of HOST:PORT; ``empty`` says whether it may have no entry."""
    if not entries and not empty:
        raise invalid(name, "empty", "at least one HOST:PORT")
    if len(entries) > MAX_ENTRIES:
        raise invalid(name, f"{len(entries)} entries, at most {MAX_ENTRIES} are taken", "make several tunnels")
    return tuple(Target.parse(text, f"{name}[{index}]") for index, text in enumerate(entries))


def data_server(text: str, name: str) -> str:
    """What may be the name of a data server type; whether it is one, the gateway knows."""
    if not text or len(text) > MAX_LABEL or not text.isprintable():
        raise invalid(name, f"{shown(text)} is not a data server type", "Haproxy, Nginx or Stunnel")
    return text


def label(text: str, name: str) -> str:
    """A tunnel's name for people."""
    if len(text) > MAX_LABEL or not text.isprintable():
        raise invalid(name, f"{shown(text)} is not printable text", f"at most {MAX_LABEL} characters, no line breaks")
    return text


def network(text: str, name: str) -> IPNetwork:
    """A network in CIDR form, without bits beyond its length."""
    try:
        if not _CIDR.fullmatch(text):
            raise ValueError
        found = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise invalid(name, f"{shown(text)} is not a network", "ADDRESS/LENGTH, for example 192.0.2.0/24") from None
    if found.network_address != ipaddress.ip_address(text.partition("/")[0]):
        raise invalid(name, f"{shown(text)} has bits set beyond its length", f"did you mean {found}?")
    return found
