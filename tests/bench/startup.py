"""How long programs take to start, and on what."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from grpclib.client import Channel
from grpclib.health.v1.health_grpc import HealthStub
from grpclib.health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from scistreamd.cli.trust import Trust
from tests.bench.gateways import Certificate, Gateway, s2cs_argv
from tests.bench.rig import BIN, INBOUND, BenchError, Rig, accepts, program, run

_SECONDS = 20.0
_PROFILE = "PYTHONPROFILEIMPORTTIME"
# "import time:       155 |        155 |   zipimport": microseconds alone and with what it imports in turn.
_IMPORT = re.compile(r"import time: +(\d+) \| +\d+ \| +(\S+)")


def gateway(rig: Rig, made: Certificate, index: int, kind: str) -> float:
    """Seconds from the exec of s2cs until its port answers a health check over TLS; it is ended again."""
    port = rig.ports.control(index)
    with contextlib.ExitStack() as undo:
        process = rig.start(s2cs_argv(INBOUND, port, kind, rig.ports.pool(index), made), undo)
        process.wait_for(lambda: accepts(INBOUND, port), "s2cs")
        asyncio.run(_health(port, Trust(made.certificate)))
        return time.perf_counter() - process.began


async def _health(port: int, trust: Trust) -> None:
    channel = Channel(INBOUND, port, ssl=trust.verified())
    try:
        answer = await asyncio.wait_for(HealthStub(channel).Check(HealthCheckRequest()), _SECONDS)
    finally:
        channel.close()
    if answer.status != HealthCheckResponse.SERVING:
        raise BenchError(f"the health check says {answer.status}")


_CHECKED = """defaults
    mode tcp
    timeout connect 1s
    timeout client 1s
    timeout server 1s
listen check
    bind {address}:{port}
    server target {address}:{port}
"""


@dataclass(frozen=True)
class Floor:
    """Seconds that programs take to start and end without doing anything of ours.

    ``python``: this Python in its virtual environment; ``isolated``: without
    `site`, as the process launcher uses it between fork and exec; ``haproxy``:
    the check of a configuration with one listener, which is not opened.
    """

    python: float
    isolated: float
    haproxy: float


def floor(rig: Rig) -> Floor:
    """Measure each once."""
    config = rig.scratch / "check.cfg"
    config.write_text(_CHECKED.format(address=INBOUND, port=rig.ports.echo))
    return Floor(
        _seconds([sys.executable, "-c", ""]),
        _seconds([sys.executable, "-I", "-S", "-c", ""]),
        _seconds([program("haproxy"), "-c", "-f", str(config)]),
    )


def _seconds(argv: Sequence[str]) -> float:
    began = time.perf_counter()
    run(argv, _SECONDS)
    return time.perf_counter() - began


@dataclass(frozen=True)
class Imports:
    """What a program imports: seconds in all, and those of the packages that took most, by themselves."""

    total: float
    modules: int
    packages: list[tuple[str, float]]


def imports_of_s2uc(gateway: Gateway, port: int) -> Imports:
    """Those of an inbound request, which is released again; raises BenchError where it fails."""
    options = ["--s2cs", gateway.control, "--server-cert", str(gateway.certificate), "--json"]
    argv = [str(BIN / "s2uc"), "inbound-request", *options, "--remote-ip", INBOUND, "--receiver-ports", str(port)]
    environment = {**os.environ, _PROFILE: "1"}
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise BenchError(f"s2uc under importtime ended with status {done.returncode}")
    gateway.ask("release", json.loads(done.stdout)["uid"])
    return parse_imports(done.stderr)


def imports_of_s2cs(rig: Rig, made: Certificate, index: int, kind: str) -> Imports:
    """Those of a gateway until it serves."""
    port = rig.ports.control(index)
    with contextlib.ExitStack() as undo:
        argv = s2cs_argv(INBOUND, port, kind, rig.ports.pool(index), made)
        process = rig.start(["env", f"{_PROFILE}=1", *argv], undo)
        process.wait_for(lambda: b"Server started" in process.log.read_bytes(), "s2cs")
        return parse_imports(process.log.read_text())


def parse_imports(text: str) -> Imports:
    """Sum the modules' own times by top-level package."""
    own: dict[str, float] = {}
    rows = _IMPORT.findall(text)
    for alone, name in rows:
        package = name.split(".")[0]
        own[package] = own.get(package, 0.0) + int(alone) / 1e6
    ranked = sorted(own.items(), key=lambda item: -item[1])
    return Imports(sum(own.values()), len(rows), ranked[:8])
