"""Tables: aligned columns, wrapped to the terminal's width."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from scistreamd.cli.ctl.screen import UNDERLINE, Screen
from scistreamd.cli.output import harmless

_GAP = 2
# A column is not made narrower than an id to fit; rather the terminal wraps.
_NARROWEST = 12
# And to this only where words would break otherwise.
_COMFORTABLE = 16
_INDENT = 2  # of columns that have no room beside the first ones, and stand below them


@dataclass(frozen=True)
class Cell:
    """One field: its text, which may be of another's making, and a colour or none."""

    text: str
    colour: str = ""


Line = Sequence[Cell | str]


def render(screen: Screen, titles: Sequence[str], rows: Sequence[Line], footer: str) -> list[str]:
    """The table's lines, the titles and the footer being the legend."""
    cells = [[_cell(each) for each in row] for row in rows]
    heads = [titles] if screen.legend else []
    bands = _bands(*_needs(titles if heads else [""] * len(titles), cells), screen.width)
    lines = []
    for head in heads if cells else []:
        lines += _banded(screen, [Cell(title, UNDERLINE) for title in head], bands)
    for row in cells:
        lines += _banded(screen, row, bands)
    if screen.legend:
        lines += ["", footer] if cells else [footer]
    return lines


def fitting(screen: Screen, titles: Sequence[str], rows: Sequence[Line]) -> int:
    """How many of the columns fit beside each other."""
    return len(_bands(*_needs(titles, [[_cell(each) for each in row] for row in rows]), screen.width)[0])


def pairs(screen: Screen, facts: Sequence[tuple[str, Cell | str]]) -> list[str]:
    """``name: value`` lines, the colons in one column; long values go on below themselves."""
    margin = max(len(name) for name, _ in facts)
    room = max(_NARROWEST, screen.width - margin - _GAP) if screen.width else None
    lines = []
    for name, value in facts:
        cell = _cell(value)
        for index, part in enumerate(broken(cell.text, room)):
            head = f"{name:>{margin}}: " if index == 0 else " " * (margin + _GAP)
            lines.append(head + screen.paint(part, cell.colour))
    return lines


def columns_of(text: str) -> int:
    """How many columns of a terminal the text takes (Unicode TR 11)."""
    return len(text) if text.isascii() else sum(_columns(character) for character in text)


def _columns(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _cell(value: Cell | str) -> Cell:
    cell = value if isinstance(value, Cell) else Cell(value)
    return Cell("".join(each if each.isprintable() else "?" for each in harmless(cell.text)), cell.colour)


def _fitted(wholes: list[int], words: list[int], limit: int) -> list[int]:
    """The widths, the widest ones cut until all fit into ``limit`` columns.

    ``wholes`` and ``words``: what the columns need for no break, and for no break inside a word.
    """
    fitted = list(wholes)
    for floors in (_comfortable(wholes, words), words, [_NARROWEST] * len(wholes)):
        while sum(fitted) + _GAP * (len(fitted) - 1) > limit:
            wide = [index for index, width in enumerate(fitted) if width > floors[index]]
            if not wide:
                break
            fitted[max(wide, key=lambda index: fitted[index])] -= 1
    return fitted


def _needs(titles: Sequence[str], rows: Sequence[Sequence[Cell]]) -> tuple[list[int], list[int]]:
    """What the columns need for no break, and for no break inside a word."""
    columns = [[title, *(row[index].text for row in rows)] for index, title in enumerate(titles)]
    wholes = [max(map(columns_of, column)) for column in columns]
    words = [max(columns_of(word) for text in column for word in text.split(" ")) for column in columns]
    return wholes, words


def _bands(wholes: list[int], words: list[int], limit: int | None) -> list[list[int]]:
    """The widths, in groups of columns of which each fits into ``limit`` without a break inside a word."""
    if limit is None:
        return [wholes]
    needed = _comfortable(wholes, words)
    starts = [0]
    for index in range(1, len(needed)):
        band = needed[starts[-1] : index + 1]
        if sum(band) + _GAP * (len(band) - 1) > _room(limit, starts[-1]):
            starts.append(index)
    return [
        _fitted(wholes[start:end], words[start:end], _room(limit, start))
        for start, end in zip(starts, [*starts[1:], len(wholes)], strict=True)
    ]


def _room(limit: int, start: int) -> int:
    """The columns of the terminal for a group that begins with this one."""
    return limit - _INDENT if start else limit


def _comfortable(wholes: list[int], words: list[int]) -> list[int]:
    return [max(word, min(whole, _COMFORTABLE)) for word, whole in zip(words, wholes, strict=True)]


def _banded(screen: Screen, row: Sequence[Cell], bands: Sequence[Sequence[int]]) -> list[str]:
    """One row, its groups of columns below each other."""
    lines: list[str] = []
    start = 0
    for widths in bands:
        margin = " " * _INDENT if start else ""
        lines += [(margin + line).rstrip() for line in _wrapped(screen, row[start : start + len(widths)], widths)]
        start += len(widths)
    return lines


def _wrapped(screen: Screen, row: Sequence[Cell], widths: Sequence[int]) -> list[str]:
    """Some fields of a row as as many lines as the longest needs."""
    parts = [broken(cell.text, width) for cell, width in zip(row, widths, strict=True)]
    lines = []
    for number in range(max(map(len, parts))):
        line = ""
        for cell, part, width in zip(row, parts, widths, strict=True):
            text = part[number] if number < len(part) else ""
            line += screen.paint(text, cell.colour) + " " * (width - columns_of(text) + _GAP)
        lines.append(line.rstrip())
    return lines


def broken(text: str, width: int | None) -> list[str]:
    """The text in parts of at most ``width`` columns, broken after blanks where there are some."""
    if width is None or columns_of(text) <= width:
        return [text]
    parts: list[str] = []
    line = ""
    for word in text.split(" "):
        if line and columns_of(line) + 1 + columns_of(word) <= width:
            line += f" {word}"
            continue
        if line:
            parts.append(line)
        line = word
        while columns_of(line) > width:
            head = shortened(line, width)
            parts.append(head)
            line = line[len(head) :]
    return [*parts, line] if line else parts


def shortened(text: str, width: int) -> str:
    """As many characters from the start as ``width`` columns hold, at least one."""
    taken = 0
    for index, character in enumerate(text):
        taken += _columns(character)
        if taken > width and index:
            return text[:index]
    return text
