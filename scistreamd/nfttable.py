"""Our own table of nftables: made, replaced part by part, and gone with the last part.

Nothing outside of it is ever changed. It carries our mark, so that a table of
the same name that somebody else made is refused. Each change is one
transaction: packets meet the rules of before or those of after.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from scistreamd.errors import Code, ScistreamError
from scistreamd.netattributes import attribute, attributes
from scistreamd.netlink import NETLINK_NETFILTER, Netlink, Refused
from scistreamd.nftrules import MARK, Chain, Map, Section

_T = TypeVar("_T")
_TRIES = 3
_LOOK_SECONDS = 1.0
# NFNL_SUBSYS_NFTABLES, NFT_MSG_GETTABLE, NFT_MSG_GETCHAIN, NFT_MSG_GETSETELEM and NFT_MSG_GETGEN
_GETTABLE, _GETCHAIN, _GETSETELEM, _GETGEN = 0xA01, 0xA04, 0xA0D, 0xA10
_INET, _EDGE = bytes([1, 0, 0, 0]), bytes([0, 0, 0, 10])  # struct nfgenmsg
_ABSENT = (errno.ENOENT, errno.EEXIST)
# Those of our expressions that are not in nf_tables itself.
_MODULES = {"reject": "nft_reject_inet", "counter": "nft_counter"}

_log = logging.getLogger("scistreamd.nftables")


class Attributes:
    """The attributes of an answer of nf_tables, by number."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.found: dict[int, bytes] = {}

    def decode(self) -> None:
        """Find them behind the headers of netlink and nfnetlink."""
        self.found = dict(attributes(self._data[20:]))


