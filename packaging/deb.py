"""Builds the Debian packages of this tree: `python3 packaging/deb.py [DIRECTORY]` (default: dist).

What it leaves there is the source package (tarballs and .dsc) and the binary packages (.deb). The same tree gives the
same bytes, wherever and whenever it is built: every time is that of the newest entry in packaging/debian/changelog.
It runs as an ordinary user, and as root. What must be installed: dpkg-dev, the Build-Depends of
packaging/debian/control, and pip for $PYTHON (default: this Python) where libraries are not in .cache/vendor yet.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Libraries that Debian lacks; packaging/vendor/pinned.txt has their versions.
CARRIED = ("grpclib",)
_CACHE = ROOT / ".cache" / "vendor"
# No part of the source, like hidden files.
_MADE = {"build", "dist", "__pycache__"}
_BUILT = {".egg-info", ".so", ".pyc"}
_OURS = ("scistreamd_*", "scistreamd-doc_*", "scistream-client_*", "scistream-common_*")


def main(argv: list[str]) -> int:
    """Build into the directory named in ``argv``; returns the exit status."""
    output = Path(argv[0] if argv else ROOT / "dist").resolve()
    os.umask(0o022)
    try:
        subprocess.run([ROOT / "packaging" / "vendor" / "fetch", _CACHE, *CARRIED], check=True)
        with tempfile.TemporaryDirectory(prefix="scistreamd-deb-") as scratch:
            made = _build(Path(scratch))
            _replace(output, made)
    except subprocess.CalledProcessError as error:
        words = error.cmd if isinstance(error.cmd, list) else [error.cmd]
        print(f"make deb: {words[0]} failed (its output is above)", file=sys.stderr)
        return 1
    for file in sorted(output.glob("*.deb")):
        print(file)
    return 0


def _build(scratch: Path) -> list[Path]:
    """The files of the packages, built below ``scratch``."""
    version = _version()
    upstream = version.rpartition("-")[0]
    epoch = int(_changelog("Timestamp"))
    source = scratch / f"scistreamd-{upstream}"
    original = scratch / f"scistreamd_{upstream}.orig.tar.xz"
    _pack(original, source.name, epoch)
    _unpack(original, source)
    for name in CARRIED:
        archive = scratch / f"scistreamd_{upstream}.orig-{name}.tar.gz"
        shutil.copy(_archive(name), archive)
        _unpack(archive, source / name)
    shutil.copytree(source / "packaging" / "debian", source / "debian")
    # Debian's own tools, whatever else the caller has.
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(scratch), "LC_ALL": "C.UTF-8"}
    environment["SOURCE_DATE_EPOCH"] = str(epoch)
    subprocess.run(
        ["dpkg-buildpackage", "--unsigned-source", "--unsigned-changes", "--build=full"],
        cwd=source,
        env=environment,
        check=True,
        stdout=sys.stderr,
    )
    # .buildinfo and .changes tell of this build, not of the package.
    return [file for file in scratch.iterdir() if file.name.endswith((".deb", ".dsc", ".tar.xz", ".tar.gz"))]


def _version() -> str:
    """The package's version; SystemExit where it is not that of the code."""
    version = _changelog("Version")
    text = (ROOT / "scistreamd" / "__init__.py").read_text()
    code = re.search(r'^__version__ = "(.*)"$', text, re.MULTILINE)
    if code is None or version.rpartition("-")[0] != code[1]:
        found = code and code[1]
        raise SystemExit(f"packaging/debian/changelog is for {version}, scistreamd is {found}: make them agree")
    return version


def _changelog(field: str) -> str:
    words = ["dpkg-parsechangelog", "--file", str(ROOT / "packaging" / "debian" / "changelog"), "--show-field", field]
    return subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def _pack(archive: Path, top: str, epoch: int) -> None:
    """The source tree as a tarball that is the same wherever it is made."""

    def plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid = member.gid = 0
        member.uname = member.gname = ""
        member.mtime = epoch
        member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
        return member

    with tarfile.open(archive, "w:xz", format=tarfile.GNU_FORMAT) as tar:
        for file in _sources(ROOT):
            tar.add(file, f"{top}/{file.relative_to(ROOT)}", recursive=False, filter=plain)


def _sources(directory: Path) -> Iterator[Path]:
    """All below ``directory`` that is no hidden file and was not made by a build, in order."""
    for path in sorted(directory.iterdir()):
        if path.name.startswith(".") or path.suffix in _BUILT or path.name in _MADE:
            continue
        yield path
        if path.is_dir():
            yield from _sources(path)


def _archive(name: str) -> Path:
    """The library's release archive of the pinned version."""
    pinned = (ROOT / "packaging" / "vendor" / "pinned.txt").read_text()
    version = re.search(rf"^{re.escape(name)}==(\S+)", pinned, re.MULTILINE)
    if version is None:
        raise SystemExit(f"{name} is not in packaging/vendor/pinned.txt")
    return _CACHE / f"{name}-{version[1]}.tar.gz"


def _unpack(archive: Path, place: Path) -> None:
    """As dpkg-source(1) does: without the archive's own top directory."""
    place.mkdir()
    subprocess.run(["tar", "-x", "-f", archive, "-C", place, "--strip-components=1", "--no-same-owner"], check=True)


def _replace(output: Path, made: list[Path]) -> None:
    """Put the files into the directory, in place of those of builds before."""
    output.mkdir(parents=True, exist_ok=True)
    for pattern in _OURS:
        for old in output.glob(pattern):
            old.unlink()
    for file in made:
        shutil.move(file, output / file.name)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
