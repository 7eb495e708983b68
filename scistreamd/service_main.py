"""scistreamd: the control server as a service of systemd."""

from __future__ import annotations

import contextlib
import logging
import os
import ssl
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from scistreamd import __version__
from scistreamd.cli import output
from scistreamd.cli.options import EXIT_USAGE, Parser, UsageError
from scistreamd.config import Settings
from scistreamd.errors import Code, ScistreamError

if TYPE_CHECKING:
    from scistreamd.daemon import Plugged

_ABOUT = """\
The SciStream control server (S2CS) as a service. systemd starts it:
`systemctl start scistreamd.socket`. To run one by hand, use s2cs."""

_FILE = "scistreamd.toml"


def _parser() -> Parser:
    parser = Parser(prog="scistreamd", description=_ABOUT)
    parser.add_argument(
        "--config",
        metavar="FILE",
        help=f"the configuration, with the drop-ins of FILE.d/ (default: /etc/scistreamd/{_FILE}; it may be missing)",
    )
    parser.add_boolean("--check-config", help="check the configuration, print what results, and exit")
    parser.add_boolean("--version", help="print the version and exit")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run scistreamd with ``argv`` (default: the command line); returns the exit status."""
    try:
        options = _parser().parse(sys.argv[1:] if argv is None else argv)
        if options.version:
            print(f"scistreamd {__version__}")
            return 0
        return _check(options) if options.check_config else _serve(options)
    except UsageError as error:
        output.failure("scistreamd", error.message, error.hint)
        return EXIT_USAGE
    except ScistreamError as error:
        output.failure("scistreamd", error.message, error.hint)
        return error.code.exit_status


def _settings(options: Namespace) -> Settings:
    from scistreamd.configread import read

    if options.config is not None:
        return read(Path(options.config), required=True)
    return read(_directory("CONFIGURATION_DIRECTORY", "/etc/scistreamd") / _FILE, required=False)


def _check(options: Namespace) -> int:
    from scistreamd.configfile import effective

    settings = _settings(options)
    if settings.control.certificate is not None:
        _given_tls(settings)
    print(effective(settings), end="")
    return 0


def _serve(options: Namespace) -> int:
    # Only now: what comes before should answer at once.
    from scistreamd import daemon, logs
    from scistreamd.activation import Notifier, inherited_sockets
    from scistreamd.service import Service

    logs.set_up()
    daemon.harden_process()
    state = _directory("STATE_DIRECTORY", "/var/lib/scistreamd")
    with contextlib.ExitStack() as undo:
        notifier = Notifier(os.environ)
        undo.callback(notifier.close)
        try:
            listeners = [undo.enter_context(each) for each in inherited_sockets(os.environ)]
            _refuse_nothing_to_serve(listeners)
            service = Service(lambda: _load(options, state), listeners, notifier, _plug)
            return daemon.run_to_its_end(service.run())
        except ScistreamError as error:
            logging.getLogger("scistreamd.service").error("%s", error)
            notifier.stopping(error.message)
            return error.code.exit_status


def _plug(settings: Settings, reload: Callable[[], None]) -> Plugged:
    """What this host has beyond the parts of every gateway: the one place to plug it in.

    Here go ``launcher`` (tunnels as units of systemd) with ``store``, and
    ``doors`` (D-Bus, which offers ``reload``) with ``authority`` (polkit).
    """
    from scistreamd.daemon import Plugged

    return Plugged()


def _load(options: Namespace, state: Path) -> tuple[Settings, ssl.SSLContext]:
    """The settings and the control port's TLS, as the files are now; ScistreamError where something is wrong."""
    from scistreamd.control.tls import server_context
    from scistreamd.controlcert import ensure

    settings = _settings(options)
    if settings.control.certificate is not None:
        return settings, _given_tls(settings)
    return settings, server_context(*ensure(state / "control"))


def _given_tls(settings: Settings) -> ssl.SSLContext:
    from scistreamd.control.tls import server_context

    # Both are set, or none: the configuration's parser sees to it.
    return server_context(Path(str(settings.control.certificate)), Path(str(settings.control.key)))


def _refuse_nothing_to_serve(listeners: Sequence[object]) -> None:
    if not listeners:
        raise ScistreamError(
            Code.FAILED_PRECONDITION,
            "systemd passed no socket for the control port",
            "systemctl start scistreamd.socket; to run a control server by hand, use s2cs",
        )


def _directory(variable: str, default: str) -> Path:
    """The directory that systemd made for us (systemd.exec(5)), or where it would be."""
    return Path(os.environ.get(variable, "").partition(":")[0] or default)


if __name__ == "__main__":
    sys.exit(main())
