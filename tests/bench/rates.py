"""How exactly rates are held: `python -m tests.bench.rates` measures in a lab, and writes docs/performance/rates.jsonl.

For each type, rate, direction and number of connections, one stream of a dozen seconds through both gateways; the
inbound one, as packaged, holds it to the rate. What counts is what the receiving application got in ten seconds in
the middle of the stream. `--table` prints the table of docs/configuration.md from the file.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.system.gateways import OUTBOUND_ADDRESS, PRODUCER, TYPES, Field, field_of
from tests.system.lab import Lab

FILE = Path(__file__).parent.parent.parent / "docs" / "performance" / "rates.jsonl"
_SCRIPT = "/root/rate_end.py"
_FIRST, _LAST = 2.0, 12.0  # seconds of a stream
_STREAM_SECONDS = 12.3
_RATES = (100, 1000, 20_000, 100_000)
_CONNECTIONS = (1, 4, 8)
_SHARE = 0.8  # of what was reached without a rate just before
_TOGETHER = 1000  # kB/s up to which all types are measured at the same time
_PORT = 7100
_WAIT = 90.0


@dataclass(frozen=True)
class Stream:
    """What to measure; ``rate`` in kB/s, 0: none. ``direction``: ``forth`` to the target, or ``back``."""

    type: str
    rate: int
    direction: str
    connections: int
    of_unlimited: bool = False


@dataclass(frozen=True)
class Result:
    """``samples``: pairs of seconds since the first byte and bytes until then; ``load`` of the machine."""

    stream: Stream
    load: float
    samples: list[tuple[float, int]]

    @property
    def rate(self) -> float:
        """kB/s in the middle of the stream."""
        return rate_between(self.samples, _FIRST, _LAST)


def rate_between(samples: Sequence[Sequence[float]], first: float, last: float) -> float:
    """kB/s between two moments, in seconds since the first byte; see `Result` and rate_end.py."""
    return (_until(samples, last) - _until(samples, first)) / (last - first) / 1000


def _until(samples: Sequence[Sequence[float]], moment: float) -> float:
    for (one, before), (two, after) in itertools.pairwise(samples):
        if one <= moment <= two:
            return before + (after - before) * (moment - one) / (two - one)
    raise ValueError(f"the stream ended before {moment} s")


@dataclass(frozen=True)
class _Tunnel:
    inbound: str
    port: int
    target: int


class Measurement:
    """Tunnels of every type in a lab."""

    def __init__(self, field: Field) -> None:
        self._field = field
        self._tunnels: dict[str, _Tunnel] = {}
        for name in ("producer", "consumer"):
            field.lab[name].write(_SCRIPT, (Path(__file__).parent / "rate_end.py").read_text())

    def _renew(self, rate: int) -> None:
        """Tunnels that are made with the rate, which not every data server takes in all that follows later."""
        self.end()
        made = {kind: self._tunnel(kind, _PORT + number, rate) for number, kind in enumerate(TYPES)}
        self._tunnels = made

    def end(self) -> None:
        """Release all of them."""
        for host in (self._field.near, self._field.far):
            host.run(["s2ctl", "release", "--all", "-q"])

    def _tunnel(self, kind: str, target: int, rate: int) -> _Tunnel:
        inbound, _, port = self._field.tunnel(kind, near=["--rate", str(rate)] if rate else [])
        self._field.near.run(["s2ctl", "update", "-q", inbound, f"{PRODUCER}:{target}"])
        return _Tunnel(inbound, port, target)

    def all(self, rates: Sequence[int], connections: Sequence[int]) -> Iterable[Result]:
        """Rate by rate; 0: each type without a rate, and at once with a share of what that was."""
        ways = [(direction, count) for direction in ("forth", "back") for count in connections]
        for rate in filter(None, rates):
            self._renew(rate)
            for direction, count in ways:
                streams = [Stream(kind, rate, direction, count) for kind in TYPES]
                with ThreadPoolExecutor(len(TYPES) if rate <= _TOGETHER else 1) as pool:
                    yield from pool.map(self.one, streams)
        if 0 not in rates:
            return
        self._renew(0)
        for direction, count in ways:
            for kind in TYPES:
                free = self.one(Stream(kind, 0, direction, count))
                yield free
                yield self.one(Stream(kind, round(_SHARE * free.rate), direction, count, of_unlimited=True))

    def one(self, stream: Stream) -> Result:
        """Measure one stream."""
        tunnel, lab = self._tunnels[stream.type], self._field.lab
        self._field.near.run(["s2ctl", "update", "-q", tunnel.inbound, "--rate", str(stream.rate)])
        near, far = ("sink", "source") if stream.direction == "forth" else ("source", "sink")
        words = [str(stream.connections), str(_STREAM_SECONDS)]
        serve = ["python3", _SCRIPT, "serve", str(tunnel.target), near, *words]
        dial = ["python3", _SCRIPT, "dial", OUTBOUND_ADDRESS, str(tunnel.port), far, *words]
        with contextlib.ExitStack() as ends:
            server = ends.enter_context(lab["producer"].start(serve))
            lab["producer"].wait_until(lambda: "listening" in server.output(), "listening")
            client = ends.enter_context(lab["consumer"].start(dial))
            host, sink = (lab["producer"], server) if near == "sink" else (lab["consumer"], client)
            host.wait_until(lambda: "]]" in sink.output(), "measured", _WAIT)
            return Result(stream, round(os.getloadavg()[0], 1), json.loads(sink.output().splitlines()[-1]))


def load(path: Path) -> list[Result]:
    """What was measured, from the file."""
    raw = [json.loads(line) for line in path.read_text().splitlines()]
    return [Result(Stream(**each["stream"]), each["load"], [(t, n) for t, n in each["samples"]]) for each in raw]


def table(results: Sequence[Result]) -> str:
    """As Markdown: by how much each stream missed its rate, when it was measured last."""
    rows = ["| rate asked, kB/s | connections | " + " | ".join(f"{kind} forth, back" for kind in TYPES) + " |"]
    rows.append("|---" * (2 + len(TYPES)) + "|")
    rated = [each for each in results if each.stream.rate]
    for of_unlimited, rate in [*((False, rate) for rate in _RATES), (True, 0)]:
        for count in _CONNECTIONS:
            cells = [_cell(rated, kind, of_unlimited, rate, count) for kind in TYPES]
            rows.append(f"| {'0.8 of unlimited' if of_unlimited else rate} | {count} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def _cell(results: Sequence[Result], kind: str, of_unlimited: bool, rate: int, count: int) -> str:
    shown: dict[str, str] = {}
    for direction in ("forth", "back"):
        for each in results:
            stream = each.stream
            same = (stream.type, stream.direction, stream.connections) == (kind, direction, count)
            if same and stream.of_unlimited is of_unlimited and (of_unlimited or stream.rate == rate):
                asked = f" of {stream.rate}" if of_unlimited else ""
                shown[direction] = f"{100 * (each.rate / stream.rate - 1):+.1f} %{asked}"
    return ", ".join(shown.values())


def main() -> None:
    """Measure, or print what was measured."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.rates", description=__doc__)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--file", type=Path, default=FILE)
    parser.add_argument("--rates", type=int, nargs="+", default=[*_RATES, 0], help="0: a share of what is reached")
    parser.add_argument("--connections", type=int, nargs="+", default=_CONNECTIONS)
    parser.add_argument("--add", action="store_true", help="to what the file has, of which a table shows the last")
    options = parser.parse_args()
    if options.table:
        print(table(load(options.file)))
        return
    mode = "a" if options.add else "w"
    with Lab.start(f"rates-{os.getpid()}", say=print) as lab, field_of(lab) as field, options.file.open(mode) as file:
        measurement = Measurement(field)
        for result in measurement.all(options.rates, options.connections):
            print(json.dumps(asdict(result)), file=file, flush=True)
            print(time.strftime("%X"), result.stream, f"{result.rate:.0f} kB/s", file=sys.stderr, flush=True)
        measurement.end()


if __name__ == "__main__":
    main()
