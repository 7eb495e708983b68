"""scistreamd: the control server as a service of systemd."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import socket
import ssl
import sys
from argparse import Namespace
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from scistreamd import __version__
from scistreamd.cli import output
from scistreamd.cli.options import EXIT_USAGE, Parser, UsageError
from scistreamd.config import FirewallMode, Settings
from scistreamd.errors import Code, ScistreamError

if TYPE_CHECKING:
    from scistreamd.daemon import FrontDoor, Plugged
    from scistreamd.gate import Gate
    from scistreamd.interfaces import Authenticator, Counters
    from scistreamd.manager import Manager

_ABOUT = """\
The SciStream control server (S2CS) as a service. systemd starts it:
`systemctl start scistreamd.socket`. To run one by hand, use s2cs."""

_COMMANDS = """\
commands:
  scistreamd policy test ...   say which policy rule decides a question; --help tells more"""

_FILE = "scistreamd.toml"


def _parser() -> Parser:
    parser = Parser(prog="scistreamd", description=_ABOUT, epilog=_COMMANDS)
    parser.add_argument(
        "--config",
        metavar="FILE",
        help=f"the configuration, with the drop-ins of FILE.d/ (default: /etc/scistreamd/{_FILE}; it may be missing)",
    )
    parser.add_boolean("--check-config", help="check the configuration, print what results, and exit")
    parser.add_boolean("--quiet", "-q", help="with --check-config: say what is wrong, and nothing else")
    parser.add_boolean("--version", help="print the version and exit")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run scistreamd with ``argv`` (default: the command line); returns the exit status."""
    words = sys.argv[1:] if argv is None else argv
    try:
        if list(words[:2]) == ["policy", "test"]:
            return _policy_test(words[2:])
        options = _parser().parse(words)
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

    path, required = _source(options)
    return read(path, required=required)


def _blaming(options: Namespace) -> contextlib.AbstractContextManager[None]:
    from scistreamd.configread import blaming

    path, required = _source(options)
    return blaming(path, required=required)


def _source(options: Namespace) -> tuple[Path, bool]:
    """The configuration's file, and whether it has to be there."""
    if options.config is not None:
        return Path(options.config), True
    return _directory("CONFIGURATION_DIRECTORY", "/etc/scistreamd") / _FILE, False


def _check(options: Namespace) -> int:
    from scistreamd import authenticators
    from scistreamd.authenticators.secret import client_secret
    from scistreamd.configfile import effective

    settings = _settings(options)
    with _blaming(options):
        if settings.control.certificate is not None:
            from scistreamd.control.tls import server_context

            server_context(*_certificate(settings), settings.auth.mtls)
        # Its other sources are the daemon's alone.
        known = settings.auth.oauth2.client_secret_file is not None
        authenticators.build(settings.auth, client_secret if known else lambda auth: "")
    if not options.quiet:
        print(effective(settings), end="")
    return 0


def _policy_test(words: Sequence[str]) -> int:
    from scistreamd import policy_command

    options = policy_command.parser().parse(words)
    return policy_command.run(options, _settings(options))


def _serve(options: Namespace) -> int:
    # Only now: what comes before should answer at once.
    from scistreamd import daemon, logs
    from scistreamd.activation import Notifier, inherited_sockets
    from scistreamd.service import Service

    logs.set_up("scistreamd")
    daemon.harden_process()
    with contextlib.ExitStack() as undo:
        notifier = Notifier(os.environ)
        undo.callback(notifier.close)
        try:
            passed = inherited_sockets(os.environ)
            undo.callback(_turn_away, passed.every)
            _refuse_nothing_to_serve(passed.control)
            plug = functools.partial(_plug, functools.partial(_authenticators, options), passed.metrics)
            service = Service(lambda: _load(options), _certificate, passed.control, notifier, plug)
            return daemon.run_to_its_end(service.run())
        except ScistreamError as error:
            logging.getLogger("scistreamd.service").error("%s", error)
            notifier.stopping(error.message)
            return error.code.exit_status


