"""Builds the Debian packages of this tree: `python3 packaging/deb.py [DIRECTORY]` (default: dist).

What it leaves there is the source package (tarballs and .dsc) and the binary packages (.deb). The same tree gives the
same bytes, wherever and whenever it is built: every time is that of the newest entry in packaging/debian/changelog.
It runs as an ordinary user, and as root. What must be installed: dpkg-dev, the Build-Depends of
packaging/debian/control, and pip for $PYTHON (default: this Python) where libraries are not in .cache/vendor yet.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import source
from source import ROOT

# Libraries that Debian lacks.
CARRIED = ("grpclib",)
_DEBIAN = ROOT / "packaging" / "debian"
_OURS = ("scistreamd_*", "scistreamd-doc_*", "scistream-client_*", "scistream-common_*")
# .buildinfo and .changes tell of a build, not of the package.
_KEPT = (".deb", ".dsc", ".tar.xz", ".tar.gz")


def main(argv: list[str]) -> int:
    """Build into the directory named in ``argv``; returns the exit status."""
    output = Path(argv[0] if argv else ROOT / "dist").resolve()
    os.umask(0o022)
    try:
        source.fetch(CARRIED)
        with tempfile.TemporaryDirectory(prefix="scistreamd-deb-") as scratch:
            _build(Path(scratch), _upstream())
            made = sorted(file for file in Path(scratch).iterdir() if file.name.endswith(_KEPT))
            source.replace(output, _OURS, made)
    except subprocess.CalledProcessError as error:
        print(f"make deb: {error.cmd[0]} failed (its output is above)", file=sys.stderr)
        return 1
    for file in made:
        print(output / file.name)
    return 0


def _upstream() -> str:
    """The version without Debian's part; SystemExit where it is not that of the code."""
    version = _changelog("Version").rpartition("-")[0]
    if version != source.version():
        raise SystemExit(f"packaging/debian/changelog is for {version}, scistreamd is {source.version()}")
    return version


def _changelog(field: str) -> str:
    words = ["dpkg-parsechangelog", "--file", str(_DEBIAN / "changelog"), "--show-field", field]
    return subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def _build(scratch: Path, upstream: str) -> None:
    """Make the source tree and its tarballs in ``scratch``, and have the packages built there."""
    epoch = _changelog("Timestamp")
    tree = scratch / f"scistreamd-{upstream}"
    original = scratch / f"scistreamd_{upstream}.orig.tar.xz"
    source.pack(original, tree.name, int(epoch))
    _unpack(original, tree)
    for name in CARRIED:
        component = scratch / f"scistreamd_{upstream}.orig-{name}.tar.gz"
        shutil.copy(source.archive(name), component)
        _unpack(component, tree / name)
    shutil.copytree(tree / "packaging" / "debian", tree / "debian")
    # Debian's own tools, whatever else the caller has.
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(scratch), "LC_ALL": "C.UTF-8"}
    environment["SOURCE_DATE_EPOCH"] = epoch
    words = ["dpkg-buildpackage", "--unsigned-source", "--unsigned-changes", "--build=full"]
    subprocess.run(words, cwd=tree, env=environment, check=True, stdout=sys.stderr)


def _unpack(archive: Path, place: Path) -> None:
    """As dpkg-source(1) does: without the archive's own top directory."""
    place.mkdir()
    subprocess.run(["tar", "-x", "-f", archive, "-C", place, "--strip-components=1", "--no-same-owner"], check=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
