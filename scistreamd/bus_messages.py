"""D-Bus messages as plain data, so that the front door needs no bus and no library.

Values are Python's: str, int, bool, bytes, list (arrays and structs), dict,
and `Typed` for a variant. Source: the D-Bus specification, "Type system".
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol

_LONGEST_TEXT = 1000  # callers' own words stand in it


@dataclass(frozen=True)
class Typed:
    """A variant: a value with its signature."""

    signature: str
    value: Any


@dataclass(frozen=True)
class Call:
    """A method call that came in.

    ``sender`` is the caller's unique name, which the bus vouches for;
    ``interface`` is empty where the caller named none; ``interactive`` allows
    to ask the caller's user for a password.
    """

    sender: str
    path: str
    interface: str
    member: str
    signature: str
    body: list[Any]
    interactive: bool = False


@dataclass(frozen=True)
class Reply:
    """What a method returns."""

    signature: str = ""
    body: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Signal:
    """Something that all who listen are told."""

    path: str
    interface: str
    member: str
    signature: str
    body: tuple[Any, ...]


@dataclass(frozen=True)
class User:
    """A user of this host, as the bus knows the owner of a connection."""

    number: int
    name: str


class CallError(Exception):
    """A method call that ends with a D-Bus error: its name, and one line of text, cut where it is too long to read."""

    def __init__(self, name: str, text: str) -> None:
        text = text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]}..."
        super().__init__(text)
        self.name = name
        self.text = text


# Raises CallError; anything else is a bug that must not get so far.
Answers = Callable[[Call], Awaitable[Reply]]


class Connection(Protocol):
    """What the front door needs of the bus."""

    def emit(self, signal: Signal) -> None:
        """Send it; lost where nobody is connected."""

    async def user_of(self, sender: str) -> User:
        """Whose connection it is; ScistreamError(CANCELLED) where it has gone."""
