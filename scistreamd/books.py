"""What the manager writes down, and how it reads it back at the next start."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from scistreamd import dataserver
from scistreamd.interfaces import Store
from scistreamd.model import State
from scistreamd.planning import Planner
from scistreamd.plans import Plan
from scistreamd.records import Record
from scistreamd.tunnel import Tunnel


@dataclass(frozen=True)
class Books:
    """Keeps records of tunnels that outlive the daemon; of others, none. ``store`` None: no tunnel does."""

    planner: Planner
    store: Store | None

    def save(self, tunnel: Tunnel) -> None:
        """Write down how the tunnel stands; FAILED_PRECONDITION where the disk does not take it."""
        if self.store is not None and self.planner.launcher_of(tunnel.type).outlives:
            self.store.save(_record(tunnel))

    def delete(self, tunnel: Tunnel) -> None:
        """The tunnel has ended."""
        if self.store is not None and self.planner.launcher_of(tunnel.type).outlives:
            self.store.delete(tunnel.id)

    def load(self) -> list[Record]:
        """All that the daemon before wrote down."""
        return self.store.load() if self.store is not None else []

    def count(self) -> int:
        """How many tunnels are written down."""
        return self.store.count() if self.store is not None else 0

    def tunnel(self, record: Record) -> Tunnel:
        """The tunnel that the record tells of, holding nothing yet, in the state that it had."""
        return Tunnel(
            uid=record.uid,
            role=record.role,
            count=len(record.binds),
            options=record.options,
            type=dataserver.parse_type(record.type),
            security=record.security,
            owner=record.owner,
            shown_host=record.shown_host,
            greeted=asyncio.get_running_loop().create_future(),
            state=record.state,
            binds=record.binds,
            targets=record.targets,
            addresses=record.addresses,
            generation=record.generation,
            created=record.created,
            expires=record.expires,
            rate=record.rate,
        )

    def plan(self, tunnel: Tunnel, generation: int) -> Plan:
        """What the tunnel's data server is to do, by the addresses that its targets resolved to."""
        return Plan(
            tunnel.id,
            tunnel.role,
            tunnel.security,
            tunnel.binds,
            tunnel.addresses,
            generation,
            self.planner.tuning(tunnel.options, tunnel.rate),
        )


def remaining(tunnel: Tunnel) -> float:
    """Seconds of its lifetime that are left, 0 where it has no end; negative: it is over."""
    return tunnel.expires - time.time() if tunnel.expires else 0


def is_worth_keeping(record: Record) -> bool:
    """Whether the tunnel may go on: it had its hello, and its lifetime is not over."""
    return record.state in (State.READY, State.ACTIVE) and not (record.expires and record.expires <= time.time())


def _record(tunnel: Tunnel) -> Record:
    return Record(
        uid=tunnel.uid,
        role=tunnel.role,
        state=tunnel.state,
        type=tunnel.type.name,
        security=tunnel.security,
        binds=tunnel.binds,
        shown_host=tunnel.shown_host,
        owner=tunnel.owner,
        options=tunnel.options,
        targets=tunnel.targets,
        addresses=tunnel.addresses,
        generation=tunnel.generation,
        created=tunnel.created,
        expires=tunnel.expires,
        rate=tunnel.rate,
    )
