"""The parts of the man pages that the program knows: options, keys of the configuration, D-Bus interfaces."""

from __future__ import annotations

import argparse
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from pathlib import Path

from scistreamd import names, policy_command, service_main
from scistreamd.cli import s2cs, s2ctl, s2uc
from scistreamd.cli.commands import Command, Tool
from scistreamd.cli.options import Parser
from scistreamd.configkeys import KEYS, Key
from scistreamd.errors import Code
from scistreamd.model import Security

ROOT = Path(__file__).resolve().parent.parent.parent
TOOLS: dict[str, Tool] = {"s2ctl": s2ctl.TOOL, "s2uc": s2uc.TOOL}
PROGRAMS: dict[str, Callable[[], Parser]] = {
    "s2cs": s2cs._parser,
    "scistreamd": service_main._parser,
    "policy-test": policy_command.parser,
}
_SHARED_BY = 3
_BOOLEAN = "BOOL"


def escaped(text: str) -> str:
    """Text as Markdown that means itself; code spans stay."""
    pieces = re.split(r"(`[^`]*`)", text)
    return "".join(piece if piece.startswith("`") else re.sub(r"([\\*_\[\]<>])", r"\\\1", piece) for piece in pieces)


def sentence(text: str) -> str:
    """A capital at its start, unless that is a value to be typed, and a full stop at its end."""
    first = text[:1] if text.startswith(tuple(mode.value for mode in Security)) else text[:1].upper()
    return f"{first}{text[1:]}" + ("" if text.endswith((".", "?")) else ".")


def entry(term: str, text: str) -> str:
    """An item of a definition list."""
    return f"{term}\n: {text}\n"


# Options


def command(tool: str, name: str) -> Command | None:
    """The command of a tool that has this name, or None."""
    return next((each for each in TOOLS[tool].commands if each.name == name), None) if tool in TOOLS else None


def synopsis(tool: str, each: Command) -> str:
    """How a command is typed."""
    words = [f"**{tool} {each.name}**"]
    actions = _actions(each)
    words += ["[*OPTION*]..."] if any(action.option_strings for action in actions) else []
    return " ".join(words + [_positional(action) for action in actions if not action.option_strings])


def _positional(action: argparse.Action) -> str:
    name = f"*{escaped(str(action.metavar))}*"
    return {None: name, "?": f"[{name}]", "*": f"[{name}]...", "+": f"{name}..."}[action.nargs]  # type: ignore[index]


def _actions(each: Command) -> list[argparse.Action]:
    parser = Parser(prog=each.name)
    each.arguments(parser)
    return _shown(parser)


def _shown(parser: Parser) -> list[argparse.Action]:
    # argparse has no other list of them.
    return [a for a in parser._actions if a.help is not argparse.SUPPRESS and a.dest != "help"]


def _option(action: argparse.Action) -> str:
    """An option with all its names as the item of a definition list."""
    term = ", ".join(f"**{name}**" for name in action.option_strings)
    if action.choices:
        term += " " + "|".join(f"**{each}**" for each in action.choices)
    elif action.nargs != 0 and (action.metavar != _BOOLEAN or action.default):
        term += f" *{escaped(str(action.metavar or action.dest.upper()))}*"
    return entry(term, sentence(escaped(_help(action))))


def _help(action: argparse.Action) -> str:
    return (action.help or "") % {"default": action.default}


def _key(action: argparse.Action) -> tuple[object, ...]:
    return (*action.option_strings, action.metavar, _help(action))


def _shared(tool: str) -> dict[tuple[object, ...], argparse.Action]:
    """Options that are the same in several commands, and different in none: described once, for all of them."""
    uses: dict[str, list[argparse.Action]] = {}
    for each in TOOLS[tool].commands:
        for action in _actions(each):
            if action.option_strings:
                uses.setdefault(action.option_strings[-1], []).append(action)
    alike = [actions for actions in uses.values() if len({_key(action) for action in actions}) == 1]
    return {_key(actions[0]): actions[0] for actions in alike if len(actions) >= _SHARED_BY}


