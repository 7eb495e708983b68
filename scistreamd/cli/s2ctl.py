"""s2ctl: the operator's tool, in the manner of systemctl."""

from __future__ import annotations

import sys
from argparse import ArgumentTypeError, Namespace
from collections.abc import Sequence

from scistreamd import __version__
from scistreamd.cli import commands
from scistreamd.cli.commands import Command, Tool, lazily
from scistreamd.cli.options import Parser, checked, integer
from scistreamd.model import IPAddress, Target, parse_address

_CERTIFICATE = "scistreamd.cli.certificate"
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


def _show_arguments(parser: Parser) -> None:
    parser.add_argument("file", metavar="FILE", help="a certificate in PEM form")
    parser.add_boolean("--json", help="print JSON")


def _no_arguments(parser: Parser) -> None:
    """A command without options."""


def _version(options: Namespace) -> int:
    print(f"scistreamd {__version__}")
    return 0


TOOL = Tool(
    "s2ctl",
    "Manages a SciStream gateway.",
    (
        Command(
            "cert create",
            "make the control port's key and certificate",
            _create_arguments,
            lazily(_CERTIFICATE, "create"),
        ),
        Command("cert show", "say what a certificate file holds", _show_arguments, lazily(_CERTIFICATE, "show")),
        Command("version", "print the version", _no_arguments, _version),
    ),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run s2ctl with ``argv`` (default: the command line); returns the exit status."""
    return commands.main(TOOL, sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    sys.exit(main())
