"""The control port's files while the daemon runs: renewed ones are taken up, a certificate's near end is told of."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
import time
from collections.abc import Callable
from pathlib import Path

from scistreamd import validity
from scistreamd.errors import ScistreamError

_LOOK_SECONDS = 15.0
_TELL_SECONDS = 86400.0
_log = logging.getLogger("scistreamd.control")

# Certificate and key, and what else goes into the TLS settings: CAs of client certificates, and their revocations.
Files = tuple[Path, ...]
_Marks = dict[Path, tuple[int, int, int]]


class CertificateWatch:
    """Looks at certificate, key and what goes with them from time to time.

    ``files``: which ones they are by the settings in force. ``load`` makes
    TLS settings of them, or raises ScistreamError; ``use`` is given those of renewed
    files, and ``told`` is called when `warning` has changed.
    """

    def __init__(
        self,
        files: Callable[[], Files],
        load: Callable[[], ssl.SSLContext],
        use: Callable[[ssl.SSLContext], None],
        told: Callable[[], None] = lambda: None,
        look_seconds: float = _LOOK_SECONDS,
    ) -> None:
        self._files = files
        self._load = load
        self._use = use
        self._told = told
        self._look_seconds = look_seconds
        self._told_at = 0.0
        self._asked = asyncio.Event()
        self.warning = ""

    def look(self) -> None:
        """Look now: the settings may name other files."""
        self._asked.set()

    async def run(self) -> None:
        """Until cancelled."""
        marks = self._marks()
        await self._judge()
        while True:
            await self._until_asked()
            now = self._marks()
            if now != marks and now is not None and self._renew(*_changed(marks or {}, now)):
                marks = now
                self._told_at = 0.0
            if time.monotonic() - self._told_at > _TELL_SECONDS or not self._told_at:
                await self._judge()

    async def _until_asked(self) -> None:
        """Return when it is time to look, or when somebody asks for it."""
        timer = asyncio.get_running_loop().call_later(self._look_seconds, self._asked.set)
        try:
            await self._asked.wait()
        finally:
            timer.cancel()
            self._asked.clear()

    def _marks(self) -> _Marks | None:
        """What changes when the files do; None while one is missing, as in the middle of a renewal."""
        found = {}
        with contextlib.suppress(OSError):
            for path in self._files():
                state = path.stat()
                found[path] = (state.st_mtime_ns, state.st_size, state.st_ino)
            return found
        return None

    def _renew(self, *changed: Path) -> bool:
        """Whether the files fit together by now; a key without its certificate is tried again."""
        what = "certificate" if set(changed) & set(self._files()[:2]) else "file for client certificates"
        try:
            context = self._load()
        except ScistreamError as problem:
            _log.warning("the renewed %s is not taken up: %s", what, problem)
            return False
        self._use(context)
        _log.info("took up the renewed %s: %s", what, ", ".join(map(str, sorted(changed))))
        return True

    async def _judge(self) -> None:
        self._told_at = time.monotonic()
        certificate = self._files()[0]
        # In a thread: reading certificates takes a third of a second to learn.
        try:
            end = await asyncio.to_thread(ends, certificate)
        except (OSError, ValueError) as problem:
            _log.warning("cannot read when %s ends: %s", certificate, problem)
            return
        before, self.warning = self.warning, near_end(end, time.time())
        if self.warning:
            _log.warning("%s: %s", certificate, self.warning)
        if before != self.warning:
            self._told()


def _changed(before: _Marks, now: _Marks) -> list[Path]:
    return [path for path, mark in now.items() if before.get(path) != mark]


def ends(certificate: Path) -> float:
    """When the first certificate of a PEM file ends, in seconds since the epoch; OSError, ValueError."""
    from cryptography import x509  # noqa: PLC0415

    found = x509.load_pem_x509_certificate(certificate.read_bytes())
    return validity.ends(found).timestamp()


def near_end(end: float, now: float) -> str:
    """That a certificate is near its end or beyond, for people, or an empty string."""
    days = (end - now) / 86400
    if days > validity.SOON_DAYS:
        return ""
    day = time.strftime("%Y-%m-%d", time.localtime(end))
    if days <= 0:
        return f"the control port's certificate has ended on {day}"
    return f"the control port's certificate ends on {day}"
