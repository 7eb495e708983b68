"""The systemd units of a tunnel, as plain data for StartTransientUnit.

org.freedesktop.systemd1(5) names the call, systemd.unit(5), systemd.socket(5),
systemd.service(5) and systemd.exec(5) the settings; where a property is spelt
differently on the bus, the bus's spelling is used (``RestartUSec``). Four units
make a tunnel, three of them one without a time limit:

scistream-<id>.socket       holds the listeners from `req` on
scistream-<id>.service      runs the data server on them, from `update` on
scistream-<id>-end.timer    ends the tunnel at a time, whether a daemon runs or not
scistream-<id>-end.service  ends it: it conflicts with socket and service
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath, PurePosixPath
from typing import Any

from scistreamd.errors import BugError
from scistreamd.plans import CA_FILE, LEAF_FILE, PSK_FILE, Bind, Places, Program
from scistreamd.unit_properties import ARMOUR, Limits, Property

SLICE = "scistream.slice"
PATTERN = "scistream-*"

# What the service runs, a file beside the configuration: a unit's command cannot change, what it reads can.
SCRIPT = "run.sh"
WAITING = "exec sleep infinity\n"

# The end of the name of a tunnel's script that runs once its listeners are closed, whoever closed them.
CLOSING = ".closing"

_TUNNEL_UNIT = re.compile(r"scistream-([0-9a-f]{12})\.(socket|service)", re.ASCII)
_ANY_UNIT = re.compile(r"scistream-([0-9a-f]{12})(?:-end[0-9]*)?\.(?:socket|service|timer)", re.ASCII)
_END_TIMER = re.compile(r"scistream-[0-9a-f]{12}-end([0-9]*)\.timer", re.ASCII)

_MS_REC = 16384  # mount(2)
_SIGTERM_STATUS = 143  # what HAProxy's master exits with when it is told to end
_RESTART_USEC = 500_000
_STOP_USEC = 5_000_000
_TIMER_ACCURACY_USEC = 100_000
_DOCUMENTATION = ["man:scistreamd(8)", "man:s2ctl(1)"]


@dataclass(frozen=True)
class Unit:
    """One unit of a StartTransientUnit call."""

    name: str
    properties: tuple[Property, ...]


@dataclass(frozen=True)
class Names:
    """The names of a tunnel's units."""

    tunnel_id: str

    @property
    def socket(self) -> str:
        """Holds the listeners."""
        return f"scistream-{self.tunnel_id}.socket"

    @property
    def service(self) -> str:
        """Runs the data server."""
        return f"scistream-{self.tunnel_id}.service"

    def timer(self, number: int = 0) -> str:
        """Ends the tunnel at a time; each change of the time needs a new number."""
        return f"scistream-{self.tunnel_id}-end{number or ''}.timer"

    def end(self, number: int = 0) -> str:
        """Ends the tunnel when it is started."""
        return f"scistream-{self.tunnel_id}-end{number or ''}.service"

    @property
    def timers(self) -> str:
        """A glob pattern for all its timers."""
        return f"scistream-{self.tunnel_id}-end*.timer"

    @property
    def every(self) -> tuple[str, ...]:
        """Glob patterns for all its units and for nothing else."""
        return self.socket, self.service, self.timers, f"scistream-{self.tunnel_id}-end*.service"


def tunnel_of(unit: str) -> str:
    """The id of the tunnel that a socket or service unit is of, or an empty string."""
    found = _TUNNEL_UNIT.fullmatch(unit)
    return found[1] if found else ""


def belongs_to(unit: str) -> str:
    """The id of the tunnel that any unit is of, or an empty string."""
    found = _ANY_UNIT.fullmatch(unit)
    return found[1] if found else ""


def timer_number(unit: str) -> int:
    """Which timer of its tunnel this is, by its unit name; BugError for another unit."""
    found = _END_TIMER.fullmatch(unit)
    if not found:
        raise BugError(f"{unit} is not the timer of a tunnel")
    return int(found[1] or 0)


