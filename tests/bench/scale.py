"""Hundreds of tunnels on one host: a gateway of the lab, with systemd as PID 1 and scistreamd as it is installed."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.bench.gateways import DEFAULT_TYPE
from tests.bench.rig import BenchError
from tests.bench.stats import Spread
from tests.system.gateways import gateway
from tests.system.lab import Lab
from tests.system.tools import LabError

_HOST = "producers2"
_DRIVER = "/root/scale_driver.py"
_AT_ONCE = 8
_SECONDS = 1200


@dataclass(frozen=True)
class Scale:
    """Seconds, but for ``rss`` of the daemon with all tunnels, in bytes.

    ``create``: all tunnels, ``at_once`` callers of the bus beside each other;
    ``create_p50``: one call, which waits for the others; ``restarts``: until
    every tunnel is known and callers are served again.
    """

    tunnels: int
    at_once: int
    kind: str
    create: float
    create_p50: float
    lists: list[float]
    restarts: list[float]
    rss: int
    release: float

    @property
    def per_second(self) -> float:
        """Tunnels made in a second."""
        return self.tunnels / self.create


def can_measure() -> bool:
    """Whether there can be a lab: it needs root."""
    return os.geteuid() == 0


def measure(tunnels: int, say: Callable[[str], None]) -> Scale:
    """Boot a lab, make so many tunnels there, and end it; BenchError where that does not work."""
    try:
        with Lab.start(f"bench-{os.getpid()}-{secrets.token_hex(2)}", say) as lab:
            host = lab[_HOST]
            host.write(_DRIVER, (Path(__file__).parent / "scale_driver.py").read_text())
            with gateway(host, f'port_range = "10000-{10000 + tunnels + 99}"\n'):
                words = ["python3", _DRIVER, str(tunnels), str(_AT_ONCE), DEFAULT_TYPE]
                return Scale(**json.loads(host.run(words, timeout=_SECONDS).stdout))
    except LabError as error:
        raise BenchError(f"{tunnels} tunnels on a host of the lab: {error}") from error


def lists(scale: Scale) -> Spread:
    """What `s2ctl list` takes."""
    return Spread.of(scale.lists)


def restarts(scale: Scale) -> Spread:
    """What `systemctl restart scistreamd` takes."""
    return Spread.of(scale.restarts)
