"""``s2ctl top``: live rates of all tunnels, the busiest first; refreshed in place on a terminal, else as batches."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import sys
import termios
import time
import tty
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from scistreamd.cli import output
from scistreamd.cli.ctl import carried, human, remote
from scistreamd.cli.ctl.arguments import SPANS
from scistreamd.cli.ctl.screen import BOLD, Screen
from scistreamd.cli.ctl.table import Cell, Line, columns_of, fitting, render, shortened
from scistreamd.cli.ctl.tunnels import Carried, Row, Tunnels

_TITLES = ("ID", "LABEL", "ROLE", "CONNS", "IN/s", "OUT/s", "IN", "OUT", "RTT", "RETRANS", "CWND", "HOP/s")
_SHORT_LABEL = 12  # on a terminal that has no room for all columns beside a longer one
# ECMA-48: cursor home, erase to the end of the line, erase to the end of the screen; xterm: alternate screen.
_HOME, _END_OF_LINE, _REST, _ENTER, _LEAVE = (
    "\x1b[H",
    "\x1b[K",
    "\x1b[J",
    "\x1b[?1049h\x1b[?25l",
    "\x1b[?25h\x1b[?1049l",
)


@dataclass(frozen=True)
class Entry:
    """One tunnel with its counters; the rates are those of the span asked for, None before they are known."""

    row: Row
    label: str
    carried: Carried
    rate_in: float | None
    rate_out: float | None

    @property
    def rate(self) -> float:
        """Both directions together."""
        return (self.rate_in or 0) + (self.rate_out or 0)


KEYS: dict[str, tuple[Callable[[Entry], Any], bool]] = {  # and whether the largest comes first
    "rate": (lambda each: each.rate, True),
    "in": (lambda each: each.rate_in or 0, True),
    "out": (lambda each: each.rate_out or 0, True),
    "bytes": (lambda each: each.carried.bytes_in + each.carried.bytes_out, True),
    "conns": (lambda each: each.carried.connections, True),
    "rtt": (lambda each: each.carried.wan_rtt_usec, True),
    "retrans": (lambda each: each.carried.wan_retransmits, True),
    "id": (lambda each: each.row.id, False),
    "label": (lambda each: (not each.label, each.label), False),
}


class Source:
    """Where the entries come from."""

    def __init__(self, tunnels: Tunnels, options: Namespace) -> None:
        self._tunnels = tunnels
        self._span = SPANS.index(options.span)
        self._key, self._reverse = KEYS[options.sort]
        self._labels: dict[str, str] = {}

    def entries(self) -> list[Entry]:
        """All tunnels as they are now, in order."""
        rows = self._tunnels.rows()
        counted = self._tunnels.carried()
        if {row.id for row in rows} - self._labels.keys():
            self._labels = self._tunnels.labels()
        found = [self._entry(row, counted[row.id]) for row in rows if row.id in counted]
        return sorted(sorted(found, key=lambda each: each.row.id), key=self._key, reverse=self._reverse)

    def _entry(self, row: Row, counted: Carried) -> Entry:
        rates = [each[self._span] if each else None for each in (counted.rates_in, counted.rates_out)]
        return Entry(row, self._labels.get(row.id, ""), counted, *rates)


def top(options: Namespace) -> int:
    """``s2ctl top``."""
    options.no_pager = True
    screen = Screen.of(options)
    with remote.bus(options) as bus:
        source = Source(Tunnels(bus), options)
        live = screen.width is not None and not screen.json and not options.batch
        with _terminal() if live else contextlib.nullcontext(_sleep) as wait:
            shown = 0
            while True:
                entries = source.entries()
                shown += 1
                if live:
                    _refresh(screen, options, entries)
                else:
                    _batch(screen, options, entries, first=shown == 1)
                if shown == options.count or wait(options.delay):
                    break
        if live and shown == options.count:
            _batch(screen, options, entries, first=True)  # what was asked for stays on the terminal
    return 0


def _sleep(seconds: float) -> bool:
    time.sleep(seconds)
    return False


@contextlib.contextmanager
def _terminal() -> Iterator[Callable[[float], bool]]:
    """A screen of our own, put back at the end; gives the way to wait, which says whether ``q`` was typed."""
    keys = sys.stdin.fileno() if sys.stdin.isatty() else None
    before = termios.tcgetattr(keys) if keys is not None else None
    try:
        if keys is not None:
            tty.setcbreak(keys)
        _write(_ENTER)
        yield lambda seconds: _typed_q(keys, seconds)
    finally:
        _write(_LEAVE)
        if keys is not None and before is not None:
            termios.tcsetattr(keys, termios.TCSADRAIN, before)


def _typed_q(keys: int | None, seconds: float) -> bool:
    """Wait so long; return early, and True, where somebody types ``q``. Other keys refresh at once."""
    if keys is None:
        return _sleep(seconds)
    ready, _, _ = select.select([keys], [], [], seconds)
    return bool(ready) and os.read(keys, 64)[:1] in (b"q", b"Q", b"")


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _refresh(screen: Screen, options: Namespace, entries: Sequence[Entry]) -> None:
    size = shutil.get_terminal_size()  # it may have changed
    screen = replace(screen, width=size.columns)
    lines = [*_heading(screen, options, entries), *_table(screen, entries)][: size.lines]
    _write(_HOME + "\n".join(f"{line}{_END_OF_LINE}" for line in lines) + _REST)


def _batch(screen: Screen, options: Namespace, entries: Sequence[Entry], *, first: bool) -> None:
    if screen.json:
        screen.data({"time_usec": int(time.time() * 1e6), "tunnels": [_in_json(each) for each in entries]})
        return
    heading = _heading(screen, options, entries) if screen.legend else []
    text = "\n".join([*([] if first or not heading else [""]), *heading, *_table(screen, entries)])
    if text:
        output.result(text)


def _in_json(entry: Entry) -> dict[str, Any]:
    row = entry.row
    return {
        "id": row.id,
        "label": entry.label,
        "role": row.role,
        "state": row.state,
        "rate_in": entry.rate_in,
        "rate_out": entry.rate_out,
        **carried.in_json(entry.carried),
    }


def _heading(screen: Screen, options: Namespace, entries: Sequence[Entry]) -> list[str]:
    conns = sum(each.carried.connections for each in entries)
    into = human.size(sum(each.rate_in or 0 for each in entries))
    out = human.size(sum(each.rate_out or 0 for each in entries))
    clock = f"s2ctl top - {time.strftime('%H:%M:%S')}"
    counts = f"{human.counted(len(entries), 'tunnel')}, {human.counted(conns, 'connection')}"
    rest = f"  {counts}, {into}B/s in, {out}B/s out (over {options.span}s)"
    if screen.width is not None:
        rest = shortened(rest, screen.width - len(clock))
    return [screen.paint(clock, BOLD) + rest, ""]


def _table(screen: Screen, entries: Sequence[Entry]) -> list[str]:
    rows = [_line(each) for each in entries]
    if fitting(screen, _TITLES, rows) < len(_TITLES):
        rows = [_line(replace(each, label=_short(each.label))) for each in entries]
    width = fitting(screen, _TITLES, rows)
    lines = render(screen, _TITLES[:width], [row[:width] for row in rows], "")
    return lines[:-2] if screen.legend and entries else lines if entries else []


def _short(label: str) -> str:
    return label if columns_of(label) <= _SHORT_LABEL else shortened(label, _SHORT_LABEL - 1) + "…"


def _line(entry: Entry) -> Line:
    sums = entry.carried
    about = "~" if sums.estimated else ""
    rates = ["-" if rate is None else human.size(rate) for rate in (entry.rate_in, entry.rate_out)]
    return [
        entry.row.id,
        entry.label,
        entry.row.role,
        Cell(str(sums.connections), BOLD if sums.connections else ""),
        *rates,
        about + human.size(sums.bytes_in),
        about + human.size(sums.bytes_out),
        human.milliseconds(sums.wan_rtt_usec),
        str(sums.wan_retransmits),
        str(sums.wan_cwnd),
        human.size(sums.wan_delivery_rate),
    ]
