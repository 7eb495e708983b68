"""Random rulesets in nft's language, from a seed: all that `scistreamd.nft` says that it knows, and a little more."""

from __future__ import annotations

import random

V4 = ("10.1.0.2", "10.1.0.0/24", "10.0.0.0/8", "172.16.0.0/12", "192.0.2.7", "198.51.100.128/25", "203.0.113.0/24",
      "10.1.0.64-10.1.9.3", "0.0.0.0/1")  # fmt: skip
V6 = ("fd01::2", "fd01::/64", "fd01::/32", "fd00::/8", "2001:db8::9", "fd02::/64", "fd01::1-fd01:0:5::")
PORTS = ("5100", "22", "5000-5200", "5101-65535", "1-5100")
SOURCE_PORTS = ("33000-40000", "1024-65535", "22", "40000-60000")
REJECTS = ("reject", "reject with tcp reset", "reject with icmpx admin-prohibited", "reject with icmpx no-route",
           "reject with icmp host-unreachable", "reject with icmpv6 no-route")  # fmt: skip


class Rulesets:
    """Makes rulesets; the same ones for the same seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def ruleset(self) -> str:
        """Between one and three tables."""
        families = self._random.choices(("inet", "ip", "ip6", "netdev"), (6, 3, 2, 1), k=self._random.randint(1, 3))
        return "\n".join(self._table(f"t{at}", family) for at, family in enumerate(families))

    def _one(self, *choices: str) -> str:
        return self._random.choice(choices)

    def _chance(self, probability: float) -> bool:
        return self._random.random() < probability

    def _table(self, name: str, family: str) -> str:
        lines = [f"table {family} {name} {{", *self._sets()]
        depth = self._random.randint(0, 3)
        for at in range(depth):
            lines += [f"chain c{at} {{", self._rules(family, "input", at), "}"]
        for at, hook in enumerate(self._hooks(family)):
            lines += [f"chain base{at} {{", self._base(family, hook), self._rules(family, hook, depth), "}"]
        return "\n".join([*lines, "}"])

    def _hooks(self, family: str) -> list[str]:
        if family == "netdev":
            return ["ingress"]
        hooks = ["input"] if self._chance(0.85) else ["input", "input"]
        if self._chance(0.25):
            hooks.append("prerouting")
        if self._chance(0.25):
            hooks.append("nat")
        if family == "inet" and self._chance(0.1):
            hooks.append("ingress")
        return hooks

    def _base(self, family: str, hook: str) -> str:
        if hook == "ingress":
            return f"type filter hook ingress device eth0 priority {self._random.randint(-5, 5)}; policy accept;"
        if hook == "nat":
            return f"type nat hook prerouting priority {self._random.randint(-110, -90)};"
        priority = self._random.choice([-300, -150, 0, 10]) + self._random.randint(0, 3)
        policy = "drop" if hook == "input" and self._chance(0.5) else "accept"
        return f"type filter hook {hook} priority {priority}; policy {policy};"

    def _sets(self) -> list[str]:
        v4 = [self._element(V4) for _ in range(self._random.randint(1, 4))]
        return [
            f"set nets {{ type ipv4_addr; flags interval; auto-merge; elements = {{ {', '.join(v4)} }} }}",
            "set nets6 { type ipv6_addr; flags interval; auto-merge; elements = { "
            f"{', '.join({self._one(*V6) for _ in range(2)})} }} }}",
            "set hosts { type ipv4_addr; elements = { 10.1.0.2, 192.0.2.7, 203.0.113.9 } }",
            f"set ports {{ type inet_service; flags interval; auto-merge; elements = {{ {self._one(*PORTS)}, 80 }} }}",
            "set pairs { type ipv4_addr . inet_service; flags interval; elements = { "
            f"10.1.0.0/24 . {self._one(*PORTS)}, 192.0.2.7 . 5100 }} }}",
            "set exact { type ipv4_addr . inet_service; elements = { 10.1.0.2 . 5100, 10.1.0.77 . 22 } }",
            "set names { type ifname; elements = { eth1, wan0 } }",
            "set seen { type ipv4_addr; flags dynamic; }",
            "map marks { type ipv4_addr : mark; flags interval; elements = { 10.1.0.0/24 : 1, 172.16.0.0/12 : 2 } }",
        ]

    def _element(self, choices: tuple[str, ...]) -> str:
        return self._one(*choices)

    def _rules(self, family: str, hook: str, depth: int) -> str:
        return "\n".join(self._rule(family, hook, depth) for _ in range(self._random.randint(0, 7)))

    def _rule(self, family: str, hook: str, depth: int) -> str:
        words = [self._match(family, hook) for _ in range(self._random.choice([0, 1, 1, 1, 2, 2, 3]))]
        if self._chance(0.3):
            words.append(self._one("counter", 'log prefix "x" group 5', "limit rate 100000/second", "log group 7"))
        if self._chance(0.06):
            words.append(self._one("limit rate over 100000/second", "numgen random mod 2 0", "meta priority set 1:1"))
        words.append(self._verdict(family, hook, depth, words))
        if self._chance(0.1):
            words.append('comment "why not"')
        return " ".join(words)

    def _match(self, family: str, hook: str) -> str:
        choices = [*self._plain(hook)]
        if family in ("inet", "ip", "netdev"):
            choices += self._ipv4()
        if family in ("inet", "ip6", "netdev"):
            choices += self._ipv6()
        if family == "inet":
            choices += ["meta nfproto ipv4", "meta nfproto ipv6"]
        if family in ("inet", "ip", "ip6") and hook not in ("ingress",):
            choices += self._tracked()
        return self._random.choice(choices)

    def _plain(self, hook: str) -> list[str]:
        sign = self._one("", "", "!= ")
        return [
            f"tcp dport {sign}{self._one(*PORTS)}",
            f"tcp dport {sign}{{ {self._one(*PORTS)}, 80 }}",
            "tcp dport @ports",
            f"tcp sport {sign}{self._one(*SOURCE_PORTS)}",
            f"th dport {self._one(*PORTS)}",
            f"meta l4proto {sign}{self._one('tcp', 'udp', '{ tcp, udp }')}",
            f"iifname {sign}{self._one('eth0', 'eth1', 'lo', 'eth*', 'e*', 'wan0')}",
            f"iifname {{ {self._one('eth0', 'eth1')}, lo }}",
            "iifname @names",
            f"iif {self._one('eth0', 'eth1', 'lo')}",
            f"tcp flags {self._one('syn', '& (syn | ack) == syn', '& (fin | rst) != 0', '! ack')}",
            f"meta mark {sign}{self._one('0', '1', '2', '0x1-0x5')}",
            "udp dport 5100",
            "meta pkttype host",
            f"tcp dport {self._one('< 5100', '>= 5100', '> 22', '<= 5099')}",
        ]

    def _ipv4(self) -> list[str]:
        sign = self._one("", "", "!= ")
        return [
            f"ip saddr {sign}{self._one(*V4)}",
            f"ip saddr {sign}@nets",
            "ip saddr @hosts",
            f"ip saddr {sign}{{ {self._one(*V4[:1])}, {self._one(*V4[4:6])} }}",
            f"ip saddr & 255.255.0.{self._one('0', '7')} == 10.1.0.0",
            f"ip daddr {sign}{self._one('10.1.0.1', '10.2.0.1', '10.1.0.0/16')}",
            f"ip saddr {self._one('10.1.0.0/24', '10.1.9.3')} ip daddr 10.1.0.1",
            "ip saddr . tcp dport @pairs",
            "ip saddr . tcp dport @exact",
            "ip saddr . tcp sport { 10.1.0.0/24 . 33000-36000, 192.0.2.0/24 . 1024-65535 }",
            "iifname . ip saddr { eth0 . 10.1.0.2, eth1 . 10.2.0.2 }",
            "ip protocol tcp",
            "tcp sport 30000-65535 tcp dport 5100",
        ]

    def _ipv6(self) -> list[str]:
        sign = self._one("", "", "!= ")
        return [
            f"ip6 saddr {sign}{self._one(*V6)}",
            "ip6 saddr @nets6",
            f"ip6 saddr {{ {V6[0]}, {V6[4]} }}",
            "ip6 nexthdr tcp",
            f"ip6 daddr {self._one('fd01::1', 'fd00::/8', 'fd02::1')}",
            "ip6 saddr . tcp dport { fd01::2 . 5100, 2001:db8::9 . 22 }",
        ]

    def _tracked(self) -> list[str]:
        return [
            f"ct state {self._one('new', 'established,related', '!= new', 'invalid', '{ new, established }')}",
            "ct state vmap { established : accept, related : accept, invalid : drop }",
            f"ct status {self._one('dnat', '!= dnat', '& 0x20 == 0')}",
            "ct direction original",
            f"fib daddr type {self._one('local', '!= local', 'unicast')}",
            "fib saddr type != local",
            f"fib saddr . iif oif {self._one('missing', 'exists', '!= 0')}",
            f"ct mark {self._one('0', '1')}",
            "ct original proto-dst 5100",
        ]

    def _verdict(self, family: str, hook: str, depth: int, words: list[str]) -> str:
        choices = ["accept", "accept", "accept", "drop", "drop", "continue", "return"]
        if depth:
            choices += [f"{self._one('jump', 'goto')} c{self._random.randrange(depth)}"] * 3
        if hook == "input" and family != "netdev":
            choices += [self._reject(words)] * 2
        if hook == "nat":
            choices += self._nats(family)
        if hook == "prerouting":
            choices += ["notrack"]
        if hook in ("input", "prerouting"):
            choices += ["meta mark set 1", "meta mark set meta mark | 2", "ct mark set 1"] * (hook == "input")
            choices += self._vmaps(family, depth)
        return self._random.choice(choices)

    def _reject(self, words: list[str]) -> str:
        said = self._one(*REJECTS)
        tcp = any("tcp" in word and "l4proto" not in word for word in words)
        return said if tcp or "reset" not in said else f"meta l4proto tcp {said}"

    def _nats(self, family: str) -> list[str]:
        elsewhere = self._one("redirect to :4444", "redirect to :5100", "redirect")
        if family == "ip6":
            return [f"tcp dport 5100 {elsewhere}", "tcp dport 5100 dnat to [fd01::77]:5100", "dnat to fd01::1"]
        if family == "ip":
            return [f"tcp dport 5100 {elsewhere}", "tcp dport 5100 dnat to 10.1.0.99:80", "dnat to 10.1.0.1"]
        return [f"tcp dport 5100 {elsewhere}", "tcp dport 5100 dnat ip to 10.1.0.99:80"]

    def _vmaps(self, family: str, depth: int) -> list[str]:
        jump = f"jump c{self._random.randrange(depth)}" if depth else "accept"
        found = [
            f"tcp dport vmap {{ 22 : accept, 5000-5150 : {self._one(jump, 'drop', 'accept')}, 5151-6000 : drop }}",
            f"iifname vmap {{ eth0 : {jump}, eth1 : {self._one('accept', 'drop')} }}",
            f"meta l4proto vmap {{ tcp : {self._one(jump, 'continue')}, udp : drop }}",
        ]
        if family in ("inet", "ip"):
            found += [
                f"ip saddr vmap {{ 10.1.0.0/24 : {self._one(jump, 'drop')}, 172.16.0.0/12 : accept, * : continue }}",
                "meta mark set ip saddr map @marks",
                "add @seen { ip saddr limit rate over 100000/second } drop",
                "update @seen { ip saddr } accept",
                "ip saddr @seen drop",
                "ip saddr . tcp dport vmap { 10.1.0.2 . 5100 : drop, 10.1.0.77 . 5100 : accept }",
            ]
        return found
