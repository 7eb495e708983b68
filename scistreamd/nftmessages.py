"""Messages of nf_tables, by pyroute2's classes, from plain data and back.

Where the classes of 0.7.2 and 0.9 differ, an attribute is bytes or a plain number here.
"""

from __future__ import annotations

import functools
import struct
from typing import Any

from pyroute2.netlink.nfnetlink import NFNL_SUBSYS_NFTABLES, nfgen_msg
from pyroute2.netlink.nfnetlink import nftsocket as nft

from scistreamd.netattributes import attribute
from scistreamd.netlink import APPEND, CREATE, Order, encoded
from scistreamd.nftrules import MARK, PORT_KEY_BYTES, Byte, Chain, Expression, Map, PortCounts, Rule, Section, Verdict

GETTABLE, GETCHAIN = nft.NFT_MSG_GETTABLE, nft.NFT_MSG_GETCHAIN
GETRULE, GETSET = nft.NFT_MSG_GETRULE, nft.NFT_MSG_GETSET

EDGES = (0x10, 0x11)  # NFNL_MSG_BATCH_BEGIN, NFNL_MSG_BATCH_END
_OWNER = 2  # NFT_TABLE_F_OWNER
_INET = 1  # NFPROTO_INET
_HEADER = bytes([_INET, 0, 0, 0])  # struct nfgenmsg
_ACCEPT = 1
_MAP, _TIMEOUT, _EVAL = 0x8, 0x10, 0x20
# How nft(8) prints our maps, by the length of the key: an interface; an integer and an address; class ids.
_KEY_TYPES, _CLASSID = {4: 20, 8: 4 << 6 | 7, 20: 4 << 6 | 8}, 23
_PORT_KEY_TYPE = 2 << 12 | 12 << 6 | 13  # nf_proto . inet_proto . inet_service


def _with(kind: Any, **changes: str) -> Any:
    changed = tuple((name, changes.get(name, form)) for name, form in kind.nla_map)
    return type(kind.__name__, (kind,), {"nla_map": changed})


Table = _with(nft.nft_table_msg, NFTA_TABLE_USERDATA="cdata")
ChainMessage = _with(nft.nft_chain_msg, NFTA_CHAIN_FLAGS="be32", NFTA_CHAIN_USERDATA="cdata")
SetMessage = _with(nft.nft_set_msg, NFTA_SET_FLAGS="be32", NFTA_SET_TIMEOUT="be64", NFTA_SET_USERDATA="cdata")
# To read names alone: what else is in them may be of a kernel that pyroute2 does not know.
PlainRule = _with(nft.nft_rule_msg, NFTA_RULE_EXPRESSIONS="cdata", NFTA_RULE_USERDATA="cdata")


def edge() -> bytes:
    """What begins or ends a transaction."""
    made = nfgen_msg()
    made["res_id"] = NFNL_SUBSYS_NFTABLES
    return encoded(made)


def kind(number: int) -> int:
    """The type of a message of nf_tables (NFT_MSG_...)."""
    return int(NFNL_SUBSYS_NFTABLES) << 8 | number


def message(make: Any, *more: tuple[str, Any], **attributes: Any) -> bytes:
    """A message of the class ``make`` about the family inet, with these attributes."""
    made = make()
    made["nfgen_family"] = _INET
    named = [*attributes.items(), *more]
    made["attrs"] = [(f"{make.prefix}{name.upper()}", value) for name, value in named]
    return encoded(made)


def new_table(table: str, *, lasting: bool) -> Order:
    """Make the table, with our mark on it, if it is not there."""
    made = message(Table, name=table, flags=0 if lasting else _OWNER, userdata=MARK)
    return Order(made, kind(nft.NFT_MSG_NEWTABLE), CREATE)


def delete_table(table: str) -> Order:
    """Remove the table with all that is in it."""
    return Order(message(Table, name=table), kind(nft.NFT_MSG_DELTABLE), 0)


def new_chain(table: str, chain: Chain) -> Order:
    """Make the chain, if it is not there, without its rules."""
    base: list[tuple[str, Any]] = []
    if chain.hook is not None:
        hook = [("NFTA_HOOK_HOOKNUM", chain.hook.number), ("NFTA_HOOK_PRIORITY", chain.hook.priority)]
        base = [("hook", {"attrs": hook}), ("policy", _ACCEPT), ("type", "filter")]
    made = message(ChainMessage, *base, table=table, name=chain.name)
    return Order(made, kind(nft.NFT_MSG_NEWCHAIN), CREATE)


def flush_chain(table: str, chain: str) -> Order:
    """Remove the rules of the chain."""
    return Order(message(PlainRule, table=table, chain=chain), kind(nft.NFT_MSG_DELRULE), 0)


