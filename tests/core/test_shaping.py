"""Rates as data: who is in which class, and the capacity that rates are reserved from."""

from __future__ import annotations

import ipaddress
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scistreamd import capacity, shaping
from scistreamd.errors import Code, ScistreamError
from scistreamd.interfaces import Flow
from scistreamd.model import Endpoint, Role
from scistreamd.netattributes import attribute, attributes
from scistreamd.nftrules import Section
from scistreamd.plans import Bind
from scistreamd.shaping import Shape


def shape(number: int, minor: int, user: int | None = 61184) -> Shape:
    bind = Bind(Endpoint(ipaddress.ip_address("192.0.2.1"), 5100 + number))
    return Shape(Flow(f"{number:012x}", Role.PROD, (bind,), rate=1000, user=user), minor)


@given(st.dictionaries(st.integers(0, 2**48 - 1), st.sampled_from(shaping.MINORS), max_size=20))
def test_the_next_daemon_reads_the_classes_from_the_names_of_chains(tunnels: dict[int, int]) -> None:
    shapes = [shape(0, minor) for minor in tunnels.values()]
    made = [Shape(Flow(f"{number:012x}", Role.PROD, ()), minor) for number, minor in tunnels.items()]
    found = shaping.minors([*(each.chain for each in made), "rates", "rates-out", "guard-0123456789ab"])
    assert found == [(f"{number:012x}", minor) for number, minor in tunnels.items()]
    assert all(each.back + 1 == each.forth for each in shapes)


def test_nothing_is_left_without_rated_tunnels() -> None:
    assert shaping.section([], {1: "lo"}) == Section(shaping.NAME)


def test_a_tunnel_whose_user_is_not_known_yet_has_no_rule_for_it() -> None:
    with_user, without = (shaping.section([shape(1, 2, user)], {3: "eth0"}) for user in (61184, None))
    assert len(with_user.chains[0].rules) == len(without.chains[0].rules) + 2
    assert [chain.name for chain in without.chains] == ["rates", "rates-out", "rates-000000000001-0002"]


@given(st.integers(100_000, 10**12), st.sampled_from([1500, 9000, 65536]))
def test_a_class_has_its_rate(rate: int, mtu: int) -> None:
    outer = dict(attributes(shaping.htb_class(rate, mtu)))
    inner = dict(attributes(outer[2]))
    (low,) = struct.unpack_from("=I", inner[1], 8)
    found = struct.unpack("=Q", inner[6])[0] if 6 in inner else low
    assert rate <= found <= rate * 1.02
    assert found == rate or shaping.is_slow(rate, mtu)
    assert (6 in inner) is (found > 0xFFFFFFFF)


@given(st.lists(st.tuples(st.integers(1, 300), st.binary(max_size=9)), max_size=9))
def test_attributes_there_and_back(pairs: list[tuple[int, bytes]]) -> None:
    assert list(attributes(b"".join(attribute(*pair) for pair in pairs))) == pairs


@pytest.mark.parametrize(
    ("text", "kilobytes"),
    [
        ("", 0),
        ("10Gbit", 1_250_000),
        ("2.5Gbit", 312_500),
        ("800kbit", 100),
        ("1 Tbit/s", 125_000_000),
        ("8Mbit", 1000),
    ],
)
def test_capacity_as_text(text: str, kilobytes: int) -> None:
    assert capacity.parse(text) == kilobytes
    assert capacity.parse(capacity.shown(kilobytes)) == kilobytes


@pytest.mark.parametrize("text", ["10", "10G", "Gbit", "-1Gbit", "10gbit", "1kbit", "9999Tbit", "10Gbit\n"])
def test_what_is_no_capacity(text: str) -> None:
    with pytest.raises(ValueError, match=r"^$"):
        capacity.parse(text)


def test_reservations() -> None:
    capacity.check(0, 10**9, 0)
    capacity.check(1000, 400, 600)
    with pytest.raises(ScistreamError, match=r"601 kB/s asked for, 600 kB/s are left .*\(8Mbit\)") as caught:
        capacity.check(1000, 400, 601)
    assert caught.value.code is Code.RESOURCE_EXHAUSTED
    with pytest.raises(ScistreamError, match="0 kB/s are left") as caught:
        capacity.check(1000, 2000, 0)
    assert caught.value.code is Code.INVALID_ARGUMENT
