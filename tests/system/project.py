"""What the hosts get of this project, as layers above the base tree.

Until there is a Debian package, users without one install wheels into a virtual environment; so do the
hosts, at /opt/scistream, with the commands linked into /usr/bin. ``project_layers`` is the one place that
knows this.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.system import cgroups
from tests.system.tools import LabError, call
from tests.system.trees import Trees, digest, mount_overlay

ROOT = Path(__file__).parent.parent.parent
# No part of what is installed; the tree's hidden files are none either.
_NOT_SOURCES = {"tests", "docs", "build", "dist"}
_ENVIRONMENT = """
set -eu
python3 -m venv /opt/scistream
/opt/scistream/bin/pip install --quiet --no-index --find-links=/wheels scistreamd
"""
# Over the one that the layer below has: its dependencies are the same, its code is not.
_PROJECT = """
set -eu
/opt/scistream/bin/pip install --quiet --no-index --no-deps --force-reinstall /wheels/*.whl
/opt/scistream/bin/python -c '
from importlib.metadata import distribution
from pathlib import Path
for script in distribution("scistreamd").entry_points.select(group="console_scripts"):
    Path("/usr/bin", script.name).symlink_to(Path("/opt/scistream/bin", script.name))
'
"""


def project_layers(trees: Trees, base: Path, group: str) -> list[Path]:
    """The layers with this tree's scistreamd, the topmost first; programs run in the control group ``group``."""
    _check_python(base)
    below = digest(base.name, sys.version, _ENVIRONMENT, (ROOT / "pyproject.toml").read_bytes())
    project = digest(below, _PROJECT, *_sources())

    def environment(directory: Path) -> None:
        wheels = _wheel(directory)
        _pip("wheel", "--wheel-dir", wheels, *wheels.glob("*.whl"))
        _install(directory, [base], wheels, _ENVIRONMENT, group)

    lower = trees.tree("environment", below, "installing scistreamd's dependencies (once)", environment)

    def code(directory: Path) -> None:
        _install(directory, [lower, base], _wheel(directory), _PROJECT, group)

    return [trees.tree("project", project, "installing scistreamd", code), lower]


def _check_python(base: Path) -> None:
    """Wheels are built for the Python that runs this."""
    ours = f"python{sys.version_info.major}.{sys.version_info.minor}"
    if not (base / "usr" / "bin" / ours).exists():
        theirs = os.readlink(base / "usr" / "bin" / "python3")
        raise LabError(
            f"tests run with {ours}, the lab's hosts have {theirs}: make .venv with the machine's own python3"
        )


def _sources() -> Iterator[str | bytes]:
    for top in _tops():
        for file in sorted(top.rglob("*")) if top.is_dir() else [top]:
            if file.is_file() and "__pycache__" not in file.parts:
                yield str(file.relative_to(ROOT))
                yield file.read_bytes()


def _tops() -> list[Path]:
    """The files and directories of the repository's top that a wheel may be made from."""
    return [
        path
        for path in sorted(ROOT.iterdir())
        if path.name not in _NOT_SOURCES and path.suffix != ".egg-info" and not path.name.startswith(".")
    ]


def _wheel(directory: Path) -> Path:
    """The directory with this tree's wheel, built from a copy: setuptools leaves traces where it builds."""
    copy, wheels = directory / "source", directory / "wheels"
    for top in _tops():
        if top.is_dir():
            shutil.copytree(top, copy / top.name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            copy.mkdir(exist_ok=True)
            shutil.copy(top, copy)
    _pip("wheel", "--no-deps", "--wheel-dir", wheels, copy)
    return wheels


def _pip(*words: str | Path) -> None:
    call([sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *words])


def _install(directory: Path, lower: list[Path], wheels: Path, script: str, group: str) -> None:
    """Run the script as root in a host that has only these layers and /wheels; what it changes is the new layer."""
    root = directory / "root"
    mount_overlay(lower, directory / "tree", directory / "work", root)
    words = ["systemd-nspawn", "--quiet", "-D", str(root), "--register=no", "--keep-unit", "--pipe"]
    words += ["--resolv-conf=off", "--private-network", "--machine=install", f"--bind-ro={wheels}:/wheels"]
    call(cgroups.starting_in(f"{group}/install", [*words, "--", "sh", "-c", script]))
    call(["umount", root])
