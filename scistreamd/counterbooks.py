"""What was counted, for the next daemon: one JSON file for each tunnel, in a directory for root alone.

Without fsync(2), unlike `store`: a power cut ends the connections too, and may cost some seconds' counts.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scistreamd.counts import NOTHING, Counts, Totals
from scistreamd.errors import Code, ScistreamError
from scistreamd.legs import Saved

VERSION = 1
_SUFFIX = ".json"
_BOOT_SLACK = 300.0  # seconds that clocks may have been set by between two daemons
_log = logging.getLogger("scistreamd.meter")


class FileCounterBooks:
    """`interfaces.CounterBooks` as files ``<id>.json`` in ``directory`` (0700)."""

    def __init__(self, directory: Path) -> None:
        """``directory`` is made where it does not exist; its parent must."""
        self._directory = directory
        directory.mkdir(mode=0o700, exist_ok=True)

    def save(self, counted: Mapping[str, Saved]) -> None:
        """See `interfaces.CounterBooks.save`."""
        try:
            for tunnel_id, saved in counted.items():
                path = self._path(tunnel_id)
                draft = path.with_suffix(".new")
                draft.write_text(json.dumps(_to_json(saved)))
                draft.rename(path)
        except OSError as problem:
            raise ScistreamError(
                Code.FAILED_PRECONDITION,
                f"the gateway cannot write down counts: {problem.strerror}",
                f"make room on, or writable, the disk of {self._directory}",
            ) from problem

    def delete(self, tunnel_id: str) -> None:
        """See `interfaces.CounterBooks.delete`; a disk that refuses is only logged, the next daemon tries again."""
        try:
            self._path(tunnel_id).unlink(missing_ok=True)
        except OSError as problem:
            _log.error("the file of its counts cannot be removed: %s", problem.strerror, extra={"tunnel": tunnel_id})

    def load(self) -> dict[str, Saved]:
        """See `interfaces.CounterBooks.load`; a file that is none of ours is told of and left alone."""
        found = {}
        for path in self._directory.glob(f"*{_SUFFIX}"):
            try:
                found[path.stem] = _from_json(json.loads(path.read_text()))
            except (OSError, ValueError, KeyError, TypeError) as problem:
                _log.error("%s is left alone, it holds no counts: %s", path.name, problem)
        return found

    def _path(self, tunnel_id: str) -> Path:
        return self._directory / f"{tunnel_id}{_SUFFIX}"


def _to_json(saved: Saved) -> dict[str, Any]:
    counts = saved.counts
    return {
        "version": VERSION,
        "time": time.time(),
        "up": time.clock_gettime(time.CLOCK_BOOTTIME),
        "connections_total": counts.connections_total,
        "plain": counts.plain,
        "wan": counts.wan,
        "retransmits": counts.retransmits,
        "used": counts.used,
        "estimated": counts.estimated,
        "tcp": saved.tcp,
        "udp": saved.udp,
        # Cookies are numbers of 64 bits, more than JSON's readers agree on.
        "legs": {f"{cookie:x}": leg for cookie, leg in saved.legs.items()},
    }


def _from_json(raw: Any) -> Saved:
    if raw["version"] != VERSION:
        raise ValueError(f"version {raw['version']!r} is not {VERSION}")
    counts = Counts(
        connections_total=int(raw["connections_total"]),
        plain=_totals(raw["plain"]),
        wan=_totals(raw["wan"]),
        retransmits=int(raw["retransmits"]),
        used=float(raw["used"]),
        estimated=bool(raw["estimated"]),
    )
    legs = {
        int(cookie, 16): (bool(active), _totals(counted), int(retransmits))
        for cookie, (active, counted, retransmits) in raw["legs"].items()
    }
    passed = _totals(raw.get("tcp", NOTHING)), _totals(raw.get("udp", NOTHING))
    # What the kernel has counted is gone with it.
    return Saved(counts, legs, *passed) if _same_boot(float(raw["time"]), float(raw["up"])) else Saved(counts)


def _totals(raw: Any) -> Totals:
    return Totals(*(int(each) for each in raw))


def _same_boot(then: float, up: float) -> bool:
    """Whether the host runs since before ``then``: uptime has grown by as much as the clock.

    /proc/sys, with the id of the boot, is not for the daemon in its sandbox to see.
    """
    since = time.clock_gettime(time.CLOCK_BOOTTIME) - up
    return since >= 0 and abs(time.time() - then - since) < _BOOT_SLACK
