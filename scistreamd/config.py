"""The settings of a gateway, typed and defaulted.

`s2cs` fills them from its command line; `scistreamd` from
/etc/scistreamd/scistreamd.toml, whose keys `configfile` lists.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from scistreamd.control.limits import Limits
from scistreamd.interfaces import Tuning
from scistreamd.model import IPAddress, IPNetwork, PortRange, Security
from scistreamd.policy import Quotas
from scistreamd.rules import Rule, Who


class FirewallMode(enum.Enum):
    """What to do about a firewall that blocks a listener: nothing, warn, refuse the tunnel, or open it."""

    OFF = "off"
    CHECK = "check"
    REQUIRE = "require"
    MANAGE = "manage"


@dataclass(frozen=True)
class Times:
    """Time limits in seconds."""

    hello: float = 180  # req waits for hello; what SciStream 1.2 does
    early_hello: float = 5  # a hello that came before its req
    update: float = 60  # ready, and no update comes
    failed_kept: float = 600  # how long a failed tunnel's Result can be read
    resolve: float = 5  # one host name


@dataclass(frozen=True)
class Control:
    """The control port of scistreamd; its address is the socket unit's.

    ``certificate`` and ``key``: PEM files, None for the pair that scistreamd makes itself.
    """

    certificate: PurePosixPath | None = None
    key: PurePosixPath | None = None
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True)
class Settings:
    """All that the manager and the gate need to know.

    ``listen_inbound``: where PROD tunnels listen; None is every address.
    ``listen_outbound``: where CONS tunnels listen; None is the address that the
    request came in on, never a wildcard, for that side is not encrypted.
    ``advertise``: the address that answers name in place of a wildcard.
    ``require_auth``: other hosts must prove who they are; until they can, loopback alone is served.
    ``lan``: what inbound tunnels may forward to while no rule says otherwise; None
    is the attached and the private networks. ``policy``: the rules, the first that fits decides.
    ``administrators``: who may change other people's tunnels, None is nobody on the control port.
    ``idle_timeout``: seconds without a connection after which a tunnel ends; 0 is never.
    ``rate_default``: kB/s for tunnels whose request names no rate, 0: no limit;
    ``rate_enforce``: the rate that SciStream 1.2 clients always send counts.
    ``capacity``: kB/s in each direction for all tunnels together, 0: nobody counts.
    ``idle_exit``: seconds without anything to do after which scistreamd ends; 0 is never.
    """

    listen_inbound: IPAddress | None = None
    listen_outbound: IPAddress | None = None
    advertise: IPAddress | None = None
    port_range: PortRange = field(default_factory=lambda: PortRange(5100, 5200))
    default_type: str = "Haproxy"
    default_security: Security = Security.TLS
    allowed_security: frozenset[Security] = frozenset({Security.TLS})
    times: Times = field(default_factory=Times)
    rate_default: int = 0
    rate_enforce: bool = False
    capacity: int = 0
    quotas: Quotas = field(default_factory=Quotas)
    tuning: Tuning = field(default_factory=Tuning)
    control: Control = field(default_factory=Control)
    require_auth: bool = True
    lan: tuple[IPNetwork, ...] | None = None
    policy: tuple[Rule, ...] = ()
    administrators: Who | None = None
    idle_timeout: float = 7 * 86400
    firewall: FirewallMode = FirewallMode.CHECK
    idle_exit: float = 0
    log_level: str = "info"

    @property
    def loopback_only(self) -> bool:
        """Whether every listener is on loopback, so that no other host can reach the gateway."""
        addresses = (self.listen_inbound, self.listen_outbound)
        return all(address is not None and address.is_loopback for address in addresses)
