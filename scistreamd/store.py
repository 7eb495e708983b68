"""The books: one JSON file for each tunnel that outlives the daemon, in a directory for root alone.

The directory is the daemon's StateDirectory= (systemd.exec(5)); a file is
whole or absent, also after a power cut.
"""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

from scistreamd.errors import Code, ScistreamError
from scistreamd.records import BadRecord, Record

_SUFFIX = ".json"
_log = logging.getLogger("scistreamd.store")


class FileStore:
    """Records as files ``<id>.json`` (0600) in ``directory`` (0700)."""

    def __init__(self, directory: Path) -> None:
        """``directory`` is made where it does not exist; its parent must."""
        self._directory = directory
        directory.mkdir(mode=0o700, exist_ok=True)

    def save(self, record: Record) -> None:
        """Write the record, in place of the one before; FAILED_PRECONDITION where the disk does not take it."""
        path = self._path(record.uid.id)
        draft = path.with_suffix(".new")
        try:
            fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
            with os.fdopen(fd, "w") as file:
                json.dump(record.to_json(), file, indent=1)
                file.flush()
                os.fsync(fd)
            draft.rename(path)
            self._sync()
        except OSError as problem:
            raise ScistreamError(
                Code.FAILED_PRECONDITION,
                f"the gateway cannot write down the tunnel: {problem.strerror}",
                f"make room on, or writable, the disk of {self._directory}",
            ) from problem

    def delete(self, tunnel_id: str) -> None:
        """Forget a tunnel, also one that was never written; a disk that refuses is only logged.

        The tunnel has ended then; the next daemon finds nothing of it and tries again.
        """
        try:
            self._path(tunnel_id).unlink(missing_ok=True)
            self._sync()
        except OSError as problem:
            _log.error("its file cannot be removed: %s", problem.strerror, extra={"tunnel": tunnel_id})

    def load(self) -> list[Record]:
        """All records, the oldest first; a file that is none is told of and left alone."""
        found = []
        for path in self._directory.glob(f"*{_SUFFIX}"):
            try:
                record = Record.from_json(json.loads(path.read_text()))
                if record.uid.id != path.stem:
                    raise BadRecord("it is another tunnel's")
            except (OSError, ValueError, BadRecord) as problem:
                _log.error("%s is left alone: %s", path.name, problem)
                continue
            found.append(record)
        return sorted(found, key=lambda record: record.created)

    def _path(self, tunnel_id: str) -> Path:
        return self._directory / f"{tunnel_id}{_SUFFIX}"

    def _sync(self) -> None:
        """fsync(2): a rename is on disk when its directory is."""
        fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
