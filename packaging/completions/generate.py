"""Writes the completions of s2ctl for bash, zsh and fish from its own table of commands.

Run it after a change of s2ctl's commands or options: python packaging/completions/generate.py
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from scistreamd.cli import s2ctl
from scistreamd.cli.commands import Command
from scistreamd.cli.options import Parser

_NOTICE = "# Made by generate.py beside this file's source; change it there."
_IDS = "s2ctl list --quiet 2>/dev/null"


@dataclass(frozen=True)
class Option:
    """An option by all its names; ``values``: the words it takes, empty for any other value or none."""

    names: tuple[str, ...]
    takes: bool
    values: tuple[str, ...]
    files: bool
    about: str


@dataclass(frozen=True)
class Verb:
    """A command; ``ids`` and ``files``: what its arguments are."""

    words: tuple[str, ...]
    about: str
    options: tuple[Option, ...]
    ids: bool
    files: bool


def verbs() -> list[Verb]:
    """All commands of s2ctl."""
    return [_verb(command) for command in s2ctl.TOOL.commands]


def _verb(command: Command) -> Verb:
    parser = Parser(prog=command.name)
    command.arguments(parser)
    actions = parser._actions  # argparse has no other list of them
    arguments = [action for action in actions if not action.option_strings]
    return Verb(
        tuple(command.name.split()),
        command.summary,
        tuple(_option(action) for action in actions if action.option_strings),
        ids=any(action.metavar == "ID" for action in arguments),
        files=any(action.metavar == "FILE" for action in arguments),
    )


def _option(action: argparse.Action) -> Option:
    about = (action.help or "").partition(" (")[0].replace("%", "").replace("'", "")
    takes = action.nargs is None
    values = tuple(map(str, action.choices or ()))
    return Option(tuple(action.option_strings), takes, values, action.metavar == "FILE", about)


def bash(found: list[Verb]) -> str:
    """bash(1), "Programmable Completion"; `=` is a word of its own there."""
    second = _second_words(found)
    tops = " ".join(dict.fromkeys(verb.words[0] for verb in found))
    lines = [
        _NOTICE,
        "_s2ctl() {",
        "    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} verb=${COMP_WORDS[1]}",
        '    [[ $cur == "=" ]] && cur=',
        '    [[ $prev == "=" ]] && prev=${COMP_WORDS[COMP_CWORD-2]}',
        f'    case $verb in {"|".join(second)}) verb+=" ${{COMP_WORDS[2]}}";; esac',
        "    local options= ids= files=",
        "    COMPREPLY=()",
        "    if (( COMP_CWORD == 1 )); then",
        f'        COMPREPLY=($(compgen -W "{tops}" -- "$cur"))',
        "        return",
        "    fi",
    ]
    for top, words in second.items():
        lines += [
            f"    if (( COMP_CWORD == 2 )) && [[ ${{COMP_WORDS[1]}} == {top} ]]; then",
            f'        COMPREPLY=($(compgen -W "{" ".join(words)}" -- "$cur"))',
            "        return",
            "    fi",
        ]
    lines += ["    case $prev in", *_bash_values(found), "    esac", '    case "$verb" in']
    for verb in found:
        names = " ".join(name for option in verb.options for name in option.names)
        extra = (" ids=1" if verb.ids else "") + (" files=1" if verb.files else "")
        lines.append(f'        "{" ".join(verb.words)}") options="{names}"{extra};;')
    return "\n".join([*lines, *_BASH_END])


_BASH_END = (
    "    esac",
    "    if [[ $cur == -* ]]; then",
    '        COMPREPLY=($(compgen -W "$options" -- "$cur"))',
    "    elif [[ $ids ]]; then",
    f'        COMPREPLY=($(compgen -W "$({_IDS})" -- "$cur"))',
    "    elif [[ $files ]]; then",
    '        COMPREPLY=($(compgen -f -- "$cur"))',
    "    fi",
    "}",
    "complete -F _s2ctl s2ctl",
    "",
)


def _bash_values(found: list[Verb]) -> Iterator[str]:
    """What comes after an option with a value; the options of one name mean the same everywhere."""
    by_value: dict[str, dict[str, None]] = {}
    for option in (option for verb in found for option in verb.options if option.takes):
        reply = f'-W "{" ".join(option.values)}"' if option.values else "-f" if option.files else "-A hostname"
        if option.values or option.files or "--host" in option.names:
            action = f'COMPREPLY=($(compgen {reply} -- "$cur")); return;;'
        else:
            action = "return;;"
        by_value.setdefault(action, {}).update(dict.fromkeys(option.names))
    for action, names in by_value.items():
        yield f"        {'|'.join(names)}) {action}"


def zsh(found: list[Verb]) -> str:
    """zshcompsys(1), by _arguments."""
    second = _second_words(found)
    tops = [_quoted(f"{verb.words[0]}:{verb.about}") for verb in found if len(verb.words) == 1]
    tops += [_quoted(f"{top}:{', '.join(words)}") for top, words in second.items()]
    lines = [
        "#compdef s2ctl",
        _NOTICE,
        "_s2ctl_ids() {",
        "    local -a ids",
        f'    ids=(${{(f)"$({_IDS})"}})',
        "    compadd -a ids",
        "}",
        "_s2ctl() {",
        "    local verb=${words[2]}",
        "    if (( CURRENT == 2 )); then",
        "        local -a verbs=(",
        *(f"            {each}" for each in tops),
        "        )",
        "        _describe command verbs",
        "        return",
        "    fi",
    ]
    for top, names in second.items():
        lines += [
            f"    if [[ $verb == {top} ]]; then",
            f"        if (( CURRENT == 3 )); then compadd {' '.join(names)}; return; fi",
            '        verb+=" ${words[3]}"',
            "        shift words; (( CURRENT-- ))",
            "    fi",
        ]
    lines += ["    shift words; (( CURRENT-- ))", '    case "$verb" in']
    for verb in found:
        specs = [_zsh_option(option, name) for option in verb.options for name in option.names]
        specs += ["'*:tunnel:_s2ctl_ids'"] if verb.ids else ["'*:file:_files'"] if verb.files else []
        lines.append(f'        "{" ".join(verb.words)}") _arguments {" ".join(specs)};;')
    return "\n".join([*lines, "    esac", "}", '_s2ctl "$@"', ""])


def _zsh_option(option: Option, name: str) -> str:
    about = option.about.replace("[", "(").replace("]", ")").replace(":", ",")
    if not option.takes:
        return f"'{name}[{about}]'"
    action = f"({' '.join(option.values)})" if option.values else "_files" if option.files else " "
    action = "_hosts" if "--host" in option.names else action
    return f"'*{name}{'=' if name.startswith('--') else ''}[{about}]:value:{action}'"


def fish(found: list[Verb]) -> str:
    """fish's complete(1)."""
    lines = [_NOTICE, "complete -c s2ctl -f"]
    second = _second_words(found)
    for verb in found:
        if len(verb.words) == 1:
            lines.append(f"complete -c s2ctl -n __fish_use_subcommand -a {verb.words[0]} -d {_quoted(verb.about)}")
        else:
            given = f"'__fish_seen_subcommand_from {verb.words[0]}; and test (count (commandline -opc)) -eq 2'"
            lines.append(f"complete -c s2ctl -n {given} -a {verb.words[1]} -d {_quoted(verb.about)}")
    for top, words in second.items():
        lines.append(f"complete -c s2ctl -n __fish_use_subcommand -a {top} -d {_quoted(', '.join(words))}")
    for verb in found:
        seen = "; and ".join(f"__fish_seen_subcommand_from {word}" for word in verb.words)
        head = f"complete -c s2ctl -n '{seen}'"
        lines += [f"{head} {_fish_option(option)}" for option in verb.options]
        lines += [f"{head} -a '({_IDS})'"] if verb.ids else [f"{head} -F"] if verb.files else []
    return "\n".join([*lines, ""])


def _fish_option(option: Option) -> str:
    names = [f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in option.names]
    value = f" -x -a '{' '.join(option.values)}'" if option.values else " -r -F" if option.files else " -x"
    return f"{' '.join(names)}{value if option.takes else ''} -d {_quoted(option.about)}"


def _second_words(found: list[Verb]) -> dict[str, list[str]]:
    """First words of commands of two words, with what may follow."""
    second: dict[str, list[str]] = {}
    for verb in found:
        if len(verb.words) == 2:
            second.setdefault(verb.words[0], []).append(verb.words[1])
    return second


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "") + "'"


def files() -> dict[str, str]:
    """File name to content."""
    found = verbs()
    return {"s2ctl.bash": bash(found), "_s2ctl": zsh(found), "s2ctl.fish": fish(found)}


if __name__ == "__main__":
    for name, content in files().items():
        (Path(__file__).parent / name).write_text(content)
