"""The options of s2ctl's verbs."""

from __future__ import annotations

from argparse import SUPPRESS, ArgumentTypeError
from collections.abc import Callable

from scistreamd import options as limits
from scistreamd.cli.options import Parser, checked, integer, ports, seconds
from scistreamd.model import Listen, Security, Target

JSON_MODES = ("short", "pretty", "off")
_MAX_RATE = 1_000_000_000
_MAX_DRAIN = 24 * 3600
_MAX_THROUGHPUT = 30
_THROUGHPUT = 5
_MAX_LINES = 1_000_000
# For ``top``: over how many seconds rates are told, and what its lines can be sorted by.
SPANS = (1, 10, 60)
SORTS = ("rate", "in", "out", "bytes", "conns", "rtt", "retrans", "id", "label")


def _bus(parser: Parser) -> None:
    group = parser.add_argument_group("gateway")
    group.add_argument(
        "-H", "--host", metavar="[USER@]HOST[:PORT]", help="the gateway of another host, by ssh and its system bus"
    )
    group.add_argument(
        "--address",
        metavar="ADDRESS",
        help="a bus other than the system's ($DBUS_SYSTEM_BUS_ADDRESS): unix:path=FILE",
    )


def _password(parser: Parser) -> None:
    parser.add_argument(
        "--no-ask-password", action="store_true", help="fail where polkit would ask for a password on the terminal"
    )


def json_mode(parser: Parser) -> None:
    """``--json``."""
    parser.add_argument(
        "--json", default="off", choices=JSON_MODES, help="print JSON in one line, or indented (%(default)s)"
    )


def _output(parser: Parser, *, table: bool = False) -> None:
    json_mode(parser)
    parser.add_argument("--no-pager", action="store_true", help="print long output on the terminal as it is")
    if table:
        parser.add_argument("--no-legend", action="store_true", help="print no titles and no summary")
    plain(parser)


def plain(parser: Parser) -> None:
    """Take what systemctl takes with every verb also where nothing is paged or has a legend; goes unsaid in help."""
    for name in ("--no-pager", "--no-legend"):
        if name not in parser._option_string_actions:
            parser.add_argument(name, action="store_true", help=SUPPRESS)


def quiet(parser: Parser, help: str = "print no notes") -> None:
    """``-q``."""
    parser.add_argument("-q", "--quiet", action="store_true", help=help)


def _id(parser: Parser) -> None:
    parser.add_argument("id", metavar="ID", help="a tunnel: its id, the start of it, or its label")


def listed(parser: Parser) -> None:
    """Options of ``list``."""
    parser.add_argument("-l", "--long", action="store_true", help="labels, security, end and owner as well")
    quiet(parser, "print ids alone")
    _output(parser, table=True)
    _bus(parser)


def status(parser: Parser) -> None:
    """Options of ``status``."""
    parser.add_argument(
        "id", metavar="ID", nargs="?", help="a tunnel: its id, the start of it, or its label (without: the gateway)"
    )
    parser.add_argument(
        "-n", "--lines", type=integer(0, _MAX_LINES), default=10, metavar="N", help="log lines to show (%(default)s)"
    )
    quiet(parser)
    _output(parser)
    _bus(parser)


def show(parser: Parser) -> None:
    """Options of ``show``."""
    _id(parser)
    parser.add_argument(
        "-p", "--property", action="append", default=[], metavar="NAME", help="this property alone; may be repeated"
    )
    parser.add_argument("--value", action="store_true", help="print values without their names")
    parser.add_argument(
        "--reveal-uid",
        action="store_true",
        help="print the tunnel's UID, a secret, and nothing else (polkit decides who may)",
    )
    quiet(parser)
    _output(parser)
    _password(parser)
    _bus(parser)


def inbound(parser: Parser) -> None:
    """Options of ``inbound``."""
    parser.add_argument(
        "targets", metavar="TARGET", nargs="+", type=_target, help="HOST:PORT of a server application; may be repeated"
    )
    _tunnel(parser)
    parser.add_argument(
        "--uid",
        metavar="UID",
        help="the UID of an outbound side that is there already; - reads it from stdin, @FILE from a file",
    )
    parser.add_argument("--uid-file", metavar="FILE", help="write the UID to FILE (0600) and print the id in its place")
    _created(parser)


