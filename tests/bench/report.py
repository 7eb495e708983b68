"""docs/PERFORMANCE.md and the raw data beside it, wholly from the results."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.bench import tables
from tests.bench.aims import Aim, judge
from tests.bench.dataplane import STREAMS
from tests.bench.results import QUIET, Results
from tests.bench.stats import Spread

_RAW = "measurements.json"

_TEXT = """# Performance

This page is written by `make bench` and holds nothing typed by hand; run it to get yours. The figures of every round
are in [performance/{raw}](performance/{raw}).

{environment}
## Aims

{aims}
{missed}
## How it was measured

Client, both gateways and server run on one machine over loopback and share its {processors} processors, so Gb/s are
those of a whole chain: read ratios, and CPU seconds per GB. All ways were up at the same time and measured in turn,
{rounds} rounds, each beginning with another one. Figures are medians of the rounds with least and greatest in
brackets; a ratio or a difference is formed inside of each round. Differences under 15 % are noise. Other work on
this machine (with time that its host took) used {foreign}

- Each way of ours is a pair of `s2cs` with their default settings, and a tunnel that `s2uc` asked for; both gateways
  are of the same type. TLS 1.3 with mutual authentication is on for all of them.
- The peer to beat is a pair of plain `stunnel` processes with the settings of SciStream 1.2: `fips = no`,
  `PSKsecrets`, `securityLevel = 0`, `sslVersionMax = TLSv1.2`, `ciphers = eNULL`, `debug = 7`, `foreground`. Its ends
  agreed on {null_cipher}{null_meaning}.
- Streams are those of iperf3, {flow_seconds} s each; Gb/s is what its server received. CPU seconds are utime and stime
  of a gateway's data server processes (proc(5)), GB are 10^9 bytes. Interrupts are the whole machine's;
  where the kernel accounts them by themselves, loopback's deliveries are there and in no process.
- Round trips are {echoes} echoes a round over one connection with TCP_NODELAY. On so few processors p99 is mostly the
  scheduler's.

## Streams

### 1 stream

{one}
### 8 streams

{many}
## Round trips

Microseconds; direct as it is, the others as what they add to it.

{round_trips}
## Control plane

`s2uc` is timed as a process, from exec to exit. The calls below it are timed by a client that is connected over TLS,
so they include its own work and that of the loopback; both gateways and the client share the processors. For the
first byte a client connects before the update and sends at once, so the time ends when its byte is back from the
server application.

{control}
{churn}
## Memory

RSS counts memory that is shared with other processes whole, PSS in proportion. A first tunnel and
{tunnels} further ones were open, with one listener each; a tunnel is one side, on one gateway.

{memory}
## Many tunnels on one host

{many_tunnels}
## Starting

{starting}"""


def write(results: Results, directory: Path) -> Path:
    """Write the page and the raw data below the directory; returns the page's path."""
    raw = directory / "performance" / _RAW
    raw.parent.mkdir(parents=True, exist_ok=True)
    raw.write_text(_as_json(_rounded(asdict(results))))
    page = directory / "PERFORMANCE.md"
    page.write_text(_page(results))
    return page


def _as_json(found: Any) -> str:
    """One line for each round, and for whatever was measured once."""
    rounds = ",\n".join(map(json.dumps, found.pop("rounds")))
    once = [f'"{key}": {json.dumps(value)}' for key, value in found.items()]
    return "{\n" + ",\n".join([*once, f'"rounds": [\n{rounds}\n]']) + "\n}\n"


def _rounded(value: Any) -> Any:
    """Six significant digits: more were never measured."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {str(key): _rounded(each) for key, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, list | tuple) else value


def _page(results: Results) -> str:
    found = judge(results)
    one, many = (tables.flows(results, streams) for streams in STREAMS)
    extent = results.extent
    return _TEXT.format(
        raw=_RAW,
        environment=_environment(results),
        aims=tables.aims(found),
        missed=_missed(found),
        processors=results.environment["processors"],
        rounds=len(results.rounds),
        foreign=_foreign(results),
        null_cipher=results.null_cipher,
        null_meaning=_meaning(results.null_cipher),
        flow_seconds=extent.flow_seconds,
        echoes=extent.echoes,
        one=one,
        many=many,
        round_trips=tables.round_trips(results),
        control=tables.control(results),
        churn=tables.churn(results),
        tunnels=extent.tunnels,
        memory=tables.memory(results),
        many_tunnels=_many(results),
        starting=tables.starting(results),
    )


def _many(results: Results) -> str:
    if results.scale is None:
        return "Not measured: the lab of hosts with systemd needs root.\n"
    return (
        "On a host of the lab (docs/lab.md), with systemd and scistreamd as it is installed: one side of each tunnel,\n"
        f"as units of systemd with all their sandbox.\n\n{tables.scale(results.scale)}"
    )


def _environment(results: Results) -> str:
    facts = results.environment
    programs = "; ".join(facts["programs"].values())
    libraries = ", ".join(f"{name} {number}" for name, number in facts["libraries"].items())
    machine = f"{facts['processors']} processors, {facts['processor']}, {facts['memory_bytes'] / 1e9:.0f} GB of memory"
    return f"""| | |
|---|---|
| date | {facts["date"]}, took {results.seconds:.0f} s |
| scistreamd | {facts["scistreamd"]}, commit {facts["commit"]} |
| machine | {machine} |
| system | {facts["system"]}, Linux {facts["kernel"]}, load {facts["load_at_start"]} at the start |
| data servers and tools | {programs} |
| Python | {facts["python"]} with {facts["python_ssl"]}; {libraries} |
"""


def _missed(found: list[Aim]) -> str:
    reasons = [f"- **{aim.what}**: {aim.reason}" for aim in found if not aim.met]
    if not reasons:
        return "All aims are met.\n"
    return "Where an aim is missed, and why:\n\n" + "\n".join(reasons) + "\n"


def _meaning(cipher: str) -> str:
    """NULL does not encrypt; AECDH and ADH are anonymous (openssl-ciphers(1))."""
    anonymous = cipher.startswith(("AECDH", "ADH"))
    return (", which does not encrypt" if "NULL" in cipher else "") + (
        " and does not authenticate, for all its PSK" if anonymous else ""
    )


def _foreign(results: Results) -> str:
    flows = [flow for each in results.rounds for ways in each.flows.values() for flow in ways.values()]
    share = Spread.of(flow.foreign for flow in flows)
    text = f"{share.median:.0%} of the processors during the streams (median; at most {share.most:.0%})."
    if share.median > QUIET:
        text += "\n**The machine was not quiet**: times and Gb/s are worse than they need be, ratios hold better."
    repeated = sum(each.repeated for each in results.rounds)
    if repeated:
        text += (
            f"\n{repeated} of {len(flows)} measurements of streams were made again, since other work took more than "
            f"{QUIET:.0%};\nthe one with less of it counts, be it slower or not."
        )
    return text
