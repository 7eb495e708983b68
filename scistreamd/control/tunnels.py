"""scistream.v2.Tunnels: one's own tunnels, for callers who have no shell on the gateway."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar

from google.protobuf.message import Message
from grpclib.const import Cardinality, Handler, Status
from grpclib.exceptions import GRPCError
from grpclib.server import Stream

from scistreamd.control import scistream_v2_pb2 as pb
from scistreamd.control import wire
from scistreamd.control.service import Admits, Refusal, Trail, deliver, outcome
from scistreamd.errors import invalid
from scistreamd.gate import Grant, Verb
from scistreamd.model import Change, ChangeKind, TunnelView
from scistreamd.options import MAX_LIFETIME

SERVICE = "scistream.v2.Tunnels"

_MAX_DRAIN = 86400
# Changes that a slow watcher may be behind before it is sent away.
_MOST_BEHIND = 1000
_KINDS = {
    ChangeKind.ADDED: pb.Change.ADDED,
    ChangeKind.CHANGED: pb.Change.CHANGED,
    ChangeKind.REMOVED: pb.Change.REMOVED,
}

_Request = TypeVar("_Request", bound=Message)
_Reply = TypeVar("_Reply", bound=Message)


class OwnTunnels(Protocol):
    """What the manager does for this front door; every method raises ScistreamError."""

    def own(self, grant: Grant, *, everyone: bool = False) -> tuple[TunnelView, ...]:
        """The caller's tunnels, the oldest first; ``everyone``: all, for administrators."""

    def own_id(self, grant: Grant, name: str, *, change: bool) -> str:
        """The id of the caller's tunnel that an id or a UID names; NOT_FOUND for every other."""

    def view(self, tunnel_id: str) -> TunnelView:
        """How the tunnel looks now."""

    async def extend(self, grant: Grant, tunnel_id: str, seconds: int) -> TunnelView:
        """Set the lifetime from now on; 0: no end."""

    async def end(self, grant: Grant, tunnel_id: str, drain: float) -> None:
        """Release."""

    def watch(self, see: Callable[[Change], None]) -> Callable[[], None]:
        """Tell of every change; returns the way to stop."""

    def owns(self, grant: Grant, view: TunnelView) -> bool:
        """Whether the tunnel is the caller's."""


