"""The RPM packages: what they hold beside the Debian packages, and a host's life with them.

They are those for Fedora and RHEL, installed on the lab's Debian: rpm's own work, scriptlets, units and the daemon are
real, while what the packages require by Fedora's names is there by Debian's (``--nodeps``).
"""

from __future__ import annotations

import gzip
import os
import re
import secrets
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system import project
from tests.system.host import Host
from tests.system.lab import Lab
from tests.system.tools import call
from tests.system.trees import Trees, digest, home

pytestmark = pytest.mark.timeout(900)  # the first lab of a machine builds the base tree

ROOT = Path(__file__).parent.parent.parent
PACKAGES = ("scistreamd", "scistream-client", "scistream-common", "scistreamd-doc")
TARGETS = ("fc44", "el10", "el9")
# Where the two differ, and why. Each line is a pattern of paths as the Debian package has them.
ELSEWHERE = {
    # Debian 12 has units in /lib, which is a link to /usr/lib.
    r"^/lib/systemd/": "/usr/lib/systemd/",
    # Each has its own place for completions of packages, for libraries, and for the pages of a -doc package.
    r"^/usr/share/zsh/vendor-completions/": "/usr/share/zsh/site-functions/",
    r"^/usr/lib/scistreamd/": "/usr/lib64/scistreamd/",
}
ONLY_DEBIAN = (
    # Licences are in /usr/share/licenses there, changelogs in the package's header.
    r"^/usr/share/doc/[^/]+/(copyright|changelog.*|NEWS.*|README\.Debian.*)$",
    r"^/usr/share/lintian/",
    r"^/usr/share/doc-base/",
    # Which directories to compile; RPM has what it compiled as files.
    r"^/usr/share/python3/runtime\.d/",
)
ONLY_RPM = (
    r"^/usr/share/licenses/",
    # Fedora's way from a compiled file to what a debugger wants.
    r"^/usr/lib/\.build-id/",
    # Libraries that Debian 12 has as packages.
    r"^/usr/share/scistreamd/(dbus_next|google|h2|hpack|hyperframe|multidict|pyroute2|sdnotify)/",
    r"^/usr/share/doc/scistreamd/README\.md$",
)
# Compiled by each with its own options.
OTHER_BYTES = (r"^/usr/lib64/scistreamd/stunnel_poll\.so$",)


@pytest.fixture(scope="module")
def trees() -> Iterator[Trees]:
    made = Trees(home(), print)
    yield made
    made.close()


@pytest.fixture(scope="module")
def rpms(trees: Trees) -> Path:
    """The directory with this tree's packages, as `make rpm` builds them."""

    def build(directory: Path) -> None:
        environment = {**os.environ, "PYTHON": sys.executable}
        call(["python3", "-B", ROOT / "packaging" / "rpm.py", directory / "tree"], environment)

    return trees.tree("rpms", digest(*project._sources()), "building scistreamd's RPM packages", build)


def package(rpms: Path, name: str, target: str = "fc44") -> Path:
    [found] = rpms.glob(f"{name}-[0-9]*.{target}.*.rpm")
    return found


def test_rpmlint_finds_no_error(rpms: Path) -> None:
    spec, config = (ROOT / "packaging" / "rpm" / name for name in ("scistreamd.spec", "rpmlint.toml"))
    done = subprocess.run(["rpmlint", "--config", config, spec, *rpms.iterdir()], capture_output=True, text=True)
    assert " E: " not in done.stdout
    assert " 0 errors" in done.stdout
    assert done.returncode == 0


def files(root: Path) -> dict[str, tuple[int, bytes]]:
    """Every file and link by its path from the root, with its mode and content, man pages and changelogs unpacked."""
    found = {}
    for path in root.rglob("*"):
        if path.is_symlink():
            found["/" + str(path.relative_to(root))] = (0, os.readlink(path).encode())
        elif path.is_file():
            name, content = "/" + str(path.relative_to(root)), path.read_bytes()
            if path.suffix == ".gz":
                name, content = name.removesuffix(".gz"), gzip.decompress(content)
            found[name] = (stat.S_IMODE(path.stat().st_mode), content)
    return found