class NftTable:
    """The table ``inet NAME``. Calls wait for each other."""

    def __init__(self, name: str, *, lasting: bool) -> None:
        """``lasting``: whether it stays when this process ends; if not, the kernel removes it then, however it ends."""
        self.name = name
        self._lasting = lasting
        # One thread: a netlink socket takes one request at a time, and changing big tables takes milliseconds.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="nftables")
        self._kernel: Netlink | None = None
        self._kept: dict[str, Section] = {}
        self._seen = 0
        self._changing = asyncio.Lock()
        self._watcher: asyncio.Task[None] | None = None

    async def replace(self, section: Section) -> None:
        """Have this be all of the section; the table goes with its last chain.

        What somebody else removes of it, as `nft flush ruleset` does, is put
        back soon, for as long as this process runs. Raises
        ScistreamError(FAILED_PRECONDITION), with nothing changed, where
        privileges or the kernel cannot, or the table is somebody else's.
        """
        async with self._changing:
            await self._run(self._replace, section)
            self._kept[section.name] = section
            self._seen = await self.generation()
        if self._watcher is None and section.chains:
            self._watcher = asyncio.create_task(self._watch(), name=f"watch table {self.name}")

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            try:
                async with self._changing:
                    await self._put_back()
            except ScistreamError as problem:
                _log.error("%s", problem)

    async def _put_back(self) -> None:
        now = await self.generation()
        if now == self._seen:
            return
        there = await self.chains()
        for section in self._kept.values():
            if any(there.get(chain.name) != len(chain.rules) for chain in section.chains):
                _log.warning("rules of ours (%s) were removed by another program; they are put back", section.name)
                await self._run(self._replace, section)
        self._seen = await self.generation()

    async def chains(self) -> dict[str, int]:
        """The chains that are there, with how many rules each has."""
        return await self._run(self._rules)

    async def keys(self, name: str) -> list[bytes]:
        """The keys that are in a map of ours now; none where there is no such map."""
        return await self._run(self._keys, name)

    async def every_chain(self, prefix: str) -> list[str]:
        """The names of the chains in all tables of the family inet whose names begin like this, ours among them."""
        return await self._run(self._every_chain, prefix)

    async def generation(self) -> int:
        """A number that changes with every change of anybody to this network namespace's rules."""
        return await self._run(self._generation)

    async def close(self) -> None:
        """Let go of the table; one that does not last is gone on return."""
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.wait([self._watcher])
        self._thread.submit(self._disconnect).result()
        self._thread.shutdown()

    async def _run(self, work: Callable[..., _T], *arguments: Any) -> _T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)
        except Refused as problem:
            raise self._explained(problem) from problem

    # In the thread

    @property
    def _connection(self) -> Netlink:
        if self._kernel is None:
            self._kernel = Netlink(NETLINK_NETFILTER)
        return self._kernel

    def _disconnect(self) -> None:
        if self._kernel is not None:
            self._kernel.close()

    def _replace(self, section: Section) -> None:
        if not section.chains and not self._exists():
            return
        from scistreamd import nftmessages as messages  # noqa: PLC0415  pyroute2 takes a third of a second

        for again in reversed(range(_TRIES)):
            every = self._every()
            there = _of(section, every)
            if not section.chains and not there.chains:
                return
            if section.chains or len(there.chains) < len(every.chains):
                orders = messages.replacement(self.name, section, there, lasting=self._lasting)
            else:
                orders = [messages.delete_table(self.name)]
            try:
                self._connection.batch(orders, messages.edge(), messages.EDGES)
            except Refused as problem:
                # Somebody else changed our table between the look and the change: `nft flush ruleset`, say.
                if not again or problem.errno not in _ABSENT:
                    raise
            else:
                return

    def _every(self) -> Section:
        """All that is in the table, without rules; empty where there is no table."""
        from scistreamd import nftmessages as messages  # noqa: PLC0415

        found = self._dump(messages.Table, messages.GETTABLE, "NFTA_TABLE_NAME")
        if not found:
            return Section("")
        if found[0].get_attr("NFTA_TABLE_USERDATA") != MARK:
            raise ScistreamError(
                Code.FAILED_PRECONDITION,
                f"nftables: the table inet {self.name} is not one that scistreamd has made",
                f"`nft list table inet {self.name}` shows it; rename it",
            )
        chains = self._dump(messages.ChainMessage, messages.GETCHAIN, "NFTA_CHAIN_TABLE")
        maps = self._dump(messages.SetMessage, messages.GETSET, "NFTA_SET_TABLE")
        return Section(
            "",
            tuple(Chain(each.get_attr("NFTA_CHAIN_NAME"), ()) for each in chains),
            tuple(Map(each.get_attr("NFTA_SET_NAME"), 0, 0) for each in maps),
        )

    def _dump(self, make: Any, number: int, table: str) -> list[Any]:
        """All messages of one kind that are about our table; ``table`` is the attribute that names it."""
        from scistreamd import nftmessages as messages  # noqa: PLC0415

        answers = self._connection.dump(messages.message(make), messages.kind(number), make)
        return [each for each in answers if each.get_attr(table) == self.name]

    def _rules(self) -> dict[str, int]:
        from scistreamd import nftmessages as messages  # noqa: PLC0415

        counts = {chain.name: 0 for chain in self._every().chains}
        for each in self._dump(messages.PlainRule, messages.GETRULE, "NFTA_RULE_TABLE"):
            name = each.get_attr("NFTA_RULE_CHAIN")
            counts[name] = counts.get(name, 0) + 1
        return counts

    # Without pyroute2, which takes a third of a second to load: most daemons never have any of this to do.

    def _keys(self, name: str) -> list[bytes]:
        return [key for key, _ in elements(self._connection, self.name, name)]

    def _generation(self) -> int:
        [answer] = self._connection.dump(_EDGE, _GETGEN, Attributes, flags=0)
        return int.from_bytes(answer.found[1], "big")  # NFTA_GEN_ID

    def _every_chain(self, prefix: str) -> list[str]:
        found = [each.found for each in self._connection.dump(_INET, _GETCHAIN, Attributes)]
        # NFTA_CHAIN_TABLE, NFTA_CHAIN_NAME
        return [each[3].rstrip(b"\0").decode() for each in found if each[1].startswith(prefix.encode())]

    def _exists(self) -> bool:
        name = attribute(1, self.name.encode() + b"\0")  # NFTA_TABLE_NAME
        try:
            self._connection.dump(_INET + name, _GETTABLE, Attributes, flags=0)
        except Refused as problem:
            if problem.errno != errno.ENOENT:
                raise
            return False
        return True

    def _explained(self, problem: Refused) -> ScistreamError:
        if problem.errno == errno.EPERM:
            return ScistreamError(
                Code.FAILED_PRECONDITION,
                "nftables: not permitted",
                "this needs CAP_NET_ADMIN: scistreamd has it, s2cs only as root",
            )
        if problem.is_of_none:
            return ScistreamError(
                Code.FAILED_PRECONDITION,
                f"nftables: this kernel has none ({problem.strerror})",
                "`modprobe nf_tables` loads it where the kernel's package has it",
            )
        lacking = _expression(problem.part)
        module = _MODULES.get(lacking)
        return ScistreamError(
            Code.FAILED_PRECONDITION,
            f"nftables: the kernel refuses {f'the expression {lacking}' if lacking else 'rules'}"
            f" in the table inet {self.name}: {problem.strerror}",
            f"`modprobe {module}` loads it where the kernel's package has it"
            if module
            else "scistreamd needs nf_tables of Linux 5.12 or later",
        )


def _expression(part: bytes) -> str:
    """The name of the expression that the kernel refused, as far as it was one."""
    element = dict(attributes(part[: int.from_bytes(part[:2], sys.byteorder)])).get(1, b"")  # NFTA_LIST_ELEM
    return dict(attributes(element)).get(1, b"").rstrip(b"\0").decode(errors="replace")  # NFTA_EXPR_NAME


def elements(kernel: Netlink, table: str, name: str) -> Iterator[tuple[bytes, dict[int, bytes]]]:
    """The elements of a set or map in the table inet ``table``: keys, and all attributes (NFTA_SET_ELEM_...).

    None where it is not there; raises Refused.
    """
    # NFTA_SET_ELEM_LIST_TABLE, NFTA_SET_ELEM_LIST_SET
    asked = _INET + attribute(1, table.encode() + b"\0") + attribute(2, name.encode() + b"\0")
    try:
        answers = kernel.dump(asked, _GETSETELEM, Attributes)
    except Refused as problem:
        if problem.errno != errno.ENOENT:
            raise
        return
    # NFTA_SET_ELEM_LIST_ELEMENTS, each with NFTA_SET_ELEM_KEY and its NFTA_DATA_VALUE
    for answer in answers:
        for _, element in attributes(answer.found.get(3, b"")):
            of_one = dict(attributes(element))
            yield dict(attributes(of_one[1]))[1], of_one


def _of(section: Section, every: Section) -> Section:
    return Section(
        section.name,
        tuple(each for each in every.chains if section.has(each.name)),
        tuple(each for each in every.maps if section.has(each.name)),
    )