class TunnelsService:
    """scistream.v2.Tunnels for `grpclib`."""

    def __init__(self, tunnels: OwnTunnels, gate: Admits, send_seconds: float) -> None:
        self._tunnels = tunnels
        self._gate = gate
        self._send_seconds = send_seconds

    def __mapping__(self) -> dict[str, Handler]:
        """Path to handler, as grpclib asks for it."""
        watch = Handler(self._watch, Cardinality.UNARY_STREAM, pb.WatchRequest, pb.Change)
        return {
            f"/{SERVICE}/List": self._method("List", self._list, pb.ListRequest, pb.ListResponse),
            f"/{SERVICE}/Get": self._method("Get", self._get, pb.GetRequest, pb.Tunnel),
            f"/{SERVICE}/Extend": self._method("Extend", self._extend, pb.ExtendRequest, pb.Tunnel),
            f"/{SERVICE}/Release": self._method("Release", self._release, pb.ReleaseRequest, pb.ReleaseResponse),
            f"/{SERVICE}/Watch": watch,
        }

    def _method(
        self,
        name: str,
        step: Callable[[_Request, wire.Metadata, Trail], Awaitable[_Reply]],
        request: type[_Request],
        reply: type[_Reply],
    ) -> Handler:
        async def call(stream: Stream[_Request, _Reply]) -> None:
            trail = Trail(name, reading=name in ("List", "Get"))
            try:
                answer = await outcome(stream, trail, self._gate, step)
            except Refusal as refusal:
                await refusal.send(stream)
            else:
                await deliver(stream, answer, (), self._send_seconds)

        return Handler(call, Cardinality.UNARY_UNARY, request, reply)

    async def _list(self, message: pb.ListRequest, metadata: wire.Metadata, trail: Trail) -> pb.ListResponse:
        grant = self._granted(trail, Verb.READ, metadata, "List")
        return pb.ListResponse(tunnels=[tunnel(each) for each in self._tunnels.own(grant, everyone=message.everyone)])

    async def _get(self, message: pb.GetRequest, metadata: wire.Metadata, trail: Trail) -> pb.Tunnel:
        grant = self._granted(trail, Verb.READ, metadata, "Get")
        trail.tunnel = self._tunnels.own_id(grant, message.name, change=False)
        return tunnel(self._tunnels.view(trail.tunnel))

    async def _extend(self, message: pb.ExtendRequest, metadata: wire.Metadata, trail: Trail) -> pb.Tunnel:
        if message.lifetime > MAX_LIFETIME:
            raise invalid("lifetime", f"{message.lifetime} is more than {MAX_LIFETIME} seconds", "0 is no end")
        grant = self._granted(trail, Verb.UPDATE, metadata, "Extend")
        trail.tunnel = self._tunnels.own_id(grant, message.name, change=True)
        return tunnel(await self._tunnels.extend(grant, trail.tunnel, message.lifetime))

    async def _release(self, message: pb.ReleaseRequest, metadata: wire.Metadata, trail: Trail) -> pb.ReleaseResponse:
        if message.drain > _MAX_DRAIN:
            raise invalid("drain", f"{message.drain} is more than {_MAX_DRAIN} seconds", "0 ends streams at once")
        grant = self._granted(trail, Verb.RELEASE, metadata, "Release")
        trail.tunnel = self._tunnels.own_id(grant, message.name, change=True)
        await self._tunnels.end(grant, trail.tunnel, message.drain)
        return pb.ReleaseResponse()

    def _granted(self, trail: Trail, verb: Verb, metadata: wire.Metadata, call: str) -> Grant:
        wire.refuse_options(metadata, call)
        trail.grant = self._gate.admit(trail.caller, verb)
        return trail.grant

    async def _watch(self, stream: Stream[pb.WatchRequest, pb.Change]) -> None:
        trail = Trail("Watch", reading=True)
        try:
            grant, message = await outcome(stream, trail, self._gate, self._watcher)
        except Refusal as refusal:
            await refusal.send(stream)
            return
        waiting: asyncio.Queue[Change] = asyncio.Queue(_MOST_BEHIND)
        everyone: bool = message.everyone
        behind = asyncio.Event()

        def see(change: Change) -> None:
            if not (everyone or self._tunnels.owns(grant, change.view)):
                return
            try:
                waiting.put_nowait(change)
            except asyncio.QueueFull:
                behind.set()

        unwatch = self._tunnels.watch(see)
        try:
            for view in self._tunnels.own(grant, everyone=everyone):
                await self._send(stream, pb.Change(kind=pb.Change.ADDED, tunnel=tunnel(view)))
            await self._send(stream, pb.Change(kind=pb.Change.CURRENT))
            while not behind.is_set():
                change = await waiting.get()
                await self._send(stream, pb.Change(kind=_KINDS[change.kind], tunnel=tunnel(change.view)))
        finally:
            unwatch()
        raise GRPCError(Status.RESOURCE_EXHAUSTED, f"the watcher is {_MOST_BEHIND} changes behind; watch again")

    async def _watcher(
        self, message: pb.WatchRequest, metadata: wire.Metadata, trail: Trail
    ) -> tuple[Grant, pb.WatchRequest]:
        grant = self._granted(trail, Verb.READ, metadata, "Watch")
        self._tunnels.own(grant, everyone=message.everyone)  # raises where the caller may not
        return grant, message

    async def _send(self, stream: Stream[Any, pb.Change], change: pb.Change) -> None:
        try:
            await asyncio.wait_for(stream.send_message(change), self._send_seconds)
        except asyncio.TimeoutError:
            raise GRPCError(Status.DEADLINE_EXCEEDED, "the watcher did not take what it was told") from None


def tunnel(view: TunnelView) -> pb.Tunnel:
    """A tunnel on the wire."""
    return pb.Tunnel(
        id=view.id,
        label=view.label,
        role=view.role.value,
        state=view.state.value,
        type=view.type,
        security=view.security.value,
        listeners=[str(each) for each in view.listeners],
        targets=[str(each) for each in view.targets],
        rate=view.rate,
        created_usec=view.created_usec,
        expires_usec=view.expires_usec,
        owner=view.owner,
        result=view.result,
        warnings=view.warnings,
    )
