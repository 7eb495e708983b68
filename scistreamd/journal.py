"""What a unit's processes wrote, read from the journal by journalctl(1).

The journal has no other interface that needs no library; journalctl runs only
while somebody waits for a line, or wants the last ones.
"""

from __future__ import annotations

import asyncio
import re
import time

from scistreamd import programs
from scistreamd.child import Child, Watch
from scistreamd.errors import BugError, Code, ScistreamError

_LAST_LINES = 5
_SECONDS = 5
# SD_MESSAGE_UNIT_PROCESS_EXIT and SD_MESSAGE_UNIT_OUT_OF_MEMORY (systemd.catalog)
_EXIT = ("MESSAGE_ID=98e322203f7a4ed290d09fe03c09fe15", "MESSAGE_ID=fe6faa94e7774663a0da52717891d8ef")
_STATUS = re.compile(r"code=(\w+), status=([0-9]+)/(\S+)")
_ENVIRONMENT = {"PATH": programs.PATH, "LANG": "C.UTF-8"}


class Journal:
    """A unit's lines from the making of this object, or some seconds before, on. To be closed."""

    def __init__(self, unit: str, seconds_before: float = 0) -> None:
        """``unit``: the full name of a service."""
        since = time.time() - seconds_before
        self._since = ["--quiet", "--output=cat", f"--since=@{since:.6f}"]
        self._query = [*self._since, f"_SYSTEMD_UNIT={unit}"]
        self._unit = unit
        self._follower: Child | None = None

    def watch(self, text: str) -> Watch:
        """Count lines that hold ``text``, those before this call included, until `unwatch`."""
        if self._follower is None:
            # --merge: else it follows the current boot alone, whose id a daemon with ProcSubset=pid cannot see.
            self._follower = _journalctl("--follow", "--no-tail", "--merge", *self._query)
        elif self._follower.lines:
            raise BugError("all texts are watched before any line comes")
        return self._follower.watch(text)

    def unwatch(self, watch: Watch) -> None:
        """Count no more."""
        if self._follower:
            self._follower.unwatch(watch)

    def check(self) -> None:
        """Raise FAILED_PRECONDITION where lines that are waited for cannot be read any more."""
        if self._follower and not self._follower.running:
            said = " | ".join(self._follower.lines)
            raise ScistreamError(Code.FAILED_PRECONDITION, f"journalctl, which reads the journal, ended: {said}")

    async def last(self) -> list[str]:
        """The last few lines."""
        # What a process wrote before it ended may not be in the journal yet.
        await _end_of(_journalctl("--sync"))
        # Without --reverse it would be the first lines since then.
        reader = _journalctl("--reverse", f"--lines={_LAST_LINES}", *self._query)
        await _end_of(reader)
        return list(reader.lines)[::-1]

    async def exit(self) -> str:
        """How its main process ended last, as systemd tells it, in words for people; "" where that is not known."""
        await _end_of(_journalctl("--sync"))
        reader = _journalctl("--reverse", "--lines=1", *self._since, "_PID=1", f"UNIT={self._unit}", *_EXIT)
        await _end_of(reader)
        found = _STATUS.search(text := "".join(reader.lines))
        if not found:
            return "killed for want of memory" if "OOM" in text else ""
        code, number, name = found.groups()
        return f"exit status {number}" if code == "exited" else f"{code} by signal {number} ({name})"

    async def close(self) -> None:
        """Read no more."""
        if self._follower:
            await self._follower.end(0)
            self._follower = None


async def _end_of(child: Child) -> None:
    """Wait for its end, or make one: journald may be stuck, and a reason without the last words is one still."""
    try:
        await asyncio.wait_for(child.wait(), _SECONDS)
    except asyncio.TimeoutError:
        await child.end(0)


def _journalctl(*words: str) -> Child:
    path = programs.locate("journalctl")
    if path is None:
        raise ScistreamError(Code.FAILED_PRECONDITION, "journalctl is not installed", "install systemd")
    return Child(
        path,
        ["journalctl", *words],
        fds=[],
        uid=None,
        cwd="/",
        environment=_ENVIRONMENT,
        say=lambda line: None,
    )