def tunnel_units(
    tunnel_id: str, binds: Sequence[Bind], places: Places, runtime: PurePosixPath, *, keepalive_idle: int,
    reserved_seconds: float, limits: Limits, closes: bool = False,
) -> tuple[Unit, ...]:  # fmt: skip
    """All units of a tunnel, the one to start first; it ends after ``reserved_seconds`` if that timer stays.

    ``runtime`` is the daemon's directory, of which the data server sees what is in ``places`` alone.
    ``closes``: the script `closing` runs at the end, where it is there.
    """
    names = Names(tunnel_id)
    script = str(closing(runtime, tunnel_id)) if closes else ""
    return (
        Unit(names.socket, _socket(names, binds, keepalive_idle, script)),
        Unit(names.service, _service(names, places, runtime, limits)),
        *end_units(tunnel_id, 0, reserved_seconds),
    )


def end_units(tunnel_id: str, number: int, seconds: float) -> tuple[Unit, ...]:
    """The timer that ends the tunnel ``seconds`` after its start, and what it starts then."""
    names = Names(tunnel_id)
    return (
        Unit(names.timer(number), _timer(names, seconds)),
        Unit(names.end(number), _end(names)),
    )


def script(program: Program, preload: str = "") -> str:
    """The text of `SCRIPT` with which the service runs ``program``; `WAITING` is that of a service that waits.

    ``preload``: the path of its library, if it has one (ld.so(8), LD_PRELOAD).
    """
    environment = {**program.environment, "LD_PRELOAD": preload} if preload else program.environment
    variables = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in environment.items())
    return f"{variables}exec {shlex.join(program.argv)}\n"


def closing(runtime: PurePath, tunnel_id: str) -> PurePath:
    """The script that runs once the tunnel's listeners are closed; it may be missing."""
    return runtime / f"{tunnel_id}{CLOSING}"


def listen(binds: Sequence[Bind]) -> list[list[str]]:
    """The value of ``Listen``; inherited sockets are in this order (sd_listen_fds(3))."""
    kinds = ("Stream", "Datagram")
    return [[kind, str(bind.endpoint)] for bind in binds for kind in kinds[: 2 if bind.udp else 1]]


def _socket(names: Names, binds: Sequence[Bind], keepalive_idle: int, script: str) -> tuple[Property, ...]:
    wildcard = any(bind.endpoint.is_wildcard for bind in binds)
    return (
        *_about(names, f"SciStream tunnel {names.tunnel_id}: listeners"),
        Property("Listen", "a(ss)", listen(binds)),
        # Sockets go to system.slice by default, and would outlive a stop of our slice.
        Property("Slice", "s", SLICE),
        Property("Wants", "as", [names.timer()]),
        *_at_end(script),
        Property("BindIPv6Only", "s", "both" if wildcard else "ipv6-only"),
        Property("Backlog", "u", 4096),
        Property("KeepAlive", "b", True),
        Property("KeepAliveTimeUSec", "t", keepalive_idle * 1_000_000),
        # The default stops a socket whose service ends too often; the daemon judges crash loops, and keeps the port.
        Property("TriggerLimitIntervalUSec", "t", 0),
        Property("TriggerLimitBurst", "u", 0),
    )


def _at_end(script: str) -> tuple[Property, ...]:
    command = f"test ! -e {script} || . {script}"
    return (Property("ExecStopPost", "a(sasb)", [_command("/bin/sh", "-c", command)]),) if script else ()


def _service(names: Names, places: Places, runtime: PurePosixPath, limits: Limits) -> tuple[Property, ...]:
    return (
        *_about(names, f"SciStream tunnel {names.tunnel_id}: data server"),
        Property("Slice", "s", SLICE),
        *_life(names, places),
        *_files(places, runtime),
        *ARMOUR,
        Property("MemoryMax", "t", limits.memory_bytes),
        Property("TasksMax", "t", limits.tasks),
        Property("LimitNOFILE", "t", limits.files),
        Property("SyslogIdentifier", "s", f"scistream-{names.tunnel_id}"),
        Property("LogExtraFields", "aay", [f"TUNNEL_ID={names.tunnel_id}".encode()]),
    )