def outbound(parser: Parser) -> None:
    """Options of ``outbound``."""
    parser.add_argument("uid", metavar="UID", help="the inbound tunnel's UID; - reads it from stdin, @FILE from a file")
    parser.add_argument(
        "listeners", metavar="LISTENER", nargs="+", type=_target, help="HOST:PORT of an inbound listener"
    )
    _tunnel(parser)
    _created(parser)


def _tunnel(parser: Parser) -> None:
    group = parser.add_argument_group("tunnel")
    group.add_argument("--type", metavar="NAME", help="data server type: Haproxy, Nginx, Stunnel (the gateway's)")
    group.add_argument(
        "--listen",
        action="append",
        default=[],
        type=_listen,
        metavar="ADDRESS[:PORT]",
        help="where to listen, for each target (the gateway picks)",
    )
    group.add_argument("--rate", type=integer(0, _MAX_RATE), metavar="KB/S", help="limit, 0 for none")
    group.add_argument(
        "--security", type=_security, metavar="MODE", help="tls, psk-null or none, as the gateway allows"
    )
    group.add_argument("--lifetime", type=lifetime, metavar="TIME", help="end after seconds, or 90m, 2h, 1d; or never")
    group.add_argument(
        "--allow-from", action="append", default=[], type=_networks, metavar="CIDR[,CIDR]", help="who may connect"
    )
    group.add_argument(
        "--label", type=_label, metavar="TEXT", help="a name for people, and for s2ctl in place of the id"
    )


def _created(parser: Parser) -> None:
    parser.add_argument("--wait", action="store_true", help="return when the tunnel has ended")
    plain(parser)
    quiet(parser, "print the id alone")
    json_mode(parser)
    _password(parser)
    _bus(parser)


def update(parser: Parser) -> None:
    """Options of ``update``."""
    _id(parser)
    parser.add_argument(
        "targets", metavar="TARGET", nargs="*", type=_target, help="where new connections go from now on"
    )
    parser.add_argument("--rate", type=integer(0, _MAX_RATE), metavar="KB/S", help="limit, 0 for none")
    parser.add_argument("--lifetime", type=lifetime, metavar="TIME", help="end so long from now; or never")
    _changed(parser)


def extend(parser: Parser) -> None:
    """Options of ``extend``."""
    _id(parser)
    parser.add_argument(
        "time", metavar="TIME", type=lifetime, help="how long from now: seconds, or 90m, 2h, 1d; or never"
    )
    _changed(parser)


def release(parser: Parser) -> None:
    """Options of ``release``."""
    parser.add_argument("ids", metavar="ID", nargs="*", help="tunnels: ids, starts of ids, labels, or UIDs as @FILE")
    parser.add_argument("--all", action="store_true", help="every tunnel of the gateway")
    parser.add_argument(
        "--drain", type=_drain, default=0, metavar="TIME", help="give running streams so long to end (0: cut them)"
    )
    _changed(parser)


def _changed(parser: Parser) -> None:
    plain(parser)
    quiet(parser, "print nothing")
    _password(parser)
    _bus(parser)


def logs(parser: Parser) -> None:
    """Options of ``logs``."""
    _id(parser)
    parser.add_argument("-f", "--follow", action="store_true", help="go on with new lines until interrupted")
    parser.add_argument("-n", "--lines", type=integer(0, _MAX_LINES), metavar="N", help="the last lines alone")
    quiet(parser)
    _output(parser)
    _bus(parser)


def watch(parser: Parser) -> None:
    """Options of ``watch``."""
    parser.add_argument("id", metavar="ID", nargs="?", help="of this tunnel alone")
    quiet(parser)
    json_mode(parser)
    plain(parser)
    _bus(parser)


def check(parser: Parser) -> None:
    """Options of ``check``."""
    parser.add_argument(
        "ports", metavar="PORTS", nargs="?", type=ports, default=(), help="5100,5110-5119 (without: the whole range)"
    )
    quiet(parser, "print nothing; the exit status tells")
    _output(parser, table=True)
    _bus(parser)


def top(parser: Parser) -> None:
    """Options of ``top``."""
    parser.add_argument(
        "-d", "--delay", type=_delay, default=1.0, metavar="SECONDS", help="time between two refreshes (%(default)g)"
    )
    parser.add_argument(
        "-n", "--count", type=integer(1, _MAX_LINES), metavar="N", help="end after so many refreshes (never)"
    )
    parser.add_argument("-b", "--batch", action="store_true", help="one table below the other, as where no terminal is")
    parser.add_argument("--sort", default="rate", choices=SORTS, help="what comes first (%(default)s)")
    parser.add_argument(
        "--span", type=int, default=1, choices=SPANS, help="seconds over which rates are taken (%(default)s)"
    )
    parser.add_argument("--no-legend", action="store_true", help="print no titles and no summary")
    quiet(parser)
    json_mode(parser)
    plain(parser)
    _bus(parser)


