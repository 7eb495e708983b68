"""One request of the user client from `req` to `update`, with nothing left behind where it fails."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from scistreamd.cli.failures import Refused
from scistreamd.cli.gateway import Gateway
from scistreamd.control import scistream_pb2 as pb
from scistreamd.errors import Code, ScistreamError
from scistreamd.model import Role, Target, Uid, join_host_port

# A 1.2 server knows no early hello: how often and how long to try again while req waits.
_RETRY_SECONDS = 0.07
_RETRY_LIMIT = 10.0
# How long a req that is about to fail may take to say so before hello's own failure is told.
_GRACE_SECONDS = 0.2
_RELEASE_SECONDS = 5.0


@dataclass(frozen=True)
class Hello:
    """What the application's side says: its role on the wire, and what it listens on."""

    role: Role
    listeners: tuple[str, ...]


@dataclass(frozen=True)
class Wish:
    """A tunnel that is asked for.

    ``fresh`` is True for a UID that we made, so that no tunnel of another has
    it; ``hello`` None means that someone else sends it; ``targets`` empty
    means those that hello brought. ``local_ports`` are the listeners wished for.
    """

    uid: Uid
    fresh: bool
    role: Role
    num_conn: int
    rate: int
    hello: Hello | None
    targets: tuple[str, ...] = ()
    local_ports: tuple[int, ...] = ()
    exact_ports: bool = False
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Opened:
    """The tunnel as it stands: where it listens, and what it forwards to."""

    listeners: tuple[str, ...]
    targets: tuple[str, ...]


class Session:
    """Opens one tunnel on one gateway. ``say`` prints progress, ``note`` what the user should know."""

    def __init__(self, gateway: Gateway, wish: Wish, say: Callable[[str], None], note: Callable[[str], None]) -> None:
        self._gateway = gateway
        self._wish = wish
        self._say = say
        self._note = note
        self._uid = wish.uid.reveal()
        # Whether a release with this UID can only end what this session made.
        self._owned = wish.fresh
        self._refused = False

    async def open(self, hand_over: Callable[[Opened], None]) -> None:
        """Reserve, greet, check, update, hand over; a failure or cancellation in any of it gives everything back."""
        try:
            answer = await self._reserve()
            self._owned = True
            listeners = tuple(answer.listeners)
            self._check_count(listeners)
            self._check_ports(listeners)
            targets = self._wish.targets or tuple(answer.prod_listeners)
            if not targets:
                raise ScistreamError(
                    Code.INVALID_ARGUMENT, "the hello brought no targets", "s2uc hello takes --receiver-ports"
                )
            await self._gateway.update(self._uid, self._wish.role.value, targets)
            hand_over(Opened(listeners, targets))
        except BaseException as error:
            await self._give_back(error)
            raise

    async def _reserve(self) -> pb.Response:
        """Send req, and hello beside it; returns req's answer."""
        wish = self._wish
        request = pb.Request(uid=self._uid, role=wish.role.value, num_conn=wish.num_conn, rate=wish.rate)
        self._say("sending client request message")
        req = asyncio.create_task(self._ask(request))
        self._say("waiting for hello message")
        if wish.hello is None:
            return await req
        self._say("sending for hello message")
        hello = asyncio.create_task(self._greet(wish.hello))
        try:
            return await self._both(req, hello)
        finally:
            req.cancel()
            hello.cancel()
            results = await asyncio.gather(req, hello, return_exceptions=True)
            # The gateway has said yes to one of them, whatever ended us before we looked.
            self._owned |= not all(isinstance(result, BaseException) for result in results)

    async def _ask(self, request: pb.Request) -> pb.Response:
        try:
            return await self._gateway.req(request, self._wish.options)
        except Refused:
            self._refused = True
            raise

    async def _both(self, req: asyncio.Task[pb.Response], hello: asyncio.Task[None]) -> pb.Response:
        await asyncio.wait({req, hello}, return_when=asyncio.FIRST_COMPLETED)
        if hello.done() and hello.exception() is not None and not req.done():
            # The server may be answering both: then req's reason is the one that explains.
            await asyncio.wait({req}, timeout=_GRACE_SECONDS)
        if req.done() and req.exception() is not None:
            return req.result()
        await hello
        self._owned = True
        return await req

    async def _greet(self, hello: Hello) -> None:
        """Send hello, and again while a 1.2 server has not seen our req yet."""
        deadline = time.monotonic() + _RETRY_LIMIT
        while True:
            try:
                await self._gateway.hello(self._uid, hello.role.value, hello.listeners)
                break
            except Refused as refusal:
                if not refusal.unknown:
                    raise
                if time.monotonic() > deadline:
                    # Only our own req can be waiting here: such a server refuses a second one at once.
                    self._owned = True
                    raise
                await asyncio.sleep(_RETRY_SECONDS)
        self._say("Hello message sent successfully")

    def _check_count(self, listeners: Sequence[str]) -> None:
        """A 1.2 server that runs out of ports gives fewer than asked, or none, and calls it success."""
        if not listeners:
            raise ScistreamError(Code.RESOURCE_EXHAUSTED, "the gateway gave no listener", "release a tunnel there")
        if len(listeners) < self._wish.num_conn:
            self._note(f"{self._wish.num_conn} listeners were asked for, the gateway gave {len(listeners)}")

    def _check_ports(self, listeners: Sequence[str]) -> None:
        """Tell of local ports that were wished for and not got; with exact_ports that is a failure."""
        got = {listener.rpartition(":")[2] for listener in listeners}
        missed = [str(port) for port in self._wish.local_ports if str(port) not in got]
        if not missed:
            return
        problem = f"local port {', '.join(missed)} was not to be had"
        if self._wish.exact_ports:
            raise ScistreamError(Code.RESOURCE_EXHAUSTED, problem, "free it on the gateway, or ask for another")
        self._note(f"{problem}; connect to the listeners that are printed")

    async def _give_back(self, error: BaseException) -> None:
        """Release the tunnel where it is ours, and say what became of it; ``error`` is told by our caller."""
        if self._refused:
            return
        if not self._owned:
            self._note_withdrawn(error)
            return
        try:
            await asyncio.wait_for(self._gateway.release(self._uid), _RELEASE_SECONDS)
        except ScistreamError as failure:
            if failure.code is Code.NOT_FOUND:
                self._note_withdrawn(error)
            elif failure.message != str(error):
                self._note(f"the tunnel could not be released: {failure.message}")
        except asyncio.TimeoutError:
            self._note("the tunnel could not be released: the gateway does not answer")
        else:
            self._note("the tunnel was released again")

    def _note_withdrawn(self, error: BaseException) -> None:
        """A gateway ends a request that is given up as soon as its stream ends, so that nothing is left to release."""
        if isinstance(error, asyncio.CancelledError):
            self._note("the request was withdrawn")


def dialable(listeners: Sequence[str], gateway_host: str) -> list[str]:
    """A sentence for each listener that names no address, as SciStream 1.2 servers give them."""
    found = []
    for listener in listeners:
        host, _, port = listener.rpartition(":")
        if host in ("0.0.0.0", "[::]", "::") and port.isdecimal():
            found.append(f"{listener} names no address: connect to {join_host_port(gateway_host, int(port))}")
    return found


def receivers(host: str, ports: Sequence[int]) -> tuple[str, ...]:
    """``HOST:PORT`` for each port, as hello carries them."""
    return tuple(str(Target.parse(join_host_port(host, port), "remote-ip")) for port in ports)
