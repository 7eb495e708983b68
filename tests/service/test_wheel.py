"""What pip and pipx users get: wheel and release archive, built, checked, installed, used and uninstalled."""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from scistreamd import __version__
from tests.service.gateways import application, run, say

ROOT = Path(__file__).parent.parent.parent
COMMANDS = {"s2cs", "s2uc", "s2ctl", "scistreamd"}
pytestmark = pytest.mark.timeout(600)  # pip gets libraries


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory with both, built from a copy: builds leave traces."""
    copy, made = tmp_path_factory.mktemp("source") / "copy", tmp_path_factory.mktemp("built")
    hidden = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__", "*.so", "node_modules")
    shutil.copytree(ROOT, copy, ignore=hidden)
    words = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(made), str(copy)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return made


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    [found] = built.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def archive(built: Path) -> Path:
    [found] = built.glob("*.tar.gz")
    return found


def test_twine_finds_nothing_wrong(wheel: Path, archive: Path) -> None:
    words = [sys.executable, "-m", "twine", "--no-color", "check", "--strict", str(wheel), str(archive)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("PASSED") == 2


def modules() -> set[str]:
    """The files of the package that belong into every way of installing it."""
    kept = {".py", ".pyi", ".proto"}
    return {str(path.relative_to(ROOT)) for path in (ROOT / "scistreamd").rglob("*") if path.suffix in kept}


def test_the_wheel_has_the_package_and_nothing_beside_it(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as opened:
        names = set(opened.namelist())
    data = f"scistreamd-{__version__}.data/data/share"
    library = {"scistreamd/dataserver/stunnel_poll.abi3.so"}
    shared = {
        f"{data}/dbus-1/interfaces/org.scistream.scistreamd1.xml",
        f"{data}/bash-completion/completions/s2ctl.bash",
        f"{data}/fish/vendor_completions.d/s2ctl.fish",
        f"{data}/zsh/site-functions/_s2ctl",
    }
    about = {name for name in names if name.startswith(f"scistreamd-{__version__}.dist-info/")}
    assert names - about == modules() | library | shared
    assert any(name.endswith("/LICENSE") for name in about)


def test_the_archive_has_the_whole_source(archive: Path) -> None:
    with tarfile.open(archive) as opened:
        names = {member.name.partition("/")[2] for member in opened if member.isfile()}
    assert modules() <= names
    wanted = {"LICENSE", "Makefile", "README.md", "pyproject.toml", "setup.py", "scistreamd/dataserver/stunnel_poll.c"}
    assert wanted <= names
    for directory in ("dbus", "docs", "packaging", "systemd", "tests"):
        for file in (ROOT / directory).rglob("*"):
            if file.is_file() and not {"__pycache__", "node_modules"} & set(file.parts):
                assert str(file.relative_to(ROOT)) in names
    assert not [name for name in names if name.endswith((".pyc", ".so"))]


def test_the_version_is_one(wheel: Path, archive: Path) -> None:
    assert wheel.name.startswith(f"scistreamd-{__version__}-")
    assert archive.name == f"scistreamd-{__version__}.tar.gz"
    spec = (ROOT / "packaging" / "rpm" / "scistreamd.spec").read_text()
    assert re.findall(r"^Version: +(\S+)$", spec, re.MULTILINE) == [__version__]
    assert re.search(r"^%changelog\n\* .* - (\S+)-\d+$", spec, re.MULTILINE)[1] == __version__  # type: ignore[index]
    debian = (ROOT / "packaging" / "debian" / "changelog").read_text()
    assert re.match(r"scistreamd \((\S+)-\d+\) ", debian)[1] == __version__  # type: ignore[index]


async def test_installed_by_itself_it_carries_a_stream_and_leaves_nothing(wheel: Path, tmp_path: Path) -> None:
    """As pipx does it: an environment of its own, whose commands are linked into a directory of PATH."""
    venv, home = tmp_path / "venv", tmp_path / "home"
    home.mkdir()
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    pip = [str(venv / "bin" / "python"), "-m", "pip", "--quiet", "--disable-pip-version-check"]
    before = set(venv.rglob("*"))
    subprocess.run([*pip, "install", "--no-compile", str(wheel)], check=True)
    assert {path.name for path in (venv / "bin").iterdir()} >= COMMANDS
    paths = tmp_path / "bin"
    paths.mkdir()
    for name in COMMANDS:
        (paths / name).symlink_to(venv / "bin" / name)
    status, out, _ = await run(paths / "s2ctl", "version", cwd=home)
    assert (status, out) == (0, f"scistreamd {__version__}\n")
    await _stream(paths, home)
    subprocess.run([*pip, "uninstall", "--yes", "scistreamd"], check=True)
    left = {path for path in set(venv.rglob("*")) - before if "scistream" in path.name or path.name in COMMANDS}
    assert not {path for path in left if "__pycache__" not in path.parts}


async def _stream(paths: Path, home: Path) -> None:
    created = await run(paths / "s2ctl", "cert", "create", "--ip", "127.0.0.8", "--ip", "127.0.0.9", cwd=home)
    assert created[0] == 0, created[2]
    async with application(b"") as target, s2cs(paths, home, "127.0.0.8"), s2cs(paths, home, "127.0.0.9"):
        host, port = target.split(":")
        asked = ["--remote-ip", host, "--receiver-ports", port]
        status, out, err = await run(paths / "s2uc", "inbound-request", "--s2cs", "127.0.0.8:26950", *asked, cwd=home)
        assert status == 0, err
        uid, listener = out.splitlines()[1].split()[0], out.splitlines()[-1].split("'")[1]
        words = ["outbound-request", "--s2cs", "127.0.0.9:26950", uid, listener]
        status, out, err = await run(paths / "s2uc", *words, cwd=home)
        assert status == 0, err
        assert await say(out.splitlines()[-1].split("'")[1]) == b"hello\n"


@contextlib.asynccontextmanager
async def s2cs(paths: Path, home: Path, address: str) -> AsyncIterator[None]:
    """The installed s2cs in the foreground."""
    words = [f"--listener-ip={address}", "--port=26950", "--port-range=26951-26959"]
    process = await asyncio.create_subprocess_exec(
        paths / "s2cs", *words, cwd=home, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        assert process.stdout is not None
        assert b"Server started" in await asyncio.wait_for(process.stdout.readline(), 30)
        yield
        process.terminate()
        assert await asyncio.wait_for(process.wait(), 30) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        process._transport.close()  # type: ignore[attr-defined]  # asyncio leaves its pipe to the collector
