"""Rates as queueing disciplines and rules, as plain data: who is in which class, and how a class is set.

Each rated tunnel has two classes of the HTB (tc-htb(8)) at the root of every
interface that its traffic leaves by: ``back`` to those who connect to it,
``forth`` to its targets. Rules of our table put packets into them: those from
its listeners, and those of its data server's user. What a closed socket still
has to send has no user any more, so each connection's class is remembered.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from scistreamd.interfaces import Flow
from scistreamd.netattributes import attribute
from scistreamd.nftrules import (
    MANGLE,
    OUTPUT,
    Chain,
    Hook,
    Map,
    Rule,
    Section,
    accept,
    back_from,
    connection_bytes,
    drop,
    go_to,
    jump,
    leaves_by,
    note_interface,
    of_user,
    remember,
    set_priority,
    set_remembered_priority,
)

# The handle of our root; nobody else's is likely to be this one.
ROOT = 0x5C150000
MINORS = range(2, 0xFFFE, 2)
NAME = "rates"
# Interfaces that traffic of a rated tunnel wanted to leave by and may not yet.
MISSED = f"{NAME}-missed"

_OUT = f"{NAME}-out"
_CONNECTIONS = {4: f"{NAME}-ipv4", 6: f"{NAME}-ipv6"}
_REMEMBERED_SECONDS = 600
_CHAIN = re.compile(rf"{NAME}-([0-9a-f]{{12}})-([0-9a-f]{{4}})", re.ASCII)

_KIND, _OPTIONS, _STAB, _STAB_BASE = 1, 2, 8, 1
_HTB_PARMS, _HTB_INIT, _HTB_RATE64, _HTB_CEIL64 = 1, 2, 6, 7
_ETHERNET = 1
# Ethernet, IPv4, TCP with time stamps: what a packet has beside the stream's bytes. For others less than 3 % off.
_HEADERS = 66
_LINK_HEADER = 14
_TBF_PARMS, _TBF_RATE64, _TBF_BURST = 1, 4, 6
# A rate at which no packet takes a nanosecond, so that no bucket holds back one that is larger than a later limit.
_NO_RATE, _NO_LIMIT = 1 << 60, 0x7FFFFFFF
_SLOW_BYTES_PER_SECOND = 700_000
_LARGE_MTU = 10_000
# What a class may send at once after a pause: more is an error of the average, less is lost to a busy CPU.
_BURST_NS, _SLOW_BURST_NS = 100_000_000, 50_000_000
_TICK_NS_SHIFT = 6
# The largest packet of a slow class, too small a part of ten seconds to matter. Larger ones are cut to those of the
# wire, which count with their headers; that is made good in the rate, as measured, for not all are cut.
_WHOLE_SECONDS, _LARGEST_PACKET, _CUT_SHARE = 0.16, 65_536, 0.026
_QUANTUM = 60_000


@dataclass(frozen=True)
class Shape:
    """A rated tunnel: its flow and the number of its class ``back``; ``forth`` is the next."""

    flow: Flow
    minor: int

    @property
    def back(self) -> int:
        """Class id of what goes to those who connect."""
        return ROOT | self.minor

    @property
    def forth(self) -> int:
        """Class id of what goes to the targets."""
        return ROOT | self.minor + 1

    @property
    def chain(self) -> str:
        """The chain that tells, also the next daemon, which classes are this tunnel's."""
        return f"{NAME}-{self.flow.tunnel_id}-{self.minor:04x}"


def minors(chains: Iterable[str]) -> list[tuple[str, int]]:
    """From the names of chains to the ids of tunnels with their class numbers."""
    found = (_CHAIN.fullmatch(name) for name in chains)
    return [(match[1], int(match[2], 16)) for match in found if match]


def section(shapes: Iterable[Shape], interfaces: Mapping[int, str]) -> Section:
    """The rules, for the shaped ``interfaces`` (index to name)."""
    known = sorted(shapes, key=lambda each: each.minor)
    if not known:
        return Section(NAME)
    rules = [rule for each in known for rule in _back(each)]
    rules += [rule for each in known for rule in _forth(each)]
    rules += [Rule((*set_remembered_priority(version, name), *go_to(_OUT))) for version, name in _CONNECTIONS.items()]
    chains = [Chain(NAME, tuple(rules), Hook(OUTPUT, MANGLE)), _out(interfaces)]
    chains += [Chain(each.chain, _remembers(each)) for each in known]
    maps = [Map(name, connection_bytes(version), _REMEMBERED_SECONDS) for version, name in _CONNECTIONS.items()]
    return Section(NAME, tuple(chains), (*maps, Map(MISSED, 4, 10)))


