"""One tunnel whose listeners the daemon holds and whose data server is its child."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from scistreamd import programs, sockets
from scistreamd.child import Child
from scistreamd.errors import Code, ScistreamError
from scistreamd.interfaces import Told
from scistreamd.places import write_file
from scistreamd.plans import Bind, Places, Program
from scistreamd.readiness import Words

if TYPE_CHECKING:
    from scistreamd.process import ProcessLauncher

_END_GRACE = 1.0
_POLL = 0.01
_RESTART_SECONDS = 0.2
_RESTARTS_IN_A_ROW = 5
_STEADY_SECONDS = 30.0
_DRAIN_BEGINS = 0.05  # what a data server takes to close its listeners

_log = logging.getLogger("scistreamd.process")

_Name = tuple[socket.SocketKind, str, int]


def _name(held: socket.socket) -> _Name:
    address, port = held.getsockname()[:2]
    return socket.SocketKind(held.type), address, port


def _wanted(bind: Bind) -> list[_Name]:
    kinds = [socket.SOCK_STREAM, socket.SOCK_DGRAM] if bind.udp else [socket.SOCK_STREAM]
    return [(kind, str(bind.endpoint.address), bind.endpoint.port) for kind in kinds]


class ProcessHeld:
    """One tunnel's listeners and its data server."""

    def __init__(
        self,
        launcher: ProcessLauncher,
        tunnel_id: str,
        *,
        places: Places,
        held: list[socket.socket],
        uid: int | None,
        told: Told,
        undo: contextlib.ExitStack,
    ) -> None:
        """Made by `ProcessLauncher.hold`; ``undo`` frees what that took."""
        self._launcher = launcher
        self._id = tunnel_id
        self._places = places
        self._sockets = held
        self._uid = uid
        self._told = told
        self._undo = undo
        self._child: Child | None = None
        self._program: Program | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._closing: asyncio.Future[None] | None = None

    @property
    def places(self) -> Places:
        """Where the tunnel's files are."""
        return self._places

    @property
    def unit(self) -> str:
        """None runs it."""
        return ""

    async def user(self) -> int | None:
        """See `interfaces.Held.user`."""
        return self._uid

    async def limit(self, seconds: float) -> None:
        """Nothing to do: the tunnel ends with the daemon."""

    async def rebind(self, binds: Sequence[Bind]) -> None:
        """See `interfaces.Held.rebind`; sockets that stay are not closed in between."""
        before = {_name(each): each for each in self._sockets}
        fresh = self._launcher.rehold([bind for bind in binds if _wanted(bind)[0] not in before])
        for each in fresh:
            self._undo.enter_context(each)
        every = before | {_name(each): each for each in fresh}
        self._sockets = [every[name] for bind in binds for name in _wanted(bind)]
        for each in before.values():
            if each not in self._sockets:
                each.close()

    async def serve(self, program: Program, secrets: Mapping[str, bytes]) -> None:
        """See `interfaces.Held.serve`."""
        if self._closing:
            raise self._released()
        if self._child and self._child.running:
            await self._retarget(program)
            return
        await self._supervise_no_more()
        self._write_config(program)
        for name, content in secrets.items():
            write_file(Path(self._places.secrets) / name, content, 0o600, self._uid)
        child = await self._start(program)
        self._program = program
        self._supervisor = asyncio.create_task(self._supervise(child), name=f"supervise {self._id}")

    def _write_config(self, program: Program) -> None:
        for name, text in program.config.items():
            write_file(Path(self._places.config) / name, text.encode(), 0o644, None)

    async def _start(self, program: Program) -> Child:
        """Run it and wait for its word; nothing of it is left when this fails."""
        async with self._launcher.starting:
            if self._closing:
                raise self._released()
            self._empty_scratch()
            path = programs.locate(program.argv[0], programs.PATH)
            if path is None:
                raise ScistreamError(
                    Code.FAILED_PRECONDITION, f"the program {program.argv[0]} is not installed any more"
                )
            environment = {"PATH": programs.PATH, "LANG": "C.UTF-8", **program.environment}
            child = self._child = Child(
                path,
                program.argv,
                fds=[each.fileno() for each in self._sockets],
                uid=self._uid,
                cwd=str(self._places.scratch),
                environment=environment,
                preload=programs.library(program.library),
                say=lambda line: self._say(program, line),
            )
            try:
                with Words(child, program) as words:
                    await self._ready(child, words)
            except BaseException:
                await child.end(_END_GRACE)
                raise
        return child

    def _empty_scratch(self) -> None:
        """A control socket of a run before would answer for the new one, or keep it from binding."""
        for leftover in Path(self._places.scratch).iterdir():
            if leftover.is_dir() and not leftover.is_symlink():
                shutil.rmtree(leftover)
            else:
                leftover.unlink()

    def _say(self, program: Program, line: str) -> None:
        level = logging.DEBUG if any(text in line for text in program.routine) else logging.INFO
        _log.log(level, "%s", line, extra={"tunnel": self._id})

    async def _ready(self, child: Child, words: Words) -> None:
        """Return when the data server says that it accepts, by the configuration that ``words`` is about."""
        deadline = asyncio.get_running_loop().time() + self._launcher.start_seconds
        while not await words.say_ready():
            if self._closing:
                raise self._released()
            if not child.running:
                raise self._refused(child, "ended at start")
            if words.say_rejected:
                raise self._refused(child, "did not take its new configuration")
            if asyncio.get_running_loop().time() > deadline:
                raise self._refused(child, f"was not ready within {self._launcher.start_seconds:g} s")
            await asyncio.sleep(_POLL)

    async def _retarget(self, program: Program) -> None:
        assert self._child and self._program  # noqa: S101  serve() saw them
        child, before = self._child, self._program
        with Words(child, program, before) as words:
            self._write_config(program)
            child.signal(program.reload_signal)
            try:
                await self._ready(child, words)
            except BaseException:
                # What runs on is the configuration before: a restart must find that one.
                self._write_config(before)
                raise
            finally:
                if words.say_rejected:
                    await self._recovered(child, before)
        self._program = program

    async def _recovered(self, child: Child, program: Program) -> None:
        """Return when a data server that refused a configuration takes signals again; the next would be lost before."""
        with Words(child, program) as words:
            for _ in range(round(self._launcher.start_seconds / _POLL)):
                if not child.running or await words.answers():
                    return
                await asyncio.sleep(_POLL)

    async def _supervise(self, child: Child) -> None:
        """Start the data server again when it ends, until that fails too often in a row."""
        assert self._program  # noqa: S101  serve() set it before it made this task
        in_a_row = 0
        while True:
            started = asyncio.get_running_loop().time()
            reason = _why(child, _ended(await child.wait()))
            await child.end(0)  # workers that outlived it
            steady = asyncio.get_running_loop().time() - started > _STEADY_SECONDS
            in_a_row = 1 if steady else in_a_row + 1
            _log.error("data server %s; starting it again", reason, extra={"tunnel": self._id})
            try:
                if in_a_row > _RESTARTS_IN_A_ROW:
                    raise self._refused(child, f"ended {in_a_row} times in a row")
                await asyncio.sleep(_RESTART_SECONDS * in_a_row)
                child = await self._start(self._program)
            except ScistreamError as problem:
                if not self._closing:
                    self._told.failed(problem.message)
                return

    async def _supervise_no_more(self) -> None:
        if self._supervisor:
            self._supervisor.cancel()
            await asyncio.wait([self._supervisor])
            self._supervisor = None

    async def drain(self, seconds: float) -> None:
        """See `interfaces.Held.drain`."""
        await self._supervise_no_more()
        if self._child and self._program and not self._closing:
            await self._drain(self._child, self._program, seconds)

    async def close(self) -> None:
        """See `interfaces.Held.close`."""
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        try:
            await self._supervise_no_more()
            ending = [self._child.end(_END_GRACE)] if self._child else []
            # In this order: the end begins with SIGTERM, and nginx would try in vain to accept on a socket shut down.
            await asyncio.gather(*ending, self._stop_listening())
        finally:
            self._undo.close()

    async def _stop_listening(self) -> None:
        """At once and for the child too: shutdown(2) acts on the socket, not on our descriptor of it."""
        for each in self._sockets:
            if each.type == socket.SOCK_STREAM:
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

    async def _drain(self, child: Child, program: Program, seconds: float) -> None:
        """Let running streams end by themselves for so long, and no new ones begin."""
        if program.drain_signal is None:
            self._deafen()
        else:
            child.signal(program.drain_signal)
            await asyncio.sleep(_DRAIN_BEGINS)
            await self._stop_listening()
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(child.wait(), seconds)

    def _deafen(self) -> None:
        if sockets.can_filter():
            sockets.deafen(self._sockets)
        else:
            said = "takes new streams until the drain is over: this kernel lets root alone keep them away"
            _log.warning(said, extra={"tunnel": self._id})

    def _refused(self, child: Child, what: str) -> ScistreamError:
        return ScistreamError(Code.FAILED_PRECONDITION, f"data server {_why(child, what)}")

    @staticmethod
    def _released() -> ScistreamError:
        return ScistreamError(Code.CANCELLED, "the tunnel was released meanwhile")


def _ended(status: int) -> str:
    return f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"


def _why(child: Child, what: str) -> str:
    """``what`` happened, with the last words of the data server."""
    return f"{what}: {' | '.join(list(child.lines)[-3:]) or 'it said nothing'}"
