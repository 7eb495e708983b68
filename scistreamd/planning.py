"""From a request to a tunnel that could be: its type, launcher, security and addresses, before anything is taken."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from scistreamd import dataserver
from scistreamd.config import Settings
from scistreamd.dataserver import DataServerType
from scistreamd.errors import Code, ScistreamError, invalid
from scistreamd.gate import Gate
from scistreamd.interfaces import Launcher
from scistreamd.model import Caller, IPAddress, Options, Role, Uid
from scistreamd.plans import Tuning
from scistreamd.tunnel import Tunnel

# A receiver gets a TLS record whole or not at all: at such a rate, in kB/s, some 16 KiB are much of some seconds.
_SLOW = 1000
_SMALL_RECORD = 4096


@dataclass(frozen=True)
class Planner:
    """Chooses what a request leaves open.

    ``launcher_of`` says which launcher runs a data server type; ``any_address``
    is the wildcard that inbound listeners bind where no address is set; ``dialable``
    an address of this host for answers to callers who reached none; ``own_addresses`` those that it has, for people.
    """

    settings: Settings
    gate: Gate
    launcher_of: Callable[[DataServerType], Launcher]
    any_address: IPAddress
    dialable: Callable[[], IPAddress | None] = lambda: None
    own_addresses: Callable[[], Sequence[IPAddress]] = tuple

    def tunnel(self, caller: Caller, uid: Uid, role: Role, count: int, options: Options) -> Tunnel:
        """A tunnel that holds nothing yet.

        Raises INVALID_ARGUMENT, PERMISSION_DENIED, or
        FAILED_PRECONDITION where its data server cannot run here.
        """
        kind = dataserver.parse_type(options.data_server or self.settings.default_type)
        launcher = self.launcher_of(kind)
        if problem := launcher.missing(kind.server):
            raise ScistreamError(Code.FAILED_PRECONDITION, problem, "or ask for another data server type")
        tunnel = Tunnel(
            uid=uid,
            role=role,
            count=count,
            options=options,
            type=kind,
            rate=self.rate(options),
            security=self.gate.security(options.security, kind.server.securities),
            owner=caller,
            shown_host=self.settings.advertise or caller.reached or self.dialable() or self.any_address,
            greeted=asyncio.get_running_loop().create_future(),
        )
        tunnel.own_warnings += tuple(filter(None, (uid.warning, launcher.lacking(kind.server), _mortal(kind))))
        return tunnel

    def tuning(self, options: Options, rate: int) -> Tuning:
        """The settings of the data plane, within what policy leaves the tunnel, for its rate in kB/s (0: none)."""
        tuning = self.settings.tuning
        connections = min(options.connections or tuning.connections, tuning.connections)
        return replace(tuning, connections=connections, record_bytes=_SMALL_RECORD if 0 < rate <= _SLOW else 0)

    def rate(self, options: Options) -> int:
        """The rate of a tunnel in kB/s: as asked for, or as the operator configured; 0: no limit."""
        sent = options.sent_rate if self.settings.rate_enforce else 0
        return options.rate or sent or self.settings.rate_default

    def address(self, tunnel: Tunnel) -> IPAddress:
        """Where the tunnel's listeners are to be; an outbound one, which is plain, never gets a wildcard."""
        inbound = tunnel.role is Role.PROD
        configured = self.settings.listen_inbound if inbound else self.settings.listen_outbound
        asked = {listen.address for listen in tunnel.options.listen}
        if len(asked) > 1:
            raise invalid("listen", "the listeners of one tunnel share one address", "make several tunnels")
        fixed = configured is not None and not configured.is_unspecified
        if asked and fixed and asked != {configured}:
            raise ScistreamError(
                Code.PERMISSION_DENIED, f"listen: the gateway listens on {configured} only", "leave the address out"
            )
        chosen = asked.pop() if asked else configured
        if inbound:
            return chosen or self.any_address
        if chosen is not None and not chosen.is_unspecified:
            return chosen
        if tunnel.owner.reached is None:
            raise self._no_wildcard()
        return tunnel.owner.reached

    def _no_wildcard(self) -> ScistreamError:
        found = [str(address) for address in self.own_addresses()]
        here = f"; this host has {', '.join(found)}" if found else ""
        example = found[0] if found else "ADDRESS"
        return ScistreamError(
            Code.FAILED_PRECONDITION,
            f"listen: an outbound listener is not encrypted and never binds every address{here}",
            "ask for the one that the application dials by the option listen, or set it in scistreamd.toml:"
            f' listen.outbound = "{example}"',
        )


def _mortal(kind: DataServerType) -> str:
    return f"{kind.name}: this tunnel is a child of the daemon, and ends with it" if kind.subprocess else ""
