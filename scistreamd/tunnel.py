"""A tunnel as the manager keeps it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass, field

from scistreamd import lifecycle
from scistreamd.dataserver import DataServerType
from scistreamd.errors import Code, ScistreamError
from scistreamd.interfaces import Held
from scistreamd.model import Answer, Caller, Endpoint, IPAddress, Options, PortRange, Role, Security, State, Target, Uid
from scistreamd.plans import Bind


@dataclass(eq=False, kw_only=True)
class Tunnel:
    """One side of a stream: what was asked for, where it stands, what it holds.

    ``shown_host`` stands in answers where a listener is bound to a wildcard.
    ``created`` and ``expires`` are seconds since the epoch, 0: no end;
    ``reserved``: its ports are taken out of the pool; ``ports_within``: the part
    of it that policy leaves it, None: all; ``announced``: watchers know of it.
    ``rate`` is in kB/s, 0: no limit. ``traffic_warnings`` are those
    of each `interfaces.Traffic`, by its number, ``hop_warnings`` those of the
    last test of the hop. ``greeted`` ends the wait of `req`: with the answer,
    or with why there is none.
    """

    uid: Uid
    role: Role
    count: int
    options: Options
    type: DataServerType
    security: Security
    owner: Caller
    shown_host: IPAddress
    greeted: asyncio.Future[Answer]
    state: State = State.PENDING
    held: Held | None = None
    reserved: bool = False
    ports_within: PortRange | None = None
    binds: tuple[Bind, ...] = ()
    targets: tuple[Target, ...] = ()
    addresses: tuple[tuple[Endpoint, ...], ...] = ()
    generation: int = 0
    drain: float = 0
    created: float = field(default_factory=time.time)
    expires: float = 0
    announced: bool = False
    result: str = ""
    rate: int = 0
    own_warnings: tuple[str, ...] = ()
    traffic_warnings: dict[int, tuple[str, ...]] = field(default_factory=dict)
    hop_warnings: tuple[str, ...] = ()
    busy: asyncio.Lock = field(default_factory=asyncio.Lock)
    timer: asyncio.TimerHandle | None = None
    undo: contextlib.AsyncExitStack = field(default_factory=contextlib.AsyncExitStack)

    @property
    def id(self) -> str:
        """Its public name."""
        return self.uid.id

    @property
    def ports(self) -> list[int]:
        """The ports of its listeners, in order."""
        return [bind.endpoint.port for bind in self.binds]

    @property
    def warnings(self) -> tuple[str, ...]:
        """What its user is to beware of."""
        every = (
            self.own_warnings,
            *(of_part for _, of_part in sorted(self.traffic_warnings.items())),
            self.hop_warnings,
        )
        return tuple(warning for of_part in every for warning in of_part)

    @property
    def holding(self) -> Held:
        """Its held listeners; FAILED_PRECONDITION where they are given up already."""
        if self.held is None:
            raise ScistreamError(Code.FAILED_PRECONDITION, f"the tunnel is {self.state.value}")
        return self.held

    def advance(self, event: lifecycle.Event) -> None:
        """Take the step, or raise FAILED_PRECONDITION and stay."""
        self.state = lifecycle.advance(self.state, event)

    def check(self, event: lifecycle.Event) -> None:
        """Raise FAILED_PRECONDITION where the step could not be taken now."""
        lifecycle.advance(self.state, event)

    def set_timer(self, timer: asyncio.TimerHandle | None) -> None:
        """Replace the time limit that runs on the tunnel."""
        if self.timer:
            self.timer.cancel()
        self.timer = timer

    def answer(self, targets: tuple[Target, ...] = ()) -> Answer:
        """Its real listeners as a peer can dial them, with the targets given."""
        listeners = tuple(
            Endpoint(self.shown_host, bind.endpoint.port) if bind.endpoint.is_wildcard else bind.endpoint
            for bind in self.binds
        )
        return Answer(listeners, targets, self.warnings)
