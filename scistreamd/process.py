"""The process launcher: data servers as children of the daemon.

For hosts and containers without systemd. A child is supervised and started
again when it dies; it ends with the daemon. Under root it runs as a user of
its own that owns nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import pwd
import random
import shutil
import socket
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from scistreamd import capabilities, programs, sockets
from scistreamd.errors import Code, ScistreamError
from scistreamd.interfaces import DataServer, Told
from scistreamd.places import make_places, places_below
from scistreamd.plans import Bind, Places, Program
from scistreamd.process_held import ProcessHeld

# The range that systemd gives to DynamicUser= units (UIDS-GIDS.md): free of accounts everywhere.
_FIRST_UID, _LAST_UID = 61184, 65519

_log = logging.getLogger(__name__)

# What gives scistreamd.service these capabilities; its own sandbox is without.
_DROP_IN = (
    "the service gets that by `install -D -m 0644 /usr/share/doc/scistreamd/examples/scistreamd-subprocess.conf"
    " /etc/systemd/system/scistreamd.service.d/subprocess.conf && systemctl daemon-reload"
    " && systemctl restart scistreamd`"
)


class ProcessLauncher:
    """Holds listeners in the daemon and runs data servers as its children."""

    def __init__(self, runtime: Path, *, start_seconds: float = 20, keepalive_idle: int = 60) -> None:
        """``runtime``: a directory of the daemon's own, on tmpfs where there is one.

        ``start_seconds``: how long a data server may take until it says that it accepts.
        """
        self._runtime = runtime
        self.start_seconds = start_seconds
        self._keepalive_idle = keepalive_idle
        self._uids: set[int] = set()
        self._for_children = capabilities.mapped(range(_FIRST_UID, _LAST_UID + 1)) if os.geteuid() == 0 else []
        if os.geteuid() == 0 and not self._for_children:
            _log.warning("this user namespace has no user id for data servers: they run as the daemon's own user")
        # Many starts at the same time finish no sooner, and the last of them would run into its time limit.
        self.starting = asyncio.Semaphore(2 * (os.cpu_count() or 1))

    def missing(self, server: DataServer) -> str:
        """Why this data server cannot run here, or an empty string."""
        absent = capabilities.lacking() if os.geteuid() == 0 else []
        if absent:
            problem = f"{server.name} as a child of the daemon needs {', '.join(absent)}, to run as a user of its own"
            return f"{problem}; {_DROP_IN}" if os.environ.get("SYSTEMD_EXEC_PID") == str(os.getpid()) else problem
        return programs.missing(server, programs.PATH)

    def lacking(self, server: DataServer) -> str:
        """What is wrong with this data server here, or an empty string."""
        return programs.lacking(server)

    @property
    def outlives(self) -> bool:
        """False: children end with the daemon."""
        return False

    @property
    def filters_sources(self) -> bool:
        """`sockets.hold` has the kernel do it, on the listeners themselves, where the kernel lets us."""
        return sockets.can_filter()

    def places(self, tunnel_id: str) -> Places:
        """Where the files of a tunnel are."""
        return places_below(self._runtime / tunnel_id)

    def survey(self) -> AbstractAsyncContextManager[None]:
        """Nothing is ever left to look at."""
        return contextlib.nullcontext()

    async def adopt(self, tunnel_id: str, binds: Sequence[Bind], program: Program | None, told: Told) -> None:
        """Nothing is ever left to adopt."""

    async def clear(self, tunnel_id: str) -> None:
        """Nothing is ever left to clear away."""

    async def strangers(self, known: Collection[str]) -> list[str]:
        """None: what a killed daemon left has ended with it."""
        return []

    async def hold(self, tunnel_id: str, binds: Sequence[Bind], told: Told) -> ProcessHeld:
        """See `interfaces.Launcher.hold`."""
        with contextlib.ExitStack() as undo:
            held = sockets.hold(binds, self._keepalive_idle)
            for each in held:
                undo.enter_context(each)
            uid = undo.enter_context(self._user())
            root = self._runtime / tunnel_id
            undo.callback(shutil.rmtree, root, ignore_errors=True)
            places = make_places(root, uid)
            return ProcessHeld(self, tunnel_id, places=places, held=held, uid=uid, told=told, undo=undo.pop_all())

    @contextlib.contextmanager
    def _user(self) -> Iterator[int | None]:
        """A user id that no account, no other tunnel and no running program has; None where we have none to give."""
        if not self._for_children:
            yield None
            return
        taken = self._uids | {entry.pw_uid for entry in pwd.getpwall()} | _running()
        free = [uid for uid in self._for_children if uid not in taken]
        # Any of them: another daemon of this host, or systemd, may be choosing now, and traffic is told by its user.
        uid = random.choice(free) if free else None  # noqa: S311  no secret
        if uid is None:
            raise ScistreamError(Code.RESOURCE_EXHAUSTED, "no user id is free for another data server")
        self._uids.add(uid)
        try:
            yield uid
        finally:
            self._uids.discard(uid)

    def rehold(self, binds: Sequence[Bind]) -> list[socket.socket]:
        """Sockets for ``binds``, as `hold` makes them."""
        return sockets.hold(binds, self._keepalive_idle)


def _running() -> set[int]:
    """The users of all processes that we can see."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended
            found.add(process.stat().st_uid)
    return found
