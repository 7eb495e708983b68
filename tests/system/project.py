"""What the hosts get of this project: its Debian packages, installed by apt as an operator installs them.

``packages`` builds them once for each state of the sources, ``project_layers`` installs them above the base tree.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from scistreamd import __version__
from tests.system import cgroups
from tests.system.tools import call
from tests.system.trees import Trees, digest, mount_overlay

ROOT = Path(__file__).parent.parent.parent
# Runs programs of tests with the modules that the packages installed.
PYTHON = ("env", "PYTHONPATH=/usr/share/scistreamd", "python3")
OLDER = "1.9.9"
# No part of the packages; the tree's hidden files are none either.
_NOT_SOURCES = {"tests", "build", "dist"}
_MADE = {"__pycache__", "node_modules"}
# The file beside the packages that tells which tests are in the source package.
_TESTS = ".tests"
_INSTALL = """
set -eu
export DEBIAN_FRONTEND=noninteractive
apt-get install --quiet=2 --yes --no-install-recommends /packages/*.deb
"""


def packages(trees: Trees) -> Path:
    """The directory with the packages of this tree, as `make deb` builds them."""

    return _packages(trees, digest(_TESTS, *_sources()))


def packages_with_tests(trees: Trees) -> Path:
    """The same, of which the source package, too, is of this tree: it holds the tests, the others do not."""
    made = packages(trees)
    same = (made / _TESTS).read_text() == _tests()
    return made if same else _packages(trees, digest(_TESTS, *_sources(), _tests()))


def _packages(trees: Trees, key: str) -> Path:
    def build(directory: Path) -> None:
        _make_deb(ROOT, directory / "tree")
        (directory / "tree" / _TESTS).write_text(_tests())

    return trees.tree("packages", key, "building scistreamd's Debian packages", build)


def older_packages(trees: Trees) -> Path:
    """The same with the version OLDER, which is lower than that of this tree."""

    def build(directory: Path) -> None:
        copied(directory / "source")
        for name in ("scistreamd/__init__.py", "packaging/debian/changelog"):
            file = directory / "source" / name
            file.write_text(file.read_text().replace(__version__, OLDER))
        _make_deb(directory / "source", directory / "tree")

    return trees.tree("older", digest(OLDER, *_sources()), f"building packages with the version {OLDER}", build)


def copied(place: Path) -> None:
    """Copy this tree as far as it goes into source packages, with the libraries that were fetched for them."""
    place.mkdir(parents=True)
    for top in [*_tops(), ROOT / "tests", *ROOT.glob(".cache")]:
        if top.is_dir():
            shutil.copytree(top, place / top.name, ignore=shutil.ignore_patterns("__pycache__", "node_modules"))
        else:
            shutil.copy(top, place)


def fetch_libraries(tree: Path) -> None:
    """Get what the packages of a copy carry along, for a user without pip to build them."""
    program = "import sys; sys.path.insert(0, sys.argv[1]); import deb, source; source.fetch(deb.CARRIED)"
    call(["/usr/bin/python3", "-B", "-c", program, tree / "packaging"], _with_pip())


def _make_deb(tree: Path, output: Path) -> None:
    call(["/usr/bin/python3", "-B", tree / "packaging" / "deb.py", output], _with_pip())


def _with_pip() -> dict[str, str]:
    return {**os.environ, "PYTHON": sys.executable}  # the machine's own may lack it


def project_layers(trees: Trees, base: Path, group: str) -> list[Path]:
    """The layers with this tree's scistreamd, the topmost first; programs run in the control group ``group``."""
    debs = packages(trees)

    def install(directory: Path) -> None:
        _install(directory, base, debs, group)

    key = digest(base.name, debs.name, _INSTALL)
    return [trees.tree("project", key, "installing scistreamd", install)]


def _sources() -> Iterator[str | bytes]:
    for top in _tops():
        yield from _content(top)


def _tests() -> str:
    return digest(*_content(ROOT / "tests"))


def _content(top: Path) -> Iterator[str | bytes]:
    for file in sorted(top.rglob("*")) if top.is_dir() else [top]:
        if file.is_file() and not _MADE & set(file.parts) and file.suffix != ".so":
            yield str(file.relative_to(ROOT))
            yield file.read_bytes()


def _tops() -> list[Path]:
    """The files and directories of the repository's top that packages are made from."""
    return [
        path
        for path in sorted(ROOT.iterdir())
        if path.name not in _NOT_SOURCES and path.suffix != ".egg-info" and not path.name.startswith(".")
    ]


def _install(directory: Path, base: Path, debs: Path, group: str) -> None:
    """Install as root in a host that is not booted and has no network; what that changes is the new layer."""
    root = directory / "root"
    mount_overlay([base], directory / "tree", directory / "work", root)
    words = ["systemd-nspawn", "--quiet", "-D", str(root), "--register=no", "--keep-unit", "--pipe"]
    words += ["--resolv-conf=off", "--private-network", "--machine=install", f"--bind-ro={debs}:/packages"]
    call(cgroups.starting_in(f"{group}/install", [*words, "--", "sh", "-c", _INSTALL]))
    call(["umount", root])
