"""All that one run of the benchmarks found: what the raw data file holds and the report is made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.bench.calls import Churn, Memory, Request
from tests.bench.dataplane import Flow
from tests.bench.gateways import Took
from tests.bench.scale import Scale
from tests.bench.startup import Floor, Imports
from tests.bench.stats import Spread


@dataclass(frozen=True)
class Asked:
    """What `s2uc inbound-request` and `outbound-request` took."""

    inbound: Took
    outbound: Took


@dataclass
class Round:
    """Every configuration once; keys are chain or type names, then streams or bytes.

    ``start``: seconds from the exec of s2cs until its port answers. ``repeated``:
    how many flows were measured again because of other work on the machine.
    """

    order: list[str]
    start: float
    floor: Floor
    repeated: int = 0
    flows: dict[str, dict[int, Flow]] = field(default_factory=dict)
    round_trips: dict[str, dict[int, dict[str, float]]] = field(default_factory=dict)
    asked: dict[str, Asked] = field(default_factory=dict)
    requests: dict[str, Request] = field(default_factory=dict)


@dataclass(frozen=True)
class Extent:
    """How much is measured; ``tunnels`` for memory, ``churn`` rounds of request and release.

    ``repeats``: how many flows of a round may be measured again; ``many``:
    tunnels on one host of the lab.
    """

    rounds: int
    flow_seconds: int
    echoes: int
    tunnels: int
    churn: int
    repeats: int
    many: int


# The share of the processors that other work may take from a measurement that is worth citing.
QUIET = 0.1
FULL = Extent(rounds=7, flow_seconds=4, echoes=1000, tunnels=20, churn=1000, repeats=5, many=500)
QUICK = Extent(rounds=2, flow_seconds=1, echoes=200, tunnels=3, churn=100, repeats=0, many=20)


@dataclass
class Results:
    """One run; ``scale`` is None where there was no root, and so no lab."""

    environment: dict[str, Any]
    extent: Extent
    rounds: list[Round] = field(default_factory=list)
    memory: dict[str, Memory] = field(default_factory=dict)
    imports: dict[str, Imports] = field(default_factory=dict)
    churn: Churn | None = None
    null_cipher: str = ""
    scale: Scale | None = None
    seconds: float = 0.0

    def over(self, value: Callable[[Round], float]) -> Spread:
        """The spread of a value over the rounds; a ratio is formed inside of each round."""
        return Spread.of(map(value, self.rounds))

    @property
    def churned(self) -> Churn:
        """The churn, once measured."""
        if self.churn is None:
            raise LookupError("the rounds of request and release were not measured")
        return self.churn
