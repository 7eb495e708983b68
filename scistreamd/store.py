"""The books: one JSON file for each tunnel that outlives the daemon, in a directory for root alone.

The directory is the daemon's StateDirectory= (systemd.exec(5)); a file is
whole or absent, also after a power cut.
"""

from __future__ import annotations

import contextlib
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

    def __init__(self, directory: Path, ended: Path) -> None:
        """``directory`` is made where it does not exist; its parent must.

        ``ended``: a directory on tmpfs, made when needed, for the names of
        tunnels whose file could not be removed: they must not come back.
        """
        self._directory = directory
        self._ended = ended
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
            self._mark(record.uid.id, ended=False)
        except OSError as problem:
            with contextlib.suppress(OSError):
                draft.unlink(missing_ok=True)
            raise ScistreamError(
                Code.FAILED_PRECONDITION,
                f"the gateway cannot write down the tunnel: {problem.strerror}",
                f"make room on, or writable, the disk of {self._directory}",
            ) from problem

    def delete(self, tunnel_id: str) -> None:
        """Forget a tunnel, also one that was never written; a disk that refuses is only logged.

        The next daemon of this boot does not bring it back then, and tries again.
        """
        try:
            self._path(tunnel_id).unlink(missing_ok=True)
            self._sync()
            self._mark(tunnel_id, ended=False)
        except OSError as problem:
            self._mark(tunnel_id, ended=self._path(tunnel_id).exists())
            _log.error("its file cannot be removed: %s", problem.strerror, extra={"tunnel": tunnel_id})

    def load(self) -> list[Record]:
        """All records, the oldest first; a file that is none is told of and left alone."""
        found = []
        for path in self._directory.glob(f"*{_SUFFIX}"):
            if (self._ended / path.stem).exists():
                self.delete(path.stem)
                continue
            try:
                record = Record.from_json(json.loads(path.read_text()))
                if record.uid.id != path.stem:
                    raise BadRecord("it is another tunnel's")
            except (OSError, ValueError, RecursionError, BadRecord) as problem:
                _log.error("%s is left alone: %s", path.name, problem)
                continue
            found.append(record)
        return sorted(found, key=lambda record: record.created)

    def count(self) -> int:
        """How many records the directory holds, readable or not."""
        return sum(1 for _ in self._directory.glob(f"*{_SUFFIX}"))

    def _mark(self, tunnel_id: str, *, ended: bool) -> None:
        mark = self._ended / tunnel_id
        if ended:
            self._ended.mkdir(mode=0o700, exist_ok=True)
            mark.touch()
        elif mark.exists():
            mark.unlink()
            with contextlib.suppress(OSError):  # others are there
                self._ended.rmdir()

    def _path(self, tunnel_id: str) -> Path:
        return self._directory / f"{tunnel_id}{_SUFFIX}"

    def _sync(self) -> None:
        """fsync(2): a rename is on disk when its directory is."""
        fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