def _back(shape: Shape) -> list[Rule]:
    ways = [each for bind in shape.flow.binds for each in back_from(bind)]
    return [Rule((*each, *set_priority(shape.back), *go_to(_OUT)), f"tunnel {shape.flow.tunnel_id}") for each in ways]


def _forth(shape: Shape) -> list[Rule]:
    user = shape.flow.user
    if user is None:
        return []
    mark = Rule((*of_user(user), *set_priority(shape.forth), *jump(shape.chain)), f"tunnel {shape.flow.tunnel_id}")
    return [mark, Rule((*of_user(user), *go_to(_OUT)))]


def _remembers(shape: Shape) -> tuple[Rule, ...]:
    return tuple(Rule(remember(version, name, shape.forth)) for version, name in _CONNECTIONS.items())


def _out(interfaces: Mapping[int, str]) -> Chain:
    """Only by interfaces that are shaped; the first packet to another one is sent again when that is, too."""
    shaped = tuple(Rule((*leaves_by(index), *accept()), name) for index, name in sorted(interfaces.items()))
    return Chain(_OUT, (*shaped, Rule(note_interface(MISSED)), Rule(drop())))


def root() -> bytes:
    """Attributes of the root: HTB that lets other traffic pass, and counts the bytes of streams without headers."""
    start = struct.pack("=5I", 3, 10, 0, 0, 0)  # struct tc_htb_glob: version, rate2quantum, defcls
    sizes = struct.pack("=BBhiIIII", 0, 0, 0, -_HEADERS, _ETHERNET, 0, 0, 0)  # struct tc_sizespec
    return (
        attribute(_KIND, b"htb\0")
        + attribute(_OPTIONS, attribute(_HTB_INIT, start))
        + attribute(_STAB, attribute(_STAB_BASE, sizes))
    )


def _spec(bytes_per_second: int) -> bytes:
    return struct.pack("=BBHhHI", 0, _ETHERNET, 0, 0, 0, min(bytes_per_second, 0xFFFFFFFF))  # struct tc_ratespec


def is_slow(bytes_per_second: int, mtu: int) -> bool:
    """Whether the packets of up to 64 KiB that TCP hands down are too large a part of ten seconds of this rate."""
    return bytes_per_second < _SLOW_BYTES_PER_SECOND and mtu <= _LARGE_MTU


def htb_class(bytes_per_second: int, mtu: int) -> bytes:
    """Attributes of a class on an interface whose packets have at most ``mtu`` bytes."""
    slow = is_slow(bytes_per_second, mtu)
    if slow:
        bytes_per_second += round(bytes_per_second * _CUT_SHARE * (1 - _whole(bytes_per_second) / _LARGEST_PACKET))
    burst = (_SLOW_BURST_NS if slow else _BURST_NS) >> _TICK_NS_SHIFT
    spec = _spec(bytes_per_second)
    options = attribute(_HTB_PARMS, spec + spec + struct.pack("=5I", burst, burst, _QUANTUM, 0, 0))
    if bytes_per_second > 0xFFFFFFFF:
        rate = struct.pack("=Q", bytes_per_second)
        options += attribute(_HTB_RATE64, rate) + attribute(_HTB_CEIL64, rate)
    return attribute(_KIND, b"htb\0") + attribute(_OPTIONS, options)


def _whole(bytes_per_second: int) -> int:
    """The largest packet that is sent in one piece, in bytes."""
    return min(_LARGEST_PACKET, round(bytes_per_second * _WHOLE_SECONDS))


def queue(bytes_per_second: int, mtu: int) -> bytes:
    """Attributes of the queue of a class: it cuts large packets of a slow one (tc-tbf(8)), delays and drops nothing.

    Of one kind for every rate: the kernel changes such a queue as it is, and one of another kind would begin empty.
    """
    largest = max(mtu + _LINK_HEADER + 4, _whole(bytes_per_second)) if is_slow(bytes_per_second, mtu) else _NO_LIMIT
    # struct tc_tbf_qopt: rate, peak rate, limit in bytes (all that TCP lets sockets have under way), buffer, mtu
    parms = _spec(_NO_RATE) + _spec(0) + struct.pack("=III", _NO_LIMIT, 0, 0)
    rate, burst = struct.pack("=Q", _NO_RATE), struct.pack("=I", largest)
    options = attribute(_TBF_PARMS, parms) + attribute(_TBF_RATE64, rate) + attribute(_TBF_BURST, burst)
    return attribute(_KIND, b"tbf\0") + attribute(_OPTIONS, options)
