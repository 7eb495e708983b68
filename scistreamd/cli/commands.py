"""Sub-commands: finding the one that was typed, running it, ending with its status."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from scistreamd import __version__
from scistreamd.cli import output
from scistreamd.cli.options import EXIT_USAGE, Parser, UsageError, spelled
from scistreamd.errors import ScistreamError, did_you_mean

# bash(1), EXIT STATUS: 128 and the number of the signal that ended the command.
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141


_STATUS = """
exit status: 0 done, 2 wrong usage, 130 interrupted, 141 nobody reads the output; else
what failed: 3 invalid argument, 4 too late, 5 not found, 6 exists already, 7 not allowed,
8 exhausted, 9 not in this state, 11 cancelled, 12 not supported, 13 internal,
14 not reachable, 16 no token."""


class Command(NamedTuple):
    """One sub-command; ``name`` may be several words, as in ``cert create``."""

    name: str
    summary: str
    arguments: Callable[[Parser], None]
    run: Callable[[argparse.Namespace], int]


class Tool(NamedTuple):
    """A program with sub-commands."""

    name: str
    about: str
    commands: tuple[Command, ...]


def lazily(module: str, function: str) -> Callable[[argparse.Namespace], int]:
    """A command that imports its module when it runs, so that help and usage errors come at once."""

    def run(options: argparse.Namespace) -> int:
        status: int = getattr(importlib.import_module(module), function)(options)
        return status

    return run


def main(tool: Tool, argv: Sequence[str]) -> int:
    """Run one command line; returns the exit status and lets no failure of the user's making escape."""
    output.closed_stderr_is_silent()
    try:
        status = _run(tool, argv)
        if sys.stdout is not None:
            sys.stdout.flush()
        return status
    except UsageError as error:
        output.failure(tool.name, error.message, error.hint or f"see: {tool.name} --help")
        return EXIT_USAGE
    except ScistreamError as error:
        output.failure(tool.name, error.message, error.hint)
        return error.code.exit_status
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        output.abandon_stdout()
        return EXIT_BROKEN_PIPE


def _run(tool: Tool, argv: Sequence[str]) -> int:
    words = list(argv)
    if not words:
        raise UsageError("no command given", f"see: {tool.name} --help")
    if words[0] in ("-h", "--help", "help"):
        print(_help(tool))
        return 0
    if words[0] in ("-v", "--version"):
        print(f"{tool.name}, version {__version__}")
        return 0
    command, rest = _find(tool, words)
    parser = Parser(prog=f"{tool.name} {command.name}", description=command.summary)
    command.arguments(parser)
    options = parser.parse(rest)
    output.notes(wanted=not getattr(options, "quiet", False))
    return command.run(options)


def _find(tool: Tool, words: list[str]) -> tuple[Command, list[str]]:
    """The command that the line starts with, and what follows its name."""
    for command in tool.commands:
        name = command.name.split()
        if [spelled(word) for word in words[: len(name)]] == name:
            return command, words[len(name) :]
    if words[0].startswith("-"):
        raise UsageError(f"{words[0].partition('=')[0]} stands before the command", "options follow the command")
    verbs = [command.name for command in tool.commands if command.name.split()[0] == words[0]]
    if verbs:
        raise UsageError(f"{words[0]} needs a verb", f"one of: {', '.join(verbs)}")
    names = [command.name for command in tool.commands]
    guess = did_you_mean(spelled(words[0]), names)
    raise UsageError(f"unknown command {words[0]!r}", guess or f"one of: {', '.join(names)}")


def _help(tool: Tool) -> str:
    width = max(len(command.name) for command in tool.commands)
    lines = [f"  {command.name:<{width}}  {command.summary}" for command in tool.commands]
    head = [f"usage: {tool.name} COMMAND [OPTION]...", "", tool.about, "", "commands:"]
    tail = [
        "",
        f"{tool.name} COMMAND --help shows the options of a command. `_` and `-` are the same in names.",
        _STATUS,
    ]
    return "\n".join([*head, *lines, *tail])
