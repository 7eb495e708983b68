"""Just enough HTTP/1.1 (RFC 9112) for a Prometheus server: GET and HEAD of one page.

Bounded in size, time and number.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Sequence

from scistreamd.errors import ScistreamError

_PATH = "/metrics"
_MOST_HEADER = 8192
_MOST_AT_ONCE = 8
_READ_SECONDS = 5.0
_WRITE_SECONDS = 10.0
_STATUS = {
    200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 408: "Request Timeout",
    431: "Request Header Fields Too Large", 500: "Internal Server Error", 503: "Service Unavailable",
}  # fmt: skip
_log = logging.getLogger("scistreamd.metrics")

# The page: given the request's Accept header, its bytes and their content type.
Page = Callable[[str], tuple[bytes, str]]


class _Refused(Exception):
    """The request is answered with this status alone."""

    def __init__(self, status: int) -> None:
        super().__init__(_STATUS[status])
        self.status = status


class MetricsDoor:
    """A `daemon.FrontDoor` on sockets that listen already."""

    def __init__(self, listeners: Sequence[socket.socket], page: Page) -> None:
        """The listeners are ours from `serve` on."""
        self._listeners = listeners
        self._page = page
        self._servers: list[asyncio.Server] = []
        self._starting: asyncio.Task[None] | None = None
        self._busy: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Callers wait in the sockets' backlog until `serve`."""

    def serve(self) -> None:
        """Answer from now on."""
        self._starting = asyncio.create_task(self._serve(), name="metrics")

    async def _serve(self) -> None:
        for listener in self._listeners:
            start = asyncio.start_unix_server if listener.family == socket.AF_UNIX else asyncio.start_server
            self._servers.append(await start(self._accepted, sock=listener, limit=_MOST_HEADER))

    async def close(self) -> None:
        """Answer nobody any more."""
        if self._starting is not None:
            await self._starting
        for server in self._servers:
            server.close()
        for task in self._busy:
            task.cancel()
        if self._busy:
            await asyncio.wait(self._busy)

    def settings_changed(self) -> None:
        """No setting is about this."""

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  asyncio runs this in one
        self._busy.add(task)
        try:
            await self._answer(reader, writer)
        except (ConnectionError, asyncio.TimeoutError):
            pass  # nobody is there to be told
        finally:
            self._busy.discard(task)
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        body, content_type, bare = b"", "text/plain; charset=utf-8", False
        try:
            if len(self._busy) > _MOST_AT_ONCE:
                raise _Refused(503)
            accept, bare = _asked(await _header(reader))
            body, content_type = self._page(accept)
            status = 200
        except _Refused as refused:
            status, body = refused.status, f"{refused}\n".encode()
        except ScistreamError as problem:
            status, body = 503, f"{problem}\n".encode()
        except Exception:
            _log.exception("the metrics cannot be told")
            status, body = 500, b"Internal Server Error\n"
        head = [
            f"HTTP/1.1 {status} {_STATUS[status]}",
            f"Content-Type: {content_type}",
            f"Content-Length: {len(body)}",
            *(["Allow: GET, HEAD"] if status == 405 else []),
            "Connection: close",
        ]
        writer.write("\r\n".join([*head, "", ""]).encode() + (b"" if bare else body))
        await asyncio.wait_for(writer.drain(), _WRITE_SECONDS)


async def _header(reader: asyncio.StreamReader) -> list[str]:
    """The lines of the request's header."""
    try:
        raw = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), _READ_SECONDS)
    except asyncio.TimeoutError:
        raise _Refused(408) from None
    except asyncio.LimitOverrunError:
        raise _Refused(431) from None
    except asyncio.IncompleteReadError:
        raise _Refused(400) from None
    return raw.decode("latin-1").split("\r\n")[:-2]


def _asked(lines: list[str]) -> tuple[str, bool]:
    """What the request prefers, and whether it wants the header alone; other requests are refused."""
    method, _, rest = lines[0].partition(" ")
    target, _, version = rest.partition(" ")
    if not version.startswith("HTTP/1."):
        raise _Refused(400)
    if target.partition("?")[0] != _PATH:
        raise _Refused(404)
    if method not in ("GET", "HEAD"):
        raise _Refused(405)
    fields = (line.partition(":") for line in lines[1:])
    accept = ",".join(value.strip() for name, _, value in fields if name.lower() == "accept")
    return accept, method == "HEAD"
