"""One rule applied to packets: its expressions in turn, each of which may split them (nft(8), nf_tables.h)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from scistreamd.nft.conditions import among as among_spans
from scistreamd.nft.conditions import compares, equals, found
from scistreamd.nft.facts import Tracking, load
from scistreamd.nft.packet import UNKNOWN, Arrival, Box, Byte, Bytes, Known, State, known
from scistreamd.nft.program import (
    Among,
    Bitwise,
    Byteorder,
    Compare,
    Decide,
    Elsewhither,
    Expression,
    Immediate,
    Limited,
    Load,
    Lookup,
    Maybe,
    Nat,
    Notrack,
    Op,
    Passed,
    Reject,
    Remember,
    SetCt,
    SetMeta,
    Test,
    Verdict,
)
from scistreamd.nft.ruleset import Element, Table

_MARK, _CT_MARK = 3, 3


class TooMuch(Exception):
    """The ruleset splits the peers into more parts than can be followed."""


@dataclass
class Budget:
    """How many steps may still be taken."""

    steps: int

    def take(self) -> None:
        """Take one; TooMuch where none is left."""
        self.steps -= 1
        if self.steps < 0:
            raise TooMuch


@dataclass(frozen=True)
class Place:
    """Where a rule stands: its table, who arrives, and whether tracking came before."""

    table: Table
    arrival: Arrival
    tracking: Tracking


@dataclass(frozen=True)
class Rewrite:
    """The packets' destination, or source, is rewritten so; the bytes are those of registers, None: as it was."""

    nat: Nat
    address: Bytes | None
    port: Bytes | None


Effect = Verdict | Reject | Rewrite | Elsewhither
Registers = Mapping[int, Byte]


@dataclass(frozen=True)
class Thread:
    """Packets in the middle of a rule, with what its registers hold; ``effect``: what the rule does to them."""

    state: State
    registers: Registers = field(default_factory=dict)
    effect: Effect | None = None

    def read(self, word: int, size: int) -> Bytes:
        """Bytes from that word on; those that nothing wrote are not known."""
        return tuple(self.registers.get(4 * word + at, UNKNOWN) for at in range(size))

    def write(self, word: int, data: Bytes) -> Thread:
        """Bytes from that word on, filled up with zeros to whole words as the kernel does."""
        padded = data + known(bytes(-len(data) % 4))
        return replace(self, registers={**self.registers, **{4 * word + at: each for at, each in enumerate(padded)}})

    def having(self, state: State) -> Thread:
        """The same with other packets."""
        return replace(self, state=state)


# What a step gives: who goes on in the rule, and who leaves it.
Step = tuple[list[Thread], list[State]]


def apply(expressions: Sequence[Expression], states: Iterable[State], place: Place, budget: Budget) -> Step:
    """Run packets through a rule; an effect ends it for those that it has."""
    done: list[Thread] = []
    left: list[State] = []
    threads = [Thread(state) for state in states]
    for each in expressions:
        going: list[Thread] = []
        for thread in threads:
            budget.take()
            went, stopped = _step(each, thread, place, budget)
            done += [one for one in went if one.effect is not None]
            going += [one for one in went if one.effect is None]
            left += stopped
        threads = going
        if not threads:
            break
    return done, left + [thread.state for thread in threads]


def _step(each: Expression, thread: Thread, place: Place, budget: Budget) -> Step:  # noqa: PLR0911  # a table of kinds
    match each:
        case Load() | Immediate() | Bitwise() | Byteorder():
            return _compute(each, thread, place)
        case Compare() | Among():
            return _compare(each, thread)
        case Lookup():
            return _lookup(each, thread, place)
        case Test():
            return _test(each, thread, place, budget)
        case Limited(over=over):
            return ([], [thread.state]) if over else ([thread], [])
        case Maybe(text=text):
            doubted = thread.state.doubting(text)
            return [thread.having(doubted)], [doubted]
        case Remember():
            return _remember(each, thread, place, budget)
        case Notrack():
            return _untrack(thread, place.tracking)
        case Passed():
            return [thread], []
        case Nat() if not each.is_of(place.arrival.version):
            return [thread], []  # of the other IP version: nothing happens (nft_nat_inet_eval)
    return [_affect(each, thread)], []


