"""Sets of numbers as ranges, against Python's own sets."""

from __future__ import annotations

import ipaddress
import operator
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scistreamd.nft.spans import Spans

RANGES = st.lists(st.tuples(st.integers(0, 80), st.integers(0, 4)), max_size=20)


def spans(ranges: list[tuple[int, int]]) -> Spans:
    return Spans.of((first, first + length) for first, length in ranges)


def numbers(of: Spans) -> set[int]:
    return {number for first, last in of.ranges for number in range(first, last + 1)}


@pytest.mark.parametrize("does", [operator.and_, operator.or_, operator.sub])
def test_they_are_what_sets_are(does: Callable[[Any, Any], Any]) -> None:
    @given(RANGES, RANGES)
    def check(left: list[tuple[int, int]], right: list[tuple[int, int]]) -> None:
        one, other = spans(left), spans(right)
        result = does(one, other)
        assert numbers(result) == does(numbers(one), numbers(other))
        assert result == Spans.of(result.ranges)
        assert result.size == len(numbers(result))
        assert {number for number in range(90) if number in one} == numbers(one)

    check()


def test_a_network_and_back() -> None:
    network = ipaddress.ip_network("192.0.2.0/25")
    assert list(Spans.network(network).networks(4)) == [network]
    rest = Spans.network(ipaddress.ip_network("192.0.2.0/24")) - Spans.network(network)
    assert list(rest.networks(4)) == [ipaddress.ip_network("192.0.2.128/25")]