def of_deb(debs: Path, name: str, place: Path) -> dict[str, tuple[int, bytes]]:
    [deb] = debs.glob(f"{name}_*.deb")
    call(["dpkg-deb", "--extract", deb, place])
    found = {}
    for path, content in files(place).items():
        moved = path
        for pattern, there in ELSEWHERE.items():
            moved = re.sub(pattern, there, moved)
        found[moved] = content
    return found


def of_rpm(file: Path, place: Path) -> dict[str, tuple[int, bytes]]:
    (place / "db").mkdir(parents=True)
    words = ["rpm", "--root", str(place / "root"), "--dbpath", "/db", "--nodeps", "--noscripts", "--install"]
    (place / "root").mkdir()
    call([*words, file])
    return {path: content for path, content in files(place / "root").items() if not path.startswith("/db/")}


def one_of(patterns: tuple[str, ...], path: str) -> bool:
    return any(re.search(pattern, path) for pattern in patterns)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", PACKAGES)
def test_the_same_files_as_in_the_debian_package(
    rpms: Path, trees: Trees, tmp_path: Path, name: str, target: str
) -> None:
    deb = of_deb(project.packages(trees), name, tmp_path / "deb")
    rpm = of_rpm(package(rpms, name, target), tmp_path / "rpm")
    deb = {path: each for path, each in deb.items() if not one_of(ONLY_DEBIAN, path)}
    rpm = {path: each for path, each in rpm.items() if not one_of(ONLY_RPM, path)}
    assert deb.keys() == rpm.keys()
    for path, (mode, content) in deb.items():
        if one_of(OTHER_BYTES, path):
            continue
        theirs = rpm[path][1].replace(b"#!/usr/bin/python3.12 -I\n", b"#!/usr/bin/python3 -I\n")
        assert (path, rpm[path][0], theirs) == (path, mode, content)


def test_what_is_carried_along_is_what_is_required_no_more(rpms: Path) -> None:
    for target, carried in (("fc44", 2), ("el10", 4), ("el9", 9)):
        common, daemon = (package(rpms, name, target) for name in ("scistream-common", "scistreamd"))
        provides = re.findall(r"bundled\(python3dist\((.*)\)\)", call(["rpm", "-qp", "--provides", common]))
        required = call(["rpm", "-qp", "--requires", common, daemon])
        assert len(provides) == carried
        libraries = ("cryptography", "dbus-next", "grpclib", "h2", "multidict", "protobuf", "pyroute2", "sdnotify")
        for library in libraries:
            assert (library in provides) != (
                re.search(rf"^python3[^ ]*-{library}\b", required, re.MULTILINE) is not None
            )


@pytest.fixture(scope="module")
def gateway(rpms: Path) -> Iterator[Host]:
    """A host of a lab of its own without the Debian packages, which the other tests need, with rpms in /root."""
    with Lab.start(f"rpm-{os.getpid()}-{secrets.token_hex(2)}", say=print) as lab:
        host = lab["producers2"]
        host.run(["dpkg", "--purge", *PACKAGES], timeout=300)
        host.run(["mkdir", "-p", "/etc/systemd/system-preset"])
        # As an operator who wants it; Fedora's own presets enable few services.
        host.write("/etc/systemd/system-preset/50-site.preset", "enable scistreamd*\n")
        for name in PACKAGES:
            file = package(rpms, name)
            with file.open("rb") as content:
                subprocess.run(host.command(["sh", "-c", f"cat >/root/{name}.rpm"]), stdin=content, check=True)
        yield host


def rpm(host: Host, *words: str) -> str:
    done = host.run(["rpm", "--nodeps", *words], timeout=300)
    return done.stdout + done.stderr