def _affect(each: Expression, thread: Thread) -> Thread:
    state = thread.state
    match each:
        case Decide(verdict=verdict):
            return replace(thread, effect=verdict)
        case Reject() | Elsewhither():
            return replace(thread, effect=each)
        case Nat():
            address = None if each.address is None else thread.read(each.address, len(state.target.address.packed))
            port = None if each.port is None else thread.read(each.port, 2)
            return replace(thread, effect=Rewrite(each, address, port))
        case SetMeta(key=key, word=word) if key == _MARK:
            return thread.having(replace(state, mark=_plain(thread.read(word, 4))))
        case SetCt(key=key, word=word) if key == _CT_MARK:
            return thread.having(replace(state, connection_mark=_plain(thread.read(word, 4))))
    return thread


def _untrack(thread: Thread, tracking: Tracking) -> Step:
    """What is tracked already stays so."""
    free = thread.having(replace(thread.state, tracked=False))
    if tracking is Tracking.PERHAPS:
        doubt = "notrack where tracking may have come before"
        return [one.having(one.state.doubting(doubt)) for one in (free, thread)], []
    return [free if tracking is Tracking.BEFORE else thread], []


def _plain(data: Bytes) -> Bytes:
    """A mark that is made of the peer's address is not followed."""
    return tuple(each if isinstance(each, Known) else UNKNOWN for each in data)


def _compute(each: Load | Immediate | Bitwise | Byteorder, thread: Thread, place: Place) -> Step:
    if isinstance(each, Load):
        loaded = load(each.source, thread.state, place.arrival, place.tracking)
        going = [thread.having(state).write(each.word, data) for state, data in loaded if data is not None]
        return going, [state for state, data in loaded if data is None]
    if isinstance(each, Immediate):
        return [thread.write(each.word, known(each.data))], []
    if isinstance(each, Bitwise):
        parts = zip(thread.read(each.source, len(each.mask)), each.mask, each.xor, strict=True)
        return [thread.write(each.target, tuple(_masked(*part) for part in parts))], []
    read = thread.read(each.source, each.length)
    steps = range(0, each.length, each.size)
    swapped = [byte for at in steps for byte in reversed(read[at : at + each.size])]
    return [thread.write(each.target, tuple(swapped))], []


def _masked(byte: Byte, mask: int, xor: int) -> Byte:
    """``(byte & mask) ^ xor``: what is masked out is known."""
    if isinstance(byte, Known):
        return Known((byte.value & byte.mask & mask) ^ xor, byte.mask | (~mask & 255))
    if byte.mask & mask == 0:
        return Known((byte.xor & mask) ^ xor)
    return replace(byte, mask=byte.mask & mask, xor=(byte.xor & mask) ^ xor)


def _compare(each: Compare | Among, thread: Thread) -> Step:
    if isinstance(each, Among):
        box, inverted = among_spans(thread.read(each.word, each.size), each.spans), each.inverted
        said = "a range of what the packet may hold"
    else:
        data = thread.read(each.word, len(each.data))
        inverted = each.op is Op.NE
        held = compares(data, each)
        box = equals(data, each.data) if held is None else held
        said = "a comparison with what the packet may hold"
    yes, no = _divide(thread.state, [box], said)
    if inverted:
        yes, no = no, yes
    return [thread.having(state) for state in yes], no


def _divide(state: State, boxes: Iterable[Box], doubt: str) -> tuple[list[State], list[State]]:
    """The packets in the boxes, and the rest; those where a box is not sure are in both."""
    yes: list[State] = []
    no: list[State] = []
    rest = [state]
    for box in boxes:
        inside = [part for part in (each.within(box) for each in rest) if part]
        if box.sure:
            yes += inside
        else:
            doubted = [part.doubting(doubt) for part in inside]
            yes += doubted
            no += doubted
        rest = [part for each in rest for part in each.without(box)]
    return yes, no + rest


