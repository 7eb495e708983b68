"""Times and counts for people; they sort as text where they stand in a column."""

from __future__ import annotations

import time

_STEPS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def span(seconds: float) -> str:
    """A duration by its two largest units: ``2h 5min``."""
    left = int(seconds)
    parts: list[str] = []
    for size, unit in _STEPS:
        count, left = divmod(left, size)
        if count or parts:
            parts.append(f"{count}{unit}" if count else "")
        if len(parts) == 2:
            break
    return " ".join(part for part in parts if part) or "0s"


def moment(usec: int) -> str:
    """A local time, ``2026-03-01 12:00:00``, from microseconds since the epoch; 0: ``never``."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(usec / 1e6)) if usec else "never"


def away(usec: int, now: float) -> str:
    """A moment and how far it is from ``now`` (seconds since the epoch)."""
    if not usec:
        return "never"
    distance = usec / 1e6 - now
    how = f"in {span(distance)}" if distance > 0 else f"{span(-distance)} ago"
    return f"{moment(usec)} ({how})"


def counted(number: int, noun: str) -> str:
    """``1 tunnel``, ``2 tunnels``, ``no tunnels``."""
    return f"{number or 'no'} {noun}{'' if number == 1 else 's'}"


def rate(kilobytes: int) -> str:
    """A limit in kB/s."""
    return f"{kilobytes} kB/s" if kilobytes else "no limit"


def owner(text: str) -> str:
    """Whose a tunnel is, for a table: without the front door, and of this host's users the name alone."""
    return text.rpartition(" by ")[0].removesuffix(" from this host") or text


def size(number: float) -> str:
    """A count of bytes with three digits or so, in powers of 1000: ``1.23G``; `sort -h` knows the order."""
    for unit in ("", "k", "M", "G", "T", "P"):
        if number < 999.5 or unit == "P":
            break
        number /= 1000
    digits = 0 if not unit or number >= 99.95 else 1 if number >= 9.995 else 2
    return f"{number:.{digits}f}{unit}"


def milliseconds(usec: int) -> str:
    """A round-trip time, ``0.25ms``; 0: none was measured."""
    return f"{usec / 1000:.3g}ms" if usec else "-"
