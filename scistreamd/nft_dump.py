"""The live ruleset of the kernel, by netlink (NETLINK_NETFILTER; needs CAP_NET_ADMIN).

What the messages hold `nft.decode` knows: pyroute2's classes know a part of nftables' expressions, in each release
a different one.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from pathlib import Path

from scistreamd.errors import Code, ScistreamError
from scistreamd.netattributes import attribute
from scistreamd.netlink import DUMP, NETLINK_NETFILTER, Netlink, Refused
from scistreamd.nft.attributes import entries, number, table
from scistreamd.nft.decode import FAMILIES, Dump, Message, tables
from scistreamd.nft.ruleset import Ruleset
from scistreamd.nftrules import MARK

_SUBSYSTEM = 10 << 8  # NFNL_SUBSYS_NFTABLES
_TABLE, _CHAIN, _RULE, _SET, _ELEMENTS, _GENERATION = 1, 4, 7, 10, 13, 16  # NFT_MSG_GET...
_TRIES = 5
_HEADERS = 16 + 4  # struct nlmsghdr, struct nfgenmsg
_USERDATA = 6  # NFTA_TABLE_USERDATA
_FAMILY = 16  # where nfgenmsg names it
_NUMBERS = {name: number for number, name in FAMILIES.items()}
# What x_tables lists while a table of the old iptables is there (readable by root alone).
_OLD = {"iptables": "/proc/net/ip_tables_names", "ip6tables": "/proc/net/ip6_tables_names"}


class _Answer:
    """One message of the kernel."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.message = Message("", {})

    def decode(self) -> None:
        """Take it apart; its attributes stay bytes."""
        self.message = Message(FAMILIES.get(self._data[_FAMILY], ""), table(self._data[_HEADERS:]))


class RulesetReader:
    """Reads the ruleset of the network namespace that it was made in, anew where it has changed. For one thread."""

    def __init__(self) -> None:
        """Raises as `ruleset`."""
        try:
            self._kernel = Netlink(NETLINK_NETFILTER)
        except Refused as problem:
            raise _refused(problem) from problem
        self._read: tuple[int, Ruleset] | None = None

    def close(self) -> None:
        """Let go of the kernel."""
        self._kernel.close()

    def generation(self) -> int:
        """A number that changes with every change of the ruleset. Raises as `ruleset`."""
        try:
            return self._generation()
        except Refused as problem:
            raise _refused(problem) from problem

    def ruleset(self) -> Ruleset:
        """The ruleset as of one moment, without tables of scistreamd's own: they refuse only who may not connect.

        Raises ScistreamError: PERMISSION_DENIED without CAP_NET_ADMIN, UNAVAILABLE where nftables is not there or
        changes faster than it can be read.
        """
        try:
            for _ in range(_TRIES):
                before = self._generation()
                if self._read is not None and self._read[0] == before:
                    return Ruleset(self._read[1].tables, _unseen())
                dump = self._dump()
                if self._generation() == before:
                    self._read = before, Ruleset(tables(dump), _unseen())
                    return self._read[1]
        except Refused as problem:
            raise _refused(problem) from problem
        raise ScistreamError(Code.UNAVAILABLE, "the firewall's rules change faster than they can be read", "try again")

    def _generation(self) -> int:
        [answer] = self._ask(_GENERATION, flags=0)
        return number(answer.attributes[1])

    def _dump(self) -> Dump:
        sets = self._ask(_SET)
        elements = {}
        for each in sets:
            family, table_name, name = each.family, each.name(1), each.name(2)
            parts = self._ask(_ELEMENTS, _NUMBERS[family], [(1, table_name), (2, name)])
            listed = [element for part in parts for element in entries(part.attributes.get(3, b""))]
            elements[family, table_name, name] = [table(element) for element in listed]
        others = [each for each in self._ask(_TABLE) if each.attributes.get(_USERDATA) != MARK]
        return Dump(others, self._ask(_CHAIN), self._ask(_RULE), sets, elements)

    def _ask(
        self, kind: int, family: int = 0, names: Iterable[tuple[int, str]] = (), flags: int = DUMP
    ) -> list[Message]:
        body = bytes([family, 0, 0, 0]) + b"".join(attribute(at, name.encode() + b"\0") for at, name in names)
        return [answer.message for answer in self._kernel.dump(body, _SUBSYSTEM | kind, _Answer, flags)]


def read() -> Ruleset:
    """The ruleset of this network namespace; raises as `RulesetReader.ruleset`."""
    reader = RulesetReader()
    try:
        return reader.ruleset()
    finally:
        reader.close()


def _refused(problem: Refused) -> ScistreamError:
    if problem.errno in (errno.EPERM, errno.EACCES):
        return ScistreamError(
            Code.PERMISSION_DENIED,
            "the firewall's rules cannot be read without CAP_NET_ADMIN",
            "run as the system service scistreamd, which has it",
        )
    if problem.is_of_none:
        why = f"this kernel has no nftables ({problem.strerror})"
        return ScistreamError(Code.UNAVAILABLE, why, "`modprobe nf_tables` loads it where the kernel's package has it")
    return ScistreamError(Code.UNAVAILABLE, f"the kernel does not tell the firewall's rules: {problem.strerror}")


def _unseen() -> tuple[str, ...]:
    """Tables of the old iptables (x_tables), whose rules are in no netlink."""
    found = []
    for program, file in _OLD.items():
        try:
            names = Path(file).read_text().split()
        except FileNotFoundError:
            continue  # the kernel has none of it
        except OSError as problem:
            found.append(f"{file} cannot be read ({problem.strerror}): {program}-legacy may have rules")
            continue
        if names:
            found.append(f"{program}-legacy has tables ({', '.join(names)}), whose rules cannot be read")
    return tuple(found)
