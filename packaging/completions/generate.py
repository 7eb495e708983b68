"""Writes the completions of s2ctl for bash, zsh and fish from its own table of commands.

Run it after a change of s2ctl's commands or options: python packaging/completions/generate.py
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from scistreamd.cli import s2ctl
from scistreamd.cli.commands import Command
from scistreamd.cli.options import Parser

_NOTICE = "# Made by generate.py beside this file's source; change it there."
_IDS = "s2ctl list --quiet 2>/dev/null"
# The one option whose value may be left out.
_OPTIONAL = "--json"
_BEFORE = {"--help", "--json", "--no-pager", "--no-legend", "--quiet", "--host", "--address"}


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
        tuple(_option(each) for each in actions if each.option_strings and each.help != argparse.SUPPRESS),
        ids=any("ID" in str(action.metavar).split("|") for action in arguments),
        files=any(action.metavar == "FILE" for action in arguments),
    )


def _option(action: argparse.Action) -> Option:
    about = (action.help or "").partition(" (")[0].replace("%", "")
    takes = action.nargs is None
    values = tuple(map(str, action.choices or ()))
    return Option(tuple(action.option_strings), takes, values, action.metavar == "FILE", about)


def bash(found: list[Verb]) -> str:
    """bash(1), "Programmable Completion". The line is split at blanks: bash's own words end at `=`, `:` and `@` too."""
    second = _second_words(found)
    lines = [
        _NOTICE,
        "_s2ctl() {",
        "    local cur=${COMP_WORDS[COMP_CWORD]} line=${COMP_LINE:0:COMP_POINT}",
        "    local first= next= options= ids=1 files= index",
        "    local -a words",
        '    read -ra words <<< "$line"',
        '    [[ $line == *[[:space:]] ]] && words+=("")',
        "    local last=${words[-1]} prev=${words[-2]}",
        '    [[ $cur == "=" ]] && cur=',
        "    [[ $last == --*=* ]] && prev=${last%%=*}",
        "    for (( index = 1; index < ${#words[@]} - 1; index++ )); do",
        "        case ${words[index]} in",
        "            -H|--host|--host=*) ids=;;&",
        f"            {_OPTIONAL}) [[ ${{words[index+1]}} == @({'|'.join(_optional(found))}) ]] && (( index++ ));;",
        f"            {'|'.join(_valued(found))}) (( index++ ));;",
        "            -*) ;;",
        "            *) if [[ -z $first ]]; then first=${words[index]}; else next=${next:-${words[index]}}; fi;;",
        "        esac",
        "    done",
        "    COMPREPLY=()",
        "    case $prev in",
        *_bash_values(found),
        "    esac",
        f'    case $first in {"|".join(second)}) first+=" $next";; esac',
        '    case "$first" in',
        f'        "") options="{_names(_leading(found))}" next="{" ".join(_tops(found))}" ids=;;',
    ]
    lines += [f'        "{top} ") options= next="{" ".join(names)}" ids=;;' for top, names in second.items()]
    for verb in found:
        extra = " next=" + ("" if verb.ids else " ids=") + (" files=1" if verb.files else "")
        lines.append(f'        "{" ".join(verb.words)}") options="{_names(verb.options)}"{extra};;')
    return "\n".join([*lines, *_BASH_END])


