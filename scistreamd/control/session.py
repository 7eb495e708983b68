"""One HTTP/2 connection of a caller, from the end of the handshake to the last byte.

It bounds what the peer may do (streams, headers, frames without requests),
finds peers that are silent or dead, and ends the connection in an orderly way.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import cast

from grpclib.config import Configuration
from grpclib.protocol import Connection, EventsProcessor, H2Protocol
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import Event, PingAckReceived
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes, Settings

from scistreamd.control.calls import Calls, Methods
from scistreamd.control.limits import Limits
from scistreamd.model import Caller

log = logging.getLogger("scistreamd.control")

# latin-1 takes every byte: a header value that is not ASCII is for the parser to refuse, not for the codec to die of.
_H2_CONFIG = H2Configuration(client_side=False, header_encoding="latin-1")
_SLICE = 16384
# What one complete request message adds to the credit of frames: its own and those that go with it.
_FRAMES_PER_MESSAGE = 10
# h2 keeps a frame of 16 MiB until it is whole before it finds it too long, and 64 continuations of a header block.
_MAX_UNFRAMED = 65536


class _Events(EventsProcessor):
    """grpclib's dispatch of events, without dying of those it does not know (RFC 9113, 5.5: ignore them)."""

    def process(self, event: Event) -> None:
        """Handle one event of h2."""
        if not self.connection.is_closing() and type(event) in self.processors:
            super().process(event)


class Session(H2Protocol):
    """The protocol of one accepted connection.

    ``came`` is called once when the handshake is done, ``gone`` once when the
    connection is closed after that.
    """

    def __init__(
        self,
        methods: Methods,
        limits: Limits,
        caller: Caller,
        *,
        came: Callable[[Session], None],
        gone: Callable[[Session], None],
    ) -> None:
        self.calls = Calls(methods, limits, caller, self._message_completed)
        super().__init__(self.calls, Configuration(), _H2_CONFIG)
        self._limits = limits
        self._caller = caller
        self._came = came
        self._gone = gone
        self._loop = asyncio.get_running_loop()
        self._served = False
        self._pinged_at: float | None = None
        self._credit = float(limits.frames)
        self._unframed = 0
        self._timer: asyncio.TimerHandle | None = None
        self._aborter: asyncio.TimerHandle | None = None
        self.closed = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send our settings; the limits hold from the first frame on."""
        self._transport = cast(asyncio.Transport, transport)
        tls = transport.get_extra_info("ssl_object")
        self.calls.certificate = (tls and tls.getpeercert(binary_form=True)) or b""
        self._h2 = _h2_connection(self._limits)
        self._h2.initiate_connection()
        self.connection = Connection(self._h2, self._transport, config=self.config)
        self.connection.flush()
        self.processor = _Events(self.calls, self.connection)
        self._made_at = self._heard_at = self._credited_at = self._loop.time()
        self._watch()
        self._came(self)

    def data_received(self, data: bytes) -> None:
        """Feed h2, by slices: a frame takes nine bytes, and the loop serves others too."""
        self._heard_at = self._loop.time()
        self._pinged_at = None
        for start in range(0, len(data), _SLICE):
            if self._transport.is_closing():
                return
            self._feed(data[start : start + _SLICE])

    def pause_writing(self) -> None:
        """The peer does not read: what it sends would only make us write more."""
        super().pause_writing()
        if not self._transport.is_closing():
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        """The peer reads again."""
        super().resume_writing()
        if not self._transport.is_closing():
            self._transport.resume_reading()

    def connection_lost(self, exc: BaseException | None) -> None:
        """The caller is gone: its calls are cancelled."""
        super().connection_lost(exc)
        for timer in (self._timer, self._aborter):
            if timer is not None:
                timer.cancel()
        self.closed.set()
        self._gone(self)

    def hang_up(self, reason: str, code: ErrorCodes = ErrorCodes.NO_ERROR) -> None:
        """Say GOAWAY, cancel the calls and close, at the latest after ``linger_seconds``."""
        if self._transport.is_closing():
            return
        try:
            self._h2.close_connection(code)
        except ProtocolError:
            log.debug("no GOAWAY for %s: the connection is broken", self._caller)
        self._close(reason)

    def abort(self) -> None:
        """Close without waiting for the peer."""
        self._transport.abort()

    def _feed(self, data: bytes) -> None:
        try:
            events = self.connection.feed(data)
        except ProtocolError as error:
            # h2 has put the GOAWAY that says why into what flush() sends.
            self._close(f"HTTP/2 error: {type(error).__name__}")
            return
        self.connection.flush()
        for event in events:
            self.processor.process(event)
        if self._transport.is_closing():
            self._linger()
            return
        self.connection.flush()
        self._unframed = 0 if events else self._unframed + len(data)
        if self._unframed > _MAX_UNFRAMED:
            self.hang_up("a frame without end", ErrorCodes.FRAME_SIZE_ERROR)
            return
        self._charge(sum(not isinstance(event, PingAckReceived) for event in events))

    def _charge(self, frames: int) -> None:
        now = self._loop.time()
        earned = (now - self._credited_at) * self._limits.frames_per_second
        self._credit = min(self._credit + earned, float(self._limits.frames)) - frames
        self._credited_at = now
        if self._credit < 0:
            self.hang_up("frames without requests", ErrorCodes.ENHANCE_YOUR_CALM)

    def _message_completed(self) -> None:
        self._served = True
        self._credit = min(self._credit + _FRAMES_PER_MESSAGE, float(self._limits.frames))

    def _close(self, reason: str) -> None:
        log.debug("closing the connection of %s: %s", self._caller, reason)
        self.connection.flush()
        self.processor.close(reason)
        self._linger()

    def _linger(self) -> None:
        # A close waits for the peer to read what was written and to answer TLS's close_notify.
        if self._aborter is None and not self.closed.is_set():
            self._aborter = self._loop.call_later(self._limits.linger_seconds, self._transport.abort)

    def _watch(self) -> None:
        limits = self._limits
        spans = (limits.first_request_seconds, limits.idle_seconds, limits.ping_seconds, limits.ping_answer_seconds)
        self._judge(self._loop.time())
        if not self._transport.is_closing():
            self._timer = self._loop.call_later(min(spans) / 4, self._watch)

    def _judge(self, now: float) -> None:
        limits = self._limits
        if not self._served:
            if now - self._made_at >= limits.first_request_seconds:
                self.hang_up("no complete request")
        elif not self.calls.tasks:
            if now - self.calls.ended_at >= limits.idle_seconds:
                self.hang_up("idle")
        elif self._pinged_at is not None:
            if now - self._pinged_at >= limits.ping_answer_seconds:
                log.info("%s does not answer any more: its calls are cancelled", self._caller)
                self._transport.abort()
        elif now - self._heard_at >= limits.ping_seconds:
            self._h2.ping(b"scistrm1")
            self.connection.flush()
            self._pinged_at = now


def _h2_connection(limits: Limits) -> H2Connection:
    # Before initiate_connection(), for h2 holds later changes back until the peer has confirmed them,
    # and would until then end a connection that opens more than 100 streams at once.
    connection = H2Connection(config=_H2_CONFIG)
    connection.local_settings = Settings(
        client=False,
        initial_values={
            SettingCodes.MAX_CONCURRENT_STREAMS: limits.streams,
            SettingCodes.MAX_HEADER_LIST_SIZE: limits.header_bytes,
        },
    )
    connection.decoder.max_header_list_size = limits.header_bytes
    return connection