def delete_chain(table: str, chain: str) -> Order:
    """Remove a chain without rules."""
    return Order(message(ChainMessage, table=table, name=chain), kind(nft.NFT_MSG_DELCHAIN), 0)


def new_map(table: str, made: Map, number: int) -> Order:
    """Make the map, if it is not there; ``number`` is its own within the transaction."""
    described = message(
        SetMessage,
        table=table,
        name=made.name,
        flags=_MAP | _TIMEOUT | _EVAL,
        key_type=_KEY_TYPES[made.key_bytes],
        key_len=made.key_bytes,
        data_type=_CLASSID,
        data_len=4,
        timeout=made.timeout_seconds * 1000,
        id=number,
        desc={"attrs": [("NFTA_SET_DESC_SIZE", made.size)]},
    )
    return Order(described, kind(nft.NFT_MSG_NEWSET), CREATE)


def new_set(table: str, made: PortCounts, number: int) -> Order:
    """As `new_map`."""
    described = message(
        SetMessage,
        table=table,
        name=made.name,
        flags=_EVAL,
        key_type=_PORT_KEY_TYPE,
        key_len=PORT_KEY_BYTES,
        id=number,
        desc={"attrs": [("NFTA_SET_DESC_SIZE", made.size)]},
    )
    return Order(described, kind(nft.NFT_MSG_NEWSET), CREATE)


def delete_map(table: str, name: str) -> Order:
    """Remove a map or set that no rule uses."""
    return Order(message(SetMessage, table=table, name=name), kind(nft.NFT_MSG_DELSET), 0)


@functools.lru_cache(maxsize=1 << 16)  # most rules are the same in the next transaction
def new_rule(table: str, chain: str, rule: Rule) -> Order:
    """Add the rule behind those of the chain."""
    text = rule.comment.encode()[:120] + b"\0"
    parts = [
        _HEADER,
        _named(nft.nft_rule_msg, "table", table.encode() + b"\0"),
        _named(nft.nft_rule_msg, "chain", chain.encode() + b"\0"),
        _named(nft.nft_rule_msg, "expressions", b"".join(map(_expression, rule.expressions))),
        _named(nft.nft_rule_msg, "userdata", bytes([0, len(text)]) + text) if rule.comment else b"",
    ]
    return Order(b"".join(parts), kind(nft.NFT_MSG_NEWRULE), CREATE | APPEND)


@functools.cache
def _numbers(make: Any) -> dict[str, int]:
    """The attributes of a class of pyroute2 by their names without what they begin with alike."""
    return {name.split("_", 2)[2].lower(): number for number, (name, *_) in enumerate(make.nla_map)}


def _named(make: Any, name: str, payload: bytes) -> bytes:
    return attribute(_numbers(make)[name], payload)


def _expression(expression: Expression) -> bytes:
    return attribute(1, _whole(expression))  # NFTA_LIST_ELEM


def _whole(expression: Expression) -> bytes:
    make = getattr(nft.nft_contains_expr.nft_expr, f"nft_{expression.name}")
    inner = b"".join(_named(make, name, _value(value)) for name, value in expression.attributes)
    return attribute(1, expression.name.encode() + b"\0") + attribute(2, inner)  # NFTA_EXPR_NAME, NFTA_EXPR_DATA


def _value(value: Any) -> bytes:
    if isinstance(value, Expression):
        return _whole(value)
    if isinstance(value, bytes):
        return attribute(1, value)  # NFTA_DATA_VALUE
    if isinstance(value, Verdict):
        chain = attribute(2, value.chain.encode() + b"\0") if value.chain else b""
        return attribute(2, attribute(1, struct.pack(">i", value.code)) + chain)  # NFTA_DATA_VERDICT
    if isinstance(value, str):
        return value.encode() + b"\0"
    return bytes([value.number]) if isinstance(value, Byte) else struct.pack(">I", value)


def replacement(table: str, section: Section, there: Section, *, lasting: bool) -> list[Order]:
    """The transaction that makes ``section`` all of itself, where ``there`` is what there is of it."""
    wanted = {chain.name for chain in section.chains}
    orders = [new_table(table, lasting=lasting)]
    orders += [new_chain(table, each) for each in section.chains]
    for number, each in enumerate(section.maps, 1):
        orders.append(new_map(table, each, number) if isinstance(each, Map) else new_set(table, each, number))
    orders += [flush_chain(table, name) for name in (*wanted, *(each.name for each in there.chains))]
    orders += [delete_chain(table, each.name) for each in there.chains if each.name not in wanted]
    kept = {each.name for each in section.maps}
    orders += [delete_map(table, each.name) for each in there.maps if each.name not in kept]
    orders += [new_rule(table, chain.name, rule) for chain in section.chains for rule in chain.rules]
    return orders
