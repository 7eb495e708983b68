"""Who a caller has proved to be, what they proved it with, and what they are asked for otherwise."""

from __future__ import annotations

from dataclasses import dataclass, field

ANONYMOUS = "anonymous"


@dataclass(frozen=True)
class Identity:
    """A caller as an authenticator knows them.

    ``method``: which one says so: ``oauth2``, ``mtls``, ``token`` or ``local``.
    ``key``: what never changes hands, unlike a name: issuer and subject of a
    provider, a certificate's subject, a token's id, a user's number. ``name``:
    what people call them: ``alice@example.org``, a certificate's common name, a
    token's or a user's name. ``aliases``: further names that policies may use,
    such as a certificate's alternative names. ``groups``: as the provider or
    the host has them.
    """

    method: str
    key: str
    name: str
    aliases: frozenset[str] = frozenset()
    groups: frozenset[str] = frozenset()

    @property
    def principal(self) -> str:
        """What says whose a tunnel is."""
        return f"{self.method}:{self.key}"

    @property
    def names(self) -> frozenset[str]:
        """All names, the first one included."""
        return self.aliases | {self.name}

    @property
    def domains(self) -> frozenset[str]:
        """What stands behind the ``@`` of its names, in lower case."""
        return frozenset(name.rpartition("@")[2].lower() for name in self.names if "@" in name)

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Credentials:
    """What a call brought along: secrets, so that nothing of it is ever shown.

    ``token``: the value of ``authorization`` without ``Bearer``, empty where
    there is none; ``certificate``: the client certificate of the connection as
    DER, verified by TLS against the configured CAs, or empty.
    """

    token: str = field(default="", repr=False)
    certificate: bytes = field(default=b"", repr=False)

    def __bool__(self) -> bool:
        return bool(self.token or self.certificate)


@dataclass(frozen=True)
class Challenge:
    """Where a caller gets what this gateway wants to see.

    ``scheme``: the authenticator's name; ``parameters`` are public, such as
    issuer and scope of a login.
    """

    scheme: str
    parameters: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        """As WWW-Authenticate has it (RFC 9110, section 11.6.1)."""
        return " ".join([self.scheme, ", ".join(f'{name}="{value}"' for name, value in self.parameters)]).strip()
