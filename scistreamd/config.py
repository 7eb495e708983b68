"""The settings of a gateway, typed and defaulted.

`s2cs` fills them from its command line; `scistreamd` from
/etc/scistreamd/scistreamd.toml, whose keys `configfile` lists.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from scistreamd.control.limits import Limits
from scistreamd.model import IPAddress, IPNetwork, PortRange, Security
from scistreamd.plans import Tuning
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


GLOBUS = "https://auth.globus.org"


@dataclass(frozen=True)
class OAuth2:
    """Bearer tokens of a provider: on where this gateway has a ``client_id`` there, or an ``audience``.

    ``client_id`` and its secret, which is no setting, let the gateway ask the
    provider about a token (RFC 7662); ``audience`` lets it judge JWTs by
    itself (RFC 9068). ``scope`` None is the provider's usual one, see
    `wanted_scope`. ``introspection_endpoint`` and ``jwks_uri`` are for
    providers whose metadata do not name them.
    """

    issuer: str = GLOBUS
    client_id: str = ""
    client_secret_file: PurePosixPath | None = None
    scope: str | None = None
    audience: str = ""
    jwt: bool = True
    algorithms: tuple[str, ...] = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA")
    user_claims: tuple[str, ...] = ("username", "email")
    groups_claim: str = "groups"
    login_client_id: str = ""
    introspection_endpoint: str = ""
    jwks_uri: str = ""
    timeout: float = 5  # seconds for one answer of the provider
    cache: float = 60  # seconds for which a good token is not asked about again
    negative_cache: float = 10  # and one that is not good
    leeway: float = 30  # seconds by which the clocks of provider and gateway may differ

    @property
    def judges_jwts(self) -> bool:
        """Whether JWTs are validated here, by the provider's keys."""
        return self.jwt and bool(self.audience)

    @property
    def wanted_scope(self) -> str:
        """The scope that a token must have; empty: none."""
        if self.scope is not None:
            return self.scope
        globus = self.issuer == GLOBUS and self.client_id
        return f"{GLOBUS}/scopes/{self.client_id}/scistream" if globus else "scistream"


@dataclass(frozen=True)
class Mtls:
    """Client certificates: on where ``ca`` (PEM) says which; ``crl`` (PEM) says which are revoked."""

    ca: PurePosixPath | None = None
    crl: PurePosixPath | None = None


@dataclass(frozen=True)
class Failures:
    """How many failures a peer, or an identity, may have at once, and how many more each minute."""

    burst: int = 20
    per_minute: int = 20


@dataclass(frozen=True)
class Auth:
    """How callers of the control port may prove who they are; ``tokens``: the file of static tokens."""

    oauth2: OAuth2 = field(default_factory=OAuth2)
    mtls: Mtls = field(default_factory=Mtls)
    tokens: PurePosixPath | None = None
    failures: Failures = field(default_factory=Failures)


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
    ``auth``: how callers prove who they are; nothing is configured at first.
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
    auth: Auth = field(default_factory=Auth)
    idle_timeout: float = 7 * 86400
    firewall: FirewallMode = FirewallMode.CHECK
    idle_exit: float = 0
    log_level: str = "info"

    @property
    def loopback_only(self) -> bool:
        """Whether every listener is on loopback, so that no other host can reach the gateway."""
        addresses = (self.listen_inbound, self.listen_outbound)
        return all(address is not None and address.is_loopback for address in addresses)
