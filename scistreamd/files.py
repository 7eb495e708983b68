"""Small files that must be whole, or not there, and readable by nobody else in between."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from scistreamd.errors import Code, ScistreamError


def write(path: Path, content: bytes, mode: int, *, replace: bool) -> None:
    """Write a file that has its mode from the first byte on.

    With ``replace`` the new file takes an old one's place at once; without it
    an existing file is an ALREADY_EXISTS error. Other failures raise
    FAILED_PRECONDITION with the system's reason.
    """
    try:
        if replace:
            _replace(path, content, mode)
        else:
            _create(path, content, mode)
    except FileExistsError:
        raise ScistreamError(Code.ALREADY_EXISTS, f"{path} is there already") from None
    except OSError as error:
        raise ScistreamError(Code.FAILED_PRECONDITION, f"cannot write {path}: {error.strerror}") from None


def there(path: Path, *, links: bool = False) -> bool:
    """Whether the path leads to something, or with ``links`` is a link that leads nowhere.

    Not where the way to it is closed to us, as in a directory of somebody else's.
    """
    try:
        return path.exists() or (links and path.is_symlink())
    except PermissionError:
        return False


def move(draft: Path, path: Path) -> None:
    """Put a file in another's place at once (rename(2)); FAILED_PRECONDITION with the system's reason."""
    try:
        draft.replace(path)
    except OSError as error:
        raise ScistreamError(Code.FAILED_PRECONDITION, f"cannot write {path}: {error.strerror}") from None


def _replace(path: Path, content: bytes, mode: int) -> None:
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    _create(draft, content, mode)
    try:
        draft.replace(path)
    except OSError:
        draft.unlink()
        raise


def _create(path: Path, content: bytes, mode: int) -> None:
    # O_EXCL: no link that someone else has laid there is followed (open(2)).
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        path.unlink()
        raise
