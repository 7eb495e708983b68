"""The four calls of scistream.Control: parse, ask the gate, call the manager, translate errors once."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Protocol, TypeVar
from urllib.parse import quote

from google.protobuf.message import Message
from grpclib.const import Cardinality, Handler, Status
from grpclib.exceptions import GRPCError
from grpclib.server import Stream
from h2.exceptions import ProtocolError

from scistreamd.control import scistream_pb2 as pb
from scistreamd.control import wire
from scistreamd.control.calls import CALLER, CERTIFICATE
from scistreamd.errors import Code, ScistreamError
from scistreamd.gate import Grant, Verb
from scistreamd.identity import Credentials
from scistreamd.model import Answer, Caller, Options, Role, Target, Uid
from scistreamd.options import veiled

log = logging.getLogger("scistreamd.control")
audit = logging.getLogger("scistreamd.audit")

SERVICE = "scistream.Control"
_DONE = "OK"

_Request = TypeVar("_Request", bound=Message)
_Reply = TypeVar("_Reply", bound=Message)
_Found = TypeVar("_Found")


class Tunnels(Protocol):
    """What the manager does for this front door; every method raises ScistreamError."""

    async def request(self, grant: Grant, uid: Uid, role: Role, count: int, options: Options) -> Answer:
        """Hold ``count`` listeners and wait for hello; cancelled, it frees them."""

    async def hello(self, grant: Grant, uid: Uid, role: Role, entries: tuple[Target, ...]) -> Answer:
        """Bring the targets (PROD) or wished listeners (CONS) that the request waits for."""

    async def update(self, grant: Grant, uid: Uid, role: Role | None, targets: tuple[Target, ...]) -> Answer:
        """Give the targets; returns when the data server accepts."""

    async def release(self, grant: Grant, uid: Uid) -> None:
        """End the tunnel."""


class Admits(Protocol):
    """What this front door asks of `scistreamd.gate.Gate`."""

    async def identify(self, caller: Caller, credentials: Credentials) -> Caller:
        """The caller with what the credentials prove; UNAUTHENTICATED, UNAVAILABLE or RESOURCE_EXHAUSTED else."""

    def failed(self, caller: Caller, code: Code) -> None:
        """Hear of a call that has failed."""

    def admit(self, caller: Caller, verb: Verb) -> Grant:
        """Allow the verb, or raise UNAUTHENTICATED or PERMISSION_DENIED."""


class Trail:
    """What the audit line of one call says; ``tunnel`` is filled in once the UID is known to be one.

    ``reading``: the call changes nothing, and leaves a line only where it is refused.
    """

    def __init__(self, call: str, *, reading: bool = False) -> None:
        self.reading = reading
        self.call = call
        self.tunnel = "-"
        self.warnings: tuple[str, ...] = ()
        self.caller = CALLER.get()
        self.grant: Grant | None = None

    def close(self, outcome: str) -> None:
        """Write the line, with the policy rule that decided where one did."""
        if self.reading and outcome == _DONE:
            return
        rule = self.grant.decided.rule if self.grant else ""
        by_rule = f" rule={rule}" if rule else ""
        about = {"about": self.tunnel} if self.tunnel != "-" else {}
        audit.info("%s by %s tunnel=%s%s: %s", self.call, self.caller, self.tunnel, by_rule, outcome, extra=about)


class ControlService:
    """scistream.Control for `grpclib`."""

    def __init__(self, tunnels: Tunnels, gate: Admits, send_seconds: float) -> None:
        self._tunnels = tunnels
        self._gate = gate
        self._send_seconds = send_seconds

    def __mapping__(self) -> dict[str, Handler]:
        """Path to handler, as grpclib asks for it."""
        return {
            f"/{SERVICE}/req": self._method("req", self._req, pb.Request, pb.Response),
            f"/{SERVICE}/update": self._method("update", self._update, pb.UpdateTargets, pb.Response),
            f"/{SERVICE}/release": self._method("release", self._release, pb.Release, pb.Response),
            f"/{SERVICE}/hello": self._method("hello", self._hello, pb.Hello, pb.AppResponse),
        }

    def _method(
        self,
        name: str,
        step: Callable[[_Request, wire.Metadata, Trail], Awaitable[_Reply]],
        request: type[_Request],
        reply: type[_Reply],
    ) -> Handler:
        async def call(stream: Stream[_Request, _Reply]) -> None:
            trail = Trail(name)
            try:
                reply = await outcome(stream, trail, self._gate, step)
            except Refusal as refusal:
                await refusal.send(stream)
            else:
                await deliver(stream, reply, trail.warnings, self._send_seconds)

        return Handler(call, Cardinality.UNARY_UNARY, request, reply)

    async def _req(self, message: pb.Request, metadata: wire.Metadata, trail: Trail) -> pb.Response:
        call = wire.parse_req(message, metadata)
        trail.tunnel = call.uid.id
        grant = trail.grant = self._gate.admit(trail.caller, Verb.CREATE)
        answer = await self._tunnels.request(grant, call.uid, call.role, call.count, call.options)
        trail.warnings = answer.warnings
        return wire.response(answer)

    async def _hello(self, message: pb.Hello, metadata: wire.Metadata, trail: Trail) -> pb.AppResponse:
        call = wire.parse_hello(message, metadata)
        trail.tunnel = call.uid.id
        grant = trail.grant = self._gate.admit(trail.caller, Verb.HELLO)
        return wire.app_response(call.role, await self._tunnels.hello(grant, call.uid, call.role, call.entries))

    async def _update(self, message: pb.UpdateTargets, metadata: wire.Metadata, trail: Trail) -> pb.Response:
        call = wire.parse_update(message, metadata)
        trail.tunnel = call.uid.id
        grant = trail.grant = self._gate.admit(trail.caller, Verb.UPDATE)
        answer = await self._tunnels.update(grant, call.uid, call.role, call.targets)
        trail.warnings = answer.warnings
        return wire.response(answer)

    async def _release(self, message: pb.Release, metadata: wire.Metadata, trail: Trail) -> pb.Response:
        uid = wire.parse_release(message, metadata)
        trail.tunnel = uid.id
        trail.grant = self._gate.admit(trail.caller, Verb.RELEASE)
        await self._tunnels.release(trail.grant, uid)
        return pb.Response()


class Refusal(GRPCError):
    """A no of ours: the hint stands in the message, for deployed clients show that alone, and beside it."""

    def __init__(self, error: ScistreamError) -> None:
        super().__init__(Status(error.code.grpc_status), veiled(str(error)))
        self._hint = veiled(error.hint)
        self._challenges = error.challenges

    async def send(self, stream: Stream[Any, Any]) -> None:
        """Answer with trailers alone."""
        metadata = [(wire.HINT, quote(self._hint))] if self._hint else []
        metadata += [(wire.CHALLENGE, quote(each)) for each in self._challenges]
        try:
            await stream.send_trailing_metadata(status=self.status, status_message=self.message, metadata=metadata)
        except ProtocolError:
            raise _gone() from None


async def outcome(
    stream: Stream[_Request, Any],
    trail: Trail,
    gate: Admits,
    step: Callable[[_Request, wire.Metadata, Trail], Awaitable[_Found]],
) -> _Found:
    """What the step found, or GRPCError: the one place where errors become statuses."""
    try:
        message = await stream.recv_message()
        if message is None:
            raise GRPCError(Status.INVALID_ARGUMENT, "the call brought no request message")
        metadata = list((stream.metadata or {}).items())
        trail.caller = await gate.identify(trail.caller, wire.credentials(metadata, CERTIFICATE.get()))
        found = await step(message, metadata, trail)
    except asyncio.CancelledError:
        trail.close("CANCELLED")
        raise
    except GRPCError as error:
        trail.close(f"{error.status.name} {error.message}")
        raise
    except ScistreamError as error:
        gate.failed(trail.caller, error.code)
        trail.close(f"{error.code.name} {veiled(error.message)}")
        raise Refusal(error) from None
    except Exception:
        incident = secrets.token_hex(4)
        trail.close(f"INTERNAL incident {incident}")
        log.exception("incident %s in %s of tunnel %s", incident, trail.call, trail.tunnel)
        raise GRPCError(Status.INTERNAL, f"internal error (incident {incident} in the gateway's log)") from None
    trail.close(_DONE)
    return found


async def deliver(stream: Stream[Any, _Reply], reply: _Reply, warnings: Iterable[str], seconds: float) -> None:
    try:
        await stream.send_initial_metadata(metadata=[(wire.WARNING, quote(warning)) for warning in warnings])
        await asyncio.wait_for(stream.send_message(reply), seconds)
    except asyncio.TimeoutError:
        raise GRPCError(Status.DEADLINE_EXCEEDED, "the caller did not take the reply") from None
    except ProtocolError:
        raise _gone() from None


def _gone() -> asyncio.CancelledError:
    """The caller has reset the stream, and what was told our task of that came late or, before Python 3.12, got lost in
    a wait_for: grpclib is to see the end that it expects of such a task."""
    return asyncio.CancelledError("the caller went away before the answer")
