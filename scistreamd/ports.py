"""The pool of listener ports: which are given out, and which comes next.

Pure bookkeeping; holding a port against other programs is the launcher's job.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from scistreamd.errors import Code, ScistreamError
from scistreamd.model import PortRange


class Pool:
    """Gives out ports of a range, all or nothing, the one that was free longest first.

    A port that was just freed comes last, so that a late packet of the stream
    before does not meet the next tunnel.
    """

    def __init__(self, ports: PortRange) -> None:
        self.range = ports
        self._free = dict.fromkeys(ports)
        self._given_out: set[int] = set()

    @property
    def free(self) -> int:
        """How many ports are not given out."""
        return len(self._free)

    def free_ports(self) -> list[int]:
        """The ports that are not given out, the next one first."""
        return list(self._free)

    def take(
        self, count: int, busy: Collection[int] = (), within: PortRange | None = None, first: Iterable[int] = ()
    ) -> list[int]:
        """Take ``count`` ports: those wished ``first`` that are to be had, then in turn.

        All are ``within`` a part of the range where one is given. ``busy`` are
        ports that were found in other programs' hands. Raises
        RESOURCE_EXHAUSTED and takes nothing when there are not enough.
        """
        wished = [port for port in first if port in self._free]
        turn = dict.fromkeys([*wished, *self._free])
        usable = [port for port in turn if port not in busy and (within is None or port in within)]
        if len(usable) < count:
            raise self._exhausted(count, len(usable), len(busy), within or self.range)
        taken = usable[:count]
        for port in taken:
            del self._free[port]
        self._given_out.update(taken)
        return taken

    def claim(self, port: int) -> bool:
        """Take this very port; False where it is given out or outside the range."""
        if port not in self._free:
            return False
        del self._free[port]
        self._given_out.add(port)
        return True

    def occupy(self, ports: Iterable[int]) -> None:
        """Count these as given out, in the range or not."""
        for port in ports:
            self._free.pop(port, None)
            self._given_out.add(port)

    def put_back(self, ports: Iterable[int]) -> None:
        """Return ports that were taken and not used: they are next in turn again."""
        self._free = self._returned(ports) | self._free

    def give_back(self, ports: Iterable[int]) -> None:
        """Return ports to the pool, in order, behind all that are free already."""
        self._free |= self._returned(ports)

    def change_range(self, ports: PortRange) -> None:
        """Give out these from now on; ports outside that are in use stay so until they come back."""
        self.range = ports
        stay = [port for port in self._free if port in ports]
        come = [port for port in ports if port not in self._free and port not in self._given_out]
        self._free = dict.fromkeys(stay + come)

    def _returned(self, ports: Iterable[int]) -> dict[int, None]:
        back = list(ports)
        self._given_out.difference_update(back)
        return dict.fromkeys(port for port in back if port in self.range)

    @staticmethod
    def _exhausted(count: int, usable: int, busy: int, ports: PortRange) -> ScistreamError:
        others = f", {busy} in use by other programs" if busy else ""
        return ScistreamError(
            Code.RESOURCE_EXHAUSTED,
            f"num_conn: {count} ports asked for, {usable} of {len(ports)} free in {ports}{others}",
            "release a tunnel, ask for fewer, or let the operator raise the port range",
        )
