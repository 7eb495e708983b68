"""s2cs: the control server in the foreground, with the options that the tutorial types."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

from scistreamd import __version__
from scistreamd.cli import init, output
from scistreamd.cli.options import EXIT_USAGE, Parser, UsageError, checked, integer, spelled
from scistreamd.config import GLOBUS, Auth, FirewallMode, OAuth2, Settings
from scistreamd.configkeys import provider_url, provider_word
from scistreamd.dataserver import DATA_SERVERS, parse_type
from scistreamd.errors import ScistreamError, invalid
from scistreamd.model import Endpoint, IPAddress, IPNetwork, PortRange, Security, parse_address
from scistreamd.options import network

_ABOUT = """\
Run a SciStream control server (S2CS) in the foreground. Data servers are its
children and end with it."""

_EXAMPLES = """\
examples:
  s2ctl cert create --ip 192.0.2.11     # once: server.crt and server.key
  s2cs --listener-ip=192.0.2.11 --type=Haproxy --port-range=5100-5200

Names take `-` or `_`, values stand behind `=` or a space. Exit status: 0 after
SIGTERM or SIGINT, 2 for wrong usage, else as in s2cs(8)."""


def _parser() -> Parser:
    parser = Parser(prog="s2cs", description=_ABOUT, epilog=_EXAMPLES)
    add = parser.add_argument
    add(
        "--listener-ip",
        metavar="ADDRESS",
        type=_address("--listener-ip"),
        default=None,
        help="where the control port and the tunnels listen (default: every address; outbound tunnels, "
        "which are not encrypted towards the application, then listen where their request came in)",
    )
    add(
        "--advertise",
        metavar="ADDRESS",
        type=_address("--advertise"),
        default=None,
        help="the address that answers name where tunnels listen on every address",
    )
    add("--port", type=integer(0, 65535), default=5000, help="the control port (default: 5000; 0 takes a free one)")
    add(
        "--port-range",
        metavar="FIRST-LAST",
        type=checked(PortRange.parse),
        default=PortRange(5100, 5200),
        help="the ports that tunnels listen on (default: 5100-5200)",
    )
    add(
        "--type",
        "-t",
        default="Haproxy",
        metavar="TYPE",
        help=f"the data server type: {_types()}; case is ignored (default: Haproxy)",
    )
    add(
        "--lan",
        metavar="NETWORK,...",
        type=checked(_networks),
        default=None,
        help="the networks that inbound tunnels may forward to (default: the attached ones, RFC 1918 and RFC 4193); "
        "an address of this host only where it is named alone, as in 192.0.2.1/32",
    )
    add(
        "--security",
        metavar="MODE",
        type=checked(Security.parse),
        default=Security.TLS,
        help="what protects tunnels whose request does not say: tls, psk-null or none (default: tls)",
    )
    add(
        "--allow-security",
        metavar="MODE,...",
        type=checked(_securities),
        default=frozenset({Security.TLS}),
        help="what requests may ask for, beside the default (default: tls)",
    )
    add(
        "--firewall",
        metavar="WHAT",
        type=checked(_firewall),
        default=FirewallMode.CHECK,
        help="what to do about a firewall that blocks a listener: off (nothing), check (warn), require (refuse the "
        "tunnel) or manage (have firewalld let its peers in); it takes CAP_NET_ADMIN (default: check)",
    )
    add("--server-crt", metavar="FILE", default="server.crt", help="certificate of the control port (server.crt)")
    add("--server-key", metavar="FILE", default="server.key", help="its key (server.key)")
    parser.add_boolean(
        "--ssl", default=True, negatable=True, help="False serves the control port in plaintext, on loopback only"
    )
    parser.add_boolean(
        "--force-plaintext", help="with --ssl=False: on any address. Everybody on the way reads the UIDs"
    )
    _add_login(parser)
    parser.add_boolean("--verbose", "-v", help="log more")
    parser.add_boolean("--version", help="print the version and exit")
    return parser


def _add_login(parser: Parser) -> None:
    add = parser.add_argument
    add(
        "--client-id",
        default="",
        metavar="ID",
        type=_checked_word("--client-id"),
        help="this gateway's client at the provider of logins: callers must bring one of its tokens",
    )
    add(
        "--client-secret",
        default="",
        metavar="SECRET",
        help="the client's secret; every user of this host can read it here, so better give it as a file",
    )
    add(
        "--client-secret-file",
        default="",
        metavar="FILE",
        help="a file with the secret alone (else: systemd's credential oauth2-client-secret, or the environment's "
        "SCISTREAM_CLIENT_SECRET)",
    )
    add(
        "--issuer",
        default=GLOBUS,
        metavar="URL",
        type=_provider,
        help="the provider of logins (default: Globus Auth)",
    )
    add(
        "--scope",
        default="",
        metavar="SCOPE",
        type=_checked_word("--scope"),
        help="the scope that tokens must have (default: scistream, at Globus its form with the client id)",
    )


def _provider(text: str) -> str:
    try:
        return provider_url(text)
    except ValueError:
        raise UsageError("--issuer: it takes an https URL", "http is for a provider on this host alone") from None


def _checked_word(option: str) -> Callable[[str], str]:
    def checked_word(text: str) -> str:
        try:
            return provider_word(text)
        except ValueError:
            raise UsageError(f"{option}: printable ASCII without quotes and backslashes") from None

    return checked_word


def _address(option: str) -> Callable[[str], IPAddress]:
    return checked(lambda text: parse_address(text, option))


def _types() -> str:
    return ", ".join([each.name for each in DATA_SERVERS] + [f"{each.name}Subprocess" for each in DATA_SERVERS])


def _networks(text: str) -> tuple[IPNetwork, ...]:
    return tuple(network(each.strip(), "lan") for each in text.split(","))


def _securities(text: str) -> frozenset[Security]:
    return frozenset(Security.parse(each.strip(), "allow-security") for each in text.split(","))


def _firewall(text: str) -> FirewallMode:
    try:
        return FirewallMode(text)
    except ValueError:
        raise invalid("firewall", "it is off, check, require or manage") from None


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The options of a command line; UsageError where it makes no sense."""
    return _parser().parse(words)


