"""The one gate below every front door: no step of the manager without a Grant.

A front door proves who calls (`Caller`) and asks the gate for one verb; the
gate answers with a `Grant`, which is the first argument of every method of the
manager, so that mypy reports a front door that forgot.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from scistreamd.model import Caller


class Verb(enum.Enum):
    """What a caller may be allowed to do."""

    CREATE = "create"
    HELLO = "hello"
    UPDATE = "update"
    RELEASE = "release"


@dataclass(frozen=True)
class Grant:
    """The gate's permission for one call of one verb."""

    caller: Caller
    verb: Verb


class Gate:
    """Decides who may do what."""

    def admit(self, caller: Caller, verb: Verb) -> Grant:
        """Allow the verb, or raise UNAUTHENTICATED or PERMISSION_DENIED."""
        return Grant(caller, verb)
