"""s2uc: asks gateways for tunnels and gives them back.

What needs the network library is imported where a command runs, so that help
and usage errors come at once.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence

from scistreamd.cli import commands, request_options
from scistreamd.cli.commands import Command, Tool, lazily
from scistreamd.cli.options import Parser
from scistreamd.errors import Code, ScistreamError

_REQUESTS, _OWN = "scistreamd.cli.requests", "scistreamd.cli.own"
_TRUSTED = "scistreamd.cli.trusted"
_NO_LOGIN = "a gateway that was started without --client-secret asks for no token"


def _login(options: Namespace) -> int:
    raise ScistreamError(Code.UNIMPLEMENTED, "this version has no login yet", _NO_LOGIN)


def _logout(options: Namespace) -> int:
    print("no token stored")
    return 0


def _check_auth(options: Namespace) -> int:
    raise ScistreamError(Code.UNAUTHENTICATED, "no token stored, and this version has no login yet", _NO_LOGIN)


def _auth_arguments(parser: Parser) -> None:
    parser.add_argument("--scope", default="", metavar="ID", help="which gateway's tokens are meant")


def _check_auth_arguments(parser: Parser) -> None:
    _auth_arguments(parser)
    parser.add_argument("--ip", default="", metavar="HOST", help="the gateway whose token is meant")


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
        Command("login", "get a token (not in this version)", _auth_arguments, _login),
        Command("logout", "forget all tokens", _auth_arguments, _logout),
        Command("check-auth", "say whether a token is stored", _check_auth_arguments, _check_auth),
    ),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run s2uc with ``argv`` (default: the command line); returns the exit status."""
    return commands.main(TOOL, sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    sys.exit(main())
