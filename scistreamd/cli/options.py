"""The command line as our users type it, for every tool of the project.

Option names take `_` and `-` alike, `--x y` and `--x=y`; a boolean option takes
an optional value. Whatever cannot be understood is a `UsageError`, with a hint.
"""

from __future__ import annotations

import argparse
import re
from collections import deque
from collections.abc import Callable, Collection, Sequence
from typing import Any, NoReturn, TypeVar

from scistreamd.errors import ScistreamError, did_you_mean

EXIT_USAGE = 2

_BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_UNITS = {"s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600, "hr": 3600, "d": 86400, "day": 86400, "days": 86400}
_DURATION = re.compile(rf"[0-9]{{1,9}}|(?:[0-9]{{1,9}} ?(?:{'|'.join(_UNITS)}) ?)+", re.ASCII)
_PART = re.compile(r"([0-9]+) ?([a-z]*)", re.ASCII)
_NEGATIVE = re.compile(r"-[0-9]")
_MAX_PORTS = 1000

T = TypeVar("T")


class UsageError(Exception):
    """The command line makes no sense: exit status 2. Never holds a UID."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


def spelled(word: str) -> str:
    """The one spelling of an option or command name: with `-` for `_`."""
    return word.replace("_", "-")


def normalise(argv: Sequence[str], booleans: Collection[str], negatable: Collection[str] = ()) -> list[str]:
    """Give every option its one spelling and every boolean option its value.

    ``booleans`` and ``negatable`` hold option names as ``--mock``; for a
    negatable ``--ssl`` also ``--nossl`` and ``--no-ssl`` are understood.
    """
    words: list[str] = []
    rest = deque(argv)
    while rest:
        word = rest.popleft()
        if word == "--":
            return [*words, word, *rest]
        name, equals, value = word.partition("=")
        name = spelled(name) if name.startswith("--") else name
        positive = _positive(name, negatable)
        if positive and not equals:
            word = f"{positive}=False"
        elif name in booleans and not equals:
            word = f"{name}={rest.popleft() if rest and rest[0].lower() in _BOOLEANS else 'True'}"
        elif name.startswith("-"):
            word = name + equals + value
        words.append(word)
    return words


def _positive(name: str, negatable: Collection[str]) -> str:
    """The option that ``--noNAME`` or ``--no-NAME`` switches off, or an empty string."""
    if not name.startswith("--no"):
        return ""
    positive = "--" + name.removeprefix("--no").removeprefix("-")
    return positive if positive in negatable else ""


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that reads our spellings and raises UsageError instead of exiting."""

    def __init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **kwargs)
        self._booleans: set[str] = set()
        self._negatable: set[str] = set()

    def add_boolean(self, *names: str, default: bool = False, negatable: bool = False, help: str) -> None:
        """Add an option that is True when named; ``negatable`` adds ``--noNAME``."""
        self.add_argument(*names, nargs="?", type=boolean, const=True, default=default, metavar="BOOL", help=help)
        self._booleans.update(names)
        if negatable:
            self._negatable.update(name for name in names if name.startswith("--"))

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """The parsed options; UsageError for anything unknown, missing or malformed."""
        words = normalise(argv, self._booleans, self._negatable)
        self._refuse_unknown_options(words)
        # Intermixed: `update ID --rate 5 TARGET` gives TARGET to the list it belongs to.
        options, extra = self.parse_known_intermixed_args(words)
        if extra:
            self.error(f"unexpected argument {extra[0]!r}")
        return options

    def _refuse_unknown_options(self, words: Sequence[str]) -> None:
        """Name an unknown option before its value is taken for a positional argument."""
        known = self._option_string_actions
        for word in words:
            if word == "--":
                return
            name = word.partition("=")[0]
            if len(name) < 2 or not name.startswith("-") or _NEGATIVE.match(name) or name in known:
                continue
            if name.startswith("--") or name[:2] not in known:
                raise UsageError(f"unknown option {name}", did_you_mean(name, known) or f"see: {self.prog} --help")

    def error(self, message: str) -> NoReturn:
        """Raise instead of exiting, as argparse's own documentation suggests."""
        raise UsageError(message, f"see: {self.prog} --help")


def checked(parse: Callable[[str], T]) -> Callable[[str], T]:
    """Make a parser of the model fit for argparse: its errors become UsageError."""

    def convert(text: str) -> T:
        try:
            return parse(text)
        except ScistreamError as error:
            raise UsageError(error.message, error.hint) from None

    return convert


def boolean(text: str) -> bool:
    """True, yes, 1, False, no, 0; case is ignored."""
    if text.lower() not in _BOOLEANS:
        raise argparse.ArgumentTypeError(f"{text!r} is neither True nor False")
    return _BOOLEANS[text.lower()]


def integer(low: int, high: int) -> Callable[[str], int]:
    """A whole number from ``low`` to ``high``, both included."""

    def convert(text: str) -> int:
        if not re.fullmatch(r"-?[0-9]{1,10}", text, re.ASCII) or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {low} to {high}")
        return int(text)

    return convert


def seconds(text: str) -> int:
    """A duration: seconds, or numbers with units behind them, as in ``2h 30min``; at least one second."""
    word = text.strip().lower()
    parts = _PART.findall(word) if _DURATION.fullmatch(word) else []
    total = sum(int(count) * _UNITS[unit or "s"] for count, unit in parts)
    if total == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a duration: seconds, or 90m, 2h, 1d")
    return total


def ports(text: str) -> tuple[int, ...]:
    """Port numbers separated by commas, in the order given; ``5001-5004`` stands for four."""
    port = integer(1, 65535)
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        span = range(port(first), port(last or first) + 1)
        if not span or len(found) + len(span) > _MAX_PORTS:
            raise argparse.ArgumentTypeError(f"{text!r} is not a list of ports (at most {_MAX_PORTS})")
        found += span
    return tuple(found)
