"""Log lines: one a record, with the tunnel's id, on stderr or in the journal.

Where stderr is the journal, records go there by its native protocol
(systemd.io, JOURNAL_NATIVE_PROTOCOL), so that `journalctl TUNNEL_ID=…` finds
them; what that does not take goes to stderr with its priority (sd-daemon(3)).
"""

from __future__ import annotations

import logging
import os
import socket
import sys

_JOURNAL = "/run/systemd/journal/socket"
_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}
_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
# A datagram holds this much under every net.core.wmem_max that is in use.
_LONGEST = 65536


def _priority(record: logging.LogRecord) -> int:
    return _PRIORITIES.get(record.levelno, 6)


class TunnelFormatter(logging.Formatter):
    """``LEVEL [id] message``; a record's ``tunnel`` attribute is the id."""

    def __init__(self, priorities: bool) -> None:
        super().__init__("%(message)s")
        self._priorities = priorities

    def format(self, record: logging.LogRecord) -> str:
        """The record as text; what spans several lines is indented, so that no peer can forge a record."""
        tunnel = getattr(record, "tunnel", "")
        text = super().format(record).replace("\n", "\n    ")
        mark = f"<{_priority(record)}>" if self._priorities else f"{record.levelname:<7} "
        return f"{mark}[{tunnel}] {text}" if tunnel else f"{mark}{text}"


class JournalHandler(logging.Handler):
    """Sends records to journald with the fields PRIORITY, LOGGER and, where they concern a tunnel, TUNNEL_ID.

    A record that names the tunnel in its own words has the id as ``about``, else as ``tunnel``.
    """

    def __init__(self, path: str, program: str) -> None:
        """``path``: journald's socket; ``program``: what `journalctl -t` finds us by."""
        super().__init__()
        self._path = path
        self._program = program
        self.setFormatter(logging.Formatter("%(message)s"))  # else basicConfig() sets another
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._fallback = logging.StreamHandler(sys.stderr)
        self._fallback.setFormatter(TunnelFormatter(priorities=True))

    def emit(self, record: logging.LogRecord) -> None:
        """Send the record; while journald is away or slow, stderr keeps it."""
        try:
            self._socket.sendto(self._datagram(record), self._path)
        except OSError:
            self._fallback.emit(record)

    def close(self) -> None:
        """Give up the socket."""
        self._socket.close()
        super().close()

    def _datagram(self, record: logging.LogRecord) -> bytes:
        tunnel = getattr(record, "tunnel", "")
        text = self.format(record)
        fields = {
            "MESSAGE": f"[{tunnel}] {text}" if tunnel else text,
            "PRIORITY": str(_priority(record)),
            "LOGGER": record.name,
            "SYSLOG_IDENTIFIER": self._program,
        }
        if about := tunnel or getattr(record, "about", ""):
            fields["TUNNEL_ID"] = about
        return b"".join(_field(name, value) for name, value in fields.items())


def _field(name: str, value: str) -> bytes:
    # The form with a length for all: a value may hold a line break.
    raw = value.encode("utf-8", "backslashreplace")[:_LONGEST]
    return name.encode() + b"\n" + len(raw).to_bytes(8, "little") + raw + b"\n"


def set_up(program: str, level: str = "info") -> None:
    """Send the program's log to stderr or the journal: INFO and above, of our own what `set_level` says."""
    handler: logging.Handler
    if _stderr_is_journal() and os.path.exists(_JOURNAL):  # noqa: PTH110  pathlib would be imported for this alone
        handler = JournalHandler(_JOURNAL, program)
    else:
        handler = logging.StreamHandler()
        handler.setFormatter(TunnelFormatter(priorities=_stderr_is_journal()))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    # It warns at its import of /proc/net/psched, which no service with ProcSubset=pid sees, and nothing needs.
    logging.getLogger("pyroute2").setLevel(logging.ERROR)
    set_level(level)


def set_level(level: str) -> None:
    """``debug``, ``info``, ``warning`` or ``error``: the least important of our own lines to be logged."""
    logging.getLogger("scistreamd").setLevel(_LEVELS[level])


def _stderr_is_journal() -> bool:
    """Whether JOURNAL_STREAM (systemd.exec(5)) names the file that stderr is."""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    status = os.fstat(2)
    return (device, inode) == (str(status.st_dev), str(status.st_ino))
