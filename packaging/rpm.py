"""Builds the RPM packages of this tree: `python3 packaging/rpm.py [DIRECTORY [TARGET...]]` (default: dist, and all).

What it leaves there are the source package and the binary packages of each target: fc44, el10, el9. All are built
here, with packaging/rpm/macros where rpmbuild has no macros for systemd; whether a target has what they require is not
looked up. The same tree gives the same binary packages, byte for byte, with the same rpmbuild. It runs as an ordinary
user, and as root. What must be installed: rpmbuild, lowdown, and pip for $PYTHON (default: this Python) where libraries
are not in .cache/vendor yet.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import source
from source import ROOT

_SPEC = ROOT / "packaging" / "rpm" / "scistreamd.spec"
_MACROS = ROOT / "packaging" / "rpm" / "macros"
TARGETS = {"fc44": {"fedora": "44"}, "el10": {"rhel": "10"}, "el9": {"rhel": "9"}}
_OURS = ("scistreamd-*.rpm", "scistream-client-*.rpm", "scistream-common-*.rpm")


def main(argv: list[str]) -> int:
    """Build into the directory named in ``argv``, for the targets behind it; returns the exit status."""
    output = Path(argv[0] if argv else ROOT / "dist").resolve()
    os.umask(0o022)
    _check()
    try:
        source.fetch(list(source.pinned()))
        with tempfile.TemporaryDirectory(prefix="scistreamd-rpm-") as scratch:
            top = Path(scratch)
            _sources(top / "SOURCES")
            _rpmbuild(top, "-bs", {})
            for target in argv[1:] or TARGETS:
                _rpmbuild(top, "-bb", {"dist": f".{target}", **TARGETS[target]})
            made = sorted(top.glob("RPMS/*/*.rpm")) + sorted(top.glob("SRPMS/*.rpm"))
            source.replace(output, _OURS, made)
    except subprocess.CalledProcessError as error:
        print(f"make rpm: {error.cmd[0]} failed (its output is above)", file=sys.stderr)
        return 1
    for file in made:
        print(output / file.name)
    return 0


def _check() -> None:
    """SystemExit where the spec is for other versions than the code and packaging/vendor/pinned.txt."""
    spec = _SPEC.read_text()
    versions = {"scistreamd": source.version(), **source.pinned()}
    patterns = {name: rf"^%global pinned_{name.replace('-', '_')} (\S+)$" for name in versions}
    patterns["scistreamd"] = r"^Version: +(\S+)$"
    for name, pattern in patterns.items():
        found = re.search(pattern, spec, re.MULTILINE)
        if found is None or found[1] != versions[name]:
            raise SystemExit(f"{_SPEC.name} has {found and found[1]} for {name}, which is {versions[name]}")


def _epoch() -> int:
    """The time of the newest entry in the spec's changelog: the midnight its day begins with, UTC."""
    first = _SPEC.read_text().partition("%changelog\n")[2].splitlines()[0]
    day = " ".join(first.split()[2:5])
    words = ["date", "--utc", "--date", f"{day} 00:00", "+%s"]
    return int(subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout)


def _sources(directory: Path) -> None:
    directory.mkdir()
    source.pack(directory / f"scistreamd-{source.version()}.tar.xz", f"scistreamd-{source.version()}", _epoch())
    shutil.copy(ROOT / "systemd" / "sysusers.conf", directory / "scistreamd.sysusers")
    for name in source.pinned():
        shutil.copy(source.archive(name), directory)
    shutil.copy(_SPEC, directory)
    for file in directory.iterdir():
        os.utime(file, (_epoch(), _epoch()))


def _rpmbuild(top: Path, mode: str, target: dict[str, str]) -> None:
    """Source (-bs) or binary packages (-bb) below ``top``; ``target``: macros by which the spec knows it."""
    defines = {
        "_topdir": str(top),
        "_tmppath": str(top / "tmp"),
        "_buildhost": "localhost",
        "use_source_date_epoch_as_buildtime": "1",
        "clamp_mtime_to_source_date_epoch": "1",
        # For scripts of the build; the package's own interpreter need not be here.
        "build_python": "/usr/bin/python3",
        "_binary_payload": "w19.zstdio",
        # Debian's /bin/sh lacks what the script uses.
        "__brp_compress": "/bin/bash /usr/lib/rpm/brp-compress",
        **target,
    }
    words = ["rpmbuild", mode, "--quiet", "--nodeps"]
    if not _has_systemd_macros():
        words += [f"--load={_MACROS}"]
    words += [word for name, value in defines.items() for word in ("--define", f"{name} {value}")]
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(top), "LC_ALL": "C.UTF-8"}
    environment["SOURCE_DATE_EPOCH"] = str(_epoch())
    (top / "tmp").mkdir(exist_ok=True)
    subprocess.run([*words, top / "SOURCES" / _SPEC.name], env=environment, check=True, stdout=sys.stderr)


def _has_systemd_macros() -> bool:
    shown = subprocess.run(["rpm", "--eval", "%{_unitdir}"], check=True, stdout=subprocess.PIPE, text=True).stdout
    return not shown.startswith("%")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
