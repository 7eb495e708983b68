"""The directory for keys and control sockets of a daemon that systemd does not start.

It is on tmpfs where there is one, so that no key reaches a disk, and is gone
with the daemon. One that was killed leaves it behind; the next one clears it.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

_PREFIX = "scistream-s2cs-"
_NEW_PREFIX = "scistream-new-"
_LOCK = "lock"
# sun_path of unix(7) is 108 bytes, and HAProxy keeps 11 of them for a suffix of its own. Behind ours go
# "/scistream-s2cs-xxxxxxxx/0123456789ab/scratch/ready.sock".
_LONGEST = 97 - 56

_log = logging.getLogger("scistreamd.runtime")


@contextlib.contextmanager
def runtime_directory() -> Iterator[Path]:
    """A new directory of our own, removed at the end with all that is in it."""
    base = _base()
    _clear_abandoned(base)
    made = Path(tempfile.mkdtemp(prefix=_NEW_PREFIX, dir=base))
    with (made / _LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # Under its name only now that it is locked, else another daemon would take it for abandoned.
        made = made.rename(base / made.name.replace(_NEW_PREFIX, _PREFIX))
        try:
            # Data servers run as users of their own under root: they pass through, and list nothing.
            made.chmod(0o711 if os.geteuid() == 0 else 0o700)
            yield made
        finally:
            shutil.rmtree(made)


def _base() -> Path:
    tmpfs = _tmpfs_mounts()
    for candidate in (os.environ.get("RUNTIME_DIRECTORY"), os.environ.get("XDG_RUNTIME_DIR"), "/run", "/dev/shm"):  # noqa: S108
        if candidate and _usable(Path(candidate), tmpfs):
            return Path(candidate)
    fallback = Path(tempfile.gettempdir())
    _log.warning("no tmpfs is writable here: the keys of tunnels are kept in %s, on disk", fallback)
    return fallback


def _usable(path: Path, tmpfs: set[str]) -> bool:
    short = len(str(path)) <= _LONGEST
    return short and os.access(path, os.W_OK | os.X_OK) and _mount_of(path) in tmpfs


def _tmpfs_mounts() -> set[str]:
    """Mount points of type tmpfs (proc(5), /proc/self/mounts)."""
    with Path("/proc/self/mounts").open() as mounts:
        fields = [line.split() for line in mounts]
    return {mount[1] for mount in fields if mount[2] == "tmpfs"}


def _mount_of(path: Path) -> str:
    path = path.resolve()
    while not path.is_mount():
        path = path.parent
    return str(path)


def _clear_abandoned(base: Path) -> None:
    """Remove directories of daemons that were killed: their lock is free."""
    for left in base.glob(f"{_PREFIX}*"):
        try:
            if left.is_symlink() or left.stat().st_uid != os.geteuid():
                continue
            with (left / _LOCK).open() as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left)
        except (FileNotFoundError, BlockingIOError):
            continue  # just being made or removed, or in use
