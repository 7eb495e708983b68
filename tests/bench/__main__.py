"""Run the benchmarks: `make bench`, or `python -m tests.bench --quick` for a look."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from tests.bench import measure
from tests.bench.report import write
from tests.bench.results import FULL, QUICK
from tests.bench.rig import ROOT, BenchError, rig


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="a short run with few rounds, written to build/bench instead of docs"
    )
    parser.add_argument("--output", type=Path, help="the directory for PERFORMANCE.md and performance/")
    parser.add_argument("--rounds", type=int, help="so many interleaved rounds")
    parser.add_argument("--first-port", type=int, default=27000, help="ports from here on are used (27000)")
    return parser.parse_args()


def main() -> int:
    """Measure and write; returns the exit status: 0 also where an aim is missed, which the report says."""
    options = _options()
    extent = QUICK if options.quick else FULL
    if options.rounds:
        extent = replace(extent, rounds=options.rounds)
    output = options.output or ROOT / ("build/bench" if options.quick else "docs")
    try:
        with rig(options.first_port) as made:
            results = measure.run(made, extent)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bench: interrupted, nothing is written", file=sys.stderr)
        return 130
    written = write(results, output)
    print(f"bench: {results.seconds:.0f} s, written: {written}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
