"""What the manager needs of the world.

The manager sees adapters only through these protocols; `daemon` builds them.
Nothing here opens anything.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence, Set
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from scistreamd.identity import Challenge, Credentials, Identity
from scistreamd.model import Caller, Endpoint, IPAddress, IPNetwork, Role, Security, Uid
from scistreamd.plans import Bind, Places, Plan, Program
from scistreamd.portcheck import Look

if TYPE_CHECKING:
    from scistreamd.counts import Counts, Passed
    from scistreamd.hop import Finding
    from scistreamd.legs import Saved
    from scistreamd.records import Record
    from scistreamd.sock import Sock


class DataServer(Protocol):
    """One kind of data server: a pure function from a plan to a program."""

    @property
    def name(self) -> str:
        """As users type it: ``Haproxy``."""

    @property
    def program(self) -> str:
        """The executable: ``haproxy``."""

    @property
    def package(self) -> str:
        """What to install where it is missing, for people: ``haproxy``."""

    @property
    def library(self) -> str:
        """The library of ours that it is run with (ld.so(8), LD_PRELOAD), by its bare name, or an empty string."""

    @property
    def securities(self) -> frozenset[Security]:
        """The security modes that it can do."""

    @property
    def udp_securities(self) -> frozenset[Security]:
        """The modes under which it forwards UDP as well."""

    @property
    def filters_sources(self) -> bool:
        """Whether it refuses by itself who is not in `Bind.allow_from`, before it says or hears anything."""

    def render(self, plan: Plan, places: Places) -> Program:
        """Render the plan; never raises for a plan whose security is in `securities`."""


class KeyMaker(Protocol):
    """Derives a tunnel's key files from its UID."""

    def files(
        self, uid: Uid, role: Role, security: Security, addresses: Collection[IPAddress] = ()
    ) -> Mapping[str, bytes]:
        """File name to content for `Places.secrets`; empty under ``none``.

        ``addresses`` are those by which peers dial the listeners of an inbound tunnel.
        """


class PathTester(Protocol):
    """Tests the hop to a listener of an inbound gateway."""

    async def test(
        self, uid: Uid, security: Security, listener: Endpoint, seconds: float, throughput: float
    ) -> Finding:
        """Connect with the keys of the UID, and say what became of it within ``seconds``; raises nothing.

        ``throughput``: send for so many seconds beyond that, and say how much arrived; 0: do not.
        """


class PortsBusy(Exception):
    """Some of the ports asked for belong to others; nothing was taken."""

    def __init__(self, ports: Sequence[int], reason: str) -> None:
        super().__init__(reason)
        self.ports = tuple(ports)
        self.reason = reason


class EndedMeanwhile(Exception):
    """Somebody ended the tunnel while no daemon ran: by hand, or its lifetime did."""


@dataclass(frozen=True)
class Told:
    """What a launcher tells the manager of a tunnel, each at most once, with the reason.

    ``failed``: a data server that had been accepted cannot be kept running.
    ``ended``: somebody else ended the tunnel: by hand, or its lifetime did.
    """

    failed: Callable[[str], None]
    ended: Callable[[str], None]


class Held(Protocol):
    """A tunnel's listeners, held against other programs, and the data server on them.

    Connections wait in the backlog until `serve` has started the data server.
    """

    @property
    def places(self) -> Places:
        """Where the tunnel's files are for its data server."""

    @property
    def unit(self) -> str:
        """The systemd unit that runs the data server, or an empty string."""

    async def user(self) -> int | None:
        """The numeric user id that the data server has and nobody else, once `serve` has started it, or None."""

    async def rebind(self, binds: Sequence[Bind]) -> None:
        """Hold these listeners instead, before the first `serve`.

        Raises PortsBusy, and holds what it held before.
        """

    async def serve(self, program: Program, secrets: Mapping[str, bytes]) -> None:
        """Start the data server, or retarget the running one; return when it says that it accepts.

        Raises ScistreamError(FAILED_PRECONDITION) with the data server's own
        reason; a data server that ran before runs on as it was.
        """

    async def limit(self, seconds: float) -> None:
        """See to it that the tunnel ends after so long from now also without the daemon; 0: no limit.

        Replaces the limit before. Where the tunnel ends with the daemon anyway, this does nothing.
        """

    async def drain(self, seconds: float) -> None:
        """Let running streams end by themselves for so long at most, before `close`; may be cancelled, and repeated.

        No new ones are taken meanwhile, where launcher or data server can see to that.
        """

    async def close(self) -> None:
        """End the data server, free the ports, remove the files; safe to call twice."""


