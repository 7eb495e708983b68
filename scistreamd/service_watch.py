"""What systemd tells of a tunnel's service: that it is down, and how often it was started again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

STEADY_SECONDS = 30.0


class ServiceWatch:
    """Follows SubState and NRestarts of one service, as `Systemd1.watch` tells them."""

    def __init__(self, crashed: Callable[[int], None]) -> None:
        """``crashed`` is called with how many times in a row systemd started it again by itself."""
        self.down = asyncio.Event()  # set by each end of the service; whoever waits for one clears it before
        self._crashed = crashed
        self._restarts: int | None = None
        self._in_a_row = 0
        self._last = 0.0

    def fresh(self) -> None:
        """It is about to be started by us, which begins its count of restarts anew."""
        self._restarts, self._in_a_row = 0, 0

    def see(self, name: str, value: Any) -> None:
        """One property, whose value may be the same as before."""
        if name == "SubState" and value in ("auto-restart", "failed"):
            self.down.set()
        elif name == "NRestarts":
            # The first value seen of a service that the daemon before started is where counting begins.
            before, self._restarts = self._restarts, value
            if before is not None and value > before:
                self._count(value - before)

    def _count(self, times: int) -> None:
        now = asyncio.get_running_loop().time()
        self._in_a_row = times if now - self._last > STEADY_SECONDS else self._in_a_row + times
        self._last = now
        self._crashed(self._in_a_row)
