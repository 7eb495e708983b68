"""s2ctl: the operator's tool, in the manner of systemctl.

This module knows the verbs alone; each verb's own module is imported when it
runs, since the user waits for every import.
"""

from __future__ import annotations

import io
import sys
from argparse import ArgumentTypeError, Namespace
from collections.abc import Sequence

from scistreamd import __version__
from scistreamd.cli import commands
from scistreamd.cli.commands import Command, Tool, lazily
from scistreamd.cli.ctl import arguments
from scistreamd.cli.options import Parser, checked, integer, spelled
from scistreamd.model import IPAddress, Target, parse_address

_CERTIFICATE = "scistreamd.cli.certificate"
_READING = "scistreamd.cli.ctl.reading"
_CHANGING = "scistreamd.cli.ctl.changing"
_CONFIGURATION = "scistreamd.cli.ctl.configuration"
_TOKENS = "scistreamd.cli.ctl.tokens"
_MAX_DAYS = 36500


def _ip(text: str) -> IPAddress:
    address = checked(lambda word: parse_address(word, "ip"))(text)
    if address.is_unspecified:
        raise ArgumentTypeError(f"{address} is no address that a client can dial")
    return address


def _dns(text: str) -> str:
    """A host name; ``*.`` may stand for its first label (RFC 6125, 6.4.3)."""
    target = checked(lambda word: Target.parse(f"{word}:1", "dns"))(text.removeprefix("*."))
    if target.address is not None:
        raise ArgumentTypeError(f"{text!r} is an address: --ip {text}")
    return "*." + target.host if text.startswith("*.") else target.host


def _create_arguments(parser: Parser) -> None:
    parser.add_argument(
        "--ip",
        action="append",
        default=[],
        type=_ip,
        metavar="ADDRESS",
        help="an address that clients dial; may be repeated",
    )
    parser.add_argument(
        "--dns",
        action="append",
        default=[],
        type=_dns,
        metavar="NAME",
        help="a name that clients dial; may be repeated (without --ip and --dns: the host's own)",
    )
    parser.add_argument("--out", default="server.crt", metavar="FILE", help="the certificate (%(default)s)")
    parser.add_argument("--key", default="server.key", metavar="FILE", help="the private key (%(default)s)")
    parser.add_argument(
        "--days", default=365, type=integer(1, _MAX_DAYS), metavar="N", help="how long it is valid (%(default)s)"
    )
    parser.add_boolean("--force", help="replace what is there")
    arguments.quiet(parser, "print nothing")
    arguments.plain(parser)


def _show_arguments(parser: Parser) -> None:
    parser.add_argument(
        "file", metavar="FILE", nargs="?", help="a certificate in PEM form (that of scistreamd's control port)"
    )
    arguments.quiet(parser)
    arguments.json_mode(parser)
    arguments.plain(parser)


def _version(options: Namespace) -> int:
    from scistreamd.cli.ctl.screen import as_json

    told = f"scistreamd {__version__}" if options.json == "off" else as_json({"version": __version__}, options.json)
    print(told)
    return 0


TOOL = Tool(
    "s2ctl",
    "Manages the tunnels of a SciStream gateway: scistreamd's, over D-Bus. Without a command: list.",
    (
        Command("list", "show all tunnels", arguments.listed, lazily(_READING, "listed")),
        Command("status", "show the gateway, or a tunnel with its log", arguments.status, lazily(_READING, "status")),
        Command("show", "show every property of a tunnel", arguments.show, lazily(_READING, "show")),
        Command("inbound", "make a tunnel to applications here", arguments.inbound, lazily(_CHANGING, "inbound")),
        Command("outbound", "make a tunnel to an inbound gateway", arguments.outbound, lazily(_CHANGING, "outbound")),
        Command("update", "change a tunnel's targets or limits", arguments.update, lazily(_CHANGING, "update")),
        Command("extend", "let a tunnel end so long from now", arguments.extend, lazily(_CHANGING, "extend")),
        Command("release", "end tunnels", arguments.release, lazily(_CHANGING, "release")),
        Command(
            "logs", "show a tunnel's lines in the journal", arguments.logs, lazily("scistreamd.cli.ctl.journal", "logs")
        ),
        Command("watch", "tell what happens to tunnels", arguments.watch, lazily("scistreamd.cli.ctl.events", "watch")),
        Command("top", "show live rates", arguments.top, lazily("scistreamd.cli.ctl.top", "top")),
        Command("check", "say which ports could be listened on", arguments.check, lazily(_READING, "check")),
        Command(
            "test", "test the way to an inbound gateway", arguments.test, lazily("scistreamd.cli.ctl.testing", "test")
        ),
        Command(
            "cert create",
            "make the control port's key and certificate",
            _create_arguments,
            lazily(_CERTIFICATE, "create"),
        ),
        Command("cert show", "say what a certificate file holds", _show_arguments, lazily(_CERTIFICATE, "show")),
        Command(
            "token create",
            "make a token for a caller of the control port",
            arguments.token_create,
            lazily(_TOKENS, "create"),
        ),
        Command("token list", "show the tokens that were made", arguments.token_list, lazily(_TOKENS, "listed")),
        Command("token revoke", "make tokens worthless", arguments.token_revoke, lazily(_TOKENS, "revoke")),
        Command("config show", "print the settings in force", arguments.config, lazily(_CONFIGURATION, "show")),
        Command(
            "config check", "check the configuration's files", arguments.config_check, lazily(_CONFIGURATION, "check")
        ),
        Command("version", "print the version", arguments.version, _version),
    ),
)

# Options that may stand before the command as well, as with systemctl; these take a value.
_VALUED = ("-H", "--host", "--address", "--json")
_FIRST = ("-h", "--help", "-v", "--version")


def main(argv: Sequence[str] | None = None) -> int:
    """Run s2ctl with ``argv`` (default: the command line); returns the exit status."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a label may have characters that the locale has not
    return commands.main(TOOL, command_first(with_json_mode(sys.argv[1:] if argv is None else argv)))


def with_json_mode(words: Sequence[str]) -> list[str]:
    """``--json`` by itself means ``--json=pretty``."""
    return [
        "--json=pretty"
        if word == "--json" and not set(words[index + 1 : index + 2]) & set(arguments.JSON_MODES)
        else word
        for index, word in enumerate(words)
    ]


def command_first(words: Sequence[str]) -> list[str]:
    """The command line with options that stand before the command moved behind its name; no command: list."""
    start = 0
    while start < len(words) and words[start].startswith("-") and words[start] not in _FIRST:
        start += 2 if words[start] in _VALUED else 1
    leading, rest = list(words[:start]), list(words[start:])
    if not rest:
        return ["list", *leading]
    length = max((len(name) for name in _names() if [spelled(word) for word in rest[: len(name)]] == name), default=0)
    return [*rest[:length], *leading, *rest[length:]]


def _names() -> list[list[str]]:
    return [command.name.split() for command in TOOL.commands]


if __name__ == "__main__":
    sys.exit(main())
