"""What systemd tells of a tunnel's service: that it is down, and how often it was started again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

STEADY_SECONDS = 30.0
_RESTARTING = "auto-restart"


class ServiceWatch:
    """Follows SubState and NRestarts of one service."""

    def __init__(self, restarted: Callable[[], None], failed: Callable[[], None]) -> None:
        """``restarted`` is called when systemd has started it again by itself; then NRestarts is to be counted.

        ``failed``: when it has ended badly, as the end of a stop or in the middle of a restart.
        """
        self.down = asyncio.Event()  # set by each end of the service; whoever waits for one clears it before
        self._restarted = restarted
        self._failed = failed
        self._state = ""
        self._restarts: int | None = None
        self._in_a_row = 0
        self._last = 0.0

    def fresh(self) -> None:
        """It is about to be started by us, which begins its count of restarts anew."""
        self._restarts, self._in_a_row = 0, 0

    def see(self, name: str, value: str) -> None:
        """As `Systemd1.watch` tells it: the value may be the same as before."""
        if name != "SubState":
            return
        before, self._state = self._state, value
        if value in (_RESTARTING, "failed"):
            self.down.set()
            if value == "failed":
                self._failed()
        elif before == _RESTARTING:
            self._restarted()

    def count(self, restarts: int) -> int:
        """Take the value of NRestarts; returns how many times in a row systemd started it, 0 where that is not new."""
        # Of a service that the daemon before started, the restart that was just seen is the first to count.
        before = restarts - 1 if self._restarts is None else self._restarts
        self._restarts = restarts
        if restarts <= before:
            return 0
        now = asyncio.get_running_loop().time()
        self._in_a_row = restarts - before + (0 if now - self._last > STEADY_SECONDS else self._in_a_row)
        self._last = now
        return self._in_a_row