class Launcher(Protocol):
    """Runs data servers: as children of the daemon, or as units of systemd."""

    @property
    def outlives(self) -> bool:
        """Whether tunnels outlive the daemon, and can be adopted by the next one."""

    @property
    def filters_sources(self) -> bool:
        """Whether its listeners themselves take nobody who is not in `Bind.allow_from`."""

    async def hold(self, tunnel_id: str, binds: Sequence[Bind], told: Told) -> Held:
        """Hold all listeners or none.

        Raises PortsBusy, or ScistreamError where an address is not this host's.
        """

    def places(self, tunnel_id: str) -> Places:
        """Where the files of a tunnel are, for `adopt`."""

    def survey(self) -> AbstractAsyncContextManager[None]:
        """While this lasts `adopt` goes by one look at everything; what has changed meanwhile is told at its end."""

    async def adopt(self, tunnel_id: str, binds: Sequence[Bind], program: Program | None, told: Told) -> Held | None:
        """Take over a tunnel of the daemon before; None where the host has been started anew since it ran.

        Raises EndedMeanwhile where it ended without us; nothing of it is left then.

        ``program``: what its data server was told last, None: `serve` had not been called.
        """

    async def clear(self, tunnel_id: str) -> None:
        """End and remove all that is left of a tunnel of the daemon before that could not be adopted."""

    async def strangers(self, known: Collection[str]) -> list[str]:
        """What looks like a tunnel of ours and is not among the ``known`` ids; it is left alone."""

    def missing(self, server: DataServer) -> str:
        """Why this data server cannot run here, with what to install, or an empty string."""

    def lacking(self, server: DataServer) -> str:
        """What is wrong with this data server here although it runs, with what to do about it, or an empty string."""


@dataclass(frozen=True)
class Flow:
    """A tunnel's traffic, and what the kernel's network is to do about it.

    ``targets``: every address that the data server connects to, empty before
    `update`. ``rate``: kB/s in each direction, over all connections together,
    0: no limit. ``allow_from``: who may connect to ``binds``, empty: all;
    ``guarded``: launcher or data server see to that as well. ``user``: the
    numeric user id that the data server alone has, None: not known yet, or it has none. ``shut``: nobody may
    connect any more (`Doorkeeper`).
    """

    tunnel_id: str
    role: Role
    binds: tuple[Bind, ...]
    targets: tuple[Endpoint, ...] = ()
    rate: int = 0
    allow_from: tuple[IPNetwork, ...] = ()
    guarded: bool = False
    user: int | None = None
    shut: bool = False


class Traffic(Protocol):
    """One thing that the kernel's network does for tunnels: keep others out, hold to a rate, open a firewall."""

    def watch(self, say: Callable[[str, tuple[str, ...]], None]) -> None:
        """Call ``say`` with a tunnel's id and all its warnings of this part when they change without an `apply`."""

    async def apply(self, flow: Flow) -> tuple[str, ...]:
        """Do this for the tunnel, in place of what was done for it before; the warnings for its user.

        Called before the listeners are held (no targets yet), when they
        change, before the data server follows new targets, once its user is
        known, and for another rate. Streams that run are not touched. Raises
        ScistreamError, and leaves things as they were, where it cannot be
        done. A flow that asks for nothing is done nothing for.
        """

    async def forget(self, tunnel_id: str) -> None:
        """The tunnel has ended: undo all that was done for it. Not knowing it is fine; raises nothing."""

    async def reconcile(self, flows: Sequence[Flow]) -> Mapping[str, tuple[str, ...]]:
        """After a restart: put back what is missing for these, remove what is ours and of none; warnings by tunnel id.

        Where something cannot be done, that is a warning.
        """

    async def close(self) -> None:
        """The daemon ends; what was done for tunnels that outlive it stays."""


