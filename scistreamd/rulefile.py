"""``[[policy]]`` of the configuration file: from TOML to `rules` and back.

Each parser raises ScistreamError(INVALID_ARGUMENT) that names the key within
the rule, such as ``policy[2].targets[0]``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from scistreamd import dataserver, options
from scistreamd.errors import did_you_mean, invalid
from scistreamd.model import IPNetwork, PortRange, Role, Security, shown
from scistreamd.rules import ALL_PORTS, VERBS, Ceilings, Reach, Rule, Who

_MOST = 1 << 62
_Value = TypeVar("_Value")

# Key of the file to field of `Who`.
_WHO = {
    "user": "users",
    "group": "groups",
    "domain": "domains",
    "certificate": "certificates",
    "token": "tokens",
    "local": "local",
}
# Key of the file to field of `Ceilings`.
_CEILINGS = {f"max_{field.name}": field.name for field in dataclasses.fields(Ceilings)}
KEYS = (
    "name", "effect", *_WHO, "anonymous", "from", "verbs", "role", "targets", "listeners", "type", "security",
    *_CEILINGS,
)  # fmt: skip


def parse(raw: Any, name: str = "policy") -> tuple[Rule, ...]:
    """The rules of an array of tables; those without a name have an empty one until they are joined."""
    if not isinstance(raw, list) or not all(isinstance(each, Mapping) for each in raw):
        raise invalid(name, "not an array of tables", "each rule begins with [[policy]]")
    return tuple(_rule(table, f"{name}[{index}]") for index, table in enumerate(raw, start=1))


def join(former: Sequence[Rule], further: Sequence[Rule], name: str = "policy") -> tuple[Rule, ...]:
    """The rules of one file after those of another; one without a name gets its number, from 1."""
    rules = [*former]
    for rule in further:
        named = rule if rule.name else dataclasses.replace(rule, name=str(len(rules) + 1))
        if any(each.name == named.name for each in rules):
            raise invalid(f"{name}[{len(rules) + 1}].name", f"{shown(named.name)} is the name of another rule, too")
        rules.append(named)
    return tuple(rules)


def parse_who(raw: Any, name: str) -> Who:
    """The callers that a table of names means."""
    table = _table(raw, name, (*_WHO, "anonymous"))
    names = {field: frozenset(_texts(table.get(key, []), f"{name}.{key}")) for key, field in _WHO.items()}
    names["domains"] = frozenset(each.lower() for each in names["domains"])
    return Who(**names, anonymous=_boolean(table.get("anonymous", False), f"{name}.anonymous"))


def parse_some(raw: Any, name: str) -> Who | None:
    """As `parse_who`, for those who are more than others: an empty table is nobody, and names are needed."""
    who = parse_who(raw, name)
    if who.anonymous or (raw and who == Who()):
        raise invalid(name, "only callers with a name can be meant", f"one of: {', '.join(_WHO)}")
    return who if raw else None


def parse_networks(raw: Any, name: str) -> tuple[IPNetwork, ...]:
    """A list of networks in CIDR form."""
    return tuple(_each(raw, name, options.network))


def parse_reach(text: str, name: str) -> Reach:
    """``lan``, ``any`` or a network, each with ``:PORT`` or ``:FIRST-LAST`` where only those are meant.

    An IPv6 network with ports stands in brackets: ``[2001:db8::/32]:5000``.
    """
    where, ports = text, ALL_PORTS
    bare, colon, range_text = text.rpartition(":")
    if colon and (bare.startswith("[") or ":" not in bare):
        where, ports = bare, PortRange.parse(range_text, name)
    if where in ("lan", "any"):
        return Reach(None, ports, everything=where == "any")
    if where.startswith("[") and where.endswith("]"):
        where = where[1:-1]
    return Reach(options.network(where, name), ports)


def toml(rules: Sequence[Rule]) -> str:
    """The rules as the value of ``policy`` in a file."""
    return "[" + ", ".join(_inline(rule) for rule in rules) + "]"


def who_toml(who: Who | None) -> str:
    """The callers as an inline table."""
    return "{" + ", ".join(f"{key} = {value}" for key, value in _who_pairs(who or Who())) + "}"


def _rule(raw: Mapping[str, Any], name: str) -> Rule:
    table = _table(raw, name, KEYS)
    effect = _text(table.get("effect", "allow"), f"{name}.effect")
    if effect not in ("allow", "deny"):
        raise invalid(f"{name}.effect", f"{shown(effect)} is neither allow nor deny")
    listeners = table.get("listeners")
    return Rule(
        name=_name(table["name"], f"{name}.name") if "name" in table else "",
        allow=effect == "allow",
        who=parse_who({key: table[key] for key in (*_WHO, "anonymous") if key in table}, name),
        sources=parse_networks(table.get("from", []), f"{name}.from"),
        verbs=frozenset(_each(table.get("verbs", []), f"{name}.verbs", _verb)),
        roles=frozenset(_each(table.get("role", []), f"{name}.role", Role.parse)),
        targets=tuple(_each(table.get("targets", []), f"{name}.targets", parse_reach)),
        listeners=None
        if listeners is None
        else PortRange.parse(_text(listeners, f"{name}.listeners"), f"{name}.listeners"),
        types=frozenset(_each(table.get("type", []), f"{name}.type", _type)),
        securities=frozenset(_each(table.get("security", []), f"{name}.security", Security.parse)),
        ceilings=Ceilings(**{field: _whole(table.get(key, 0), f"{name}.{key}") for key, field in _CEILINGS.items()}),
    )


def _table(raw: Any, name: str, keys: Sequence[str]) -> Mapping[str, Any]:
    if not isinstance(raw, Mapping):
        raise invalid(name, "not a table")
    for key in raw:
        if key not in keys:
            raise invalid(
                f"{name}.{shown(key)[1:-1]}", "no such key", did_you_mean(key, keys) or f"one of: {', '.join(keys)}"
            )
    return raw


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise invalid(name, f"{shown(str(value))[1:-1]} is not a text")
    return value


def _texts(value: Any, name: str) -> list[str]:
    return _each(value, name, _name)


def _each(value: Any, name: str, parse: Callable[[str, str], _Value]) -> list[_Value]:
    """A list of texts, or a single one."""
    if isinstance(value, str):
        return [parse(value, name)]
    if not isinstance(value, list):
        raise invalid(name, f"{shown(str(value))[1:-1]} is neither a text nor a list of texts")
    return [parse(_text(each, f"{name}[{index}]"), f"{name}[{index}]") for index, each in enumerate(value)]


def _name(value: Any, name: str) -> str:
    text = _text(value, name)
    if not text or not text.isprintable():
        raise invalid(name, f"{shown(text)} is empty or not printable")
    return text


def _verb(text: str, name: str) -> str:
    if text not in VERBS:
        raise invalid(name, f"{shown(text)} is not a verb", f"one of: {', '.join(VERBS)}")
    return text


def _type(text: str, name: str) -> str:
    return dataserver.parse_type(text, name).name


def _boolean(value: Any, name: str) -> bool:
    if not isinstance(value, bool):
        raise invalid(name, f"{shown(str(value))[1:-1]} is neither true nor false")
    return value


def _whole(value: Any, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _MOST:
        raise invalid(name, f"{shown(str(value))[1:-1]} is not a whole number from 0", "0 is no ceiling")
    return value


def _inline(rule: Rule) -> str:
    pairs: list[tuple[str, str]] = [("name", _quoted(rule.name))]
    if not rule.allow:
        pairs.append(("effect", _quoted("deny")))
    pairs += _who_pairs(rule.who)
    lists = {
        "from": [str(each) for each in rule.sources],
        "verbs": sorted(rule.verbs),
        "role": sorted(each.value for each in rule.roles),
        "targets": [str(each) for each in rule.targets],
        "type": sorted(rule.types),
        "security": sorted(each.value for each in rule.securities),
    }
    pairs += [(key, _list(values)) for key, values in lists.items() if values]
    if rule.listeners is not None:
        pairs.append(("listeners", _quoted(str(rule.listeners))))
    pairs += [(key, str(value)) for key, field in _CEILINGS.items() if (value := getattr(rule.ceilings, field))]
    return "{" + ", ".join(f"{key} = {value}" for key, value in pairs) + "}"


def _who_pairs(who: Who) -> list[tuple[str, str]]:
    pairs = [(key, _list(sorted(names))) for key, field in _WHO.items() if (names := getattr(who, field))]
    return [*pairs, ("anonymous", "true")] if who.anonymous else pairs


def _list(values: Sequence[str]) -> str:
    return "[" + ", ".join(map(_quoted, values)) + "]"


def _quoted(value: str) -> str:
    """A TOML basic string; what we hold has no control character."""
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