@contextlib.asynccontextmanager
async def _plug(
    authenticators: Callable[[Settings], Sequence[Authenticator]],
    metrics: Sequence[socket.socket],
    settings: Settings,
    reload: Callable[[], None],
) -> AsyncIterator[Plugged]:
    """What this host has beyond the parts of every gateway: the one place to plug it in."""
    from scistreamd.activation import started_by_systemd
    from scistreamd.daemon import Plugged, any_address
    from scistreamd.kernel import kernel_traffic

    if not started_by_systemd(os.environ):
        logging.getLogger("scistreamd.service").warning(
            "not started by systemd as a service of this host: data servers are children, and end with the daemon"
        )
        async with kernel_traffic(settings, lasting=False) as traffic:
            yield Plugged(traffic=traffic, authenticators=authenticators, doors=_metrics_doors(metrics))
        return
    from scistreamd.bus import Bus
    from scistreamd.bus_door import BusDoor
    from scistreamd.counterbooks import FileCounterBooks
    from scistreamd.polkit import Polkit
    from scistreamd.store import FileStore
    from scistreamd.systemd1 import Systemd1
    from scistreamd.systemd_launcher import SystemdLauncher

    systemd, bus = Systemd1(), Bus()
    runtime = _directory("RUNTIME_DIRECTORY", "/run/scistreamd")
    await systemd.open()
    try:
        launcher = SystemdLauncher(
            systemd,
            runtime,
            keepalive_idle=settings.tuning.keepalive_idle_seconds,
            reserved_seconds=max(600, settings.times.hello + settings.times.update + 60),
            closing=settings.firewall is FirewallMode.MANAGE,
        )
        async with kernel_traffic(settings, lasting=True, runtime=runtime) as traffic:
            yield Plugged(
                launcher=launcher,
                store=FileStore(_state() / "tunnels", runtime / "ended"),
                authority=Polkit(bus),
                traffic=traffic,
                authenticators=authenticators,
                counter_books=FileCounterBooks(_state() / "counters"),
                doors=[
                    lambda manager, gate, counters: BusDoor(
                        bus, manager, gate, reload, any_address(), counters=counters
                    ),
                    *_metrics_doors(metrics),
                ],
            )
    finally:
        await systemd.close()


def _metrics_doors(listeners: Sequence[socket.socket]) -> list[Callable[[Manager, Gate, Counters], FrontDoor]]:
    """The door for Prometheus, where its socket was passed; the library is loaded for nobody else."""
    if not listeners:
        return []
    from scistreamd.metrics_http import MetricsDoor

    def door(manager: Manager, gate: Gate, counters: Counters) -> FrontDoor:
        try:
            from scistreamd.metrics import Metrics
        except ModuleNotFoundError as problem:
            missing = ScistreamError(
                Code.UNAVAILABLE, f"metrics need Python's {problem.name}", "install python3-prometheus-client"
            )
            logging.getLogger("scistreamd.metrics").error("%s", missing)
            return MetricsDoor(listeners, lambda accept: _refuse(missing))
        return MetricsDoor(listeners, Metrics(manager, counters).text)

    return [door]


def _refuse(problem: ScistreamError) -> NoReturn:
    raise problem


def _authenticators(options: Namespace, settings: Settings) -> Sequence[Authenticator]:
    from scistreamd import authenticators
    from scistreamd.authenticators.secret import client_secret

    with _blaming(options):
        return authenticators.build(settings.auth, client_secret)


def _load(options: Namespace) -> tuple[Settings, ssl.SSLContext]:
    """The settings and the control port's TLS, as the files are now; ScistreamError where something is wrong."""
    from scistreamd.control.tls import server_context
    from scistreamd.controlcert import ensure

    settings = _settings(options)
    if settings.control.certificate is None:
        ensure(_state() / "control")
    with _blaming(options):
        return settings, server_context(*_certificate(settings), settings.auth.mtls)


def _certificate(settings: Settings) -> tuple[Path, Path]:
    """Certificate and key of the control port."""
    control, own = settings.control, _state() / "control"
    if control.certificate is None or control.key is None:  # both, or none: the configuration's parser sees to it
        return own / "server.crt", own / "server.key"
    return Path(control.certificate), Path(control.key)


def _refuse_nothing_to_serve(listeners: Sequence[object]) -> None:
    if not listeners:
        raise ScistreamError(
            Code.FAILED_PRECONDITION,
            "systemd passed no socket for the control port",
            "systemctl start scistreamd.socket; to run a control server by hand, use s2cs",
        )


def _turn_away(listeners: Sequence[socket.socket]) -> None:
    """Close the sockets, and of those that the server never got the callers in wait.

    Else systemd would start a daemon that cannot start again and again, as long as one of them waits.
    """
    for listener in listeners:
        # BlockingIOError: no more of them; EBADF: the server closed it.
        with contextlib.suppress(OSError), listener:
            listener.setblocking(False)
            while True:
                listener.accept()[0].close()


def _state() -> Path:
    return _directory("STATE_DIRECTORY", "/var/lib/scistreamd")


def _directory(variable: str, default: str) -> Path:
    """The directory that systemd made for us (systemd.exec(5)), or where it would be."""
    return Path(os.environ.get(variable, "").partition(":")[0] or default)


if __name__ == "__main__":
    sys.exit(main())
