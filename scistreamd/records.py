"""What is written down of a tunnel so that the next daemon can go on with it: a value, and its JSON."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Any

from scistreamd.errors import ScistreamError
from scistreamd.identity import Identity
from scistreamd.model import Caller, Endpoint, IPAddress, Options, Role, Security, State, Target, Uid
from scistreamd.plans import Bind

VERSION = 1


class BadRecord(Exception):
    """A file that is no record of ours, or of a version that we do not know."""


@dataclass(frozen=True)
class Record:
    """A tunnel as it was asked for and settled. ``addresses`` are what its targets resolved to, once.

    ``created`` and ``expires`` are seconds since the epoch, 0: no end; ``rate`` is in kB/s, 0: no limit.
    """

    uid: Uid
    role: Role
    state: State
    type: str
    security: Security
    binds: tuple[Bind, ...]
    shown_host: IPAddress
    owner: Caller
    options: Options
    targets: tuple[Target, ...] = ()
    addresses: tuple[tuple[Endpoint, ...], ...] = ()
    generation: int = 0
    created: float = 0
    expires: float = 0
    rate: int = 0

    def to_json(self) -> dict[str, Any]:
        """As a JSON object; it holds the UID, so the file is for root alone."""
        return {
            "version": VERSION,
            "uid": self.uid.reveal(),
            "role": self.role.value,
            "state": self.state.value,
            "type": self.type,
            "security": self.security.value,
            "listeners": [str(bind.endpoint) for bind in self.binds],
            "udp": any(bind.udp for bind in self.binds),
            "shown_host": str(self.shown_host),
            "owner": {
                "front_door": self.owner.front_door,
                "peer": str(self.owner.peer or ""),
                "reached": str(self.owner.reached or ""),
                **_identity_json(self.owner.identity),
            },
            "label": self.options.label,
            "rate": self.rate,
            "allow_from": [str(network) for network in self.options.allow_from],
            "lifetime": self.options.lifetime or 0,
            "connections": self.options.connections,
            "targets": [str(target) for target in self.targets],
            "addresses": [[str(each) for each in of_one] for of_one in self.addresses],
            "generation": self.generation,
            "created": self.created,
            "expires": self.expires,
        }

    @classmethod
    def from_json(cls, raw: Any) -> Record:
        """The record of a JSON object; BadRecord says what is wrong with it, and never names the UID."""
        try:
            if raw["version"] != VERSION:
                raise BadRecord(f"version {raw['version']!r} is not {VERSION}")
            # A daemon that could enforce neither wrote down neither.
            allow_from = tuple(ipaddress.ip_network(text) for text in raw.get("allow_from", []))
            return cls(
                uid=Uid.parse(raw["uid"]),
                role=Role(raw["role"]),
                state=State(raw["state"]),
                type=str(raw["type"]),
                security=Security(raw["security"]),
                binds=tuple(Bind(_endpoint(text), bool(raw["udp"]), allow_from) for text in raw["listeners"]),
                shown_host=ipaddress.ip_address(raw["shown_host"]),
                owner=_caller(raw["owner"]),
                options=Options(
                    label=str(raw["label"]),
                    lifetime=int(raw["lifetime"]) or None,
                    allow_from=allow_from,
                    connections=int(raw["connections"]),
                ),
                targets=tuple(Target.parse(text) for text in raw["targets"]),
                addresses=tuple(tuple(_endpoint(text) for text in of_one) for of_one in raw["addresses"]),
                generation=int(raw["generation"]),
                created=float(raw["created"]),
                expires=float(raw["expires"]),
                rate=int(raw.get("rate", 0)),
            )
        except KeyError as problem:
            raise BadRecord(f"{problem} is missing") from None
        except (ScistreamError, TypeError, ValueError, AttributeError) as problem:
            raise BadRecord(f"not a record: {problem}") from None


def _endpoint(text: str) -> Endpoint:
    target = Target.parse(text)
    if target.address is None:
        raise BadRecord("a name stands where an address belongs")
    return Endpoint(target.address, target.port)


def _caller(raw: Any) -> Caller:
    addresses = {key: ipaddress.ip_address(raw[key]) if raw[key] else None for key in ("peer", "reached")}
    return Caller(str(raw["front_door"]), addresses["peer"], addresses["reached"], _identity(raw))


def _identity_json(identity: Identity | None) -> dict[str, str]:
    if identity is None:
        return {"method": "", "key": "", "name": ""}
    return {"method": identity.method, "key": identity.key, "name": identity.name}


def _identity(raw: Any) -> Identity | None:
    return Identity(str(raw["method"]), str(raw["key"]), str(raw["name"])) if raw["method"] else None