def test(parser: Parser) -> None:
    """Options of ``test``."""
    parser.add_argument(
        "what", metavar="ID|LISTENER", help="an outbound tunnel: its id, the start of it, its label; or HOST:PORT there"
    )
    parser.add_argument(
        "--uid",
        metavar="UID",
        help="test LISTENER before there is a tunnel to it; - reads the UID from stdin, @FILE from a file",
    )
    parser.add_argument(
        "--security", type=_security, metavar="MODE", help="with --uid: tls, psk-null or none (the gateway's)"
    )
    parser.add_argument(
        "--throughput",
        type=integer(1, _MAX_THROUGHPUT),
        nargs="?",
        const=_THROUGHPUT,
        metavar="SECONDS",
        help=f"then send for so long ({_THROUGHPUT}), and say how much arrived",
    )
    plain(parser)
    quiet(parser, "print nothing; the exit status tells")
    json_mode(parser)
    _password(parser)
    _bus(parser)


def config(parser: Parser) -> None:
    """Options of ``config show``."""
    _config_file(parser)
    quiet(parser)
    _output(parser)


def config_check(parser: Parser) -> None:
    """Options of ``config check``."""
    _config_file(parser)
    quiet(parser, "print nothing where all is well")
    json_mode(parser)
    plain(parser)


def _config_file(parser: Parser) -> None:
    parser.add_argument("--config", metavar="FILE", help="another file, with its FILE.d/")


def _delay(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        raise ArgumentTypeError(f"{text!r} is no number of seconds") from None
    if not 0.1 <= seconds <= 86400:
        raise ArgumentTypeError(f"{text!r} is not from 0.1 to 86400 seconds")
    return seconds


def _text(parse: Callable[[str, str], object], name: str) -> Callable[[str], str]:
    """The text itself, once the model has accepted it."""
    accepts = checked(lambda text: parse(text, name))

    def convert(text: str) -> str:
        accepts(text)
        return text

    return convert


_one_target = _text(Target.parse, "HOST:PORT")


def _target(text: str) -> str:
    """One, or several with commas between them, as s2uc takes listeners."""
    return ",".join(_one_target(part.strip()) for part in text.split(","))


_listen = _text(Listen.parse, "listen")
_label = _text(limits.label, "label")


def _security(text: str) -> str:
    return checked(Security.parse)(text).value


def _networks(text: str) -> list[str]:
    return [str(checked(lambda part: limits.network(part, "allow-from"))(part.strip())) for part in text.split(",")]


def lifetime(text: str) -> int:
    """Seconds; 0 for ``never``."""
    if text.lower() in ("never", "0"):
        return 0
    found = seconds(text)
    if found > limits.MAX_LIFETIME:
        raise ArgumentTypeError(f"{text!r} is more than {limits.MAX_LIFETIME // 86400} days; never stands for no end")
    return found


def _drain(text: str) -> int:
    found = 0 if text == "0" else seconds(text)
    if found > _MAX_DRAIN:
        raise ArgumentTypeError(f"{text!r} is more than a day")
    return found


def _token_file(parser: Parser) -> None:
    parser.add_argument(
        "--file", metavar="FILE", help="the tokens' file (default: auth.tokens.file of the configuration)"
    )


def token_create(parser: Parser) -> None:
    """``token create``."""
    parser.add_argument("name", metavar="NAME", help="whose it is, as policies and logs name the caller")
    parser.add_argument(
        "--expires",
        type=seconds,
        metavar="DURATION",
        help="how long it is good: seconds, or 90m, 2h, 30d (default: until it is revoked)",
    )
    _token_file(parser)
    quiet(parser)
    _output(parser)


def token_list(parser: Parser) -> None:
    """``token list``."""
    _token_file(parser)
    quiet(parser)
    _output(parser, table=True)


def token_revoke(parser: Parser) -> None:
    """``token revoke``."""
    parser.add_argument("names", nargs="+", metavar="NAME", help="a token's name")
    _token_file(parser)
    plain(parser)
    quiet(parser, "say nothing")


def version(parser: Parser) -> None:
    """Options of ``version``."""
    quiet(parser)
    json_mode(parser)
    plain(parser)
