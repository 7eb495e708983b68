"""The options of the user client's requests, as deployed clients name them, and ours."""

from __future__ import annotations

from scistreamd.cli.options import Parser, integer, ports, seconds

DEFAULT_CONTROL = "localhost:5000"
DEFAULT_RECEIVER_PORTS = (5074, 5075, 5076, 37000, 47000)
DEFAULT_NUM_CONN = len(DEFAULT_RECEIVER_PORTS)

_INT32_MAX = 2**31 - 1


def _gateway(parser: Parser) -> None:
    group = parser.add_argument_group("gateway")
    group.add_argument(
        "--s2cs", default=DEFAULT_CONTROL, metavar="HOST:PORT", help="control port of the gateway (%(default)s)"
    )
    group.add_argument(
        "--server-cert",
        metavar="FILE",
        help="the gateway's certificate, or that of its CA (server.crt where there is one, else the system's CAs, "
        "else a gateway that you trusted before)",
    )
    group.add_argument(
        "--trust-fingerprint",
        metavar="SHA256",
        help="trust a gateway that nobody vouches for without a question where its certificate has this fingerprint",
    )
    group.add_argument("--scope", default="", metavar="ID", help="send the token of this login (see s2uc login)")
    group.add_argument("--issuer", default="", metavar="URL", help="where logins at several providers have the scope")
    group.add_argument(
        "--audience", default="", metavar="URI", help="where logins for several audiences have the scope"
    )
    group.add_argument("--token-file", metavar="FILE", help="send the token in FILE, made by the gateway's operator")
    group.add_argument("--client-cert", metavar="FILE", help="show this certificate to the gateway, PEM")
    group.add_argument("--client-key", metavar="FILE", help="its private key, where it is not in the same file")
    group.add_argument(
        "--timeout", type=integer(1, 86400), metavar="SECONDS", help="give up, and give everything back, after so long"
    )
    parser.add_boolean("--no-tls", help="the gateway's control port is plaintext")


def _tunnel(parser: Parser) -> None:
    group = parser.add_argument_group("tunnel")
    group.add_argument("--num-conn", type=integer(1, 65535), metavar="N", help="how many listeners")
    group.add_argument("--rate", type=integer(0, _INT32_MAX), metavar="KB/S", help="limit, 0 for none")
    group.add_argument("--type", metavar="NAME", help="data server type: Haproxy, Nginx, Stunnel")
    group.add_argument("--security", metavar="MODE", help="tls, psk-null or none, where the gateway allows it")
    group.add_argument("--lifetime", type=seconds, metavar="TIME", help="end the tunnel after seconds, or 90m, 2h, 1d")
    group.add_argument("--label", default="", metavar="TEXT", help="a name for people")
    group.add_argument(
        "--allow-from", action="append", default=[], metavar="CIDR[,CIDR]", help="who may connect to the listeners"
    )


def _receivers(parser: Parser, default: tuple[int, ...], help: str) -> None:
    group = parser.add_argument_group("application")
    group.add_argument(
        "--remote-ip",
        default="localhost",
        metavar="HOST",
        help="the application's host as the gateway sees it (%(default)s)",
    )
    group.add_argument("--receiver-ports", type=ports, default=default, metavar="PORT[,PORT]", help=help)


def inbound(parser: Parser) -> None:
    """Options of ``s2uc inbound-request``."""
    _gateway(parser)
    _tunnel(parser)
    listed = ",".join(str(port) for port in DEFAULT_RECEIVER_PORTS)
    _receivers(parser, DEFAULT_RECEIVER_PORTS, f"where the server application listens ({listed})")
    _own_uid(parser)
    parser.add_boolean("--json", help="print one JSON object instead of lines")


def outbound(parser: Parser) -> None:
    """Options of ``s2uc outbound-request``."""
    _uid(parser)
    parser.add_argument("listeners", metavar="LISTENER[,LISTENER]", help="the listeners of the inbound tunnel")
    _gateway(parser)
    _tunnel(parser)
    _receivers(parser, (), "local ports to listen on (the gateway picks)")
    parser.add_boolean("--exact-port", "--exact-ports", help="fail where a local port is not to be had")
    parser.add_argument("--uid-file", metavar="FILE", help="write the UID to FILE and print the id in its place")
    parser.add_boolean("--json", help="print one JSON object instead of lines")
    parser.add_boolean("--mock", help="accepted for scripts; the UID is the one that is given")


def prod_req(parser: Parser) -> None:
    """Options of ``s2uc prod-req``."""
    _gateway(parser)
    _tunnel(parser)
    _own_uid(parser)


def hello(parser: Parser) -> None:
    """Options of ``s2uc hello``."""
    _uid(parser)
    _gateway(parser)
    listed = ",".join(str(port) for port in DEFAULT_RECEIVER_PORTS)
    _receivers(parser, DEFAULT_RECEIVER_PORTS, f"where the server application listens ({listed})")


def release(parser: Parser) -> None:
    """Options of ``s2uc release``."""
    parser.add_argument(
        "uid",
        metavar="UID",
        help="the tunnel's UID; - reads it from stdin, @FILE from a file; who has logged in may give its id",
    )
    _gateway(parser)


def listed(parser: Parser) -> None:
    """Options of ``s2uc list``."""
    _reading(parser)
    _everyone(parser)
    parser.add_boolean("--no-legend", help="no titles and no count")


def show(parser: Parser) -> None:
    """Options of ``s2uc show``."""
    _named(parser)
    _reading(parser)


def extend(parser: Parser) -> None:
    """Options of ``s2uc extend``."""
    _named(parser)
    parser.add_argument(
        "lifetime", metavar="TIME", type=lifetime, help="seconds from now on, or 90m, 2h, 1d; 0: no end"
    )
    _reading(parser)


def watch(parser: Parser) -> None:
    """Options of ``s2uc watch``."""
    _reading(parser)
    _everyone(parser)


def lifetime(text: str) -> int:
    """A duration in seconds as `seconds` has it, or 0."""
    return 0 if text == "0" else seconds(text)


def _named(parser: Parser) -> None:
    parser.add_argument(
        "name", metavar="TUNNEL", help="its id, the start of one, its label, or its UID, also as - or @FILE"
    )


def _everyone(parser: Parser) -> None:
    parser.add_boolean("--everyone", help="all tunnels of the gateway, for administrators")


def _reading(parser: Parser) -> None:
    _gateway(parser)
    parser.add_boolean("--json", help="print JSON; watch: one object a line")
    parser.add_boolean("--no-pager", help="print straight to the terminal")


def health(parser: Parser) -> None:
    """Options of ``s2uc health``."""
    _gateway(parser)


def _uid(parser: Parser) -> None:
    parser.add_argument("uid", metavar="UID", help="the tunnel's UID; - reads it from stdin, @FILE from a file")


def _own_uid(parser: Parser) -> None:
    parser.add_boolean("--mock", help="use the UID of the public tutorial, which protects nothing")
    parser.add_argument("--uid-file", metavar="FILE", help="write the UID to FILE and print the id in its place")
