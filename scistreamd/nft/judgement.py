"""Whether a firewall lets peers in to a listener, in words: for whom not, by which rule, and what would cure it."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from scistreamd.model import Endpoint, IPNetwork, PortRange
from scistreamd.nft import quote
from scistreamd.nft.evaluate import Action, Outcome, evaluate
from scistreamd.nft.host import Host, arrivals
from scistreamd.nft.packet import TCP, UDP, Arrival
from scistreamd.nft.program import Compare, Decide
from scistreamd.nft.ruleset import Ruleset, Table
from scistreamd.nft.spans import Spans

_NAMED = 3
_DONE = {Action.DROP: "dropped", Action.REJECT: "rejected", Action.DNAT: "sent elsewhere"}
_EVERY_VERSION = (4, 6)
# Chains of firewalld
_ZONES, _ZONE = "filter_INPUT_ZONES", "filter_IN_"


@dataclass(frozen=True)
class Judgement:
    """``verdict``: accept, drop, reject, dnat or unknown; for the worst off of the networks that may connect, or,
    where everybody may, for most of those that have a way here.

    ``peers``: whom it befalls, in words. ``rule``: what decided, as nft prints it, with where it stands.
    ``why``: for unknown. ``cure``: a command that lets the peers in, where there is one.
    """

    verdict: str
    peers: str = ""
    rule: str = ""
    why: str = ""
    cure: str = ""
    late: bool = False

    @property
    def blocked(self) -> bool:
        """Whether peers do not get to the listener."""
        return self.verdict in ("drop", "reject", "dnat")

    def text(self, listener: Endpoint) -> str:
        """One sentence for people."""
        if self.verdict == "accept":
            return f"the firewall lets peers in to {listener}"
        if not self.blocked:
            return f"whether the firewall lets {self.peers or 'peers'} in to {listener} is unknown: {self.why}"
        return f"the firewall blocks {listener}: {self._done()}"

    def short(self) -> str:
        """The same without the listener; empty where peers get in."""
        if self.blocked:
            return f"firewall: {self._done()}"
        return "" if self.verdict == "accept" else f"firewall: whether it lets peers in is unknown: {self.why}"

    def _done(self) -> str:
        what = f"what follows the first packet of {self.peers}" if self.late else self.peers
        return f"{what} is {_DONE[Action(self.verdict)]} by {self.rule}"


@dataclass(frozen=True)
class _Share:
    arrival: Arrival
    outcome: Outcome


def judge(
    ruleset: Ruleset,
    host: Host,
    listener: Endpoint,
    allow_from: Sequence[IPNetwork],
    ports: PortRange | None = None,
    *,
    udp: bool = False,
    evaluated: Callable[[Arrival], Sequence[Outcome]] | None = None,
) -> Judgement:
    """Judge for those in ``allow_from``, empty: everybody. ``ports``: what a cure should open, None: the listener's.

    ``evaluated`` tells what `evaluate` would.
    """
    work = evaluated or functools.partial(evaluate, ruleset)
    worst = Judgement("accept")
    found = False
    for protocol in (TCP, UDP) if udp else (TCP,):
        coming = arrivals(host, listener, allow_from, protocol)
        found = found or bool(coming)
        shares = [_Share(arrival, each) for arrival in coming for each in work(arrival)]
        for version in _EVERY_VERSION:
            of_version = [each for each in shares if each.arrival.version == version]
            named = [each for each in allow_from if each.version == version]
            said = _verdict(of_version, named, host, ports or PortRange(listener.port, listener.port))
            worst = max(worst, said, key=_badness)
    if not found:
        return Judgement("unknown", why=f"no route leads to peers of {listener.address}")
    return worst


def _badness(each: Judgement) -> int:
    return 2 if each.blocked else 0 if each.verdict == "accept" else 1


def _verdict(shares: Sequence[_Share], named: Sequence[IPNetwork], host: Host, ports: PortRange) -> Judgement:
    bad = [each for each in shares if each.outcome.action in _DONE]
    unknown = [each for each in shares if each.outcome.action is Action.UNKNOWN]
    good = [each for each in shares if each.outcome.action is Action.ACCEPT]
    if bad and (named or _size(bad) >= _size(good) + _size(unknown)):
        return _blocked(bad, good, named, host, ports)
    if unknown and (named or _size(unknown) >= _size(good)):
        blamed = max(unknown, key=lambda each: each.outcome.sources.size)
        why = blamed.outcome.why
        if blamed.outcome.by is not None:
            why = f"it depends on {why}, in {quote.decision(blamed.outcome.by, host.devices)}"
        return Judgement("unknown", peers=_whom(unknown, [], named), why=why)
    return Judgement("accept")


def _size(shares: Iterable[_Share]) -> int:
    return sum(each.outcome.sources.size for each in shares)


def _blocked(
    bad: Sequence[_Share], good: Sequence[_Share], named: Sequence[IPNetwork], host: Host, ports: PortRange
) -> Judgement:
    blamed = max(bad, key=lambda each: each.outcome.sources.size)
    outcome = blamed.outcome
    rule = quote.decision(outcome.by, host.devices) if outcome.by is not None else ""
    return Judgement(
        outcome.action.value,
        peers=_whom(bad, good, named),
        rule=rule,
        cure=_cure(blamed, _hit(bad, named), ports),
        late=outcome.late,
    )


def _hit(shares: Sequence[_Share], named: Sequence[IPNetwork]) -> list[IPNetwork]:
    """The networks of those named in which some peers are."""
    sources = _union(shares)
    return [each for each in named if sources & Spans.network(each)]


def _whom(shares: Sequence[_Share], but: Sequence[_Share], named: Sequence[IPNetwork]) -> str:
    """The peers: by the networks that were named, by their own where they are few, else as all but those who get in."""
    version = shares[0].arrival.version
    others = list(itertools.islice(_union(but).networks(version), _NAMED + 1))
    hit = _hit(shares, named)
    if hit:
        parts = [f"{'part of ' * bool(_union(but) & Spans.network(each))}{each}" for each in hit]
        return ", ".join(parts)
    networks = list(itertools.islice(_union(shares).networks(version), _NAMED + 1))
    if len(networks) <= _NAMED:
        return ", ".join(map(str, networks))
    most = f"everybody by IPv{version}"
    if not others:
        return most
    return f"{most} but {', '.join(map(str, others))}" if len(others) <= _NAMED else f"most by IPv{version}"


def _union(shares: Iterable[_Share]) -> Spans:
    return Spans.of(span for each in shares for span in each.outcome.sources.ranges)


def _cure(blamed: _Share, sources: Sequence[IPNetwork], ports: PortRange) -> str:
    """A command that puts an exception before the rule, in the language of what manages the firewall."""
    by, version = blamed.outcome.by, blamed.arrival.version
    if by is None or blamed.outcome.late:
        return ""
    source = str(sources[0]) if len(sources) == 1 else ""
    protocol = "udp" if blamed.arrival.protocol == UDP else "tcp"
    span = f"{ports.first}-{ports.last}" if ports.first != ports.last else f"{ports.first}"
    manager = _manager(by.table.name, by.chain.name, by.table.chains, by.table.family)
    if manager == "firewalld":
        return f"firewall-cmd --zone={_zone(by.table, blamed.arrival.interface.name)} --add-port={span}/{protocol}"
    if manager == "ufw":
        return f"ufw allow proto {protocol} from {source or 'any'} to any port {span.replace('-', ':')}"
    if manager == "iptables":
        program = "ip6tables" if by.table.family == "ip6" else "iptables"
        table = f"-t {by.table.name} " if by.table.name != "filter" else ""
        limited = f"-s {source} " if source else ""
        colons = span.replace("-", ":")
        return f"{program} {table}-I {by.chain.name} {limited}-p {protocol} --dport {colons} -j ACCEPT"
    restricted = f"{'ip' if version == 4 else 'ip6'} saddr {source} " if source else ""
    where = f"{by.table.family} {by.table.name} {by.chain.name}"
    return f"nft insert rule {where} {restricted}{protocol} dport {span} accept"


def _manager(table: str, chain: str, chains: Iterable[str], family: str) -> str:
    if table == "firewalld":
        return "firewalld"
    if family in ("ip", "ip6") and table in ("filter", "nat", "mangle", "raw") and (chain.isupper() or "-" in chain):
        return "ufw" if any(each.startswith(("ufw-", "ufw6-")) for each in chains) else "iptables"
    return ""


def _zone(table: Table, device: str) -> str:
    """The zone that firewalld has the device in: where its chain of zones sends packets that come in by it."""
    chain = table.chains.get(_ZONES)
    for rule in chain.rules if chain is not None else ():
        named = [each.data for each in rule.expressions if isinstance(each, Compare)]
        goes = [each.verdict.chain for each in rule.expressions if isinstance(each, Decide) and each.verdict.chain]
        fits = all(device.encode() == data.rstrip(b"\0") or device.encode().startswith(data) for data in named)
        if goes and fits and goes[0].startswith(_ZONE):
            return goes[0].removeprefix(_ZONE)
    return "public"
