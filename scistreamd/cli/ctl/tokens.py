"""``s2ctl token``: the file of static tokens that callers of the control port may bring."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

from scistreamd import files, tokenfile
from scistreamd.cli import output
from scistreamd.cli.ctl import configuration, human
from scistreamd.cli.ctl.screen import RED, Screen
from scistreamd.cli.ctl.table import Cell, render
from scistreamd.errors import Code, ScistreamError, did_you_mean

_DEFAULT = Path("/etc/scistreamd/tokens")


def create(options: Namespace) -> int:
    """``s2ctl token create``: prints the token, which nothing can show again."""
    path, configured = _file(options)
    token, entry = tokenfile.new(options.name, time.time(), options.expires)
    with _locked(path):
        entries = _read(path)
        if any(each.name == entry.name for each in entries):
            raise ScistreamError(
                Code.ALREADY_EXISTS,
                f"{path} has a token named {entry.name} already",
                f"take another name, or first: s2ctl token revoke {entry.name}",
            )
        _write(path, (*entries, entry))
    screen = Screen.of(options)
    if screen.json:
        screen.data(_facts(entry) | {"token": token})
    else:
        output.result(token)
    output.note("s2ctl", f"{entry.name}: it ends {_end(entry)}; the token is shown this once, and kept nowhere")
    if not configured:
        output.note(
            "s2ctl",
            f'scistreamd takes it once its configuration has [auth.tokens] with file = "{path}", and is reloaded',
        )
    return 0


def listed(options: Namespace) -> int:
    """``s2ctl token list``: names and times; nobody can show the tokens."""
    path, _ = _file(options)
    entries = _read(path)
    screen = Screen.of(options)
    if screen.json:
        screen.data([_facts(each) for each in entries])
        return 0
    rows: list[list[Cell | str]] = [
        [each.name, each.id, human.moment(each.made * 1_000_000), Cell(_end(each), RED if _over(each) else "")]
        for each in entries
    ]
    footer = f"{human.counted(len(rows), 'token')}.".capitalize()
    screen.text(render(screen, ("NAME", "ID", "MADE", "ENDS"), rows, footer))
    return 0


def revoke(options: Namespace) -> int:
    """``s2ctl token revoke``: all of the names, or none where one is unknown."""
    path, _ = _file(options)
    with _locked(path):
        entries = _read(path)
        known = [each.name for each in entries]
        for name in options.names:
            if name not in known:
                hint = did_you_mean(name, known) or "s2ctl token list shows them"
                raise ScistreamError(Code.NOT_FOUND, f"{path} has no token of that name: {name}", hint)
        _write(path, tuple(each for each in entries if each.name not in options.names))
    if not options.quiet:
        output.result(f"Revoked: {', '.join(dict.fromkeys(options.names))}. Tunnels that exist go on.")
    return 0


def _file(options: Namespace) -> tuple[Path, bool]:
    """The tokens' file, and whether scistreamd is known to read it."""
    if options.file is not None:
        return Path(options.file), True
    configured = configuration.value("auth", "tokens", "file")
    return (Path(configured), True) if configured else (_DEFAULT, False)


def _read(path: Path) -> tuple[tokenfile.Entry, ...]:
    try:
        return tokenfile.parse(path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError:
        return ()
    except (OSError, UnicodeDecodeError) as problem:
        reason = problem.strerror if isinstance(problem, OSError) else "it is not UTF-8"
        raise ScistreamError(Code.FAILED_PRECONDITION, f"cannot read {path}: {reason}", "run it as root") from None


def _write(path: Path, entries: tuple[tokenfile.Entry, ...]) -> None:
    files.write(path, tokenfile.written(entries).encode(), 0o600, replace=True)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Nobody else who uses this changes the file meanwhile (flock(2) on its directory)."""
    try:
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as problem:
        raise ScistreamError(
            Code.FAILED_PRECONDITION, f"cannot open {path.parent}: {problem.strerror}", "make it first, or run as root"
        ) from None
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        yield
    finally:
        os.close(directory)


def _over(entry: tokenfile.Entry) -> bool:
    return entry.ends is not None and entry.ends <= time.time()


def _end(entry: tokenfile.Entry) -> str:
    """For the column ENDS."""
    if entry.ends is None:
        return "never"
    return human.moment(entry.ends * 1_000_000) + (" (over)" if _over(entry) else "")


def _facts(entry: tokenfile.Entry) -> dict[str, object]:
    return {"name": entry.name, "id": entry.id, "made": entry.made, "ends": entry.ends, "expired": _over(entry)}
