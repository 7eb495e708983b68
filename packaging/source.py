"""What the builders of packages share: this tree as a tarball, its version, the libraries that are carried along."""

from __future__ import annotations

import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache" / "vendor"
# No part of the source, like hidden files.
_MADE = {"build", "dist", "__pycache__", "node_modules"}


def version() -> str:
    """The version of the code, which is that of every package."""
    text = (ROOT / "scistreamd" / "__init__.py").read_text()
    found = re.search(r'^__version__ = "(.*)"$', text, re.MULTILINE)
    if found is None:
        raise SystemExit("scistreamd/__init__.py has no __version__")
    return found[1]


def pinned() -> dict[str, str]:
    """The versions of the libraries that packages may carry along, by name."""
    text = (ROOT / "packaging" / "vendor" / "pinned.txt").read_text()
    return dict(re.findall(r"^([a-z0-9-]+)==(\S+)", text, re.MULTILINE))


def fetch(names: Sequence[str]) -> None:
    """Get the release archives of these libraries into CACHE; CalledProcessError where pip refuses them."""
    subprocess.run([ROOT / "packaging" / "vendor" / "fetch", CACHE, *names], check=True)


def archive(name: str) -> Path:
    """The library's release archive of the pinned version; `fetch` gets it."""
    return CACHE / f"{name.replace('-', '_')}-{pinned()[name]}.tar.gz"


def pack(file: Path, top: str, epoch: int) -> None:
    """The source tree as a tarball that is the same wherever it is made; ``top``: the name of its only directory."""

    def plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid = member.gid = 0
        member.uname = member.gname = ""
        member.mtime = epoch
        member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
        return member

    with tarfile.open(file, "w:xz", format=tarfile.GNU_FORMAT) as tar:
        for path in _sources(ROOT):
            tar.add(path, f"{top}/{path.relative_to(ROOT)}", recursive=False, filter=plain)


def _sources(directory: Path) -> Iterator[Path]:
    """All below ``directory`` that is no hidden file and was not made by a build, in order."""
    for path in sorted(directory.iterdir()):
        if path.name.startswith(".") or path.suffix in {".egg-info", ".so"} or path.name in _MADE:
            continue
        yield path
        if path.is_dir():
            yield from _sources(path)


def replace(output: Path, patterns: Sequence[str], made: Sequence[Path]) -> None:
    """Put the files into the directory, in place of those of builds before, which the patterns match."""
    output.mkdir(parents=True, exist_ok=True)
    for pattern in patterns:
        for old in output.glob(pattern):
            old.unlink()
    for file in made:
        shutil.move(file, output / file.name)
