"""Every key of the configuration file in one table.

`KEYS` is the source of docs/configuration.md, of what a message about a key
says, and of how `scistreamd --check-config` shows the settings.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from scistreamd import capacity, dataserver, rulefile
from scistreamd.config import FirewallMode, Settings
from scistreamd.model import PortRange, Security, parse_address

LEVELS = ("debug", "info", "warning", "error")
_DAYS = 86400


@dataclass(frozen=True)
class Kind:
    """A type of value: ``parse`` takes what TOML has and raises ValueError, ``toml`` writes it back.

    ``join``: takes the values of two files, where the later one adds to the
    earlier one. ``detailed``: what ``parse`` raises names the key by itself.
    """

    expected: str
    parse: Callable[[Any], Any]
    toml: Callable[[Any], str]
    join: Callable[[Any, Any], Any] | None = None
    detailed: bool = False


@dataclass(frozen=True)
class Key:
    """One key: its dotted ``name`` in the file, the ``path`` of its attribute in `Settings`.

    ``restart``: a change is taken up by the next start, not by a reload.
    """

    name: str
    path: str
    kind: Kind
    about: str
    restart: bool = False

    @property
    def default(self) -> str:
        """The default, as it would stand in the file."""
        return self.toml(Settings())

    def toml(self, settings: Settings) -> str:
        """Its value in these settings, as it would stand in the file."""
        return self.kind.toml(self.value(settings))

    def value(self, settings: Settings) -> Any:
        """Its value in these settings."""
        found: Any = settings
        for name in self.path.split("."):
            found = getattr(found, name)
        return found


def _quoted(value: object) -> str:
    """A TOML basic string; what our types hold has no control character."""
    return '"' + str(value).replace("\\", "\\\\").replace('"', '\\"') + '"'


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError
    return value


def _empty_or(parse: Callable[[str], Any]) -> Callable[[Any], Any]:
    return lambda value: parse(value) if _text(value) else None


def _address(*, wildcard: bool) -> Kind:
    def parse(text: str) -> Any:
        address = parse_address(text)
        if address.is_unspecified and not wildcard:
            raise ValueError
        return address

    example = '"192.0.2.11" or "2001:db8::11"' + ("" if wildcard else ", not a wildcard")
    return Kind(f'an IP address as text such as {example}, or "" for the default', _empty_or(parse), _or_empty)


def _or_empty(value: Any) -> str:
    return _quoted("" if value is None else value)


def _path(text: str) -> PurePosixPath:
    if not text.startswith("/") or not text.isprintable():
        raise ValueError
    return PurePosixPath(text)


def _whole(low: int, high: int) -> Kind:
    def parse(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError
        return value

    return Kind(f"a whole number from {low} to {high}", parse, str)


def _seconds(low: float, high: int) -> Kind:
    def parse(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise ValueError
        return value

    return Kind(f"seconds, a number from {low:g} to {high}", parse, lambda value: f"{value:g}")


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError
    return value


def _level(value: Any) -> str:
    if value not in LEVELS:
        raise ValueError
    return str(value)


def _modes(value: Any) -> frozenset[Security]:
    if not isinstance(value, list) or not value:
        raise ValueError
    return frozenset(Security.parse(_text(each)) for each in value)


def _mode_list(value: frozenset[Security]) -> str:
    return "[" + ", ".join(_quoted(mode.value) for mode in Security if mode in value) + "]"


def _network_list(value: Any) -> str:
    return "[" + ", ".join(_quoted(each) for each in value or ()) + "]"


_MODES = '"tls", "psk-null" or "none"'
_ADDRESS = _address(wildcard=True)
_ONE_ADDRESS = _address(wildcard=False)
_FILE = Kind('an absolute path as text, or "" for the default', _empty_or(_path), _or_empty)
_RANGE = Kind('"FIRST-LAST" as text such as "5100-5200"', lambda value: PortRange.parse(_text(value)), _quoted)
_TYPE = Kind(
    "one of " + ", ".join(_quoted(each.name) for each in dataserver.TYPES),
    lambda value: dataserver.parse_type(_text(value)).name,
    _quoted,
)
_SECURITY = Kind(_MODES, lambda value: Security.parse(_text(value)), lambda value: _quoted(value.value))
_SECURITIES = Kind(f"a list of {_MODES}", _modes, _mode_list)
_FIREWALL = Kind(
    "one of " + ", ".join(_quoted(each.value) for each in FirewallMode),
    lambda value: FirewallMode(_text(value)),
    lambda value: _quoted(value.value),
)
_BOOLEAN = Kind("true or false", _boolean, lambda value: str(value).lower())
_LEVEL = Kind("one of " + ", ".join(map(_quoted, LEVELS)), _level, _quoted)
_NETWORKS = Kind(
    'a list of networks as text such as ["10.0.0.0/8", "2001:db8::/32"]',
    lambda value: rulefile.parse_networks(value, "lan") or None,
    _network_list,
    detailed=True,
)
_POLICY = Kind("rules, each below [[policy]]", rulefile.parse, rulefile.toml, rulefile.join, detailed=True)
_WHO = Kind(
    'names by kind such as {user = ["alice@example.org"], group = ["operators"]}',
    lambda value: rulefile.parse_some(value, "auth.administrators"),
    rulefile.who_toml,
    detailed=True,
)
_CAPACITY = Kind(capacity.EXPECTED, lambda value: capacity.parse(_text(value)), lambda kb: _quoted(capacity.shown(kb)))


def provider_url(text: str) -> str:
    """A provider's URL, or ValueError: tokens and secrets go there, so it is encrypted, or on this host."""
    parts = urlsplit(text)
    near = parts.hostname in ("localhost", "127.0.0.1", "::1")
    if not parts.hostname or parts.scheme not in (("https", "http") if near else ("https",)):
        raise ValueError
    if parts.query or parts.fragment or parts.username is not None or not text.isprintable() or " " in text:
        raise ValueError
    return text.rstrip("/") if parts.path == "/" else text


