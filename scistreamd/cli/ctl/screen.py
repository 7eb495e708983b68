"""What reading verbs print: text for people by way of a pager, or JSON for programs.

Colour, wrapping and pager are for terminals only, in the manner of
systemctl(1); https://no-color.org says when there is no colour.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from argparse import Namespace
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scistreamd.cli import output

if TYPE_CHECKING:
    import subprocess

RED, GREEN, YELLOW, GREY, BOLD, UNDERLINE = "31", "32", "33", "90", "1", "4"
STATE_COLOURS = {"active": GREEN, "failed": RED, "pending": YELLOW, "ready": YELLOW, "releasing": GREY}

_LESS_OPTIONS = "FRSXMK"


@dataclass(frozen=True)
class Screen:
    """Where and how to print. ``width``: columns, None for no limit; ``mode``: off, short or pretty JSON."""

    width: int | None
    colour: bool
    pager: bool
    legend: bool
    mode: str

    @classmethod
    def of(cls, options: Namespace, environment: Mapping[str, str] = os.environ) -> Screen:
        """As the options want it, and standard output allows."""
        terminal = sys.stdout.isatty()
        capable = terminal and environment.get("TERM", "dumb") != "dumb"
        return cls(
            width=shutil.get_terminal_size().columns if terminal else None,
            colour=capable and not environment.get("NO_COLOR"),
            pager=capable and not options.no_pager,
            legend=not getattr(options, "no_legend", False),
            mode=options.json,
        )

    @property
    def json(self) -> bool:
        """Whether a program reads."""
        return self.mode != "off"

    @property
    def dot(self) -> str:
        """The dot of systemctl's status lines, or an asterisk where the output has no such character."""
        try:
            "●".encode(sys.stdout.encoding)
        except UnicodeEncodeError:
            return "*"
        return "●"

    def paint(self, text: str, colour: str) -> str:
        """The text in a colour (ECMA-48, Select Graphic Rendition), where there are colours."""
        return f"\x1b[{colour}m{text}\x1b[0m" if self.colour and colour and text else text

    def data(self, value: Any) -> None:
        """Print JSON."""
        output.result(as_json(value, self.mode))

    def text(self, lines: Iterable[str]) -> None:
        """Print lines, by way of the pager where there is one."""
        text = "\n".join(lines)
        if not text:
            return
        if not self.pager or not _paged(f"{text}\n", os.environ):
            output.result(text)


def as_json(value: Any, mode: str) -> str:
    """JSON in one line, or indented where the mode is ``pretty``."""
    return json.dumps(value, indent=2 if mode == "pretty" else None)


def _paged(text: str, environment: Mapping[str, str]) -> bool:
    """Show the text in a pager; whether there was one."""
    import subprocess

    settings = {**environment, "LESS": environment.get("SYSTEMD_LESS", _LESS_OPTIONS)}
    if _borrowed_rights(environment):
        settings["LESSSECURE"] = "1"
    for words in pagers(environment):
        try:
            process = subprocess.Popen(words, stdin=subprocess.PIPE, env=settings, text=True)  # noqa: S603
        except OSError:
            continue  # the next one, as systemd does
        _feed(process, text)
        return True
    return False


def _feed(process: subprocess.Popen[str], text: str) -> None:
    try:
        process.communicate(text)
    except KeyboardInterrupt:
        process.wait()  # Ctrl-C is for the pager while it shows
    except BaseException:
        process.kill()
        process.wait()
        raise


def pagers(environment: Mapping[str, str]) -> Iterator[list[str]]:
    """The pagers to try: $SYSTEMD_PAGER, else $PAGER, else less and more; none for an empty one or ``cat``.

    Who acts with another's rights gets less alone, which then starts no other program.
    """
    if _borrowed_rights(environment):
        yield ["less"]
        return
    chosen = environment.get("SYSTEMD_PAGER", environment.get("PAGER"))
    if chosen is not None:
        words = _split(chosen)
        if words in ([], ["cat"]):
            return
        yield words
    yield ["less"]
    yield ["more"]


def _split(command: str) -> list[str]:
    """A command line in words as a shell has them, or between blanks where a quote does not end."""
    try:
        return shlex.split(command)
    except ValueError:
        return command.split()


def _borrowed_rights(environment: Mapping[str, str]) -> bool:
    """As $SYSTEMD_PAGERSECURE has it, else whether sudo or pkexec started us."""
    if said := environment.get("SYSTEMD_PAGERSECURE", ""):
        return said.lower() not in ("0", "no", "n", "false", "f", "off")
    return "SUDO_UID" in environment or "PKEXEC_UID" in environment
