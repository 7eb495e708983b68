"""The man pages: all that the program has is in them, man(1) shows them without a complaint, units point at them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from scistreamd import names, units
from scistreamd.cli import s2ctl, s2uc
from scistreamd.configkeys import KEYS
from scistreamd.errors import Code

ROOT = Path(__file__).parent.parent.parent
NAMES = ["org.scistream.scistreamd1.5", "s2cs.8", "s2ctl.1", "s2uc.1", "scistreamd.8", "scistreamd.toml.5"]
BIN = Path(sys.executable).parent
_WIDE = "10000"
_OPTION = re.compile(r"(?:^ *|, )(--?[A-Za-z][\w-]*)", re.MULTILINE)


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All pages, as `make man` makes them for a package: with the system's Python and no library of ours."""
    directory = tmp_path_factory.mktemp("man")
    render(directory)
    return directory


def render(directory: Path) -> None:
    words = ["/usr/bin/python3", "-B", str(ROOT / "packaging" / "man" / "render.py"), str(directory)]
    subprocess.run(words, check=True, cwd="/", env={"PATH": os.environ["PATH"]})


def shown(page: Path, width: str = _WIDE, *words: str) -> tuple[str, str]:
    """What man prints of a page, a paragraph in one line; and what it complains of."""
    environment = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "MANWIDTH": width}
    done = subprocess.run(["man", "-l", *words, str(page)], capture_output=True, text=True, check=True, env=environment)
    return done.stdout.expandtabs(), done.stderr


def section(page: Path, title: str) -> str:
    """The text under a heading of the first or second degree."""
    text, _ = shown(page)
    found = re.search(rf"^ {{0,3}}{re.escape(title)}(?: [^\n]*)?\n(.*?)(?=^ {{0,3}}\S|\Z)", text, re.M | re.S)
    assert found, f"{page.name} has no section {title!r}: write one in docs/man/{page.name}.md"
    return found[1]


def helped(*words: str) -> set[str]:
    """The options that a command's --help lists."""
    done = subprocess.run([BIN / words[0], *words[1:], "--help"], capture_output=True, text=True, check=True)
    listed = done.stdout.partition("\noptions:")[2]
    return {
        name for line in re.findall(r"^  (-\S.*?)(?:  .*)?$", listed, re.MULTILINE) for name in _OPTION.findall(line)
    }


def test_all_pages_are_there(pages: Path) -> None:
    assert sorted(page.name for page in pages.iterdir()) == NAMES


def test_rendering_again_gives_the_same_bytes(pages: Path, tmp_path: Path) -> None:
    render(tmp_path)
    for name in NAMES:
        assert (tmp_path / name).read_bytes() == (pages / name).read_bytes()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("width", ["72", "80", "120"])
