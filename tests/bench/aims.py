"""What the issues 2 and 3 aim at, held against the results; where one is missed, the measured reason."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from tests.bench.chains import NULL
from tests.bench.dataplane import STREAMS, Flow
from tests.bench.gateways import DEFAULT_TYPE, Took
from tests.bench.results import Results
from tests.bench.scale import Scale, lists, restarts
from tests.bench.startup import Imports
from tests.bench.stats import Spread

SPEED, CPU = 1.5, 0.7
S2UC_SECONDS, ACCEPT_SECONDS, START_SECONDS = 0.4, 0.15, 0.5
IDLE_BYTES = 60e6
LIST_SECONDS, CREATED_PER_SECOND, RESTART_SECONDS, DAEMON_BYTES = 0.3, 10, 3, 120e6


@dataclass(frozen=True)
class Aim:
    """One row of the table of aims; ``reason`` is empty where the aim is met."""

    what: str
    goal: str
    measured: str
    met: bool
    reason: str


def judge(results: Results) -> list[Aim]:
    """Every aim in the issue's order."""
    return [*_of_streams(results), *_of_s2uc(results), _accepting(results), _churn(results), _idle(results),
            _start(results), *_of_scale(results)]  # fmt: skip


def _aim(what: str, goal: str, measured: str, met: bool, reason: str) -> Aim:
    return Aim(what, goal, measured, met, "" if met else reason)


def gateways_cpu(flow: Flow) -> float:
    """CPU seconds per GB of both gateways together."""
    return sum([*flow.outbound.values(), *flow.inbound.values()])


def ratio(results: Results, name: str, streams: int) -> Spread:
    """Throughput of a chain as a multiple of 1.2's in the same round."""
    return results.over(lambda each: each.flows[name][streams].gbit / each.flows[NULL][streams].gbit)


def cpu_ratio(results: Results, name: str, streams: int) -> Spread:
    """CPU seconds per GB of a chain's gateways as a multiple of 1.2's in the same round."""
    return results.over(lambda each: gateways_cpu(each.flows[name][streams]) / gateways_cpu(each.flows[NULL][streams]))


def _of_streams(results: Results) -> Iterator[Aim]:
    for streams in STREAMS:
        words = "1 stream" if streams == 1 else f"{streams} streams"
        speed = ratio(results, DEFAULT_TYPE, streams)
        what = f"{DEFAULT_TYPE} encrypted : 1.2 unencrypted, {words}: throughput"
        reason = _why_slow(results, streams)
        yield _aim(what, f"at least {SPEED} times", f"{speed.show()} times", speed.median >= SPEED, reason)
        cost = cpu_ratio(results, DEFAULT_TYPE, streams)
        what = f"{DEFAULT_TYPE} encrypted : 1.2 unencrypted, {words}: CPU of both gateways per GB"
        reason = _why_costly(results, streams)
        yield _aim(what, f"at most {CPU} times", f"{cost.show()} times", cost.median <= CPU, reason)


def _median(results: Results, name: str, streams: int, value: Callable[[Flow], float]) -> float:
    return results.over(lambda each: value(each.flows[name][streams])).median


def _why_slow(results: Results, streams: int) -> str:
    def medians(name: str) -> tuple[float, float, float, float]:
        gateways = _median(results, name, streams, gateways_cpu)
        rest = _median(results, name, streams, lambda flow: flow.ends + flow.interrupts)
        busy = _median(results, name, streams, lambda flow: flow.busy)
        return gateways, rest, busy, _median(results, name, streams, lambda flow: flow.foreign)

    ours, our_ends, our_busy, our_foreign = medians(DEFAULT_TYPE)
    theirs, their_ends, their_busy, their_foreign = medians(NULL)
    bound = (theirs + their_ends) / (ours + our_ends)
    return (
        f"client, server and both gateways share {results.environment['processors']} processors, which were "
        f"{our_busy:.0%} busy, {our_foreign:.0%} with other work (with 1.2: {their_busy:.0%} and {their_foreign:.0%}). "
        f"A GB took {ours:.2f} CPU seconds in our gateways and {our_ends:.2f} in iperf3 and interrupts, with 1.2 "
        f"{theirs:.2f} and {their_ends:.2f}; at these costs equal shares of the processors would carry {bound:.2f} "
        "times as much."
    )


def _why_costly(results: Results, streams: int) -> str:
    def split(name: str) -> tuple[float, float]:
        user = _median(results, name, streams, lambda flow: flow.outbound["user"] + flow.inbound["user"])
        system = _median(results, name, streams, lambda flow: flow.outbound["system"] + flow.inbound["system"])
        return user, system

    (user, system), (their_user, their_system) = split(DEFAULT_TYPE), split(NULL)
    return (
        f"per GB our gateways took {user:.2f} s in the program (encryption above all) and {system:.2f} s in the kernel "
        f"(copying, TCP), 1.2's took {their_user:.2f} s and {their_system:.2f} s: the kernel's part alone is "
        f"{system / (their_user + their_system):.2f} of 1.2's whole."
    )


def _of_s2uc(results: Results) -> list[Aim]:
    return [
        _wall("inbound", [each.asked[DEFAULT_TYPE].inbound for each in results.rounds], results),
        _wall("outbound", [each.asked[DEFAULT_TYPE].outbound for each in results.rounds], results),
    ]


