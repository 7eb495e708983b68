"""Cached directory trees that the hosts' file systems are made of.

A tree is named after the content that it was made from, so it is never changed, only replaced. It appears
under its name when it is complete: a builder that is killed leaves NAME.half, which the next one removes.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

from tests.system.tools import call, lock

# Of each kind these many stay whatever their age, and the others while they are of today.
_KEPT, _KEPT_OF_TODAY = 3, 20
_TODAY_SECONDS = 24 * 3600


def home() -> Path:
    """The directory of all labs of this machine: $XDG_CACHE_HOME/scistreamd-lab, else below /var/cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "/var/cache") / "scistreamd-lab"


def digest(*contents: str | bytes) -> str:
    """A name for what these contents make."""
    summed = hashlib.sha256()
    for content in contents:
        data = content.encode() if isinstance(content, str) else content
        summed.update(len(data).to_bytes(8, "big") + data)
    return summed.hexdigest()[:16]


class Trees:
    """The cache. Each tree that was asked for stays in use, and is not pruned, until ``close``."""

    def __init__(self, directory: Path, say: Callable[[str], None]) -> None:
        self._directory = directory
        self._say = say
        self._uses: list[IO[bytes]] = []
        directory.mkdir(parents=True, exist_ok=True)

    def tree(self, kind: str, key: str, made: str, build: Callable[[Path], None]) -> Path:
        """The tree of that kind and key; built where it is not there (``made`` tells the user what for).

        ``build`` gets an empty directory on the cache's file system and makes ``tree`` in it.
        """
        name = self._directory / f"{kind}-{key}"
        with self._alone():
            if not name.is_dir():
                self._say(made)
                self._prune()
                half = name.with_suffix(".half")
                half.mkdir()
                build(half)
                (half / "tree").rename(name)
                shutil.rmtree(half)
            use = lock(name.with_suffix(".used"), fcntl.LOCK_SH)
            assert use is not None
            os.utime(use.fileno())
            self._uses.append(use)
        return name

    def close(self) -> None:
        """The trees are no longer in use."""
        while self._uses:
            self._uses.pop().close()

    def _alone(self) -> IO[bytes]:
        """One builder at a time: a second lab waits for the first one's tree instead of making it again."""
        held = lock(self._directory / "trees.lock", fcntl.LOCK_EX)
        assert held is not None
        for half in self._directory.glob("*.half"):
            shutil.rmtree(half)
        return held

    def _prune(self) -> None:
        """Remove trees of every kind that no lab uses, but for those that were asked for lately."""
        kinds: dict[str, list[Path]] = {}
        for mark in self._directory.glob("*.used"):
            kinds.setdefault(mark.stem.rpartition("-")[0], []).append(mark)
        for marks in kinds.values():
            marks.sort(key=_asked, reverse=True)
            for rank, mark in enumerate(marks):
                today = time.time() - _asked(mark) < _TODAY_SECONDS
                if rank >= (_KEPT_OF_TODAY if today else _KEPT):
                    _remove(mark)


def _asked(mark: Path) -> float:
    return mark.stat().st_mtime


def _remove(mark: Path) -> None:
    """Remove the tree of this mark, unless a lab uses it; who is killed meanwhile leaves a half."""
    if use := lock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB):
        with use:
            half = mark.with_suffix(".half")
            mark.with_suffix("").rename(half)
            mark.unlink()
            shutil.rmtree(half)


def mount_overlay(lower: Sequence[Path], upper: Path, work: Path, root: Path) -> None:
    """Mount at ``root`` what is in ``lower`` (the first is the topmost) with changes going to ``upper``."""
    for directory in (upper, work, root):
        directory.mkdir(parents=True, exist_ok=True)
    layers = ":".join(str(layer) for layer in lower)
    call(["mount", "-t", "overlay", "overlay", "-o", f"lowerdir={layers},upperdir={upper},workdir={work}", root])
