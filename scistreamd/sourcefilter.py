"""A socket filter that takes packets of some networks only: classic BPF as plain data (Linux's networking/filter.rst).

The kernel runs it on the listening socket before a connection exists, for any
user and whichever program accepts later. Others get no answer.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Iterator, Sequence

from scistreamd.errors import Code, ScistreamError
from scistreamd.model import IPNetwork

# Packets are seen from their transport header on; from here on, the network header (linux/filter.h, SKF_NET_OFF).
_NETWORK_HEADER = -0x100000 & 0xFFFFFFFF
_LOAD_WORD, _LOAD_BYTE, _AND, _SHIFT_RIGHT, _JUMP, _JUMP_EQUAL, _RETURN = 0x20, 0x30, 0x54, 0x74, 0x05, 0x15, 0x06
_SOURCE = {4: 12, 6: 8}
_TAKE, _DROP = 0xFFFFFFFF, 0
_MOST = 4096  # BPF_MAXINSNS

# code, jump if true, jump if false, k
Instruction = tuple[int, int, int, int]

TAKES_NOTHING: tuple[Instruction, ...] = ((_RETURN, 0, 0, _DROP),)


def takes_from(networks: Sequence[IPNetwork]) -> tuple[Instruction, ...]:
    """The program that takes what comes from the networks; RESOURCE_EXHAUSTED where they are too many for one."""
    v4 = ipaddress.collapse_addresses(each for each in networks if isinstance(each, ipaddress.IPv4Network))
    v6 = ipaddress.collapse_addresses(each for each in networks if isinstance(each, ipaddress.IPv6Network))
    of_v4 = [step for each in v4 for step in _matches(each)]
    of_v6 = [step for each in v6 for step in _matches(each)]
    program = (
        (_LOAD_BYTE, 0, 0, _NETWORK_HEADER),
        (_SHIFT_RIGHT, 0, 0, 4),
        # The jumps of a comparison reach 255 instructions only.
        (_JUMP_EQUAL, 1, 0, 4),
        (_JUMP, 0, 0, len(of_v4) + 1),
        *of_v4,
        (_RETURN, 0, 0, _DROP),
        *of_v6,
        (_RETURN, 0, 0, _DROP),
    )
    if len(program) > _MOST:
        raise ScistreamError(
            Code.RESOURCE_EXHAUSTED, f"allow-from: {len(networks)} networks are too many", "name larger networks"
        )
    return program


def _matches(network: IPNetwork) -> Iterator[Instruction]:
    """Take the packet if it is from the network, else go on behind this."""
    words = range(0, -(-network.prefixlen // 32) * 4, 4)
    address, mask = network.network_address.packed, network.netmask.packed
    steps: list[Instruction] = []
    for at in words:
        (value,), (bits,) = struct.unpack_from(">I", address, at), struct.unpack_from(">I", mask, at)
        steps.append((_LOAD_WORD, 0, 0, _NETWORK_HEADER + _SOURCE[network.version] + at))
        if bits != 0xFFFFFFFF:
            steps.append((_AND, 0, 0, bits))
        steps.append((_JUMP_EQUAL, 0, -1, value))
    steps.append((_RETURN, 0, 0, _TAKE))
    for index, (code, yes, no, value) in enumerate(steps):
        yield code, yes, len(steps) - index - 1 if no else 0, value


def packed(program: Sequence[Instruction]) -> bytes:
    """As the kernel reads it: struct sock_filter."""
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
