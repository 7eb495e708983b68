"""All tunnels of one gateway: found by id or UID, shown without their secrets, watched for changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from scistreamd.errors import Code, ScistreamError, invalid
from scistreamd.legs import Way
from scistreamd.model import Caller, Change, ChangeKind, State, TunnelView, Uid
from scistreamd.tunnel import Tunnel

_ID_LENGTH = 12


def no_tunnel(hint: str = "it was never made here, or has ended") -> ScistreamError:
    """The one answer for every tunnel that is not to be found."""
    return ScistreamError(Code.NOT_FOUND, "uid: no such tunnel on this gateway", hint)


class Registry:
    """The tunnels by id, and who wants to know what happens to them."""

    def __init__(self) -> None:
        self._tunnels: dict[str, Tunnel] = {}
        self._watchers: list[Callable[[Change], None]] = []

    def __len__(self) -> int:
        return len(self._tunnels)

    def __iter__(self) -> Iterator[Tunnel]:
        return iter(list(self._tunnels.values()))

    def add(self, tunnel: Tunnel) -> None:
        """Keep a new tunnel; raises ALREADY_EXISTS where its UID is in use."""
        former = self._tunnels.get(tunnel.id)
        if former is not None:
            raise ScistreamError(
                Code.ALREADY_EXISTS,
                f"uid: tunnel {tunnel.id} exists and is {former.state.value}",
                "use a new UID, or release that tunnel first",
            )
        self._tunnels[tunnel.id] = tunnel

    def remove(self, tunnel: Tunnel) -> None:
        """Forget a tunnel; tells only of one that was told of."""
        del self._tunnels[tunnel.id]
        if tunnel.announced:
            self._tell(ChangeKind.REMOVED, tunnel)

    def changed(self, tunnel: Tunnel) -> None:
        """Tell the watchers; of a tunnel that they do not know yet, that it is there."""
        kind = ChangeKind.CHANGED if tunnel.announced else ChangeKind.ADDED
        tunnel.announced = True
        self._tell(kind, tunnel)

    def _tell(self, kind: ChangeKind, tunnel: Tunnel) -> None:
        change = Change(kind, view_of(tunnel))
        for see in list(self._watchers):
            see(change)

    def watch(self, see: Callable[[Change], None]) -> Callable[[], None]:
        """Call ``see`` with every change from now on; returns the way to stop that."""
        self._watchers.append(see)
        return lambda: self._watchers.remove(see)

    def of_uid(self, uid: Uid) -> Tunnel | None:
        """The tunnel of a UID, if there is one."""
        return self._tunnels.get(uid.id)

    def known(self, tunnel_id: str) -> Tunnel:
        """The tunnel of an id, or NOT_FOUND."""
        tunnel = self._tunnels.get(tunnel_id)
        if tunnel is None:
            raise no_tunnel()
        return tunnel

    def find(self, text: str) -> Tunnel:
        """The tunnel of an id or a UID as people type them; INVALID_ARGUMENT or NOT_FOUND."""
        tunnel_id, _ = self.parse(text)
        return self.known(tunnel_id)

    @staticmethod
    def parse(text: str) -> tuple[str, bool]:
        """The id that an id or a UID means, and whether it was a UID; INVALID_ARGUMENT for anything else."""
        if len(text) == _ID_LENGTH and set(text) <= set("0123456789abcdef"):
            return text, False
        try:
            return Uid.parse(text).id, True
        except ScistreamError as problem:
            raise invalid("id", "neither the id nor the UID of a tunnel", problem.hint) from None

    def get(self, tunnel_id: str) -> Tunnel | None:
        """The tunnel of an id, if there is one."""
        return self._tunnels.get(tunnel_id)

    def of_caller(self, caller: Caller) -> int:
        """How many tunnels this caller has made: an address, a user of this host."""
        who = caller.peer, caller.principal
        return sum((tunnel.owner.peer, tunnel.owner.principal) == who for tunnel in self._tunnels.values())

    def pending(self) -> int:
        """How many wait for hello or update."""
        return sum(tunnel.state in (State.PENDING, State.READY) for tunnel in self._tunnels.values())


def view_of(tunnel: Tunnel) -> TunnelView:
    """What others may see of a tunnel."""
    return TunnelView(
        id=tunnel.id,
        label=tunnel.options.label,
        role=tunnel.role,
        state=tunnel.state,
        type=tunnel.type.name,
        security=tunnel.security,
        listeners=tunnel.answer().listeners,
        targets=tunnel.targets,
        rate=tunnel.rate,
        unit=tunnel.held.unit if tunnel.held else "",
        owner=str(tunnel.owner),
        principal=tunnel.owner.principal,
        peer=tunnel.owner.peer,
        created_usec=round(tunnel.created * 1e6),
        expires_usec=round(tunnel.expires * 1e6),
        result=tunnel.result,
        warnings=tunnel.warnings,
    )


def way_of(tunnel: Tunnel) -> Way:
    """Where its connections are."""
    listeners = tuple(bind.endpoint for bind in tunnel.binds)
    targets = tuple(each for of_one in tunnel.addresses for each in of_one)
    return Way(tunnel.id, tunnel.role, listeners, targets, any(bind.udp for bind in tunnel.binds))