@runtime_checkable
class Doorkeeper(Protocol):
    """A part of `Traffic` that can refuse new connections while those that exist go on."""

    async def shut(self, flow: Flow) -> None:
        """Let nobody connect to the flow's listeners any more; raises ScistreamError where it cannot."""


class PortView(Protocol):
    """Who has which ports of this host."""

    async def look(self, *, programs: bool) -> Look:
        """How it is now; what cannot be seen is said in it. ``programs``: by name too, which takes longer."""


@runtime_checkable
class FirewallJudge(Protocol):
    """A part of `Traffic` that knows what the host's firewall lets in."""

    async def verdicts(self, listeners: Sequence[Endpoint]) -> list[tuple[str, str]]:
        """What becomes of everybody's connections to each: accept, drop, reject, dnat or unknown; and, but for accept,
        by which rule, with what cures it."""


class Network(Protocol):
    """Facts about names and addresses."""

    async def resolve(self, host: str) -> tuple[IPAddress, ...]:
        """A name's addresses, best first (RFC 6724); ScistreamError(INVALID_ARGUMENT) where it has none."""

    async def local(self, addresses: Set[IPAddress]) -> frozenset[IPAddress]:
        """Those of the addresses on which this host itself answers."""

    async def attached(self) -> frozenset[IPNetwork]:
        """The networks that this host has an address in."""


class Store(Protocol):
    """The books of tunnels that outlive the daemon."""

    def save(self, record: Record) -> None:
        """Write it down, in place of what was there; FAILED_PRECONDITION where that cannot be."""

    def delete(self, tunnel_id: str) -> None:
        """Forget it; not having it is fine."""

    def load(self) -> list[Record]:
        """All of them, the oldest first."""

    def count(self) -> int:
        """How many there are, by a look at where they are kept."""


class Authenticator(Protocol):
    """One way to prove to the control port who one is."""

    @property
    def challenge(self) -> Challenge:
        """What to tell those who proved nothing."""

    async def identify(self, credentials: Credentials) -> Identity | None:
        """Who brings these credentials; None where they say nothing to this authenticator.

        Raises UNAUTHENTICATED where they are of its kind and not good, with
        the reason as far as the caller may know it, and UNAVAILABLE where
        whom it asks does not answer.
        """


class Sockets(Protocol):
    """The TCP connections of this host, as its kernel tells of them."""

    def open(self) -> int:
        """Hear of those that end from now on; the descriptor that is readable then. ScistreamError where it cannot."""

    def close(self) -> None:
        """Hear of nothing more."""

    def ended(self) -> tuple[list[Sock], bool]:
        """Those that have ended since the last call; whether some were lost, for they were too many."""

    def dump(self) -> list[Sock]:
        """All as they are now; ScistreamError where the kernel tells nothing."""


@runtime_checkable
class Passing(Protocol):
    """A part of `Traffic` that counts packets on ports of listeners, from the outside, also while no daemon runs."""

    def read(self) -> Passed:
        """What has been counted, ever since; ScistreamError where that cannot be seen."""


class CounterBooks(Protocol):
    """What has been counted, for the next daemon to go on with."""

    def save(self, counted: Mapping[str, Saved]) -> None:
        """Write down these tunnels, in place of what was there; FAILED_PRECONDITION where that cannot be."""

    def delete(self, tunnel_id: str) -> None:
        """Forget it; not having it is fine."""

    def load(self) -> dict[str, Saved]:
        """All of them; connections are left out where the host was started anew meanwhile."""


class Counters(Protocol):
    """What tunnels have carried, for front doors; UNAVAILABLE, with the reason, where that cannot be seen."""

    def counts(self, tunnel_id: str) -> Counts:
        """Of one tunnel, nothing of one that is not known."""

    def all(self) -> dict[str, Counts]:
        """Of all tunnels, by their ids."""


class Authority(Protocol):
    """Who of this host's users may do what: polkit."""

    async def check(self, caller: Caller, verb: str, *, own: bool) -> None:
        """Return where the caller may; else raise PERMISSION_DENIED, saying what would help.

        ``verb``: the last part of the polkit action's name. ``own``: no other
        user's tunnel is concerned. Raises UNAVAILABLE where nobody decides.
        """