def main(argv: Sequence[str] | None = None) -> int:
    """Run s2cs with ``argv`` (default: the command line); returns the exit status."""
    try:
        options = parse(sys.argv[1:] if argv is None else argv)
        if options.version:
            print(f"s2cs, version: {__version__}")
            return 0
        return init.run(lambda: _serve(options))
    except UsageError as error:
        output.failure("s2cs", error.message, error.hint)
        return EXIT_USAGE
    except ScistreamError as error:
        output.failure("s2cs", error.message, error.hint)
        return error.code.exit_status


def _serve(options: argparse.Namespace) -> int:
    settings = _settings(options)
    _refuse_unsafe(options, settings)
    # Only now: what comes before should answer at once.
    from scistreamd import authenticators, daemon, logs
    from scistreamd.authenticators.secret import client_secret
    from scistreamd.control.tls import server_context

    logs.set_up("s2cs", "debug" if options.verbose else "info")
    daemon.harden_process()
    files = Path(options.server_crt), Path(options.server_key)
    control = daemon.ControlPort(options.listener_ip, options.port, (files, server_context) if options.ssl else None)
    given = options.client_secret
    life = daemon.run(
        settings,
        control,
        lambda settings: authenticators.build(settings.auth, (lambda auth: given) if given else client_secret),
        lambda listener: _announce(listener, settings, options),
    )
    return daemon.run_to_its_end(life)


def _settings(options: argparse.Namespace) -> Settings:
    try:
        kind = parse_type(options.type)
    except ScistreamError as error:
        raise UsageError(f"--{error.message}", error.hint) from None
    if options.security not in kind.server.securities:
        able = " or ".join(each.name for each in DATA_SERVERS if options.security in each.securities)
        raise UsageError(f"--security: {kind.name} cannot do {options.security.value}", f"--type={able} can")
    listen: IPAddress | None = options.listener_ip
    return Settings(
        listen_inbound=listen,
        listen_outbound=listen,
        advertise=options.advertise,
        port_range=options.port_range,
        lan=options.lan,
        firewall=options.firewall,
        default_type=kind.name,
        default_security=options.security,
        allowed_security=options.allow_security | {options.security},
        auth=Auth(_oauth2(options)),
        # Without a provider as SciStream 1.2 without Globus; `_announce` says so.
        require_auth=bool(options.client_id),
    )


def _oauth2(options: argparse.Namespace) -> OAuth2:
    if not options.client_id:
        for option in ("client_secret", "client_secret_file", "scope"):
            if getattr(options, option):
                raise UsageError(f"--{spelled(option)}: without --client-id it means nothing", "give both, or neither")
    if options.client_secret and options.client_secret_file:
        raise UsageError("--client-secret and --client-secret-file: give one of them", "better the file")
    file = PurePosixPath(options.client_secret_file) if options.client_secret_file else None
    return OAuth2(options.issuer, options.client_id, file, options.scope or None)


def _refuse_unsafe(options: argparse.Namespace, settings: Settings) -> None:
    if not options.ssl and not settings.loopback_only and not options.force_plaintext:
        raise UsageError(
            "--ssl=False: in plaintext everybody on the way reads the UIDs, which are the tunnels' keys",
            "serve it on loopback (--listener-ip=127.0.0.1), make a certificate (s2ctl cert create), "
            "or insist with --force-plaintext",
        )


def _announce(listener: Endpoint, settings: Settings, options: argparse.Namespace) -> None:
    if options.client_secret:
        output.note("s2cs", "WARNING: every user of this host reads --client-secret in the list of processes")
    if not options.ssl:
        output.note("s2cs", "WARNING: the control port is not encrypted; whoever reads it can join every tunnel")
    oauth2 = settings.auth.oauth2
    if settings.require_auth:
        output.note("s2cs", f"callers log in at {oauth2.issuer} for the scope {oauth2.wanted_scope}")
    elif not listener.address.is_loopback:
        output.note(
            "s2cs", "WARNING: no authentication is configured: whoever reaches the control port may use this gateway"
        )
    secure = "Secure" if options.ssl else "INSECURE (plaintext)"
    print(f"{secure} gRPC Server started on {listener}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
