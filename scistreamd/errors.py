"""The one exception of scistreamd, and the codes it carries.

A code is at once the gRPC status, the D-Bus error name
(``org.scistream.scistreamd1.Error.<Code>``) and the exit status of a command
line tool, so a failure reads the same whichever front door reports it.
"""

from __future__ import annotations

import difflib
import enum
from collections.abc import Iterable, Sequence


class Code(enum.Enum):
    """What went wrong: ``(gRPC status number, exit status of the command line tools)``.

    The gRPC numbers are those of grpc/statuscodes; exit status 2 is kept for
    wrong usage, as getopt-style tools do.
    """

    CANCELLED = (1, 11)
    INVALID_ARGUMENT = (3, 3)
    DEADLINE_EXCEEDED = (4, 4)
    NOT_FOUND = (5, 5)
    ALREADY_EXISTS = (6, 6)
    PERMISSION_DENIED = (7, 7)
    RESOURCE_EXHAUSTED = (8, 8)
    FAILED_PRECONDITION = (9, 9)
    UNIMPLEMENTED = (12, 12)
    INTERNAL = (13, 13)
    UNAVAILABLE = (14, 14)
    UNAUTHENTICATED = (16, 16)

    @property
    def grpc_status(self) -> int:
        """The number that goes into the ``grpc-status`` trailer."""
        return self.value[0]

    @property
    def exit_status(self) -> int:
        """The exit status of a command that ends with this failure."""
        return self.value[1]


class ScistreamError(Exception):
    """A failure that a caller is told of.

    ``message`` says what is wrong and names the field; ``hint`` says what to do
    about it and may be empty. Neither ever holds a UID or another secret.
    ``challenges`` go with UNAUTHENTICATED: what to prove oneself with, in the
    form of WWW-Authenticate (RFC 9110, section 11.6.1).
    """

    def __init__(self, code: Code, message: str, hint: str = "", challenges: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.challenges = tuple(challenges)
        self.code = code
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class BugError(Exception):
    """A state that cannot be: our own fault, told to callers as INTERNAL without details."""


def invalid(field: str, problem: str, hint: str = "") -> ScistreamError:
    """An INVALID_ARGUMENT that names the field, for every parser."""
    return ScistreamError(Code.INVALID_ARGUMENT, f"{field}: {problem}", hint)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint that names the closest known word, or an empty string."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"did you mean {close[0]}?" if close else ""