def _life(names: Names, places: Places) -> tuple[Property, ...]:
    """How it starts, waits, starts again and ends."""
    return (
        Property("Type", "s", "exec"),
        # An early connection starts the service before there is an update: it waits, and the client with it.
        # As the main process, for each process in this armour takes 60 ms to start; so no ExecStartPre= waits.
        # No variable either: systemd 252 writes `$` down so that it is none any more after a daemon-reload.
        Property("ExecStart", "a(sasb)", [_command("/bin/sh", str(places.config / SCRIPT))]),
        Property("TimeoutStopUSec", "t", _STOP_USEC),
        Property("NonBlocking", "b", True),  # nginx leaves inherited sockets as they are
        Property("SuccessExitStatus", "(aiai)", [[_SIGTERM_STATUS], []]),
        # A crash keeps the port: no limit, and no stop of the socket (BindsTo= or PropagatesStopTo= would).
        Property("Restart", "s", "always"),
        Property("RestartUSec", "t", _RESTART_USEC),
        Property("StartLimitIntervalUSec", "t", 0),
        # Stopping either unit ends both; in the mode `fail` a restart is not taken for an end.
        Property("PartOf", "as", [names.socket]),
        # systemd logs it as a destructive transaction that it ignores: that is what keeps the port.
        Property("OnSuccess", "as", [names.end()]),
        Property("OnSuccessJobMode", "s", "fail"),
        # No OnFailure=: with both, systemd warns at each end of a tunnel. With this Restart= only a stop by hand that
        # goes wrong leaves it failed, which the daemon sees.
    )


def _command(*argv: str) -> list[Any]:
    return [argv[0], list(argv), False]


def _files(places: Places, runtime: PurePosixPath) -> tuple[Property, ...]:
    """What it sees of the daemon's directory: its configuration, its scratch directory, its keys."""
    config, scratch = str(places.config), str(places.scratch)
    keys = [str(places.secrets / name) for name in (CA_FILE, LEAF_FILE, PSK_FILE)]
    return (
        Property("TemporaryFileSystem", "a(ss)", [[str(runtime), "mode=0755"]]),
        # Of the configuration the directory, for its files are replaced by rename while the data server runs. Of the
        # keys the files, as far as they are there: only root enters their directory, and new ones are for a new start.
        # No LoadCredential= for them: each would be a mount of the host, and with hundreds of those every start of a
        # unit in armour takes seconds.
        Property(
            "BindReadOnlyPaths",
            "a(ssbt)",
            [[config, config, False, _MS_REC], *([key, key, True, _MS_REC] for key in keys)],
        ),
        Property("ExecStartPre", "a(sasb)", [_give_keys(places)]),
        # With full privileges. The prefix `+` says the same of one command; but in a transient unit (ExecStartPreEx)
        # systemd 252 writes it down under that name, which it does not know any more after a daemon-reload.
        Property("PermissionsStartOnly", "b", True),
        # Made anew for each run: a control socket of the run before would keep nginx from binding. The daemon's
        # directory around it keeps everyone else out, so that root without capabilities can reach what is in it.
        Property("RuntimeDirectory", "as", [str(places.scratch.relative_to("/run"))]),
        Property("RuntimeDirectoryMode", "u", 0o711),
        Property("BindPaths", "a(ssbt)", [[scratch, scratch, False, _MS_REC]]),
    )


def _give_keys(places: Places) -> list[Any]:
    """Each start has a user of its own, whose the keys become: by PID 1, for it is there when no daemon is.

    The command has the unit's mounts, in which the keys are read-only: so it goes by the root of PID 1.
    """
    secrets, scratch = (f"/proc/1/root{path}" for path in (places.secrets, places.scratch))
    chown = ("chown", f"--reference={scratch}", "--", "{}", "+")
    return _command("/usr/bin/find", secrets, "-type", "f", "-exec", *chown)


def _timer(names: Names, seconds: float) -> tuple[Property, ...]:
    """It starts the service of its own name."""
    return (
        *_about(names, f"SciStream tunnel {names.tunnel_id}: end of its time"),
        Property("TimersMonotonic", "a(st)", [["OnActiveSec", max(1, round(seconds * 1_000_000))]]),
        Property("AccuracyUSec", "t", _TIMER_ACCURACY_USEC),
        Property("RemainAfterElapse", "b", False),
        Property("BindsTo", "as", [names.socket]),
        Property("After", "as", [names.socket]),
    )


def _end(names: Names) -> tuple[Property, ...]:
    """Not in our slice: stopping that one must not keep this from running."""
    return (
        *_about(names, f"SciStream tunnel {names.tunnel_id}: ends"),
        Property("Type", "s", "oneshot"),
        Property("ExecStart", "a(sasb)", [_command("/bin/true")]),
        Property("Conflicts", "as", [names.socket, names.service]),
    )


def _about(names: Names, description: str) -> tuple[Property, ...]:
    return (
        Property("Description", "s", description),
        Property("Documentation", "as", list(_DOCUMENTATION)),
        Property("CollectMode", "s", "inactive-or-failed"),
    )
