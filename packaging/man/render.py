"""Renders the man pages: docs/man/NAME.SECTION.md to DIRECTORY/NAME.SECTION.

    python3 packaging/man/render.py DIRECTORY

The pages are Markdown; what the program itself knows better stands in them as a
comment, such as `<!-- options -->`, and `parts` fills it in from the code. lowdown(1)
makes man(7) of that. Needs no library, so that a package can be built without ours,
and gives the same bytes each time.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = ROOT / "docs" / "man"
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import parts  # noqa: E402  # found only now

from scistreamd import __version__  # noqa: E402

_VOLUMES = {"1": "User Commands", "5": "File Formats", "8": "System Administration"}
_COMMENT = re.compile(r"^<!-- ([a-z-]+)(?: ([^ ]+))? -->$", re.MULTILINE)
_HEADING = re.compile(r"^##? ", re.MULTILINE)
# A term of a definition list as lowdown sets it, with a space back that shows at the end of a page.
_TERM = re.compile(r'\.LP\n(.+)\n\.if n \\\n\.sp -1v\n\.if t \\\n\.sp -0\.25v\n\.IP "" 5n\n')


def pages() -> list[Path]:
    """The sources, one for each page."""
    return sorted(PAGES.glob("*.[0-9].md"))


def markdown(source: Path) -> str:
    """A page's whole Markdown: its text with all parts in their places."""
    tool = source.name.partition(".")[0]
    body = _COMMENT.sub(lambda found: _part(tool, found[1], found[2] or ""), source.read_text())
    return "".join(_with_commands(tool, body))


def _part(tool: str, kind: str, name: str) -> str:
    if kind == "include":
        return (PAGES / name).read_text().strip()
    return parts.PARTS[kind](name or tool)


def _with_commands(tool: str, body: str) -> Iterator[str]:
    """Under headings that are commands of the tool: how each is typed before its text, its own options behind."""
    starts = [found.start() for found in _HEADING.finditer(body)]
    yield body[: starts[0]]
    for start, end in zip(starts, [*starts[1:], len(body)], strict=True):
        heading, _, text = body[start:end].partition("\n")
        command = parts.command(tool, heading.removeprefix("## ")) if heading.startswith("## ") else None
        if command is None:
            yield body[start:end]
        else:
            yield f"## {parts.synopsis(tool, command)}\n{text.rstrip()}\n\n{parts.own_options(tool, command)}\n\n"


def man(source: Path) -> str:
    """A page as man(7)."""
    title, section = source.name.removesuffix(".md").rsplit(".", 1)
    # No date: it would be that of the build.
    head = f"title: {title.upper()}\nsection: {section}\nsource: scistreamd {__version__}\n"
    head += f"volume: {_VOLUMES[section]}\n\n"
    done = subprocess.run(
        ["lowdown", "-s", "-Tman", "--out-no-smarty"],  # wherever the build has it
        input=head + markdown(source),
        capture_output=True,
        text=True,
        check=True,
    )
    return "".join(_polished(_TERM.sub(r".TP\n\1\n", done.stdout).splitlines()))


def _polished(lines: list[str]) -> Iterator[str]:
    """What readers of man pages want: a hyphen that can be typed again, and bold where there is no typewriter font."""
    heading = 0
    for number, line in enumerate(lines):
        if re.match(r"\.S[HS]$", line):
            heading = number
        if line == ".LP" and heading == number - 2:
            continue  # no paragraph is needed after a heading, as mandoc(1) says
        text = line if line.startswith(".") else line.replace("\\fC", "\\fB").replace("-", "\\-")
        yield text + "\n"
        if line.startswith(".TH "):
            yield ".nh\n.nr HY 0\n.ad l\n"  # words as they are typed, and no gaps; HY is for after .EE


def main(directory: Path) -> None:
    """Render all pages into the directory."""
    directory.mkdir(parents=True, exist_ok=True)
    for source in pages():
        (directory / source.name.removesuffix(".md")).write_text(man(source))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
