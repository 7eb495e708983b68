"""The border of the D-Bus front door: finds the method of a call, and turns every failure into a D-Bus error once."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from scistreamd import names
from scistreamd.bus_messages import Call, CallError, Reply
from scistreamd.errors import Code, ScistreamError
from scistreamd.introspection import Interface, Method
from scistreamd.options import veiled

_log = logging.getLogger("scistreamd.bus")
_audit = logging.getLogger("scistreamd.audit")


@dataclass
class Trail:
    """What the audit line of one call says; ``asked`` once the call wants to change something.

    ``decided`` tells the policy rule, empty before one decided.
    """

    call: Call
    who: str
    tunnel: str = "-"
    asked: bool = False
    decided: Callable[[], str] = str

    def close(self, outcome: str) -> None:
        """Write the line, with the policy rule that decided where one did; mere reading leaves none."""
        if self.asked:
            rule = self.decided()
            by_rule = f" rule={rule}" if rule else ""
            about = {"about": self.tunnel} if self.tunnel != "-" else {}
            line = (self.call.member, self.who, self.tunnel, by_rule, outcome)
            _audit.info("%s by %s tunnel=%s%s: %s", *line, extra=about)


Handler = Callable[[Call, Trail], Awaitable[tuple[Any, ...]]]


class Calls:
    """Answers method calls by a table of handlers, as the XML declares them."""

    def __init__(
        self,
        handlers: Mapping[tuple[str, str], Handler],
        offered: Callable[[Call], Mapping[str, Interface]],
        who: Callable[[Call], Awaitable[str]],
    ) -> None:
        """``handlers`` by interface and method; ``offered``: the interfaces of the object that is called.

        ``who`` names the caller of a call that is refused before anybody asked.
        """
        self._handlers = handlers
        self._offered = offered
        self._who = who

    async def answer(self, call: Call) -> Reply:
        """Do what the call asks for. Raises CallError alone, and no traceback leaves."""
        trail = Trail(call, call.sender)
        try:
            interface, method = self._method(call)
            reply = Reply(method.gives, await self._handlers[interface, method.name](call, trail))
        except asyncio.CancelledError:
            trail.close("CANCELLED")
            raise
        except CallError as error:
            trail.close(error.name)
            raise
        except ScistreamError as error:
            if trail.asked and trail.who == call.sender:
                with contextlib.suppress(ScistreamError, CallError):  # it has left the bus
                    trail.who = await self._who(call)
            trail.close(f"{error.code.name} {veiled(error.message)}")
            raise CallError(names.error_name(error.code), veiled(str(error))) from None
        except Exception:
            incident = secrets.token_hex(4)
            trail.close(f"INTERNAL incident {incident}")
            _log.exception("incident %s in %s of tunnel %s", incident, call.member, trail.tunnel)
            text = f"internal error (incident {incident} in the gateway's log)"
            raise CallError(names.error_name(Code.INTERNAL), text) from None
        trail.close("OK")
        return reply

    def _method(self, call: Call) -> tuple[str, Method]:
        offered = self._offered(call)
        if call.interface and call.interface not in offered:
            raise CallError(names.UNKNOWN_INTERFACE, f"{call.path} has no interface {call.interface}")
        for name, interface in offered.items():
            method = interface.methods.get(call.member) if call.interface in ("", name) else None
            if method is None:
                continue
            if call.signature != method.takes:
                problem = f"takes ({method.takes}), not ({call.signature})"
                raise CallError(names.INVALID_ARGS, f"{name}.{method.name} {problem}")
            return name, method
        raise CallError(names.UNKNOWN_METHOD, f"{call.path} has no method {call.member}")
