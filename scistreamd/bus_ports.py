"""CheckPorts of the front door on D-Bus: which ports are free, who has the others, what the firewall does."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from scistreamd.bus_messages import Typed
from scistreamd.bus_needs import Host, Tunnels
from scistreamd.errors import invalid
from scistreamd.portcheck import Socket, overlap

_PROBES_AT_ONCE = 200
_MOST_PORTS = 4096
_MOST_JUDGED = 256  # a big firewall takes 20 ms a port


async def check(asked: Sequence[int], tunnels: Tunnels, host: Host) -> list[dict[str, Typed]]:
    """An answer for each port that is asked for, for each of the range where none is; INVALID_ARGUMENT."""
    if len(asked) > _MOST_PORTS:
        raise invalid("ports", f"{len(asked)} entries, at most {_MOST_PORTS} are taken", "ask several times")
    if 0 in asked:
        raise invalid("ports", "0 is no port", "from 1 to 65535")
    port_range = host.settings().port_range
    ports = asked or list(port_range)
    taken = {each.port: view.id for view in tunnels.tunnels() for each in view.listeners}
    look = await tunnels.look_at_ports()
    sockets, warning = look.by_port(), overlap(look, port_range)
    judged = dict(zip(ports, await tunnels.judge_ports(ports[:_MOST_JUDGED]), strict=False))
    answers = []
    for index, port in enumerate(ports):
        if index % _PROBES_AT_ONCE == _PROBES_AT_ONCE - 1:
            await asyncio.sleep(0)  # others wait for the event loop, too
        there = sockets.get(port, [])
        used = f"tunnel {taken[port]} listens on it" if port in taken else _used(host.busy(port), there)
        inside = port in port_range
        verdict, said = judged.get(port, ("", ""))
        answers.append(
            {
                "port": Typed("q", port),
                "in-range": Typed("b", inside),
                "free": Typed("b", not used),
                "reason": Typed("s", used or ("" if inside else f"outside the range {port_range}")),
                "sockets": Typed("as", [str(each) for each in there]),
                "firewall": Typed("s", verdict),  # empty where nobody looked
                "warnings": Typed("as", [each for each in (warning if inside else "", said) if each]),
            }
        )
    return answers


def _used(busy: str, there: Sequence[Socket]) -> str:
    """Why nothing can listen now: who does, where that is known."""
    if busy and there:
        return str(next((each for each in there if each.protocol == "tcp"), there[0]))
    return busy
