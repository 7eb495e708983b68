"""How often somebody may fail: a bucket for each, that leaks; pure but for the clock."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable

from scistreamd.config import Failures
from scistreamd.errors import Code, ScistreamError

_MOST = 4096


class Throttle:
    """Counts failures by key: a peer's network, or an identity. The one not heard of for longest is forgotten first."""

    def __init__(self, limits: Failures, clock: Callable[[], float] = time.monotonic) -> None:
        self.limits = limits
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # level, and when it was that

    def check(self, key: str, weight: float = 1) -> None:
        """RESOURCE_EXHAUSTED where the key has failed too often lately; ``weight``: what each failure of it counts."""
        over = self._level(key) - self.limits.burst + weight
        if over > 0:
            seconds = math.ceil(over * 60 / self.limits.per_minute)
            raise ScistreamError(
                Code.RESOURCE_EXHAUSTED, "too many failures", f"stop what repeats them, and try again in {seconds} s"
            )

    def fail(self, key: str, weight: float = 1) -> None:
        """One more."""
        level = min(self._level(key) + weight, float(self.limits.burst))
        self._buckets[key] = (level, self._clock())
        self._buckets.move_to_end(key)
        while len(self._buckets) > _MOST:
            self._buckets.popitem(last=False)

    def _level(self, key: str) -> float:
        level, at = self._buckets.get(key, (0.0, 0.0))
        level -= (self._clock() - at) * self.limits.per_minute / 60
        if level <= 0:
            self._buckets.pop(key, None)
        return max(level, 0.0)