def _wall(name: str, runs: Sequence[Took], results: Results) -> Aim:
    took, cpu = Spread.of(run.wall for run in runs), Spread.of(run.cpu for run in runs)
    server = results.over(lambda each: each.requests[DEFAULT_TYPE].reserve + each.requests[DEFAULT_TYPE].update_in)
    why = (
        f"s2uc itself used {cpu.median * 1000:.0f} ms of a processor, its gateway took {server.median * 1000:.0f} ms "
        f"from req to the answer of update; what remains is waiting, for a processor or for the other. "
        f"{_why_starting(results, 's2uc')}"
    )
    what = f"`s2uc {name}-request`, wall time (SciStream 1.2: 1.0 s, as given)"
    return _aim(what, f"under {S2UC_SECONDS} s", f"{took.show(3)} s", took.median < S2UC_SECONDS, why)


def imports_in_words(imports: Imports) -> str:
    """The packages that took most."""
    most = ", ".join(f"{name} {seconds * 1000:.0f}" for name, seconds in imports.packages[:5])
    return f"{imports.modules} imported modules {imports.total * 1000:.0f} ms (by themselves: {most})"


def _why_starting(results: Results, command: str) -> str:
    bare = results.over(lambda each: each.floor.python).median
    return (
        f"Python alone takes {bare * 1000:.0f} ms to start and end, "
        f"{imports_in_words(results.imports[command])}, measured with `-X importtime`, which adds its own cost."
    )


def _accepting(results: Results) -> Aim:
    took = results.over(lambda each: each.requests[DEFAULT_TYPE].first_byte)
    update = results.over(lambda each: each.requests[DEFAULT_TYPE].update_out)
    isolated = results.over(lambda each: each.floor.isolated)
    checked = results.over(lambda each: each.floor.haproxy)
    reason = (
        f"the update call took {update.median * 1000:.0f} ms. It starts two programs one after the other: a Python "
        f"between fork and exec, which takes {isolated.median * 1000:.0f} ms to start and end without doing anything, "
        f"and HAProxy, which takes {checked.median * 1000:.0f} ms to check a configuration with one listener."
    )
    goal, met = f"within {ACCEPT_SECONDS * 1000:.0f} ms", took.median <= ACCEPT_SECONDS
    what = f"update until the first byte came back through both gateways, {DEFAULT_TYPE}"
    return _aim(what, goal, f"{_milliseconds(took)} ms", met, reason)


def _milliseconds(spread: Spread) -> str:
    return Spread(spread.median * 1000, spread.least * 1000, spread.most * 1000).show(0)


def _churn(results: Results) -> Aim:
    churn = results.churned
    measured = f"{churn.failures} failures, {churn.total:.1f} s"
    what = f"{churn.rounds} sequential rounds of request and release over ten ports"
    return _aim(what, "no failure", measured, churn.failures == 0, "the messages are in the output of the run.")


def _idle(results: Results) -> Aim:
    memory = results.memory[DEFAULT_TYPE]
    imports = results.imports["s2cs"]
    reason = f"{imports.modules} modules are loaded; {memory.idle_pss / 1e6:.1f} MB are not shared (PSS)."
    what = "idle daemon, RSS (SciStream 1.2: 77 MB, as given)"
    measured, met = f"{memory.idle_rss / 1e6:.1f} MB", memory.idle_rss < IDLE_BYTES
    return _aim(what, f"under {IDLE_BYTES / 1e6:.0f} MB", measured, met, reason)


def _start(results: Results) -> Aim:
    took = results.over(lambda each: each.start)
    what = "`s2cs`: exec until the port answers a health check over TLS"
    met = took.median < START_SECONDS
    return _aim(what, f"under {START_SECONDS} s", f"{took.show(3)} s", met, _why_starting(results, "s2cs"))


def _of_scale(results: Results) -> Iterator[Aim]:
    scale = results.scale
    if scale is None:
        return
    busy = f"the load of the machine was {results.environment['load_at_start']} at the start of the run."
    words = f"{scale.tunnels} tunnels on one host"
    took = lists(scale)
    yield _aim(
        f"{words}: `s2ctl list`", f"under {LIST_SECONDS} s", f"{took.show(3)} s", took.median < LIST_SECONDS,
        f"{_why_starting(results, 's2uc')} {busy}",
    )  # fmt: skip
    yield _creating(scale, words, busy)
    took = restarts(scale)
    yield _aim(
        f"{words}: `systemctl restart scistreamd` until all are known", f"under {RESTART_SECONDS} s",
        f"{took.show()} s", took.median < RESTART_SECONDS, busy,
    )  # fmt: skip
    yield _aim(
        f"{words}: the daemon's RSS", f"under {DAEMON_BYTES / 1e6:.0f} MB", f"{scale.rss / 1e6:.1f} MB",
        scale.rss < DAEMON_BYTES,
        f"{scale.rss / scale.tunnels / 1e3:.0f} kB for each tunnel, the idle daemon's part included.",
    )  # fmt: skip


def _creating(scale: Scale, words: str, busy: str) -> Aim:
    return _aim(
        f"{words}: made by {scale.at_once} callers of the bus beside each other",
        f"at least {CREATED_PER_SECOND} a second",
        f"{scale.per_second:.1f} a second", scale.per_second >= CREATED_PER_SECOND,
        f"each starts a data server in its sandbox, on both processors; {busy}",
    )  # fmt: skip
