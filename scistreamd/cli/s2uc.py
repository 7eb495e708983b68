"""s2uc: asks gateways for tunnels and gives them back.

What needs the network library is imported where a command runs, so that help
and usage errors come at once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from scistreamd.cli import commands, request_options
from scistreamd.cli.commands import Command, Tool, lazily
from scistreamd.cli.options import Parser

_REQUESTS, _OWN = "scistreamd.cli.requests", "scistreamd.cli.own"
_TRUSTED = "scistreamd.cli.trusted"
_AUTH = "scistreamd.cli.auth.commands"


def _auth_arguments(parser: Parser) -> None:
    parser.add_argument("--scope", default="", metavar="ID", help="which gateway's tokens are meant")
    parser.add_argument("--issuer", default="", metavar="URL", help="the provider of logins (Globus Auth)")


def _login_arguments(parser: Parser) -> None:
    _auth_arguments(parser)
    parser.add_argument("--client-id", default="", metavar="ID", help="what s2uc is known as at the provider")
    parser.add_argument(
        "--audience", default="", metavar="URI", help="whom the token is for, where the gateway says so"
    )
    parser.add_boolean(
        "--browser", default=True, negatable=True, help="start a browser; --no-browser prints the URL alone"
    )
    parser.add_boolean("--device", help="confirm a code on another device (chosen by itself where no browser could be)")
    parser.add_boolean("--force", help="also where there is a token that counts")


def _check_auth_arguments(parser: Parser) -> None:
    _auth_arguments(parser)
    parser.add_argument("--ip", default="", metavar="HOST", help="the gateway whose token is meant")
    parser.add_boolean("--show-token", help="print the token too; whoever reads it can act as you")
    parser.add_boolean("--json", help="print JSON")


def _trust_list(parser: Parser) -> None:
    parser.add_boolean("--json", help="print JSON")
    parser.add_boolean("--no-legend", help="no titles and no count")
    parser.add_boolean("--no-pager", help="print straight to the terminal")


def _trust_remove(parser: Parser) -> None:
    parser.add_argument("gateway", metavar="HOST:PORT", help="as s2uc trust list shows it")


TOOL = Tool(
    "s2uc",
    "Asks SciStream gateways for tunnels and gives them back.",
    (
        Command(
            "inbound-request",
            "open the tunnel in front of the server application",
            request_options.inbound,
            lazily(_REQUESTS, "inbound"),
        ),
        Command(
            "outbound-request",
            "open the tunnel for the client application",
            request_options.outbound,
            lazily(_REQUESTS, "outbound"),
        ),
        Command("release", "end a tunnel and free its ports", request_options.release, lazily(_REQUESTS, "release")),
        Command(
            "prod-req",
            "reserve an inbound tunnel and wait for another's hello",
            request_options.prod_req,
            lazily(_REQUESTS, "prod_req"),
        ),
        Command(
            "hello",
            "say what the server application listens on, for prod-req",
            request_options.hello,
            lazily(_REQUESTS, "hello"),
        ),
        Command("list", "show one's tunnels on a gateway", request_options.listed, lazily(_OWN, "listed")),
        Command("show", "show all of one tunnel", request_options.show, lazily(_OWN, "show")),
        Command("extend", "give a tunnel another lifetime", request_options.extend, lazily(_OWN, "extend")),
        Command("watch", "tell of changes as they happen", request_options.watch, lazily(_OWN, "watch")),
        Command("health", "say whether a gateway serves", request_options.health, lazily(_REQUESTS, "health")),
        Command("trust list", "show the gateways that you trusted", _trust_list, lazily(_TRUSTED, "listed")),
        Command("trust remove", "trust a gateway no more", _trust_remove, lazily(_TRUSTED, "remove")),
        Command("login", "get a token for gateways that ask for one", _login_arguments, lazily(_AUTH, "login")),
        Command("logout", "forget tokens, and have them revoked", _auth_arguments, lazily(_AUTH, "logout")),
        Command(
            "check-auth", "say who is logged in, and until when", _check_auth_arguments, lazily(_AUTH, "check_auth")
        ),
    ),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run s2uc with ``argv`` (default: the command line); returns the exit status."""
    return commands.main(TOOL, sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    sys.exit(main())