def provider_word(value: Any) -> str:
    """Text, or ValueError, as it may stand in a form and in a quoted-string (RFC 6749, appendix A)."""
    if not _text(value).isascii() or not value.isprintable() or {'"', "\\"} & set(value):
        raise ValueError
    return str(value)


def _words(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError
    return tuple(provider_word(each) for each in value)


def _algorithms(value: Any) -> tuple[str, ...]:
    words = _words(value)
    if not set(words) <= set(_ALGORITHMS):
        raise ValueError
    return words


# RFC 7518 and RFC 8037, those with a public key: with HS256 whoever can check a token could make one.
_ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
_WORD_KIND = Kind("printable ASCII without quotes and backslashes", provider_word, _quoted)
_SCOPE = Kind(
    'scopes with spaces between them; "" for the default', lambda value: provider_word(value) or None, _or_empty
)
_WORD_LIST = Kind("a list of claims' names", _words, _network_list)
_ALGORITHM_LIST = Kind("a list of " + ", ".join(map(_quoted, _ALGORITHMS)), _algorithms, _network_list)
_URL = Kind("an https URL; http is for this host alone", lambda value: provider_url(_text(value)), _quoted)
_URL_OR_NONE = Kind(
    'an https URL, or "" to go by the provider\'s metadata', lambda value: value and provider_url(_text(value)), _quoted
)
_SIZE = _whole(1024, 1 << 30)
_COUNT = _whole(1, 1_000_000)
_SOON = _seconds(0.1, 3600)


def _limit(name: str, kind: Kind, about: str) -> Key:
    # The doors keep the limits that they were opened with.
    return Key(f"control.limits.{name}", f"control.limits.{name}", kind, about, restart=True)


def _oauth2(name: str, kind: Kind, about: str) -> Key:
    return Key(f"auth.oauth2.{name}", f"auth.oauth2.{name}", kind, about)


def _same(name: str, kind: Kind, about: str, *, restart: bool = False) -> Key:
    return Key(name, name, kind, about, restart)


KEYS: tuple[Key, ...] = (
    Key("listen.inbound", "listen_inbound", _ADDRESS, "where inbound tunnels listen; default: every address"),
    Key(
        "listen.outbound",
        "listen_outbound",
        _ONE_ADDRESS,
        "where outbound tunnels listen, unencrypted; default: the address that the request came in on",
    ),
    _same("advertise", _ONE_ADDRESS, "the address that answers name where a tunnel listens on every address"),
    _same("port_range", _RANGE, "the ports that tunnels listen on"),
    _same("default_type", _TYPE, "the data server type of tunnels whose request does not say"),
    Key("security.default", "default_security", _SECURITY, "what protects tunnels whose request does not say"),
    Key("security.allowed", "allowed_security", _SECURITIES, "what requests may ask for; holds the default too"),
    _same(
        "require_auth",
        _BOOLEAN,
        "other hosts must prove who they are; false: whoever reaches the control port is served",
    ),
    Key(
        "auth.administrators",
        "administrators",
        _WHO,
        "callers who may update, release and reveal other people's tunnels",
    ),
    _oauth2("issuer", _URL, "the provider of tokens; the default is Globus Auth"),
    _oauth2("client_id", _WORD_KIND, "the gateway's own client at the provider; turns introspection of tokens on"),
    _oauth2(
        "client_secret_file",
        _FILE,
        "the client's secret, alone in a file; default: systemd's credential oauth2-client-secret, "
        "then the environment's SCISTREAM_CLIENT_SECRET",
    ),
    _oauth2("scope", _SCOPE, "what tokens must be for; default: scistream, at Globus its form with the client id"),
    _oauth2("audience", _WORD_KIND, "whom tokens must be for; turns local validation of JWTs on"),
    _oauth2("jwt", _BOOLEAN, "false: the provider is asked about JWTs as well, and so about their revocation"),
    _oauth2("algorithms", _ALGORITHM_LIST, "signatures of JWTs that are believed"),
    _oauth2("user_claims", _WORD_LIST, "what names a caller: the first claim that is there; all count in policies"),
    _oauth2("groups_claim", _WORD_KIND, "the claim with the caller's groups"),
    _oauth2("login_client_id", _WORD_KIND, "the public client that s2uc login takes; empty: users know it"),
    _oauth2("introspection_endpoint", _URL_OR_NONE, "where to ask about tokens (RFC 7662)"),
    _oauth2("jwks_uri", _URL_OR_NONE, "where the keys for JWTs are"),
    _oauth2("timeout", _seconds(0.1, 60), "how long the provider may take to answer"),
    _oauth2("cache", _seconds(0, 3600), "how long a good token is not asked about again: so long revocation may take"),
    _oauth2("negative_cache", _seconds(0, 3600), "and one that is not good"),
    _oauth2("leeway", _seconds(0, 600), "how far the provider's clock and ours may be apart"),
    Key("auth.mtls.ca", "auth.mtls.ca", _FILE, "who signs client certificates, PEM; turns them on"),
    Key("auth.mtls.crl", "auth.mtls.crl", _FILE, "revoked client certificates, PEM; needs one of each CA that signs"),
    Key("auth.tokens.file", "auth.tokens", _FILE, "static tokens, made by s2ctl token create; turns them on"),
    Key("auth.failures.burst", "auth.failures.burst", _COUNT, "failures of one address or identity that go at once"),
    Key("auth.failures.per_minute", "auth.failures.per_minute", _COUNT, "failures that are forgotten in a minute"),
    _same("lan", _NETWORKS, "what inbound tunnels may forward to; empty: the attached networks, RFC 1918, RFC 4193"),
    _same("policy", _POLICY, "who may have which tunnels; the first rule that fits decides"),
    _same("idle_timeout", _seconds(0, 3650 * _DAYS), "end a tunnel that had no connection for so long; 0: never"),
    _same("idle_exit", _seconds(0, 365 * _DAYS), "end when there was nothing to do for so long; 0: never"),
    _same(
        "firewall",
        _FIREWALL,
        "what to do about a firewall that blocks a listener: nothing, warn, refuse the tunnel, or have firewalld let "
        "its peers in",
        restart=True,
    ),
    Key("log.level", "log_level", _LEVEL, "the least important lines that are logged"),
    Key(
        "rate.default",
        "rate_default",
        _whole(0, 1_000_000_000),
        "kB/s for tunnels whose request names none; 0: no limit",
    ),
    Key("rate.enforce", "rate_enforce", _BOOLEAN, "enforce the rate that SciStream 1.2 clients send, asked for or not"),
    _same("capacity", _CAPACITY, "what all tunnels may have together, in each direction; rates are reserved from it"),
    _same("quotas.ports_per_request", _whole(1, 65535), "listeners in one request"),
    _same("quotas.tunnels_per_peer", _COUNT, "tunnels of one address, or of one user of this host by D-Bus, at a time"),
    _same("quotas.pending", _COUNT, "requests that wait for hello or update, of all peers together"),
    _same("times.hello", _seconds(1, _DAYS), "how long req waits for hello"),
    _same("times.early_hello", _seconds(0, 3600), "how long a hello waits for its req"),
    _same("times.update", _seconds(1, _DAYS), "how long a tunnel waits for update"),
    _same("times.failed_kept", _seconds(0, 30 * _DAYS), "how long a failed tunnel can be looked at"),
    _same("times.resolve", _seconds(0.1, 300), "how long looking up one host name may take"),
    _same("tuning.threads", _whole(1, 64), "threads of a data server (Nginx: worker processes)"),
    _same("tuning.buffer_bytes", _whole(4096, 1 << 24), "buffer of a stream and direction, in bytes"),
    _same("tuning.handshake_seconds", _whole(1, 3600), "how long the TLS handshake of a stream may take"),
    _same("tuning.connect_seconds", _whole(1, 3600), "how long connecting to a target may take"),
    _same("tuning.connections", _COUNT, "streams of one tunnel at a time"),
    _same(
        "tuning.keepalive_idle_seconds",
        _whole(1, 32767),
        "silence after which TCP keepalive asks whether a peer is there",
        restart=True,
    ),
    Key(
        "control.certificate",
        "control.certificate",
        _FILE,
        "certificate of the control port, PEM; default: made at first start",
    ),
    Key("control.key", "control.key", _FILE, "its private key, PEM without passphrase"),
    _limit("connections", _COUNT, "connections to the control port at a time"),
    _limit("connections_per_peer", _COUNT, "of these, from one address"),
    _limit("handshake_seconds", _SOON, "how long a TLS handshake may take"),
    _limit("first_request_seconds", _SOON, "how long a new connection may send no complete request"),
    _limit("message_seconds", _SOON, "how long one request message may take to arrive"),
    _limit("send_seconds", _SOON, "how long a caller may take to accept an answer"),
    _limit("idle_seconds", _seconds(0.1, _DAYS), "how long a connection without calls is kept"),
    _limit("ping_seconds", _SOON, "silence of a waiting caller after which it is sent a PING"),
    _limit("ping_answer_seconds", _SOON, "how long it may take to answer that"),
    _limit("linger_seconds", _SOON, "how long a closing connection may take"),
    _limit("message_bytes", _SIZE, "size of a request message"),
    _limit("pending_bytes", _SIZE, "incomplete messages of one connection together"),
    _limit("header_bytes", _SIZE, "headers of a call"),
    _limit("streams", _whole(1, 100_000), "calls of one connection at a time"),
    _limit("frames", _COUNT, "credit of a connection, in HTTP/2 frames"),
    _limit("frames_per_second", _COUNT, "how fast that credit grows"),
)
