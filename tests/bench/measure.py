"""The order of a run: everything up once, interleaved rounds, then what is measured once."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from tests.bench import calls, dataplane, gateways, scale, startup
from tests.bench.chains import NULL, Chain, build
from tests.bench.dataplane import Flow
from tests.bench.environment import describe
from tests.bench.gateways import DEFAULT_TYPE, TYPES, Certificate, Pair
from tests.bench.results import QUIET, Asked, Extent, Results, Round
from tests.bench.rig import INBOUND, Rig, accepts

# Gateways beside the pairs 0, 1, 2: each has a control port and a port range of its own.
_CHURN, _START, _MEMORY = 4, 5, 6
_CHURN_PORTS = 10

T = TypeVar("T")


def tell(text: str) -> None:
    """Progress, on stderr."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


def run(rig: Rig, extent: Extent) -> Results:
    """Measure everything; raises BenchError where something does not work."""
    began = time.monotonic()
    rig.ports.check()
    results = Results(describe(), extent)
    if scale.can_measure():  # first: its lab is gone before anything else runs
        tell(f"{extent.many} tunnels on a host of the lab")
        results.scale = scale.measure(extent.many, tell)
    made = gateways.make_certificate(rig)
    _echo_server(rig)
    _once(rig, made, results)
    tell("starting three pairs of gateways, and the pair with the settings of SciStream 1.2")
    pairs = [gateways.start_pair(rig, made, index, kind) for index, kind in enumerate(TYPES)]
    chains = build(rig, pairs)
    for number in range(extent.rounds):
        results.rounds.append(_round(rig, made, number, extent, chains, pairs))
    results.null_cipher = next(chain.cipher() for chain in chains if chain.name == NULL)
    results.imports["s2uc"] = startup.imports_of_s2uc(pairs[0].inbound, rig.ports.echo)
    results.imports["s2cs"] = startup.imports_of_s2cs(rig, made, _START, DEFAULT_TYPE)
    results.seconds = time.monotonic() - began
    return results


def _echo_server(rig: Rig) -> None:
    echo = rig.start([sys.executable, str(Path(__file__).parent / "echo.py"), INBOUND, str(rig.ports.echo)])
    echo.wait_for(lambda: accepts(INBOUND, rig.ports.echo), "the echo server")


def _once(rig: Rig, made: Certificate, results: Results) -> None:
    """What needs a gateway that did nothing before: memory per type, and the rounds of request and release."""
    extent = results.extent
    for kind in TYPES:
        tell(f"memory of an idle daemon and of {extent.tunnels} tunnels, {kind}")
        with contextlib.ExitStack() as undo:
            fresh = gateways.start(rig, made, INBOUND, _MEMORY, kind, undo=undo)
            results.memory[kind] = asyncio.run(calls.memory(fresh, extent.tunnels, rig.ports.echo))
    tell(f"{extent.churn} rounds of request and release over {_CHURN_PORTS} ports")
    with contextlib.ExitStack() as undo:
        fresh = gateways.start(rig, made, INBOUND, _CHURN, DEFAULT_TYPE, pool=_CHURN_PORTS, undo=undo)
        results.churn = asyncio.run(calls.churn(fresh, extent.churn))


def _round(
    rig: Rig,
    made: Certificate,
    number: int,
    extent: Extent,
    chains: Sequence[Chain],
    pairs: Sequence[Pair],
) -> Round:
    chains = _rotated(chains, number)
    order = [chain.name for chain in chains]
    tell(f"round {number + 1} of {extent.rounds}: {', '.join(order)}")
    this = Round(order, startup.gateway(rig, made, _START, DEFAULT_TYPE), startup.floor(rig))
    for chain in chains:
        this.flows[chain.name] = {streams: _flow(rig, this, extent, chain, streams) for streams in dataplane.STREAMS}
    for chain in chains:
        this.round_trips[chain.name] = {
            size: dataplane.round_trips(chain, size, extent.echoes) for size in dataplane.SIZES
        }
    for pair in _rotated(pairs, number):
        _control(this, pair, rig.ports.echo)
    return this


def _flow(rig: Rig, this: Round, extent: Extent, chain: Chain, streams: int) -> Flow:
    """Measure a flow, and once more where the machine was not quiet; the quieter one counts, be it slower or not."""
    found = dataplane.flow(rig, chain, streams, extent.flow_seconds)
    if found.foreign <= QUIET or this.repeated >= extent.repeats:
        return found
    this.repeated += 1
    again = dataplane.flow(rig, chain, streams, extent.flow_seconds)
    return min(found, again, key=lambda flow: flow.foreign)


def _control(this: Round, pair: Pair, echo: int) -> None:
    opened = pair.open([echo])
    pair.release(opened.uid)
    this.asked[pair.kind] = Asked(opened.inbound, opened.outbound)
    this.requests[pair.kind] = asyncio.run(calls.request(pair, echo))


def _rotated(items: Sequence[T], by: int) -> list[T]:
    """Each round begins with another one, so that none is always first after a pause."""
    start = by % len(items)
    return [*items[start:], *items[:start]]
