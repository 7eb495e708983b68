"""What the front door on D-Bus needs of the daemon."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from scistreamd.config import Settings
from scistreamd.gate import Grant, Verb
from scistreamd.hop import Finding
from scistreamd.interfaces import Counters
from scistreamd.model import Caller, Change, Options, Role, Security, Target, TunnelView, Uid
from scistreamd.portcheck import Look


class Tunnels(Protocol):
    """What the manager does for this front door; see `scistreamd.manager.Manager`."""

    @property
    def free_ports(self) -> int:
        """How many ports of the range no tunnel has."""

    async def create(
        self, grant: Grant, role: Role, targets: tuple[Target, ...], options: Options, uid: Uid | None = None
    ) -> tuple[Uid, TunnelView]:
        """Make a tunnel that is active on return."""

    def tunnels(self) -> tuple[TunnelView, ...]:
        """All tunnels, the oldest first."""

    def find(self, text: str) -> str:
        """The id that an id or a UID names; INVALID_ARGUMENT or NOT_FOUND."""

    def view(self, tunnel_id: str) -> TunnelView:
        """How it looks now, or NOT_FOUND."""

    async def retarget(self, grant: Grant, tunnel_id: str, targets: tuple[Target, ...]) -> TunnelView:
        """Forward to other targets."""

    async def extend(self, grant: Grant, tunnel_id: str, seconds: int) -> TunnelView:
        """Set the lifetime from now on; 0: no end."""

    async def judge_ports(self, ports: Sequence[int]) -> list[tuple[str, str]]:
        """What the firewall does to connections to these ports."""

    async def look_at_ports(self) -> Look:
        """Who has which ports of this host."""

    async def hold_to(self, grant: Grant, tunnel_id: str, rate: int) -> TunnelView:
        """Hold the tunnel to another rate in kB/s, 0: to none."""

    async def test(self, grant: Grant, tunnel_id: str, throughput: float) -> tuple[Finding, ...]:
        """Test the hop to each target."""

    async def test_path(
        self, grant: Grant, uid: Uid, target: Target, security: Security | None, throughput: float
    ) -> Finding:
        """Test the hop to a listener that there is no tunnel to."""

    async def end(self, grant: Grant, tunnel_id: str, drain: float) -> None:
        """Release."""

    def reveal(self, grant: Grant, tunnel_id: str) -> Uid:
        """The UID, for the owner."""

    def watch(self, see: Callable[[Change], None]) -> Callable[[], None]:
        """Tell of every change; returns the way to stop."""


class Authorizes(Protocol):
    """What this front door asks of `scistreamd.gate.Gate`."""

    async def authorize(self, caller: Caller, verb: Verb, owner: str | None = None) -> Grant:
        """Allow the verb, or raise PERMISSION_DENIED."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the operator should see to."""


@dataclass(frozen=True)
class Host:
    """What the daemon lends this front door.

    ``settings``: those in force now. ``busy``: why nothing could listen on a
    port now, or an empty string. ``counters``: what tunnels have carried. ``reload``: reads the configuration again,
    and raises ScistreamError where it is wrong.
    """

    settings: Callable[[], Settings]
    busy: Callable[[int], str]
    counters: Counters
    reload: Callable[[], None]
