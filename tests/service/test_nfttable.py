"""Our own nftables table in the kernel: whole sections or nothing, and nobody else's rules."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
from collections.abc import AsyncIterator

import pytest

from scistreamd import nftmessages, nfttable
from scistreamd.errors import Code, ScistreamError
from scistreamd.model import Endpoint
from scistreamd.nftrules import (
    FILTER,
    INPUT,
    MANGLE,
    OUTPUT,
    Chain,
    Expression,
    Hook,
    Map,
    Rule,
    Section,
    accept,
    back_from,
    connection_bytes,
    drop,
    go_to,
    jump,
    leaves_by,
    of_user,
    opens_no_connection,
    prohibit,
    remember,
    reset,
    set_priority,
    set_remembered_priority,
    source,
    towards,
)
from scistreamd.nfttable import NftTable
from scistreamd.plans import Bind
from tests.service.netns_kit import in_netns, run

V4 = Bind(Endpoint(ipaddress.ip_address("127.0.0.1"), 5100), udp=True)
V6 = Bind(Endpoint(ipaddress.ip_address("2001:db8::1"), 5101))
BOTH = Bind(Endpoint(ipaddress.ip_address("::"), 5102))
ANY4 = Bind(Endpoint(ipaddress.ip_address("0.0.0.0"), 5103))

WHO = Section(
    "who",
    (
        Chain(
            "who",
            tuple(Rule((*each, *jump("who-x")), "tunnel x") for bind in (V4, V6, BOTH, ANY4) for each in towards(bind)),
            Hook(INPUT, FILTER - 10),
        ),
        Chain(
            "who-x",
            (
                Rule((*opens_no_connection(), *accept())),
                Rule((*source(ipaddress.ip_network("10.0.0.0/8")), *accept())),
                Rule((*source(ipaddress.ip_network("2001:db8::/33")), *accept())),
                Rule((*source(ipaddress.ip_network("192.0.2.7/32")), *drop())),
                Rule(reset()),
                Rule(prohibit()),
            ),
        ),
    ),
)
WHO_TEXT = """\
chain who {
type filter hook input priority filter - 10; policy accept;
tcp dport 5100 ip daddr 127.0.0.1 jump who-x comment "tunnel x"
udp dport 5100 ip daddr 127.0.0.1 jump who-x comment "tunnel x"
tcp dport 5101 ip6 daddr 2001:db8::1 jump who-x comment "tunnel x"
tcp dport 5102 jump who-x comment "tunnel x"
tcp dport 5103 meta nfproto ipv4 jump who-x comment "tunnel x"
}
chain who-x {
tcp flags != syn / fin,syn,rst,ack accept
ip saddr 10.0.0.0/8 accept
ip6 saddr 2001:db8::/33 accept
ip saddr 192.0.2.7 drop
meta l4proto tcp reject with tcp reset
reject with icmpx admin-prohibited
}
"""

CLASSES = Section(
    "class",
    (
        Chain(
            "class",
            (
                Rule((*back_from(V4)[0], *set_priority(0x5C150001), *accept())),
                Rule((*of_user(61234), *set_priority(0x5C150002), *go_to("class-2"))),
                Rule(set_remembered_priority(4, "class-4")),
                Rule(set_remembered_priority(6, "class-6")),
                Rule((*leaves_by(1), *drop())),
            ),
            Hook(OUTPUT, MANGLE),
        ),
        Chain(
            "class-2",
            (Rule(remember(4, "class-4", 0x5C150002)), Rule(remember(6, "class-6", 0x5C150002))),
        ),
    ),
    maps=(Map("class-4", connection_bytes(4), 600), Map("class-6", connection_bytes(6), 600)),
)
CLASSES_TEXT = """\
map class-4 { type integer . ipv4_addr : classid size 65536 flags dynamic,timeout timeout 10m }
map class-6 { type integer . ipv6_addr : classid size 65536 flags dynamic,timeout timeout 10m }
chain class {
type filter hook output priority mangle; policy accept;
tcp sport 5100 ip saddr 127.0.0.1 meta priority set 5c15:1 accept
meta skuid 61234 meta priority set 5c15:2 goto class-2
meta priority set @th,0,32 . ip daddr map @class-4
meta priority set @th,0,32 . ip6 daddr map @class-6
oif "lo" drop
}
chain class-2 {
update @class-4 { @th,0,32 . ip daddr : 200:155c }
update @class-6 { @th,0,32 . ip6 daddr : 200:155c }
}
"""


@contextlib.asynccontextmanager
async def table(name: str = "scistream", *, lasting: bool = True) -> AsyncIterator[NftTable]:
    made = NftTable(name, lasting=lasting)
    try:
        yield made
    finally:
        await made.close()


def rules(text: str = "") -> list[str]:
    """The blocks of a table, as nft prints them, without regard to their order and to white space."""
    inner = text or run("nft", "list", "table", "inet", "scistream").split('comment "scistreamd"\n', 1)[1]
    words = " ".join(inner.split())
    starts = ["map ", "chain "]
    for start in starts:
        words = words.replace(f"}} {start}", f"}}\n{start}")
    return sorted(line.removesuffix(" }") if not text else line for line in words.replace("} }", "}").splitlines())


def same(*texts: str) -> bool:
    def plain(line: str) -> str:
        return line.replace(" }", "").replace("}", "").strip()

    return sorted(map(plain, rules())) == sorted(map(plain, rules("".join(texts))))


@in_netns
async def test_sections_come_and_go_each_as_a_whole() -> None:
    async with table() as ours:
        await ours.replace(WHO)
        assert same(WHO_TEXT)
        await ours.replace(CLASSES)
        assert same(WHO_TEXT, CLASSES_TEXT)
        await ours.replace(Section("who", (Chain("who", WHO.chains[0].rules[:0], Hook(INPUT, -10)),)))
        assert await ours.chains() == {"class": 5, "class-2": 2, "who": 0}
        await ours.replace(WHO)
        assert same(WHO_TEXT, CLASSES_TEXT)
        await ours.replace(Section("class"))
        assert same(WHO_TEXT)
        await ours.replace(Section("who"))
        assert run("nft", "list", "ruleset") == ""
        await ours.replace(Section("who"))


@in_netns
async def test_a_section_that_the_kernel_refuses_changes_nothing() -> None:
    async with table() as ours:
        await ours.replace(WHO)
        before = run("nft", "list", "ruleset")
        bad = Section(
            "who", (Chain("who", (Rule(accept()), Rule(jump("nowhere")), Rule(accept())), WHO.chains[0].hook),)
        )
        with pytest.raises(ScistreamError, match="inet scistream: No such file") as caught:
            await ours.replace(bad)
        assert caught.value.code is Code.FAILED_PRECONDITION
        assert run("nft", "list", "ruleset") == before


@in_netns
async def test_it_is_put_back_after_somebody_flushed_it_and_found_by_the_next_process() -> None:
    async with table() as ours:
        await ours.replace(WHO)
        before = await ours.generation()
        run("nft", "flush", "ruleset")
        assert await ours.generation() != before
        await ours.replace(WHO)
        assert same(WHO_TEXT)
    async with table() as ours:
        assert await ours.chains() == {"who": 5, "who-x": 6}
        await ours.replace(Section("who"))
        assert run("nft", "list", "ruleset") == ""


@in_netns
async def test_what_somebody_removes_comes_back_by_itself() -> None:
    async with table() as ours:
        await ours.replace(WHO)
        for removal in ("flush ruleset", "flush chain inet scistream who-x"):
            run("nft", removal)
            while await ours.chains() != {"who": 5, "who-x": 6}:  # noqa: ASYNC110  the kernel tells nobody
                await asyncio.sleep(0.05)
        assert same(WHO_TEXT)


@in_netns
async def test_rules_of_others_stay() -> None:
    run("nft", "add table ip filter; add chain ip filter in { type filter hook input priority 0; }")
    run("nft", "add rule ip filter in tcp dport 5100 accept; add table inet scistreams; add table ip scistream")
    before = run("nft", "list", "ruleset")
    async with table() as ours:
        await ours.replace(WHO)
        await ours.replace(Section("who"))
    assert run("nft", "list", "ruleset") == before


@in_netns
async def test_a_table_of_our_name_that_we_did_not_make_is_refused() -> None:
    run("nft", "add table inet scistream; add chain inet scistream who")
    before = run("nft", "list", "ruleset")
    async with table() as ours:
        with pytest.raises(ScistreamError, match="not one that scistreamd has made"):
            await ours.replace(WHO)
        with pytest.raises(ScistreamError, match="not one that scistreamd has made"):
            await ours.replace(Section("who"))
    assert run("nft", "list", "ruleset") == before


@in_netns
async def test_one_that_does_not_last_is_gone_with_its_process() -> None:
    async with table(lasting=False) as ours:
        await ours.replace(WHO)
        assert "flags owner" in run("nft", "list", "ruleset")
    assert run("nft", "list", "ruleset") == ""


@in_netns
async def test_a_thousand_rules_are_one_transaction() -> None:
    many = tuple(Rule((*source(network), *accept())) for network in ipaddress.ip_network("10.0.0.0/8").subnets(10))
    async with table() as ours:
        await ours.replace(Section("who", (Chain("who", many),)))
        assert await ours.chains() == {"who": 1024}
        with pytest.raises(ScistreamError, match="No such file"):
            await ours.replace(Section("who", (Chain("who", (Rule(jump("nowhere")), *many)),)))
        assert await ours.chains() == {"who": 1024}


@in_netns
async def test_what_the_kernel_lacks_is_named() -> None:
    whole = nftmessages._whole

    def misspelt(expression: Expression) -> bytes:
        return whole(expression).replace(b"reject\0", b"rejecx\0")

    table = NftTable("other", lasting=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nftmessages, "_whole", misspelt)
        patch.setitem(nfttable._MODULES, "rejecx", "nft_rejecx")
        nftmessages.new_rule.cache_clear()
        with pytest.raises(ScistreamError, match="refuses the expression rejecx in the table inet other") as caught:
            await table.replace(WHO)
    nftmessages.new_rule.cache_clear()
    assert caught.value.code is Code.FAILED_PRECONDITION
    assert "modprobe nft_rejecx" in caught.value.hint
    assert run("nft", "list", "ruleset") == ""
    await table.replace(WHO)
    await table.replace(Section("who"))
    await table.close()


@pytest.mark.parametrize(("place", "number"), [("NETLINK_NETFILTER", 30), ("_GETGEN", 0xE10)])
@in_netns
async def test_a_kernel_without_nftables(place: str, number: int) -> None:
    """What there is none of: a protocol of netlink, and a subsystem of nfnetlink."""
    table = NftTable("other", lasting=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nfttable, place, number)
        with pytest.raises(ScistreamError, match="this kernel has none") as caught:
            await table.generation()
    assert "modprobe nf_tables" in caught.value.hint
    await table.close()
