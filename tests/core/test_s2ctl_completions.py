"""Tab completion: the files are those that the table of commands makes, and the shells complete with them."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pty
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

DIRECTORY = Path(__file__).parent.parent.parent / "packaging" / "completions"


@pytest.fixture(name="generate", scope="module")
def _generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_completions", DIRECTORY / "generate.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, spec.name, module)  # dataclasses look their module up
        spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["s2ctl.bash", "_s2ctl", "s2ctl.fish"])
def test_files_are_up_to_date(name: str, generate: ModuleType) -> None:
    assert (DIRECTORY / name).read_text() == generate.files()[name], "run packaging/completions/generate.py"


LINES = [
    ("re", ["release"]),
    ("cert s", ["show"]),
    ("release 0f", ["0fedcba98765"]),
    ("status ", ["0123456789ab", "0fedcba98765"]),
    ("test 01", ["0123456789ab"]),
    ("release --d", ["--drain"]),
    ("list --json ", ["off", "pretty", "short"]),
    ("config check --con", ["--config"]),
    ("config show 0", []),
    ("cert show serv", ["server.crt"]),
    ("--no-pager re", ["release"]),
    ("--json short show 0f", ["0fedcba98765"]),
    ("-H root@gate show 0", []),
    ("--no-l", ["--no-legend"]),
]


@pytest.fixture(name="gateway")
def _gateway(tmp_path: Path) -> Path:
    """A directory with a program that answers as s2ctl does where there are two tunnels, and a certificate."""
    program = tmp_path / "bin" / "s2ctl"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\n[ "$*" = "list --quiet" ] || exit 1\necho 0123456789ab\necho 0fedcba98765\n')
    program.chmod(0o755)
    (tmp_path / "server.crt").touch()
    return tmp_path


def environment(gateway: Path) -> dict[str, str]:
    return {
        "PATH": f"{gateway / 'bin'}:{os.environ['PATH']}",
        "HOME": str(gateway),
        "TERM": "dumb",
        "LC_ALL": "C.UTF-8",
    }


@pytest.mark.parametrize(
    ("line", "offered"), [*LINES, ("--json rel", ["release"]), ("list --json=p", ["pretty"]), ("release --drain ", [])]
)
def test_bash(line: str, offered: list[str], gateway: Path) -> None:
    script = (
        f'source {DIRECTORY / "s2ctl.bash"}; COMP_LINE="s2ctl $1"; COMP_POINT=${{#COMP_LINE}}; '
        'read -ra COMP_WORDS <<< "${COMP_LINE//=/ = }"; [[ $1 == *" " ]] && COMP_WORDS+=(""); '
        'COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); _s2ctl; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "-c", script, "bash", line],
        check=True,
        capture_output=True,
        text=True,
        cwd=gateway,
        env=environment(gateway),
    )
    assert (sorted(done.stdout.split()), done.stderr) == (offered, "")


@pytest.mark.parametrize(("line", "offered"), LINES)
def test_fish(line: str, offered: list[str], gateway: Path) -> None:
    script = f'source {DIRECTORY / "s2ctl.fish"}; complete -C "s2ctl $LINE"'
    words = ["fish", "--no-config", "-c", script]
    done = subprocess.run(
        words, check=True, capture_output=True, text=True, cwd=gateway, env={**environment(gateway), "LINE": line}
    )
    assert (sorted(each.partition("\t")[0] for each in done.stdout.splitlines()), done.stderr) == (offered, "")


ZSH = """
PS1=; fpath=({directory} $fpath); autoload -U compinit; compinit -u -D; setopt menu_complete no_beep
tell() {{ print -r -- $BUFFER >> told; BUFFER= }}
zle -N tell; bindkey '^G' tell
print ready >> told
"""


def test_zsh(gateway: Path) -> None:
    """At a prompt of its own, for it completes nowhere else: the first word that is offered goes into the line."""
    ours, theirs = pty.openpty()
    os.set_blocking(ours, False)
    with subprocess.Popen(
        ["zsh", "-f", "-i"], stdin=theirs, stdout=theirs, stderr=theirs, cwd=gateway, env=environment(gateway),
        start_new_session=True,
    ) as zsh:  # fmt: skip
        try:
            os.write(ours, ZSH.format(directory=DIRECTORY).encode())
            assert told(ours, gateway / "told", 1) == "ready"
            for number, (line, offered) in enumerate(LINES, 2):
                os.write(ours, f"s2ctl {line}\t\a".encode())
                completed = told(ours, gateway / "told", number)
                assert completed.split()[-1].removesuffix("=") == (offered[0] if offered else line.split()[-1]), line
        finally:
            zsh.kill()
            os.close(ours)
            os.close(theirs)


def told(terminal: int, file: Path, lines: int) -> str:
    """The last of so many lines in the file, while what appears on the terminal is read away."""
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        with contextlib.suppress(BlockingIOError):
            os.read(terminal, 65536)
        found = file.read_text().splitlines() if file.exists() else []
        if len(found) == lines:
            return found[-1]
        time.sleep(0.01)
    raise AssertionError(f"{lines - 1} lines were told")