def own_options(tool: str, each: Command) -> str:
    """The options of a command: its own with what they do, the names of those that others have as well."""
    shared = _shared(tool)
    options = [action for action in _actions(each) if action.option_strings]
    items = [_option(action) for action in options if _key(action) not in shared]
    common = ", ".join(f"**{action.option_strings[-1]}**" for action in options if _key(action) in shared)
    return "\n".join(items) + (f"\nCommon options: {common}." if common else "")


def shared_options(tool: str) -> str:
    """The options that several commands have."""
    return "\n".join(_option(action) for action in _shared(tool).values())


def program_options(tool: str) -> str:
    """The options of a program without commands."""
    return "\n".join(_option(action) for action in _shown(PROGRAMS[tool]()))


# Configuration


def keys(table: str) -> str:
    """The keys of one table of the configuration file; `top` for those outside of tables."""
    return "\n".join(_config_key(key) for key in KEYS if (key.name.rpartition(".")[0] or "top") == table)


def _config_key(key: Key) -> str:
    restart = " Taken up by the next start." if key.restart else ""
    # No sentence: a capital letter would change what names and values mean.
    text = f"{escaped(key.about)}. Default `{key.default}`; {escaped(key.kind.expected)}.{restart}"
    return entry(f"**{escaped(key.name)}**", text)


# D-Bus


def interface(name: str) -> str:
    """Methods, properties and signals of an interface, with the comments of the introspection XML."""
    builder = ET.TreeBuilder(insert_comments=True)
    # Our own file.
    root = ET.parse(ROOT / "dbus" / "org.scistream.scistreamd1.xml", ET.XMLParser(target=builder)).getroot()  # noqa: S314
    found = next(each for each in root.iter("interface") if each.get("name") == name)
    return "\n".join(_members(found))


def _members(found: ET.Element) -> Iterator[str]:
    """Its members as they stand, with titles; one without a comment is told of together with the one before it."""
    headings = {"method": "Methods", "property": "Properties", "signal": "Signals"}
    kind = ""
    for comment, members in _commented(found):
        if members[0].tag != kind:
            kind = members[0].tag
            yield f"*{headings[kind]}*\n"
        yield entry(", ".join(map(_signature, members)), _explained(comment, members))


def _commented(found: ET.Element) -> list[tuple[str, list[ET.Element]]]:
    groups: list[tuple[str, list[ET.Element]]] = []
    for member in found:
        if member.tag is ET.Comment:
            groups.append((" ".join((member.text or "").split()), []))
        else:
            groups[-1][1].append(member)
    return groups


def _signature(member: ET.Element) -> str:
    name = f"**{member.get('name')}**"
    if member.tag == "property":
        return f"{name} `{member.get('type')}`"
    typed = (
        f"{each.get('direction', '')} `{each.get('type')}` *{escaped(each.get('name', ''))}*"
        for each in member.iter("arg")
    )
    return f"{name}({', '.join(each.lstrip() for each in typed)})"


def _explained(comment: str, members: list[ET.Element]) -> str:
    arguments = [each.get("name", "") for member in members for each in member.iter("arg")]
    # Each argument in a paragraph of its own.
    own = "|".join(map(re.escape, [*arguments, "Each answer"]))
    return escaped(re.sub(rf"(?<=\.) ((?:{own}): )", r"\n\n    \1", comment)) + _emits(members[0])


def _emits(member: ET.Element) -> str:
    emits = next((each.get("value") for each in member.iter("annotation")), "")
    return {"const": " Never changes.", "false": " PropertiesChanged does not tell of it.", "": ""}[emits or ""]


def errors(_: str) -> str:
    """The names of errors, each with its exit status."""
    codes = [f"**{names.error_name(code).rpartition('.')[2]}** ({code.exit_status})" for code in Code]
    return ", ".join(codes) + "."


def actions(_: str) -> str:
    """polkit's actions, as its own file has them."""
    file = ROOT / "dbus" / "org.scistream.scistreamd1.policy"
    found = ET.parse(file).getroot().iter("action")  # noqa: S314  # our own file
    return "\n".join(entry(f"`{each.get('id')}`", sentence(str(each.findtext("description")))) for each in found)


PARTS: dict[str, Callable[[str], str]] = {
    "options": program_options,
    "common-options": shared_options,
    "keys": keys,
    "interface": interface,
    "errors": errors,
    "actions": actions,
}
