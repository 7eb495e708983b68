"""The states of a tunnel and the one table that says which event leads where.

pending   waits for hello          ready   waits for update
active    carries streams          failed  keeps its Result for a while
releasing is on its way out        (no state: gone)
"""

from __future__ import annotations

import enum

from scistreamd.errors import Code, ScistreamError
from scistreamd.model import State


class Event(enum.Enum):
    """What happens to a tunnel."""

    HELLO = "hello"
    UPDATE = "update"
    FAIL = "fail"
    RELEASE = "release"


_NEXT: dict[State, dict[Event, State]] = {
    State.PENDING: {Event.HELLO: State.READY, Event.FAIL: State.FAILED, Event.RELEASE: State.RELEASING},
    State.READY: {Event.UPDATE: State.ACTIVE, Event.FAIL: State.FAILED, Event.RELEASE: State.RELEASING},
    State.ACTIVE: {Event.UPDATE: State.ACTIVE, Event.FAIL: State.FAILED, Event.RELEASE: State.RELEASING},
    State.FAILED: {Event.RELEASE: State.RELEASING},
    State.RELEASING: {},
}

_HINTS = {
    (State.PENDING, Event.UPDATE): "send hello first",
    (State.READY, Event.HELLO): "hello was received already; send update",
    (State.ACTIVE, Event.HELLO): "hello was received already; update retargets",
    (State.FAILED, Event.UPDATE): "release it and make a new request",
}


def advance(state: State, event: Event) -> State:
    """The state after the event; raises FAILED_PRECONDITION where the event has no place."""
    following = _NEXT[state].get(event)
    if following is None:
        raise ScistreamError(
            Code.FAILED_PRECONDITION, f"{event.value}: the tunnel is {state.value}", _HINTS.get((state, event), "")
        )
    return following
