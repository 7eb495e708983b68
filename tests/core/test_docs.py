"""What the documents say is so: links lead somewhere, options exist, tables are the code's."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest

from scistreamd.cli import s2cs, s2ctl, s2uc
from scistreamd.cli.options import Parser
from scistreamd.config import Settings
from scistreamd.dataserver.common import IDLE_DAYS
from scistreamd.errors import Code

ROOT = Path(__file__).parent.parent.parent
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
_LINK = re.compile(r"\[[^]]+\]\(([^)#\s]*)(#[^)\s]*)?\)")
_OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9_-]*")


def parsers(tool: object) -> list[Parser]:
    """A parser with the options of each command of a tool."""
    if tool is s2cs:
        return [s2cs._parser()]
    commands = (s2uc if tool is s2uc else s2ctl).TOOL.commands
    made = []
    for command in commands:
        made.append(Parser(prog=command.name))
        command.arguments(made[-1])
    return made


def options(tool: object) -> set[str]:
    """Every long option of a tool."""
    return {
        name
        for parser in parsers(tool)
        for action in parser._actions
        if action.help is not argparse.SUPPRESS
        for name in action.option_strings
        if name.startswith("--")
    }


def text(document: Path) -> str:
    return document.read_text()


def typed(document: Path) -> set[str]:
    """The options on lines and in code spans that call our tools."""
    found: set[str] = set()
    for words in re.findall(r"`((?:s2cs|s2uc|s2ctl) [^`]*)`|((?:s2cs|s2uc|s2ctl) .*)$", text(document), re.MULTILINE):
        found |= set(_OPTION.findall("".join(words)))
    return {name.replace("_", "-") for name in found}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for target, anchor in _LINK.findall(text(document)):
        if target.startswith("https://"):
            continue
        file = document.parent / target if target else document
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", text(file), re.MULTILINE)
            assert anchor[1:] in {slug(heading) for heading in headings}, f"{target}{anchor}"


def slug(heading: str) -> str:
    """A heading's anchor as GitHub makes it."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def test_every_document_can_be_found_from_the_list_in_the_readme() -> None:
    listed = text(ROOT / "README.md").partition("## Documents")[2].partition("\n## ")[0]
    targets = {target for target, _ in _LINK.findall(listed)}
    assert {str(path.relative_to(ROOT)) for path in DOCUMENTS} - {"README.md"} <= targets


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_options_in_documents_exist(document: Path) -> None:
    known = options(s2cs) | options(s2uc) | options(s2ctl) | {"--version", "--help"}
    assert typed(document) <= known


@pytest.mark.parametrize("tool", [s2cs, s2uc], ids=["s2cs", "s2uc"])
def test_every_option_is_in_the_table_of_differences(tool: object) -> None:
    name = "s2cs" if tool is s2cs else "s2uc"
    table = re.search(rf"^\| {name} \|.*?(?:\n\n|\Z)", text(ROOT / "docs" / "differences.md"), re.MULTILINE | re.DOTALL)
    assert table is not None
    rows = " ".join(line.split("|")[1] for line in table[0].splitlines() if line.startswith("|"))
    described = set(_OPTION.findall(rows)) | {"--help"}
    missing = options(tool) - described - {"--exact-ports"}
    assert not missing
    assert described - {"--help"} <= options(tool)


def test_exit_statuses_are_those_of_errors() -> None:
    rows = re.findall(r"^\| (\d+) \| ([A-Z_]+) \| (\d+) \|", text(ROOT / "docs" / "differences.md"), re.MULTILINE)
    assert {(name, int(status), int(grpc)) for status, name, grpc in rows} == {
        (code.name, code.exit_status, code.grpc_status) for code in Code
    }


def test_limits_in_the_differences_are_those_of_the_settings() -> None:
    settings = Settings()
    said = " ".join(text(ROOT / "docs" / "differences.md").split())
    assert f"no hello comes within {settings.times.hello} s, no update within {settings.times.update} s" in said
    assert f"may come up to {settings.times.early_hello} s before its req" in said
    quotas = settings.quotas
    assert (
        f"{quotas.ports_per_request} listeners a request, {quotas.tunnels_per_peer} tunnels a peer, "
        f"{quotas.pending} requests that wait"
    ) in said
    assert f"**Idle streams** live for {IDLE_DAYS} days" in said


def test_every_module_has_its_place_in_the_table_of_parts() -> None:
    table = text(ROOT / "README.md").partition("## The parts")[2].partition("\n## ")[0]
    named = set(re.findall(r"`([a-z0-9_]+)/?`", table))
    package = ROOT / "scistreamd"
    modules = {path.stem for path in package.glob("*.py")} | {
        path.parent.name for path in package.glob("*/__init__.py")
    }
    assert modules - {"__init__"} <= named
    assert named <= modules | {"scistreamd", "s2cs", "s2uc", "s2ctl"}
