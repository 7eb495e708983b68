"""polkit decides what users who are not root may do: org.freedesktop.PolicyKit1.Authority.CheckAuthorization.

Source: polkit's reference manual. The questions carry the detail ``own``,
which dbus/org.scistream.scistreamd1.rules looks at.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from typing import Any

from scistreamd import names
from scistreamd.bus import Bus
from scistreamd.bus_messages import CallError, Typed
from scistreamd.errors import Code, ScistreamError
from scistreamd.model import Caller

_SERVICE = "org.freedesktop.PolicyKit1"
_PATH = "/org/freedesktop/PolicyKit1/Authority"
_INTERFACE = "org.freedesktop.PolicyKit1.Authority"
_ALLOW_USER_INTERACTION = 1
_SECONDS = 20.0
_SECONDS_FOR_A_PASSWORD = 300.0

_log = logging.getLogger("scistreamd.polkit")


class Polkit:
    """The authority of this host, asked over the bus."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._numbers = itertools.count(1)

    async def check(self, caller: Caller, verb: str, *, own: bool) -> None:
        """As `scistreamd.interfaces.Authority` has it; a question whose caller leaves the bus is withdrawn."""
        mark = f"scistreamd-{next(self._numbers)}"
        asking = asyncio.create_task(self._ask(caller, verb, own, mark))
        leaving = [asyncio.create_task(self._bus.gone(caller.bus_name))] if caller.interactive else []
        seconds = _SECONDS_FOR_A_PASSWORD if caller.interactive else _SECONDS
        try:
            await asyncio.wait([asking, *leaving], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if not asking.done():
                gone = any(each.done() for each in leaving)
                raise ScistreamError(
                    Code.CANCELLED if gone else Code.UNAVAILABLE,
                    f"{verb}: the caller has left the bus" if gone else f"{verb}: polkit has not decided in time",
                )
        finally:
            await self._finish(asking, leaving, mark)
        authorized, challenge, _ = asking.result()
        if not authorized:
            raise _denied(caller, verb, own, challenge)

    async def _ask(self, caller: Caller, verb: str, own: bool, mark: str) -> list[Any]:
        subject = ["system-bus-name", {"name": Typed("s", caller.bus_name)}]
        details = {"own": "true" if own else "false"}
        flags = _ALLOW_USER_INTERACTION if caller.interactive else 0
        arguments: list[tuple[str, Any]] = [
            ("(sa{sv})", subject),
            ("s", names.action(verb)),
            ("a{ss}", details),
            ("u", flags),
            ("s", mark),
        ]
        try:
            [decision] = await self._bus.call(_SERVICE, _PATH, _INTERFACE, "CheckAuthorization", *arguments)
        except CallError as error:
            raise _no_decision(verb, error) from None
        found: list[Any] = decision
        return found

    async def _finish(self, asking: asyncio.Task[list[Any]], leaving: list[asyncio.Task[None]], mark: str) -> None:
        """End what is under way; polkit is told that nobody waits for its answer."""
        pending = not asking.done()
        for task in (asking, *leaving):
            task.cancel()
        await asyncio.wait([asking, *leaving])
        for task in leaving:
            if not task.cancelled() and (problem := task.exception()):
                _log.warning("cannot see whether a caller leaves: %s", problem)
        if pending:
            try:
                await self._bus.call(_SERVICE, _PATH, _INTERFACE, "CancelCheckAuthorization", ("s", mark))
            except (CallError, ScistreamError) as problem:
                _log.info("polkit: a question could not be withdrawn: %s", problem)


def _denied(caller: Caller, verb: str, own: bool, challenge: bool) -> ScistreamError:
    whose = "" if own else " on other people's tunnels"
    if challenge and not caller.interactive:
        hint = "polkit wants an administrator's password: allow interactive authorization, or use sudo"
        if own and verb != "reload":
            hint += "; members of the group scistream need none"
    elif own and verb != "reload":
        hint = "members of the group scistream may, or use sudo"
    else:
        hint = "ask an administrator, or use sudo"
    return ScistreamError(Code.PERMISSION_DENIED, f"{verb}: {caller.identity} may not{whose}", hint)


def _no_decision(verb: str, error: CallError) -> ScistreamError:
    if error.name == "org.freedesktop.PolicyKit1.Error.Cancelled":
        return ScistreamError(Code.CANCELLED, f"{verb}: the question was withdrawn")
    missing = error.name.startswith(("org.freedesktop.DBus.Error.ServiceUnknown", "org.freedesktop.DBus.Error.Spawn"))
    problem = "polkit does not run here" if missing else f"polkit cannot decide: {error.text}"
    hint = (
        "install polkitd, or use sudo" if missing else f"{names.SERVICE}.policy belongs in /usr/share/polkit-1/actions"
    )
    return ScistreamError(Code.UNAVAILABLE, f"{verb}: only root may, for {problem}", hint)
