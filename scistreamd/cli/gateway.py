"""The control port of one gateway as the user client sees it: a connection and its calls."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import unquote

from google.protobuf.message import Message
from grpclib.client import Channel, Stream, UnaryStreamMethod, UnaryUnaryMethod
from grpclib.encoding.proto import ProtoCodec
from grpclib.exceptions import GRPCError, ProtocolError, StreamTerminatedError
from h2.exceptions import H2Error

from scistreamd.cli import confirm, failures, known
from scistreamd.cli.auth.attach import NO_TOKEN, Tokens
from scistreamd.cli.known import Known, KnownGateways
from scistreamd.cli.trust import Trust, show_certificate
from scistreamd.control import scistream_pb2 as pb
from scistreamd.control import scistream_v2_pb2 as own
from scistreamd.errors import Code
from scistreamd.model import Target

if TYPE_CHECKING:
    from multidict import MultiDict

    Metadata = MultiDict[str | bytes]

CONNECT_SECONDS = 10.0
# Beside the answers of our gateways, percent-encoded: docs/wire-protocol.md.
HINT, WARNING, CHALLENGE = "scistream-hint", "scistream-warning", "scistream-challenge"

_OWN = "scistream.v2.Tunnels"

Q = TypeVar("Q", bound=Message)
A = TypeVar("A", bound=Message)


class Gateway:
    """A connection to a control server; ``async with`` opens and closes it.

    ``trust`` None means plaintext. Every method raises ScistreamError, in the
    server's own words where it gave some; `failures.Refused` carries its status.
    """

    def __init__(
        self,
        address: Target,
        trust: Trust | None,
        note: Callable[[str], None],
        *,
        fingerprint: str | None = None,
        tokens: Tokens | None = None,
        certificate: tuple[str, str | None] | None = None,
    ) -> None:
        """``fingerprint``: of the certificate or key to trust on first use without a question.

        ``tokens`` gives the calls their token; None: there is none. ``certificate``: files of a client
        certificate and its key, None where one file has both.
        """
        self._client = certificate
        self._tokens = tokens
        self.token = NO_TOKEN
        self.address = address
        self._trust = trust
        self._fingerprint = fingerprint
        self._note = note
        self._told: set[str] = set()  # each answer about a tunnel brings all of its warnings
        self._channel: Channel | None = None

    async def __aenter__(self) -> Gateway:
        trust = self._trust
        try:
            if trust is None or trust.path is not None or (gateway := KnownGateways().get(self.address)) is None:
                self._channel = await self._connect_verified(trust)
            else:
                self._channel = await self._connect_known(gateway)
        except (OSError, asyncio.TimeoutError) as error:
            raise failures.of_connection(error, self.address, trust) from None
        if self._tokens is not None:
            try:
                self.token = await self._tokens.first(await self._certificate())
            except BaseException:
                await _close(self._channel)
                raise
        return self

    async def _certificate(self) -> bytes | None:
        """What the gateway showed, DER; None in plaintext."""
        protocol = await self._opened.__connect__()
        tls = protocol.connection._transport.get_extra_info("ssl_object")
        return tls.getpeercert(binary_form=True) if tls is not None else None

    async def _connect_verified(self, trust: Trust | None) -> Channel:
        """Connect to whom the file or the system's CAs vouch for, else to whom the user does."""
        try:
            channel = await self._connect(trust.verified() if trust else None)
        except ssl.SSLCertVerificationError as error:
            if trust is None or error.verify_code in failures.OUT_OF_DATE:
                raise
            if trust.path is None:
                return await self._connect_unknown(trust, error)
            if error.verify_code not in failures.NAME_MISMATCH:
                raise
            return await self._connect_pinned(trust)
        if trust is not None:
            protocol = await channel.__connect__()
            shown = protocol.connection.get_peer().cert() or {}
            if "notAfter" in shown:
                self._tell_end(ssl.cert_time_to_seconds(shown["notAfter"]))
        return channel

    async def _connect_unknown(self, trust: Trust, refusal: ssl.SSLCertVerificationError) -> Channel:
        """Ask the user about a gateway that nobody vouches for, and remember the answer."""
        why = failures.of_connection(refusal, self.address, trust).message
        try:
            channel = await self._connect(known.ask_who(), introduced=False)
            await _close(channel)
            raise failures.of_break("no certificate in the handshake", self.address, trust)
        except known.Stranger as stranger:
            shown = Known.of(stranger.certificate)
        confirm.confirm(self.address, shown, why, self._fingerprint)
        channel = await self._connect_known(shown)
        KnownGateways().remember(self.address, shown)
        return channel

    async def _connect_known(self, gateway: Known) -> Channel:
        """Connect to a gateway that the user trusted before."""
        gateways, now = KnownGateways(), [gateway]
        try:
            channel = await self._connect(known.recognising(gateway, now.append))
        except known.KeyChanged as change:
            raise confirm.of_change(self.address, gateway, change.shown, gateways.path) from None
        if now[-1] is not gateway:
            gateways.remember(self.address, replace(now[-1], since=gateway.since))
            self._note(f"{self.address} has another certificate for the key that you trust")
        self._tell_end(now[-1].ends)
        return channel

    def _tell_end(self, ends: float) -> None:
        if when := confirm.ending(ends, time.time()):
            self._note(f"the certificate of {self.address} {when}; tell its operator")

    async def _connect(self, context: ssl.SSLContext | None, *, introduced: bool = True) -> Channel:
        """``introduced``: a stranger is shown no client certificate."""
        if context is not None and self._client is not None and introduced:
            show_certificate(context, *self._client)
        channel = Channel(self.address.host, self.address.port, ssl=context, codec=ProtoCodec())
        try:
            await asyncio.wait_for(channel.__connect__(), CONNECT_SECONDS)
        except BaseException:
            channel.close()
            raise
        return channel

    async def _connect_pinned(self, trust: Trust) -> Channel:
        """Connect to a gateway of another name that shows a certificate of the file."""
        try:
            channel = await self._connect(trust.pinned())
        except (OSError, asyncio.TimeoutError) as error:
            raise failures.of_connection(error, self.address, trust) from None
        protocol = await channel.__connect__()
        names = failures.names_of(protocol.connection.get_peer().cert() or {})
        self._note(
            f"the certificate of {self.address} names {names}; it is accepted because it is exactly one of {trust}"
        )
        return channel

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._channel is not None:
            await _close(self._channel)

    async def req(self, request: pb.Request, options: Mapping[str, str]) -> pb.Response:
        """Reserve listeners; returns when the hello for the same UID has come."""
        return await self._call("req", request, pb.Response, options)

    async def hello(self, uid: str, role: str, listeners: Sequence[str]) -> pb.AppResponse:
        """Say what the application listens on."""
        return await self._call("hello", pb.Hello(uid=uid, role=role, prod_listeners=listeners), pb.AppResponse)

    async def update(self, uid: str, role: str, targets: Sequence[str]) -> pb.Response:
        """Give the targets and start the data server."""
        message = pb.UpdateTargets(uid=uid, role=role, remote_listeners=targets)
        return await self._call("update", message, pb.Response)

    async def release(self, uid: str) -> pb.Response:
        """End the tunnel."""
        return await self._call("release", pb.Release(uid=uid), pb.Response)

    async def tunnels(self, *, everyone: bool) -> Sequence[own.Tunnel]:
        """One's own tunnels; ``everyone``: all of the gateway, for administrators."""
        return (await self._own("List", own.ListRequest(everyone=everyone), own.ListResponse)).tunnels

    async def tunnel(self, name: str) -> own.Tunnel:
        """One tunnel by id or UID."""
        return await self._own("Get", own.GetRequest(name=name), own.Tunnel)

    async def extend(self, name: str, lifetime: int) -> own.Tunnel:
        """Give a tunnel ``lifetime`` seconds from now on, 0: no end."""
        return await self._own("Extend", own.ExtendRequest(name=name, lifetime=lifetime), own.Tunnel)

    async def end(self, name: str) -> None:
        """Release a tunnel by id or UID."""
        await self._own("Release", own.ReleaseRequest(name=name), own.ReleaseResponse)

    async def watch(self, *, everyone: bool) -> AsyncIterator[own.Change]:
        """What there is and, after a change of kind CURRENT, what happens, for ever."""
        await self.tunnels(everyone=everyone)  # a gateway that asks for a token does it now
        method = UnaryStreamMethod(self._opened, f"/{_OWN}/Watch", own.WatchRequest, own.Change)
        async with self._stream(method, "Watch") as stream:
            await stream.send_message(own.WatchRequest(everyone=everyone), end=True)
            async for change in stream:
                yield change

    async def _own(self, name: str, message: Q, answer: type[A]) -> A:
        return await self._call(name, message, answer, service=_OWN)

    async def health(self) -> str:
        """The state of the whole server by grpc.health.v1, such as SERVING (grpc/doc/health-checking.md)."""
        from grpclib.health.v1 import health_pb2 as health

        asked, kind = health.HealthCheckRequest(), health.HealthCheckResponse
        answer = await self._call("Check", asked, kind, service="grpc.health.v1.Health")
        return health.HealthCheckResponse.ServingStatus.Name(answer.status)

    async def _call(
        self,
        name: str,
        message: Q,
        answer: type[A],
        options: Mapping[str, str] | None = None,
        service: str = "scistream.Control",
    ) -> A:
        method = UnaryUnaryMethod(self._opened, f"/{service}/{name}", type(message), answer)
        sent = self.token
        try:
            return await self._ask(method, name, message, options)
        except failures.Refused as refusal:
            if refusal.code is not Code.UNAUTHENTICATED or self._tokens is None:
                raise
            if self.token == sent:
                token = await self._tokens.wanted(refusal, await self._certificate(), sent)
                if not token:
                    raise
                self.token = token
        return await self._ask(method, name, message, options)

    async def _ask(self, method: UnaryUnaryMethod[Q, A], name: str, message: Q, options: Mapping[str, str] | None) -> A:
        async with self._stream(method, name, options) as stream:
            await stream.send_message(message, end=True)
            reply = await stream.recv_message()
            self._tell_warnings(stream.initial_metadata)
        if reply is None:
            raise failures.of_break("no message in the answer", self.address, self._trust)
        return reply

    @property
    def _opened(self) -> Channel:
        if self._channel is None:
            raise RuntimeError("a call outside of `async with`")
        return self._channel

    @contextlib.asynccontextmanager
    async def _stream(
        self,
        method: UnaryUnaryMethod[Q, A] | UnaryStreamMethod[Q, A],
        name: str,
        options: Mapping[str, str] | None = None,
    ) -> AsyncIterator[Stream[Q, A]]:
        """A call under way, whose failures become ScistreamError."""
        metadata = {"authorization": self.token, **(options or {})}
        try:
            async with method.open(metadata=metadata) as stream:
                yield stream
        except GRPCError as error:
            hint = _of_ours(stream.trailing_metadata, HINT)
            challenges = _of_ours(stream.trailing_metadata, CHALLENGE)
            raise failures.of_status(error.status.value, error.message or "", name, "".join(hint), challenges) from None
        except (StreamTerminatedError, ProtocolError, H2Error) as error:
            if self._client is not None:
                raise failures.of_certificate_break(str(error), self.address, self._client[0]) from None
            raise failures.of_break(str(error), self.address, self._trust) from None
        except OSError as error:
            raise failures.of_connection(error, self.address, self._trust) from None

    def _tell_warnings(self, metadata: Metadata | None) -> None:
        for warning in _of_ours(metadata, WARNING):
            if warning not in self._told:
                self._told.add(warning)
                self._note(warning)


def _of_ours(metadata: Metadata | None, key: str) -> list[str]:
    """What our gateways say beside an answer; a SciStream 1.2 server says nothing there."""
    values = metadata.getall(key, []) if metadata is not None else []
    return [unquote(value) for value in values if isinstance(value, str)]


async def _close(channel: Channel) -> None:
    """Close the connection and its socket, without waiting for the other side's close_notify.

    grpclib starts the close and forgets the transport, which would live for
    up to 30 s (asyncio's ssl_shutdown_timeout).
    """
    protocol = channel._protocol
    # The attribute goes when the other side has hung up.
    transport = getattr(protocol.connection, "_transport", None) if protocol else None
    channel.close()
    if transport is not None:
        transport.abort()
        # connection_lost() runs in the next round of the loop, and in TLS hands on to the one after.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