def test_man_shows_it_without_a_complaint(pages: Path, name: str, width: str) -> None:
    text, complaints = shown(pages / name, width, "--warnings")
    assert complaints == ""
    assert f"{name.rpartition('.')[0]} - " in text
    assert "\u2010" not in text, "a hyphen that cannot be typed, or a word torn apart"
    assert "<!--" not in text
    assert "**" not in text
    words = ["lexgrog", str(pages / name)]  # what whatis(1) and apropos(1) find
    assert subprocess.run(words, capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("command", [each.name for each in s2ctl.TOOL.commands])
def test_s2ctl_has_every_option_of_every_command(pages: Path, command: str) -> None:
    has_all(pages / "s2ctl.1", "s2ctl", command)


@pytest.mark.parametrize("command", [each.name for each in s2uc.TOOL.commands])
def test_s2uc_has_every_option_of_every_command(pages: Path, command: str) -> None:
    has_all(pages / "s2uc.1", "s2uc", command)


def has_all(page: Path, tool: str, command: str) -> None:
    described = section(page, f"{tool} {command}")
    assert len(described.split("\n\n")[0].split()) > 2, "say what the command does"
    common = section(page, "COMMON OPTIONS")
    expected = helped(tool, *command.split())
    assert "--help" in expected
    in_common = set(re.findall(r"--[a-z0-9-]+", described.partition("Common options:")[2])) | {"--help"}
    terms = re.findall(r"^ {7}(-.*)$", common, re.MULTILINE)
    for term in terms:
        if set(_OPTION.findall(term)) & in_common:
            in_common |= set(_OPTION.findall(term))
    assert in_common <= set(_OPTION.findall("\n".join(terms)))
    own = {name for term in re.findall(r"^ {7}(-.*)$", described, re.MULTILINE) for name in _OPTION.findall(term)}
    assert own | in_common == expected


@pytest.mark.parametrize(
    ("words", "title"), [("s2cs", "OPTIONS"), ("scistreamd", "OPTIONS"), ("scistreamd policy test", "POLICY TEST")]
)
def test_programs_have_every_option(pages: Path, words: str, title: str) -> None:
    described = section(pages / f"{words.split()[0]}.8", title)
    found = {name for term in re.findall(r"^ {7}(-.*)$", described, re.MULTILINE) for name in _OPTION.findall(term)}
    assert found | {"-h", "--help"} == helped(*words.split())


def test_every_key_of_the_configuration_is_told_of(pages: Path) -> None:
    text, _ = shown(pages / "scistreamd.toml.5")
    for key in KEYS:
        found = re.search(rf"^ {{7}}{re.escape(key.name)}(?:\n +| +)(.*)$", text, re.MULTILINE)
        assert found, f"{key.name} is in no section of docs/man/scistreamd.toml.5.md"
        assert key.about in found[1]
        assert f"Default {key.default};" in found[1]
        assert key.kind.expected in found[1]
        assert ("next start" in found[1]) is key.restart


def test_every_member_of_the_interfaces_is_told_of(pages: Path) -> None:
    root = ET.parse(ROOT / "dbus" / "org.scistream.scistreamd1.xml").getroot()
    for interface in root.iter("interface"):
        text = section(pages / "org.scistream.scistreamd1.5", f"INTERFACE {interface.get('name')}")
        for member in (*interface.iter("method"), *interface.iter("signal")):
            arguments = [f"{arg.get('direction', '')} {arg.get('type')} {arg.get('name')}".strip() for arg in member]
            line = f"{member.get('name')}({', '.join(arguments)})"
            assert re.search(rf"^ {{7}}{re.escape(line)}(?:, .*|  +\S.*)?\n? +\S", text, re.MULTILINE), line
        for member in interface.iter("property"):
            signature = re.escape(f"{member.get('name')} {member.get('type')}")
            assert re.search(rf"^ {{7}}(?:.*, )?{signature}(?:, .*|  +\S.*)?\n? +\S", text, re.MULTILINE), signature


def test_options_errors_and_actions_on_the_bus_are_told_of(pages: Path) -> None:
    text, _ = shown(pages / "org.scistream.scistreamd1.5")
    for name, signature in names.OPTION_SIGNATURES.items():
        assert re.search(rf"\b{name} {signature}\b", text), name
    for code in Code:
        assert f"{names.error_name(code).rpartition('.')[2]} ({code.exit_status})" in text
    policy = ET.parse(ROOT / "dbus" / "org.scistream.scistreamd1.policy").getroot()
    for action in policy.iter("action"):
        assert f"{action.get('id')}\n" in section(pages / "org.scistream.scistreamd1.5", "AUTHORIZATION")


@pytest.mark.parametrize("name", [name for name in NAMES if not name.endswith(".5")])
def test_exit_statuses_are_those_of_errors(pages: Path, name: str) -> None:
    text = section(pages / name, "EXIT STATUS")
    found = re.findall(r"^ {7}(\d+) ([A-Z_]+)$", text, re.MULTILINE)
    assert {(int(status), code) for status, code in found} == {(code.exit_status, code.name) for code in Code}


def test_every_unit_points_at_a_page_that_is_there() -> None:
    pointers = [word for words in units._DOCUMENTATION for word in words.split()]
    for unit in (ROOT / "systemd").iterdir():
        if unit.suffix != ".conf":
            found = re.search(r"^Documentation=(.*)$", unit.read_text(), re.MULTILINE)
            assert found, unit.name
            pointers += found[1].split()
    for pointer in pointers:
        page = re.fullmatch(r"man:(.*)\((\d)\)", pointer)
        assert page, pointer
        assert f"{page[1]}.{page[2]}" in NAMES


@pytest.mark.parametrize("name", NAMES)
def test_pages_name_pages_that_are_there(pages: Path, name: str) -> None:
    text, _ = shown(pages / name)
    ours = set(re.findall(r"\b((?:s2|scistream|org\.scistream)[a-z0-9.]*)\((\d)\)", text))
    assert {f"{page}.{number}" for page, number in ours} <= set(NAMES)
