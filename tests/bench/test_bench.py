"""The parts of the benchmarks that need no machine of their own: figures, verdicts, the page."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.bench import aims, proc, report, startup
from tests.bench.calls import Churn, Memory, Request
from tests.bench.chains import DIRECT, NULL
from tests.bench.dataplane import SIZES, STREAMS, Flow
from tests.bench.gateways import DEFAULT_TYPE, TYPES, Took
from tests.bench.results import QUICK, Asked, Results, Round
from tests.bench.scale import Scale
from tests.bench.startup import Floor, Imports
from tests.bench.stats import Spread, percentile

FACTS = {
    "date": "2026-01-01 00:00 UTC", "processor": "a processor", "processors": 2, "memory_bytes": 4_000_000_000,
    "system": "a system", "kernel": "6", "python": "3", "python_ssl": "OpenSSL 3", "programs": {"haproxy": "HAProxy 2"},
    "libraries": {"h2": "4"}, "scistreamd": "0", "commit": "0", "load_at_start": 0.0,
}  # fmt: skip


def flow(gbit: float, cpu: float) -> Flow:
    half = {"user": cpu / 4, "system": cpu / 4}
    return Flow(gbit, half, half, ends=0.5, interrupts=0.1, busy=0.95, foreign=0.02)


def measured(ours: Flow, s2uc: float = 0.3, byte: float = 0.1) -> Results:
    """One round in which 1.2 carries 2 Gb/s for 4 CPU seconds per GB, and each type of ours what is given."""
    flows = {DIRECT: flow(10, 0), NULL: flow(2, 4), **dict.fromkeys(TYPES, ours)}
    asked, request = Asked(Took(s2uc, 0.2), Took(s2uc, 0.2)), Request(0.01, 0.08, 0.08, byte, 0.01)
    once = Round(
        order=list(flows),
        start=0.3,
        floor=Floor(0.02, 0.01, 0.03),
        flows={name: dict.fromkeys(STREAMS, found) for name, found in flows.items()},
        round_trips={name: {size: {"p50": 1e-4, "p99": 2e-4} for size in SIZES} for name in flows},
        asked=dict.fromkeys(TYPES, asked),
        requests=dict.fromkeys(TYPES, request),
    )
    imports = Imports(0.1, 3, [("asyncio", 0.1)])
    return Results(
        environment=FACTS,
        extent=QUICK,
        rounds=[once],
        memory=dict.fromkeys(TYPES, Memory(42_000_000, 30_000_000, 4_000_000, 40_000, 7e6)),
        imports={"s2uc": imports, "s2cs": imports},
        churn=Churn(100, 0, 1.0, 0.01, 0.02, 42_000_000, 43_000_000),
        null_cipher="AECDH-NULL-SHA",
        scale=Scale(500, 8, DEFAULT_TYPE, 40.0, 0.6, [0.2], [1.5], 80_000_000, 9.0),
    )


def test_spread_and_percentile() -> None:
    assert Spread.of([3, 1, 2]) == Spread(2, 1, 3)
    assert Spread.of([1.234]).show(1) == "1.2 (1.2-1.2)"
    hundred = [float(number) for number in range(1, 101)]
    assert (percentile(hundred, 50), percentile(hundred, 99), percentile([7.0], 99)) == (50, 99, 7)


def test_imports_are_summed_by_package() -> None:
    text = """import time: self [us] | cumulative | imported package
import time:       100 |        100 |   h2.events
import time:       200 |        300 | h2
noise
import time:      1000 |       1300 | scistreamd.cli
"""
    found = startup.parse_imports(text)
    assert found.modules == 3
    assert found.total == pytest.approx(0.0013)
    assert dict(found.packages) == pytest.approx({"scistreamd": 0.001, "h2": 0.0003})


def test_our_own_process_is_accounted() -> None:
    before = proc.usage([os.getpid()])
    while (proc.usage([os.getpid()]) - before).total == 0:  # a tick of the kernel's clock is 10 ms
        sum(range(100_000))
    assert proc.rss(os.getpid()) >= proc.pss([os.getpid()]) > 0


def test_all_aims_can_be_met() -> None:
    found = aims.judge(measured(flow(3, 2)))
    assert all(aim.met and not aim.reason for aim in found), [aim for aim in found if not aim.met]


@pytest.mark.parametrize(
    ("results", "missed"),
    [
        (measured(flow(2.9, 2)), "throughput"),
        (measured(flow(3, 2.9)), "CPU of both gateways"),
        (measured(flow(3, 2), s2uc=0.4), "s2uc"),
        (measured(flow(3, 2), byte=0.16), "first byte"),
    ],
)
def test_a_missed_aim_says_why(results: Results, missed: str) -> None:
    found = [aim for aim in aims.judge(results) if not aim.met]
    assert len(found) == 2 - (missed == "first byte")
    assert all(missed in aim.what and aim.reason for aim in found)


def test_a_failed_round_of_request_and_release_is_a_missed_aim() -> None:
    results = measured(flow(3, 2))
    results.churn = replace(results.churned, failures=1)
    assert [aim.measured for aim in aims.judge(results) if not aim.met] == ["1 failures, 1.0 s"]


@pytest.mark.parametrize(
    ("change", "missed"),
    [
        ({"lists": [0.31]}, "list"),
        ({"create": 51.0}, "made by"),
        ({"restarts": [3.1]}, "restart"),
        ({"rss": 120_000_001}, "RSS"),
    ],
)
def test_missed_aims_of_many_tunnels(change: dict[str, Any], missed: str) -> None:
    results = measured(flow(3, 2))
    assert results.scale
    results.scale = replace(results.scale, **change)
    [found] = [aim for aim in aims.judge(results) if not aim.met]
    assert missed in found.what
    assert found.reason


def test_without_root_the_page_says_what_was_not_measured(tmp_path: Path) -> None:
    results = measured(flow(3, 2))
    results.scale = None
    assert "needs root" in report.write(results, tmp_path).read_text()


def test_the_page_and_the_raw_data_are_written(tmp_path: Path) -> None:
    page = report.write(measured(flow(2.9, 2)), tmp_path).read_text()
    raw = json.loads((tmp_path / "performance" / "measurements.json").read_text())
    assert "**missed**" in page
    assert f"- **{DEFAULT_TYPE} encrypted" in page
    assert "AECDH-NULL-SHA, which does not encrypt and does not authenticate" in page
    assert raw["rounds"][0]["flows"][NULL]["8"]["gbit"] == 2
