"""Tab completion: the files are those that the table of commands makes, and bash completes with them."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
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


def completed(tmp_path: Path, *words: str) -> list[str]:
    """What bash offers for the last word, with a gateway that has two tunnels."""
    program = tmp_path / "s2ctl"
    program.write_text("#!/bin/sh\necho 0123456789ab\necho 0fedcba98765\n")
    program.chmod(0o755)
    script = (
        f'PATH={tmp_path}:$PATH; source {DIRECTORY / "s2ctl.bash"}; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); '
        '_s2ctl; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    line = ["bash", "-c", script, "bash", "s2ctl", *words]
    return subprocess.run(line, check=True, capture_output=True, text=True, cwd=tmp_path).stdout.split()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["re"], ["release"]),
        (["c"], ["check", "cert", "config"]),
        (["cert", "s"], ["show"]),
        (["release", "0f"], ["0fedcba98765"]),
        (["status", ""], ["0123456789ab", "0fedcba98765"]),
        (["release", "--d"], ["--drain"]),
        (["list", "--json", ""], ["short", "pretty", "off"]),
        (["list", "--json", "=", "p"], ["pretty"]),
        (["config", "check", "--con"], ["--config"]),
        (["release", "--drain", "0"], []),
    ],
)
def test_bash(words: list[str], offered: list[str], tmp_path: Path) -> None:
    assert completed(tmp_path, *words) == offered


@pytest.mark.parametrize(("shell", "name"), [("zsh", "_s2ctl"), ("fish", "s2ctl.fish")])
def test_other_shells_read_them(shell: str, name: str) -> None:
    subprocess.run([shell, "-n", str(DIRECTORY / name)], check=True, capture_output=True)
