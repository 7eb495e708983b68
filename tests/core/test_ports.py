from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from scistreamd.errors import Code, ScistreamError
from scistreamd.model import PortRange
from scistreamd.ports import Pool

FIRST, LAST = 5100, 5109


def pool() -> Pool:
    return Pool(PortRange(FIRST, LAST))


def test_first_to_last_then_the_one_free_longest() -> None:
    ports = pool()
    assert ports.take(2) == [5100, 5101]
    ports.give_back([5101])
    assert ports.take(8) == list(range(5102, 5110))
    assert ports.take(1) == [5101]


def test_all_or_nothing() -> None:
    ports = pool()
    ports.take(8)
    with pytest.raises(ScistreamError) as caught:
        ports.take(3)
    assert caught.value.code is Code.RESOURCE_EXHAUSTED
    assert "3 ports asked for, 2 of 10 free in 5100-5109" in caught.value.message
    assert ports.free == 2


def test_busy_ports_are_passed_over_and_counted() -> None:
    ports = pool()
    assert ports.take(2, busy={5100}) == [5101, 5102]
    with pytest.raises(ScistreamError, match="1 in use by other programs"):
        ports.take(8, busy={5100})


def test_wishes_come_first_where_they_are_to_be_had() -> None:
    ports = pool()
    assert ports.take(3, first=[5107, 5105, 5107, 9999]) == [5107, 5105, 5100]
    assert ports.take(1, busy={5106}, within=PortRange(5105, 5108), first=[5105, 5106, 5102]) == [5108]


def test_put_back_is_next_in_turn() -> None:
    ports = pool()
    taken = ports.take(3)
    ports.put_back(taken)
    assert ports.take(3) == taken


def test_claim() -> None:
    ports = pool()
    assert ports.claim(5105)
    assert not ports.claim(5105)
    assert not ports.claim(LAST + 1)
    assert 5105 not in ports.take(9)


class PoolMachine(RuleBasedStateMachine):
    """No port is ever in two hands, none is ever lost."""

    def __init__(self) -> None:
        super().__init__()
        self.ports = pool()
        self.out: set[int] = set()

    @rule(count=st.integers(1, 12), busy=st.sets(st.integers(FIRST, LAST)))
    def take(self, count: int, busy: set[int]) -> None:
        try:
            taken = self.ports.take(count, busy)
        except ScistreamError:
            return
        assert len(taken) == len(set(taken)) == count
        assert not set(taken) & (self.out | busy)
        self.out |= set(taken)

    @rule(port=st.integers(FIRST - 2, LAST + 2))
    def claim(self, port: int) -> None:
        free = FIRST <= port <= LAST and port not in self.out
        assert self.ports.claim(port) is free
        if free:
            self.out.add(port)

    @rule(share=st.integers(0, 10), back=st.booleans())
    def give_back(self, share: int, back: bool) -> None:
        some = sorted(self.out)[:share]
        (self.ports.give_back if back else self.ports.put_back)(some)
        self.out -= set(some)

    @invariant()
    def counts(self) -> None:
        assert self.ports.free + len(self.out) == LAST - FIRST + 1


TestPoolMachine = PoolMachine.TestCase


def test_another_range_keeps_what_is_out_until_it_comes_back() -> None:
    pool = Pool(PortRange(5100, 5103))
    out = pool.take(2)
    pool.change_range(PortRange(5101, 5104))
    assert out == [5100, 5101]
    assert pool.free == 3
    assert not pool.claim(5101)
    pool.give_back(out)
    assert sorted(pool.take(4)) == [5101, 5102, 5103, 5104]
    assert not pool.claim(5100)


def test_what_is_occupied_outside_the_range_is_not_given_out_when_the_range_comes_there() -> None:
    pool = Pool(PortRange(5100, 5101))
    pool.occupy([5101, 5102])
    assert pool.free == 1
    pool.change_range(PortRange(5100, 5103))
    assert pool.take(2) == [5100, 5103]
    pool.give_back([5102, 5101])
    assert pool.take(2) == [5102, 5101]