_BASH_END = (
    "        *) options= next= ids=;;",
    "    esac",
    "    if [[ $cur == -* ]]; then",
    '        COMPREPLY=($(compgen -W "$options" -- "$cur"))',
    "    elif [[ $next ]]; then",
    '        COMPREPLY=($(compgen -W "$next" -- "$cur"))',
    "    elif [[ $ids ]]; then",
    f'        COMPREPLY=($(compgen -W "$({_IDS})" -- "$cur"))',
    "    elif [[ $files ]]; then",
    '        COMPREPLY=($(compgen -f -- "$cur"))',
    "        compopt -o filenames 2>/dev/null",
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
            end = "[[ $COMPREPLY ]] && return" if _OPTIONAL in option.names else "return"
            action = f'COMPREPLY=($(compgen {reply} -- "$cur")); {end};;'
        else:
            action = "return;;"
        by_value.setdefault(action, {}).update(dict.fromkeys(option.names))
    for action, names in by_value.items():
        yield f"        {'|'.join(names)}) {action}"


def zsh(found: list[Verb]) -> str:
    """zshcompsys(1), by _arguments, once the options before the command are taken away."""
    second = _second_words(found)
    tops = [_quoted(f"{verb.words[0]}:{verb.about}") for verb in found if len(verb.words) == 1]
    tops += [_quoted(f"{top}:{', '.join(words)}") for top, words in second.items()]
    lines = [
        "#compdef s2ctl",
        _NOTICE,
        "_s2ctl_ids() {",
        "    local -a ids",
        f'    (( elsewhere )) || ids=(${{(f)"$({_IDS})"}})',
        "    compadd -a ids",
        "}",
        "_s2ctl() {",
        "    local verb elsewhere=0",
        "    (( ${words[(I)(-H|--host)*]} )) && elsewhere=1",
        "    while (( CURRENT > 2 )) && [[ ${words[2]} == -* ]]; do",
        f"        if [[ ${{words[2]}} == ({'|'.join(_valued(found))}) ||",
        f"              ( ${{words[2]}} == {_OPTIONAL} && ${{words[3]}} == ({'|'.join(_optional(found))}) ) ]]; then",
        "            (( CURRENT > 3 )) || break",
        "            words[2]=(); (( CURRENT-- ))",
        "        fi",
        "        words[2]=(); (( CURRENT-- ))",
        "    done",
        "    verb=${words[2]}",
        "    if [[ $verb == -* ]]; then",
        f"        _arguments {_zsh_options(_leading(found))}",
        "        return",
        "    fi",
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
        rest = " '*:tunnel:_s2ctl_ids'" if verb.ids else " '*:file:_files'" if verb.files else ""
        lines.append(f'        "{" ".join(verb.words)}") _arguments {_zsh_options(verb.options)}{rest};;')
    return "\n".join([*lines, "    esac", "}", '_s2ctl "$@"', ""])


def _zsh_options(options: Sequence[Option]) -> str:
    return " ".join(_zsh_option(option, name) for option in options for name in option.names)


def _zsh_option(option: Option, name: str) -> str:
    about = _escaped(option.about.replace("[", "(").replace("]", ")").replace(":", ","))
    if not option.takes:
        return f"'{name}[{about}]'"
    action = f"({' '.join(option.values)})" if option.values else "_files" if option.files else " "
    action = "_hosts" if "--host" in option.names else action
    return f"'*{name}{'=' if name.startswith('--') else ''}[{about}]:value:{action}'"


def fish(found: list[Verb]) -> str:
    """fish's complete(1); functions of ours say which command was typed, for `show` is one and `cert show` another."""
    second = _second_words(found)
    lines = [
        _NOTICE,
        "function __s2ctl_words --description 'the words that are no options'",
        "    set -l tokens (commandline -opc)",
        "    set -l before $tokens[1]",
        "    for token in $tokens[2..]",
        f'        if contains -- "$before" {" ".join(_valued(found))}',
        "            set before",
        f'        else if test "$before" = {_OPTIONAL}; and contains -- $token {" ".join(_optional(found))}',
        "            set before",
        "        else",
        "            string match -v -- '-*' $token",
        "            set before $token",
        "        end",
        "    end",
        "end",
        "function __s2ctl_is --description 'whether these words come first, or nothing yet'",
        "    set -l words (__s2ctl_words)",
        "    set -l count (count $argv)",
        "    if test $count = 0",
        "        test (count $words) = 0",
        "    else",
        '        test "$words[1..$count]" = "$argv"',
        "    end",
        "end",
        "function __s2ctl_ids --description 'tunnels of this host'",
        "    string match -q -- '-H*' (commandline -opc); or string match -q -- '--host*' (commandline -opc); or "
        f"{_IDS}",
        "end",
        "complete -c s2ctl -f",
    ]
    head = "complete -c s2ctl -n"
    lines += [f"{head} __s2ctl_is {_fish_option(option)}" for option in _leading(found)]
    for verb in found:
        if len(verb.words) == 1:
            lines.append(f"{head} __s2ctl_is -a {verb.words[0]} -d {_quoted(verb.about)}")
        else:
            given = f"'__s2ctl_is {verb.words[0]}; and test (count (__s2ctl_words)) = 1'"
            lines.append(f"{head} {given} -a {verb.words[1]} -d {_quoted(verb.about)}")
    for top, words in second.items():
        lines.append(f"{head} __s2ctl_is -a {top} -d {_quoted(', '.join(words))}")
    for verb in found:
        typed = f"{head} '__s2ctl_is {' '.join(verb.words)}'"
        lines += [f"{typed} {_fish_option(option)}" for option in verb.options]
        lines += [f"{typed} -a '(__s2ctl_ids)'"] if verb.ids else [f"{typed} -F"] if verb.files else []
    return "\n".join([*lines, ""])


def _fish_option(option: Option) -> str:
    names = [f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in option.names]
    value = f" -x -a '{' '.join(option.values)}'" if option.values else " -r -F" if option.files else " -x"
    return f"{' '.join(names)}{value if option.takes else ''} -d {_quoted(option.about)}"


def _valued(found: list[Verb]) -> list[str]:
    """Options whose value is the next word, but `_OPTIONAL`."""
    names = [name for verb in found for option in verb.options if option.takes for name in option.names]
    return [name for name in dict.fromkeys(names) if name != _OPTIONAL]


def _optional(found: list[Verb]) -> tuple[str, ...]:
    """The values of `_OPTIONAL`; another word behind it is none."""
    return next(option.values for verb in found for option in verb.options if _OPTIONAL in option.names)


def _leading(found: list[Verb]) -> list[Option]:
    """What may stand before the command: the options of all that list and show."""
    return [option for option in found[0].options if set(option.names) & _BEFORE]


def _names(options: Sequence[Option]) -> str:
    return " ".join(name for option in options for name in option.names)


def _tops(found: list[Verb]) -> list[str]:
    """The first words of all commands."""
    return list(dict.fromkeys(verb.words[0] for verb in found))


def _second_words(found: list[Verb]) -> dict[str, list[str]]:
    """First words of commands of two words, with what may follow."""
    second: dict[str, list[str]] = {}
    for verb in found:
        if len(verb.words) == 2:
            second.setdefault(verb.words[0], []).append(verb.words[1])
    return second


def _quoted(text: str) -> str:
    return f"'{_escaped(text)}'"


def _escaped(text: str) -> str:
    """For between single quotes, in every shell."""
    return text.replace("'", "'\\''")


def files() -> dict[str, str]:
    """File name to content."""
    found = verbs()
    return {"s2ctl.bash": bash(found), "_s2ctl": zsh(found), "s2ctl.fish": fish(found)}


if __name__ == "__main__":
    for name, content in files().items():
        (Path(__file__).parent / name).write_text(content)
