"""What a test of the hop between the gateways found, and what to do next.

The test itself is `pathtest`; the inbound data server answers it by `dataserver.answer`.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from scistreamd.errors import Code
from scistreamd.model import Endpoint


class Outcome(enum.Enum):
    """How a test ended, as D-Bus and ``--json`` name it."""

    OK = "ok"
    # No fault was seen, but the security mode lets nobody prove more.
    UNPROVED = "unproved"
    REFUSED = "refused"
    FILTERED = "filtered"
    UNREACHABLE = "unreachable"
    RESET = "reset"
    SILENT = "silent"
    WRONG_UID = "wrong-uid"
    OTHER_SECURITY = "other-security"
    NO_ANSWERER = "no-answerer"
    ODD = "odd"

    @property
    def code(self) -> Code | None:
        """The failure that this is, None where it is none."""
        if self in (Outcome.OK, Outcome.UNPROVED):
            return None
        if self is Outcome.WRONG_UID:
            return Code.UNAUTHENTICATED
        if self in (Outcome.OTHER_SECURITY, Outcome.NO_ANSWERER, Outcome.ODD):
            return Code.FAILED_PRECONDITION
        return Code.UNAVAILABLE


@dataclass(frozen=True)
class Finding:
    """What became of one test.

    ``connect_usec``: TCP's handshake; ``handshake_usec``: that of TLS;
    ``rtt_usec``: the quickest answer of the inbound data server to a request;
    each in microseconds, 0: not reached. ``sent_bytes`` were answered, at
    ``throughput`` bytes/s; 0: not asked for.
    """

    listener: Endpoint
    outcome: Outcome
    message: str
    hint: str = ""
    connect_usec: int = 0
    handshake_usec: int = 0
    rtt_usec: int = 0
    sent_bytes: int = 0
    throughput: int = 0

    @property
    def warning(self) -> str:
        """One line for the owner of the tunnel, empty where there is no fault."""
        if self.outcome.code is None:
            return ""
        return f"the hop to {self.listener}: {self.message}" + (f" ({self.hint})" if self.hint else "")
