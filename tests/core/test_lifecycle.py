from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from scistreamd.errors import Code, ScistreamError
from scistreamd.lifecycle import Event, advance
from scistreamd.model import State

_ORDER = [State.PENDING, State.READY, State.ACTIVE, State.FAILED, State.RELEASING]


@given(st.lists(st.sampled_from(Event), max_size=30))
def test_no_sequence_of_events_goes_backwards_or_breaks(events: list[Event]) -> None:
    state = State.PENDING
    said_hello = False
    for event in events:
        before = state
        try:
            state = advance(state, event)
        except ScistreamError as problem:
            assert problem.code is Code.FAILED_PRECONDITION
            assert before.value in problem.message
            state = before
            continue
        said_hello |= event is Event.HELLO
        assert _ORDER.index(state) >= _ORDER.index(before)
        assert state is not State.ACTIVE or said_hello
    assert state is not State.RELEASING or Event.RELEASE in events


def test_release_is_possible_from_everywhere_but_twice() -> None:
    for state in State:
        if state is not State.RELEASING:
            assert advance(state, Event.RELEASE) is State.RELEASING
