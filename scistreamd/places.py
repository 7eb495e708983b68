"""The directories and files of one tunnel, as its data server's user may see them."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

from scistreamd.plans import Places


def places_below(root: Path) -> Places:
    """The directories of a tunnel whose files are below ``root``."""
    return Places(*(PurePosixPath(root / name) for name in ("config", "secrets", "scratch")))


def make_places(root: Path, uid: int | None) -> Places:
    """Make the directories below ``root``, which is made too; ``uid`` is the data server's user, None: ours."""
    places = places_below(root)
    root.mkdir(mode=0o711)
    root.chmod(0o711)  # whatever the umask
    for path, mode in ((places.config, 0o755), (places.secrets, 0o700), (places.scratch, 0o700)):
        Path(path).mkdir(mode=mode)
        Path(path).chmod(mode)
        if uid is not None and path != places.config:
            os.chown(path, uid, uid)
    return places


def write_file(path: Path, content: bytes, mode: int, uid: int | None) -> None:
    """Write a file whole: it has its mode and owner before its name."""
    draft = path.with_name(f".{path.name}.new")
    draft.unlink(missing_ok=True)
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    with os.fdopen(fd, "wb") as file:
        os.fchmod(fd, mode)
        if uid is not None:
            os.fchown(fd, uid, uid)
        file.write(content)
    draft.rename(path)
