"""The tables of the report, in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tests.bench.aims import Aim, cpu_ratio, imports_in_words, ratio
from tests.bench.chains import DIRECT, NULL
from tests.bench.dataplane import SIZES
from tests.bench.gateways import TYPES
from tests.bench.results import Results, Round
from tests.bench.scale import Scale, lists, restarts
from tests.bench.stats import Spread

_NAMES = {DIRECT: "direct, no gateway", NULL: "SciStream 1.2 Stunnel, NULL cipher (not encrypted)"}


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _name(chain: str) -> str:
    return _NAMES.get(chain, f"{chain}, TLS 1.3 mutual")


def _size(size: int) -> str:
    return "1 byte" if size == 1 else f"{size // 1000} kB"


def aims(found: Sequence[Aim]) -> str:
    """Every aim with what was measured."""
    rows = [(each.what, each.goal, each.measured, "met" if each.met else "**missed**") for each in found]
    return _table(("what", "aim", "measured", ""), rows)


def flows(results: Results, streams: int) -> str:
    """Throughput and CPU of every chain at so many streams."""
    rows = [_flow(results, name, streams) for name in (DIRECT, NULL, *TYPES)]
    cpu = ("outbound", "inbound", "both x 1.2", "iperf3's ends", "interrupts")
    head = ("way", "Gb/s", "x 1.2", *(f"CPU-s/GB, {part}" for part in cpu))
    return _table(head, rows)


def _flow(results: Results, name: str, streams: int) -> list[str]:
    speed = results.over(lambda each: each.flows[name][streams].gbit)
    ends = results.over(lambda each: each.flows[name][streams].ends)
    interrupts = results.over(lambda each: each.flows[name][streams].interrupts)
    cpu = ["none"] * 3
    if name != DIRECT:
        cpu = [_cpu(results, name, streams, "outbound"), _cpu(results, name, streams, "inbound")]
        cpu.append(cpu_ratio(results, name, streams).show())
    return [
        _name(name),
        speed.show(),
        ratio(results, name, streams).show(),
        *cpu,
        f"{ends.median:.2f}",
        f"{interrupts.median:.2f}",
    ]


def _cpu(results: Results, name: str, streams: int, side: str) -> str:
    def value(part: str) -> Spread:
        return results.over(lambda each: getattr(each.flows[name][streams], side)[part])

    whole = results.over(lambda each: sum(getattr(each.flows[name][streams], side).values()))
    return f"{whole.show()}, {value('system').median:.2f} of it in the kernel"


def round_trips(results: Results) -> str:
    """Round-trip times: direct as they are, the others as what they add in the same round; microseconds."""
    head = ["way", *(f"{_size(size)}, {rank}" for size in SIZES for rank in ("p50", "p99"))]
    rows = []
    for name in (DIRECT, NULL, *TYPES):
        cells = [_added(results, name, size, rank) for size in SIZES for rank in ("p50", "p99")]
        rows.append([_name(name), *cells])
    return _table(head, rows)


def _added(results: Results, name: str, size: int, rank: str) -> str:
    def added(each: Round) -> float:
        base = 0.0 if name == DIRECT else each.round_trips[DIRECT][size][rank]
        return (each.round_trips[name][size][rank] - base) * 1e6

    return ("" if name == DIRECT else "+") + results.over(added).show(0)


_STEPS = (
    ("req and hello, until req answers", "reserve"),
    ("update, inbound", "update_in"),
    ("update, outbound", "update_out"),
    ("outbound update until the first byte came back", "first_byte"),
    ("release, outbound", "release"),
)


def control(results: Results) -> str:
    """Times of the control plane by type; milliseconds."""
    rows = [
        [f"`s2uc {name}-request`, wall time", *(_asked(results, kind, name) for kind in TYPES)]
        for name in ("inbound", "outbound")
    ]
    rows += [[text, *(_step(results, kind, step) for kind in TYPES)] for text, step in _STEPS]
    return _table(["ms", *TYPES], rows)


def _asked(results: Results, kind: str, name: str) -> str:
    return results.over(lambda each: getattr(each.asked[kind], name).wall * 1000).show(0)


def _step(results: Results, kind: str, step: str) -> str:
    return results.over(lambda each: getattr(each.requests[kind], step) * 1000).show(1)


def memory(results: Results) -> str:
    """Memory of daemon and tunnels by type; MB are 10^6 bytes."""
    found = [results.memory[kind] for kind in TYPES]
    rows = [
        ["idle daemon, RSS", *(f"{each.idle_rss / 1e6:.1f}" for each in found)],
        ["idle daemon, PSS", *(f"{each.idle_pss / 1e6:.1f}" for each in found)],
        ["its growth at the first tunnel, RSS", *(f"{each.first / 1e6:.1f}" for each in found)],
        ["its growth at each further tunnel, RSS", *(f"{each.further / 1e6:.3f}" for each in found)],
        ["a tunnel's data server, PSS", *(f"{each.data_server / 1e6:.2f}" for each in found)],
    ]
    return _table(["MB", *TYPES], rows)


def starting(results: Results) -> str:
    """What starting our programs takes."""
    bare = results.over(lambda each: each.floor.python * 1000)
    isolated = results.over(lambda each: each.floor.isolated * 1000)
    checked = results.over(lambda each: each.floor.haproxy * 1000)
    served = results.over(lambda each: each.start * 1000)
    rows = [
        ("`python -c ''`, start and end", f"{bare.show(0)} ms"),
        ("`python -I -S -c ''`, start and end", f"{isolated.show(0)} ms"),
        ("`haproxy -c` of a configuration with one listener", f"{checked.show(0)} ms"),
        ("`s2cs` from exec to the answer of a health check over TLS", f"{served.show(0)} ms"),
        ("of that, imports (one run, `-X importtime`)", imports_in_words(results.imports["s2cs"])),
        ("`s2uc inbound-request`, imports (one run, `-X importtime`)", imports_in_words(results.imports["s2uc"])),
    ]
    return _table(("what", "took"), rows)


def churn(results: Results) -> str:
    """The rounds of request and release in a sentence."""
    found = results.churned
    return (
        f"{found.rounds} rounds took {found.total:.2f} s, {found.p50 * 1000:.2f} ms each at the median and "
        f"{found.p99 * 1000:.2f} ms at p99; {found.failures} failed. The daemon's RSS went from "
        f"{found.rss_before / 1e6:.1f} to {found.rss_after / 1e6:.1f} MB.\n"
    )


def scale(found: Scale) -> str:
    """What so many tunnels take."""
    rows = [
        (f"made, {found.at_once} callers beside each other", f"{found.create:.1f} s, {found.per_second:.1f} a second"),
        ("one `busctl call` of these, which waits for the others, p50", f"{found.create_p50 * 1000:.0f} ms"),
        ("`s2ctl list`", f"{lists(found).show(3)} s"),
        ("`systemctl restart scistreamd`, until it has taken over all of them", f"{restarts(found).show()} s"),
        ("the daemon's RSS", f"{found.rss / 1e6:.1f} MB"),
        ("`s2ctl release --all`", f"{found.release:.1f} s"),
    ]
    return _table((f"{found.tunnels} tunnels, {found.kind}", ""), rows)
