"""How often somebody may fail."""

from __future__ import annotations

import pytest

from scistreamd.config import Failures
from scistreamd.errors import Code, ScistreamError
from scistreamd.throttle import Throttle


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def refused(throttle: Throttle, key: str) -> str:
    try:
        throttle.check(key)
    except ScistreamError as problem:
        assert problem.code is Code.RESOURCE_EXHAUSTED
        return problem.hint
    return ""


def test_a_burst_and_then_so_many_a_minute() -> None:
    clock = Clock()
    throttle = Throttle(Failures(burst=3, per_minute=6), clock)
    for _ in range(3):
        assert not refused(throttle, "a")
        throttle.fail("a")
    assert "in 10 s" in refused(throttle, "a")
    assert not refused(throttle, "b")
    clock.now += 9.9
    assert refused(throttle, "a")
    clock.now += 0.2
    assert not refused(throttle, "a")
    throttle.fail("a")
    assert refused(throttle, "a")
    clock.now += 30
    assert not refused(throttle, "a")


def test_who_goes_on_for_ever_waits_no_longer_than_after_a_burst() -> None:
    throttle = Throttle(Failures(burst=3, per_minute=6), Clock())
    for _ in range(1000):
        throttle.fail("a")
    assert "in 10 s" in refused(throttle, "a")


@pytest.mark.parametrize("keys", [5000])
def test_memory_is_bounded(keys: int) -> None:
    throttle = Throttle(Failures(burst=1, per_minute=1), Clock())
    for number in range(keys):
        throttle.fail(str(number))
    assert len(throttle._buckets) == 4096
    assert refused(throttle, str(keys - 1)) and not refused(throttle, "0")
