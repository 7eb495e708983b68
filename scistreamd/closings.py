"""Scripts that undo what was done for tunnels beside their units, for what ends a tunnel while no daemon runs.

A tunnel's socket unit runs its script when its listeners are closed (`units.closing`).
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from scistreamd.places import write_file
from scistreamd.units import CLOSING, closing

_Done = TypeVar("_Done")


class Closings(Generic[_Done]):
    """The scripts in the daemon's directory; every method raises OSError where that cannot be written to."""

    def __init__(self, runtime: Path, undone_by: Callable[[_Done], Sequence[str]]) -> None:
        """``undone_by``: the command that undoes one thing; that there is nothing to undo is fine."""
        self._runtime = runtime
        self._undone_by = undone_by

    def keep(self, done: Mapping[str, Collection[_Done]], *, alone: bool) -> None:
        """Have scripts that undo this, by tunnel; none where it is nothing. ``alone``: and for no other tunnels."""
        for path in self._runtime.glob(f"*{CLOSING}") if alone else ():
            if path.name.removesuffix(CLOSING) not in done:
                path.unlink(missing_ok=True)
        for tunnel_id, what in done.items():
            path = Path(closing(self._runtime, tunnel_id))
            if what:
                write_file(path, self._script(path, what).encode(), 0o600, None)
            else:
                path.unlink(missing_ok=True)

    def _script(self, path: Path, done: Collection[_Done]) -> str:
        """The commands, and the script's own end."""
        lines = sorted(f"{shlex.join(self._undone_by(each))} >/dev/null 2>&1\n" for each in done)
        return "".join(lines) + f"rm -f {shlex.quote(str(path))}\n"
