"""A tunnel's log lines, by journalctl(1); here or, over ssh, on the gateway's host."""

from __future__ import annotations

import re
import subprocess
from argparse import Namespace

from scistreamd.cli.ctl import remote
from scistreamd.cli.ctl.tunnels import Tunnels
from scistreamd.cli.output import harmless
from scistreamd.errors import Code, ScistreamError

_SECONDS = 20.0
_WHOLE_ID = re.compile(r"[0-9a-f]{12}", re.ASCII)
_FORMATS = {"off": "short-iso", "short": "json", "pretty": "json-pretty"}
_NO_JOURNAL = "without a journal, the log is where scistreamd's standard error goes"
# What ssh and shells say of a program that is not there.
_NOT_FOUND = 127


def logs(options: Namespace) -> int:
    """``s2ctl logs``: also of a tunnel that has ended, by its whole id."""
    if _WHOLE_ID.fullmatch(options.id):
        tunnel_id = options.id
    else:
        with remote.bus(options) as bus:
            tunnel_id = Tunnels(bus).find(options.id)
    words = [f"--output={_FORMATS[options.json]}"]
    words += ["--follow"] if options.follow else []
    words += ["--quiet"] if options.quiet else []
    words += ["--no-pager"] if options.no_pager or options.host else []
    words += [f"--lines={options.lines}"] if options.lines is not None else []
    return _shown(_command(tunnel_id, words, options.host))


def last(tunnel_id: str, lines: int, host: str | None) -> list[str]:
    """The last lines, or one that says why there are none."""
    words = ["--quiet", "--no-pager", f"--lines={lines}", f"--output={_FORMATS['off']}"]
    try:
        done = subprocess.run(  # noqa: S603
            _command(tunnel_id, words, host), capture_output=True, timeout=_SECONDS, check=False
        )
    except FileNotFoundError:
        return ["(no log lines: there is no journalctl here)"]
    except subprocess.TimeoutExpired:
        return ["(no log lines: journalctl does not answer)"]
    if done.returncode:
        return [f"(no log lines: {_said(done.stderr) or f'journalctl ended with {done.returncode}'})"]
    found = [harmless(line) for line in done.stdout.decode(errors="replace").splitlines()]
    return found or ["(no log lines in this journal, or none that this user may read)"]


def _command(tunnel_id: str, words: list[str], host: str | None) -> list[str]:
    """journalctl for the lines of the tunnel's data server, of the daemon about it, and of systemd about its units."""
    units = [f"UNIT=scistream-{tunnel_id}.{kind}" for kind in ("service", "socket")]
    line = ["journalctl", *words, f"TUNNEL_ID={tunnel_id}", "+", units[0], "+", units[1]]
    return remote.command(host, *line) if host else line


def _shown(command: list[str]) -> int:
    """Let journalctl print, page and be interrupted."""
    try:
        process = subprocess.Popen(command)  # noqa: S603
    except FileNotFoundError:
        raise _without_journal(f"there is no {command[0]} here") from None
    try:
        status = process.wait()
    except KeyboardInterrupt:
        process.wait()  # Ctrl-C went to it as well
        raise
    except BaseException:
        process.kill()
        process.wait()
        raise
    if status == _NOT_FOUND:
        raise _without_journal("there is no journalctl on that host")
    if status > 0:
        raise _without_journal(f"journalctl ended with status {status}")
    return 0


def _said(error: bytes) -> str:
    return harmless(error.decode(errors="replace").strip())


def _without_journal(message: str) -> ScistreamError:
    return ScistreamError(Code.UNAVAILABLE, message, _NO_JOURNAL)
