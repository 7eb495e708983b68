"""Throughput, CPU and round trips of one chain, measured once."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import time
from dataclasses import asdict, dataclass

from tests.bench import proc
from tests.bench.chains import Chain
from tests.bench.rig import INBOUND, BenchError, Rig
from tests.bench.stats import percentile

STREAMS = (1, 8)
SIZES = (1, 1000)
_WARM_UP = 20
_GRACE = 30.0
_GB = 1e9


@dataclass(frozen=True)
class Flow:
    """One run of iperf3. CPU seconds are per GB (10^9 bytes) that the server received.

    ``ends``: of iperf3's client and server; ``interrupts``: of the whole
    machine. ``busy``: the share of all processors that was not idle, ``foreign``
    that of other work on the machine and of time stolen by the host.
    """

    gbit: float
    outbound: dict[str, float]
    inbound: dict[str, float]
    ends: float
    interrupts: float
    busy: float
    foreign: float


def flow(rig: Rig, chain: Chain, streams: int, seconds: int) -> Flow:
    """Send through the chain for so long, to a server of its own: iperf3's stays busy for a while after a run."""
    with contextlib.ExitStack() as undo:
        argv = ["iperf3", "--server", "--one-off", "--forceflush", "--bind", INBOUND, "--port", str(rig.ports.iperf3)]
        children = proc.ended_children()
        server = rig.start(argv, undo)
        server.wait_for(lambda: b"Server listening" in server.log.read_bytes(), "iperf3 --server")
        outbound, inbound = proc.usage(chain.outbound), proc.usage(chain.inbound)
        machine, began = proc.machine(), time.perf_counter()
        received, measured = _iperf3(chain, streams, seconds)
        server.wait(_GRACE)
        outbound, inbound = proc.usage(chain.outbound) - outbound, proc.usage(chain.inbound) - inbound
        ends, gigabytes = proc.ended_children() - children, received / _GB
        machine, all_cpus = proc.machine() - machine, (time.perf_counter() - began) * (os.cpu_count() or 1)
    ours = ends + outbound.total + inbound.total
    return Flow(
        gbit=received * 8 / _GB / measured,
        outbound=_per_gb(outbound, gigabytes),
        inbound=_per_gb(inbound, gigabytes),
        ends=ends / gigabytes,
        interrupts=machine.interrupts / gigabytes,
        busy=machine.busy / all_cpus,
        foreign=max(0.0, machine.busy - machine.interrupts - ours) / all_cpus,
    )


def _per_gb(usage: proc.Usage, gigabytes: float) -> dict[str, float]:
    return {name: value / gigabytes for name, value in asdict(usage).items()}


def _iperf3(chain: Chain, streams: int, seconds: int) -> tuple[int, float]:
    """Bytes that the server received, and the seconds it took by its clock."""
    argv = ["iperf3", "--client", chain.host, "--port", str(chain.stream_port), "--json"]
    argv += ["--time", str(seconds), "--parallel", str(streams)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=seconds + _GRACE, stdin=subprocess.DEVNULL)
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        raise BenchError(f"iperf3 through {chain.name}: no JSON, but {done.stdout[:200]} {done.stderr[:200]}") from None
    if "error" in answer or done.returncode:
        raise BenchError(f"iperf3 through {chain.name}: {answer.get('error', done.stderr)}")
    total = answer["end"]["sum_received"]
    return int(total["bytes"]), float(total["seconds"])


def round_trips(chain: Chain, size: int, count: int) -> dict[str, float]:
    """p50 and p99, in seconds, of ``count`` echoes of ``size`` bytes over one connection."""
    message = b"x" * size
    with socket.create_connection((chain.host, chain.echo_port), timeout=_GRACE) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(_WARM_UP):
            _echo(connection, message)
        times = [_echo(connection, message) for _ in range(count)]
    return {"p50": percentile(times, 50), "p99": percentile(times, 99)}


def _echo(connection: socket.socket, message: bytes) -> float:
    began = time.perf_counter()
    connection.sendall(message)
    left = len(message)
    while left:
        data = connection.recv(left)
        if not data:
            raise BenchError("the echo connection ended")
        left -= len(data)
    return time.perf_counter() - began