def shown(host: Host, name: str, unit: str) -> str:
    return host.run(["systemctl", "show", "--value", "-p", name, unit]).stdout.strip()


ASK = ["s2uc", "inbound-request", "--s2cs", "127.0.0.1:5000", "--server-cert", "/var/lib/scistreamd/control/server.crt"]
ASK += ["--remote-ip", "192.168.10.10", "--receiver-ports", "5001", "--uid-file", "/root/uid"]


def test_a_hosts_life_with_the_packages(gateway: Host) -> None:
    """Installation, use, an upgrade that a tunnel and an edited configuration survive, a removal that tells of it."""
    said = rpm(gateway, "--install", *(f"/root/{name}.rpm" for name in PACKAGES))
    assert "error" not in said.lower(), said
    assert gateway.run(["rpm", "--verify", "--nodeps", *PACKAGES], check=False).stdout == ""
    assert "scistream:" in gateway.run(["getent", "group", "scistream"]).stdout
    units = gateway.run(["sh", "-c", "rpm -ql scistreamd | grep ^/usr/lib/systemd/system/"]).stdout.split()
    verified = gateway.run(["systemd-analyze", "verify", "--man=no", *units])
    assert (verified.stdout, verified.stderr) == ("", "")
    for unit in ("scistreamd.socket", "scistreamd-restore.service"):
        assert gateway.run(["systemctl", "is-enabled", unit]).stdout == "enabled\n"
    gateway.run(["systemctl", "start", "scistreamd.socket"])
    gateway.run(["s2ctl", "status"])  # the first caller starts the daemon, which makes its certificate
    gateway.run(ASK)
    assert shown(gateway, "ActiveState", "scistreamd.service") == "active"
    [tunnel] = gateway.run(["s2ctl", "list", "--quiet"]).stdout.split()
    held = shown(gateway, "InvocationID", f"scistream-{tunnel}.socket")
    daemon, socket = (shown(gateway, "InvocationID", f"scistreamd.{kind}") for kind in ("service", "socket"))
    gateway.run(["sh", "-c", "echo idle_exit = 0 >>/etc/scistreamd/scistreamd.toml"])

    rpm(gateway, "--upgrade", "--replacepkgs", "--oldpackage", *(f"/root/{name}.rpm" for name in PACKAGES))
    gateway.wait_until(lambda: shown(gateway, "InvocationID", "scistreamd.service") not in ("", daemon), "restarted")
    gateway.wait_until(lambda: shown(gateway, "ActiveState", "scistreamd.service") == "active", "active again")
    assert shown(gateway, "InvocationID", "scistreamd.socket") == socket
    assert shown(gateway, "InvocationID", f"scistream-{tunnel}.socket") == held
    assert gateway.run(["s2ctl", "list", "--quiet"]).stdout.split() == [tunnel]
    assert gateway.run(["tail", "-n1", "/etc/scistreamd/scistreamd.toml"]).stdout == "idle_exit = 0\n"

    said = rpm(gateway, "--erase", *PACKAGES)
    assert "which ends these tunnels" in said
    assert tunnel in said
    # systemd forgets units and closes listeners a moment after they have stopped.
    left = ["systemctl", "list-units", "--no-legend", "--plain", "scistream*"]
    gateway.wait_until(lambda: gateway.run(left).stdout == "", "without units of ours")
    listen = ["ss", "-Htln", "sport = :5000 or sport = :5100"]
    gateway.wait_until(lambda: gateway.run(listen).stdout == "", "without listeners of ours")
    assert gateway.run(["cat", "/etc/scistreamd/scistreamd.toml.rpmsave"]).stdout.endswith("idle_exit = 0\n")
    assert (
        gateway.run(["sh", "-c", "ls -d /usr/share/scistreamd /run/scistreamd /usr/bin/s2*"], check=False).stdout == ""
    )
    assert gateway.state() == "running"
