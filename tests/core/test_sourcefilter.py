"""The socket filter of allow-from, run by a small interpreter of classic BPF, against the networks themselves."""

from __future__ import annotations

import ipaddress
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scistreamd.errors import Code, ScistreamError
from scistreamd.model import IPAddress, IPNetwork
from scistreamd.sourcefilter import TAKES_NOTHING, Instruction, packed, takes_from

_NETWORK_HEADER = 0xFFF00000


def header(source: IPAddress) -> bytes:
    """The network header of a packet from this address."""
    if source.version == 4:
        return b"\x45" + bytes(11) + source.packed + bytes(4)
    return b"\x60" + bytes(7) + source.packed + bytes(16)


def takes(program: tuple[Instruction, ...], packet: bytes) -> bool:
    a, at = 0, 0
    while True:
        code, yes, no, k = program[at]
        at += 1
        match code:
            case 0x20:
                (a,) = struct.unpack_from(">I", packet, k - _NETWORK_HEADER)
            case 0x30:
                a = packet[k - _NETWORK_HEADER]
            case 0x54:
                a &= k
            case 0x74:
                a >>= k
            case 0x05:
                at += k
            case 0x15:
                at += yes if a == k else no
            case 0x06:
                return bool(k)
            case _:
                pytest.fail(f"code {code}")


def networks(version: int) -> st.SearchStrategy[IPNetwork]:
    of = ipaddress.IPv4Network if version == 4 else ipaddress.IPv6Network
    bits = 32 if version == 4 else 128
    # Few distinct bits, so that addresses do fall into the networks.
    return st.builds(
        lambda value, length: of((value << (bits - 8), length), strict=False), st.integers(0, 255), st.integers(0, bits)
    )


def addresses(version: int) -> st.SearchStrategy[IPAddress]:
    of, bits = (ipaddress.IPv4Address, 32) if version == 4 else (ipaddress.IPv6Address, 128)
    low = st.sampled_from([0, 1, 2**32 - 1 if version == 6 else 5])
    return st.builds(lambda high, low: of(high << (bits - 8) | low), st.integers(0, 255), low)


@given(st.lists(networks(4) | networks(6), min_size=1, max_size=20), st.lists(addresses(4) | addresses(6), min_size=1))
def test_it_takes_what_the_networks_hold(allowed: list[IPNetwork], sources: list[IPAddress]) -> None:
    program = takes_from(allowed)
    for source in sources:
        inside = any(source in network for network in allowed if network.version == source.version)
        assert takes(program, header(source)) is inside


def test_the_last_of_many_networks_is_reached() -> None:
    many = list(ipaddress.IPv4Network("10.0.0.0/8").subnets(9))[::2]
    program = takes_from([*many, ipaddress.ip_network("2001:db8::/64")])
    assert takes(program, header(many[-1][1]))
    assert not takes(program, header(many[-1][-1] + 1))
    assert takes(program, header(ipaddress.ip_address("2001:db8::1")))
    assert not takes(program, header(ipaddress.ip_address("2001:db8:1::1")))


def test_what_does_not_fit_is_refused() -> None:
    every = [ipaddress.ip_network((number << 65, 128)) for number in range(1, 800)]
    with pytest.raises(ScistreamError) as caught:
        takes_from(every)
    assert caught.value.code is Code.RESOURCE_EXHAUSTED


def test_as_the_kernel_reads_it() -> None:
    assert packed(TAKES_NOTHING) == struct.pack("=HBBI", 6, 0, 0, 0)
    assert not takes(TAKES_NOTHING, header(ipaddress.ip_address("10.0.0.1")))
