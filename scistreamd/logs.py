"""Log lines: one a record, with the tunnel's id, on stderr.

Where stderr is the journal, each line starts with its priority (sd-daemon(3)).
"""

from __future__ import annotations

import logging
import os

_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}


class TunnelFormatter(logging.Formatter):
    """``LEVEL [id] message``; a record's ``tunnel`` attribute is the id."""

    def __init__(self, priorities: bool) -> None:
        super().__init__("%(message)s")
        self._priorities = priorities

    def format(self, record: logging.LogRecord) -> str:
        """The record as text; what spans several lines is indented, so that no peer can forge a record."""
        tunnel = getattr(record, "tunnel", "")
        text = super().format(record).replace("\n", "\n    ")
        mark = f"<{_PRIORITIES.get(record.levelno, 6)}>" if self._priorities else f"{record.levelname:<7} "
        return f"{mark}[{tunnel}] {text}" if tunnel else f"{mark}{text}"


def set_up(verbose: bool) -> None:
    """Send the program's log to stderr: INFO and above, or all of our own with ``verbose``."""
    handler = logging.StreamHandler()
    handler.setFormatter(TunnelFormatter(priorities=_stderr_is_journal()))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger("scistreamd").setLevel(logging.DEBUG if verbose else logging.INFO)


def _stderr_is_journal() -> bool:
    """Whether JOURNAL_STREAM (systemd.exec(5)) names the file that stderr is."""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    status = os.fstat(2)
    return (device, inode) == (str(status.st_dev), str(status.st_ino))