def _lookup(each: Lookup, thread: Thread, place: Place) -> Step:
    where = place.table.sets.get(each.set)
    if where is None or any(name == each.set for name, _ in thread.state.touched):
        doubted = thread.state.doubting(f"@{each.set}, to which rules add")
        return [thread.having(doubted)], [doubted]
    data = thread.read(each.word, where.key_size)
    if each.inverted:
        yes, no = _divide(thread.state, found(data, where, where.elements), f"@{each.set}")
        return [thread.having(state) for state in no], yes
    going: list[Thread] = []
    left: list[State] = []
    rest = [thread.state]
    for elements in where.groups.values():
        boxes = list(found(data, where, elements))
        hits, misses = _all(_divide(state, boxes, f"@{each.set}") for state in rest)
        went, stopped = _element(each, thread, hits, elements[0])
        going, left = going + went, left + stopped
        rest = misses
    if where.catchall is not None:
        went, stopped = _element(each, thread, rest, where.catchall)
        return going + went, left + stopped
    return going, left + rest


def _all(pairs: Iterable[tuple[list[State], list[State]]]) -> tuple[list[State], list[State]]:
    yes: list[State] = []
    no: list[State] = []
    for some, others in pairs:
        yes += some
        no += others
    return yes, no


def _element(each: Lookup, thread: Thread, states: Sequence[State], element: Element) -> Step:
    """Packets whose element was found: its own statements, then what the map gives for it."""
    going, left = [thread.having(state) for state in states], []
    if any(isinstance(limit, Limited) and limit.over for limit in element.limits):
        return [], list(states)
    if any(isinstance(limit, Maybe) for limit in element.limits):
        going = [one.having(one.state.doubting(f"@{each.set}")) for one in going]
        left = [one.state for one in going]
    if each.target is None or element.value is None:
        return going, left
    if isinstance(element.value, Verdict):
        return [replace(one, effect=element.value) for one in going], left
    return [one.write(each.target, known(element.value)) for one in going], left


def _test(each: Test, thread: Thread, place: Place, budget: Budget) -> Step:
    """All of its parts, in registers of their own; ``inverted``: go on where one of them stops."""
    threads, stopped = [replace(thread, registers={})], []
    for part in each.all:
        steps = [_step(part, one, place, budget) for one in threads]
        threads = [one for going, _ in steps for one in going]
        stopped += [state for _, left in steps for state in left]
    held = [one.state for one in threads]
    go, leave = (stopped, held) if each.inverted else (held, stopped)
    return [thread.having(state) for state in go], leave


def _remember(each: Remember, thread: Thread, place: Place, budget: Budget) -> Step:
    """A set is written to; statements of the element, such as a limit per source, may end the rule.

    A new element gets those of the rule; one that was there keeps its own, or none (nft_dynset_eval).
    """
    going: list[Thread] = []
    left: list[State] = []
    for states, parts in _remembered(each, thread, place):
        threads = [thread.having(state) for state in states]
        for part in parts:
            steps = [_step(part, one, place, budget) for one in threads]
            threads = [one for went, _ in steps for one in went]
            left += [state for _, stopped in steps for state in stopped]
        going += threads
    if each.inverted:
        going, left = [thread.having(state) for state in left], [one.state for one in going]
    touched = thread.state.touched | {(each.set, each.parts)}
    return (
        [one.having(replace(one.state, touched=touched)) for one in going],
        [replace(state, touched=touched) for state in left],
    )


def _remembered(each: Remember, thread: Thread, place: Place) -> list[tuple[list[State], tuple[Expression, ...]]]:
    """Packets with the statements that their element has: those that are in the set, and those that are new."""
    where = place.table.sets[each.set]
    written: set[tuple[Expression, ...]] = {each.parts}
    written |= {parts for name, parts in thread.state.touched if name == each.set}
    if len(written) > 1:
        doubted = thread.state.doubting(f"@{each.set}, to which rules add")
        return [([doubted], parts) for parts in written]
    made: list[tuple[list[State], tuple[Expression, ...]]] = []
    rest = [thread.state]
    for elements in where.groups.values():
        data, limits = thread.read(each.word, where.key_size), elements[0].limits
        boxes = list(found(data, where, elements))
        hits, rest = _all(_divide(state, boxes, f"@{each.set}") for state in rest)
        made.append((hits, limits))
    return [*made, (rest, each.parts)]
