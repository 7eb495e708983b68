"""The Debian packages on hosts with a minimal Debian: install, upgrade under a stream, remove, install again, purge."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from scistreamd import __version__
from tests.system.gateways import Field, field_of, shown
from tests.system.host import Host
from tests.system.installed import CONFIG
from tests.system.lab import Lab
from tests.system.project import OLDER, ROOT, copied, fetch_libraries, older_packages, packages, packages_with_tests
from tests.system.tools import call
from tests.system.trees import Trees, home

pytestmark = pytest.mark.timeout(600)  # the first lab of a machine builds its trees

DEBIAN = ROOT / "packaging" / "debian"
PINNED = ROOT / "packaging" / "vendor" / "pinned.txt"
OURS = ("scistreamd", "scistream-client", "scistream-common", "scistreamd-doc")
_APT = ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "--yes", "--quiet=2"]
_NEW, _OLD = "/vagrant/new", "/vagrant/old"
_PROXIES = ("haproxy.service", "scistreamd.socket")


@pytest.fixture(scope="module")
def trees() -> Iterator[Trees]:
    found = Trees(home(), print)
    yield found
    found.close()


def test_the_same_sources_give_the_same_bytes(trees: Trees) -> None:
    """Built again by an ordinary user in another directory, whose clone has other file times and modes."""
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"]
    with tempfile.TemporaryDirectory() as directory:
        output = Path(directory, "output")
        output.mkdir()
        clone = Path(directory, "another/clone")
        copied(clone)
        fetch_libraries(clone)
        for path in [Path(directory), output]:
            os.chmod(path, 0o777)
        subprocess.run(["chmod", "-R", "go=u,go-w,o+X", f"{directory}/another"], check=True)
        call([*nobody, "/usr/bin/python3", "-B", f"{clone}/packaging/deb.py", str(output)])
        built = {file.name: file.read_bytes() for file in output.iterdir()}
    assert any(name.endswith(".deb") for name in built)
    assert any(name.endswith(".dsc") for name in built)
    for file in packages_with_tests(trees).glob("[!.]*"):
        assert built.pop(file.name) == file.read_bytes(), file.name
    assert not built


def test_lintian_finds_neither_errors_nor_warnings(trees: Trees) -> None:
    made = [file for file in packages(trees).iterdir() if file.suffix in {".deb", ".dsc"}]
    assert len(made) == len(OURS) + 1
    call(["lintian", "--allow-root", "--fail-on=error,warning", *made])
    for file in DEBIAN.glob("*.lintian-overrides"):
        assert re.fullmatch(r"(# .*\n(# .*\n)*[a-z].*\n)+", file.read_text()), f"{file.name}: each with its reason"


def test_what_debian_lacks_is_pinned_and_its_licence_recorded(trees: Trees) -> None:
    pinned = dict(re.findall(r"^(\S+)==\S+ --hash=sha256:(\w+)$", PINNED.read_text(), re.MULTILINE))
    components = list(packages(trees).glob("*.orig-*.tar.gz"))
    assert components
    for component in components:
        name = component.name.partition(".orig-")[2].removesuffix(".tar.gz")
        assert hashlib.sha256(component.read_bytes()).hexdigest() == pinned[name]
        assert f"\nFiles: {name}/*\n" in (DEBIAN / "copyright").read_text()


@pytest.fixture(scope="module")
def fresh(trees: Trees) -> Iterator[Lab]:
    """Hosts with a minimal Debian and nothing of ours; our packages lie in the directory that they share."""
    with Lab.start(f"fresh-{os.getpid()}-{secrets.token_hex(2)}", say=print, bare=True) as lab:
        for place, source in ((_NEW, packages(trees)), (_OLD, older_packages(trees))):
            tree = subprocess.run(["tar", "-C", source, "-c", "."], stdout=subprocess.PIPE, check=True).stdout
            lab["producer"].run(["mkdir", place])
            subprocess.run(lab["producer"].command(["tar", "-C", place, "-x"]), input=tree, check=True)
        yield lab


def apt(host: Host, *words: str) -> str:
    """Run apt-get; what it said. Archives of Debian's own packages are in its cache."""
    done = host.run([*_APT, *words], timeout=300)
    return f"{done.stdout}{done.stderr}"


def install(host: Host, place: str, *names: str) -> str:
    """Install these of our packages from a directory, all by default."""
    files = [f"{place}/{name}_*.deb" for name in names or OURS]
    return apt(host, "install", *host.run(["sh", "-c", f"ls {' '.join(files)}"]).stdout.split())


@pytest.fixture(scope="module")
def gateway(fresh: Lab) -> Host:
    """A gateway, installed on a host that had nothing of it, and untouched since."""
    host = fresh["producers2"]
    install(host, _NEW)
    return host


def test_a_fresh_host_is_a_working_gateway(gateway: Host) -> None:
    assert gateway.state() == "running"
    assert [shown(gateway, "ActiveState", unit) for unit in _PROXIES] == ["active", "active"]
    assert shown(gateway, "ActiveState") == "inactive"
    gateway.run(["bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/5000"])
    gateway.wait_until(lambda: shown(gateway, "ActiveState") == "active", "started by the first connection")
    said = gateway.run(["s2ctl", "status"]).stdout
    assert said.startswith(f"● scistreamd {__version__}\n")
    certificate = "/var/lib/scistreamd/control/server.crt"
    ask = [
        "s2uc",
        "inbound-request",
        "--s2cs",
        "127.0.0.1:5000",
        "--server-cert",
        certificate,
        "--uid-file",
        "/root/uid",
    ]
    gateway.run([*ask, "--remote-ip", "192.168.10.10", "--receiver-ports", "5001"])
    assert len(gateway.run(["s2ctl", "list", "--quiet"]).stdout.split()) == 1
    gateway.run(["s2uc", "release", "@/root/uid", *ask[2:6]])
    gateway.run(["scistreamd", "--check-config"])
    assert "scistream:" in gateway.run(["getent", "group", "scistream"]).stdout
    assert gateway.state() == "running"


def test_installed_units_are_sound_and_shut_in(gateway: Host) -> None:
    units = gateway.run(["sh", "-c", "dpkg -L scistreamd | grep /systemd/system/"]).stdout.split()
    verified = gateway.run(["systemd-analyze", "verify", "--man=no", *units])
    assert (verified.stdout, verified.stderr) == ("", "")
    rating = gateway.run(["systemd-analyze", "security", "--no-pager", "scistreamd.service"]).stdout
    exposure = re.search(r"exposure level for scistreamd.service: ([0-9.]+)", rating)
    assert exposure is not None
    assert float(exposure[1]) <= 2.0
    pages = re.findall(r"^Documentation=(.*)$", gateway.run(["cat", *units]).stdout, re.MULTILINE)
    for name, section in re.findall(r"man:(\S+)\((\d)\)", " ".join(pages)):
        gateway.run(["test", "-s", f"/usr/share/man/man{section}/{name}.{section}.gz"])


def test_the_proxies_of_the_distribution_are_left_alone(gateway: Host) -> None:
    """HAProxy's own service runs as Debian set it up, and tunnels do not need it."""
    assert gateway.run(["dpkg", "--verify", "haproxy"]).stdout == ""
    gateway.run(["systemctl", "stop", "haproxy"])
    try:
        made = gateway.run(["s2ctl", "inbound", "-q", "--uid-file", "/root/uid", "192.168.10.10:5001"]).stdout.strip()
        assert shown(gateway, "ActiveState", f"scistream-{made}.socket") == "active"
        gateway.run(["systemctl", "start", "haproxy"])
        assert shown(gateway, "ActiveState", f"scistream-{made}.socket") == "active"
        gateway.run(["s2ctl", "release", "-q", made])
        assert shown(gateway, "ActiveState", "haproxy.service") == "active"
    finally:
        gateway.run(["systemctl", "start", "haproxy"])


def test_the_autopkgtest_definitions_run(gateway: Host) -> None:
    """Each test of debian/tests/control, as autopkgtest runs it on an installed host (its README.package-tests)."""
    control = (DEBIAN / "tests" / "control").read_text()
    names = re.findall(r"^Tests: (.*)$", control, re.MULTILINE)
    assert sorted(names) == sorted(each.name for each in (DEBIAN / "tests").iterdir() if each.name != "control")
    apt(gateway, "install", *re.findall(r"^Depends: @,\n\s+([a-z0-9-]+),$", control, re.MULTILINE))
    for name in names:
        gateway.write(f"/root/{name}", (DEBIAN / "tests" / name).read_text())
        work = gateway.run(["mktemp", "-d"]).stdout.strip()
        gateway.run(["env", f"AUTOPKGTEST_TMP={work}", "sh", f"/root/{name}"], timeout=300)
        gateway.run(["rm", "-r", work, f"/root/{name}"])


def test_a_login_node_gets_the_client_alone(fresh: Lab) -> None:
    host = fresh["consumer"]
    install(host, _NEW, "scistream-client", "scistream-common")
    assert __version__ in host.run(["s2uc", "--version"]).stdout
    assert host.run(["sh", "-c", "ls /usr/bin/*s2c* /usr/bin/scistreamd"], check=False).stdout == ""
    assert host.run(["systemctl", "list-unit-files", "--no-legend", "scistream*"], check=False).stdout == ""
    assert host.run(["dpkg-query", "-W", "-f", "${Package}\n", "haproxy"], check=False).stdout == ""


@pytest.fixture
def upgraded(fresh: Lab) -> Iterator[Field]:
    """Gateways with the older version and a stream through both, upgraded; the stream runs on."""
    both = [fresh["producers2"], fresh["consumers2"]]
    with ThreadPoolExecutor() as pool:
        list(pool.map(_with_older_version, both))
        install(fresh["producer"], _NEW, "scistream-client", "scistream-common")
        install(fresh["consumer"], _NEW, "scistream-client", "scistream-common")
    with contextlib.ExitStack() as ends:
        field = ends.enter_context(field_of(fresh))
        field.start("Haproxy", ends)
        for host in both:
            assert host.run(["s2ctl", "status"]).stdout.startswith(f"● scistreamd {OLDER}\n")
            before = shown(host, "InvocationID", "scistreamd.socket")
            install(host, _NEW)
            assert shown(host, "InvocationID", "scistreamd.socket") == before
        yield field


def _with_older_version(host: Host) -> None:
    host.run([*_APT, "purge", *OURS], check=False, timeout=300)
    install(host, _OLD)


def test_an_upgrade_under_a_stream_loses_no_byte(upgraded: Field) -> None:
    for host in (upgraded.near, upgraded.far):
        assert host.run(["s2ctl", "status"]).stdout.startswith(f"● scistreamd {__version__}\n")
        assert "goes on" in host.journal("-u", "scistreamd")
    assert upgraded.ask(upgraded.streams[0].port) == 7001
    upgraded.end()
    upgraded.streams.clear()


def test_removal_tells_of_tunnels_and_keeps_the_configuration(gateway: Host) -> None:
    edited = gateway.run(["cat", CONFIG]).stdout.replace('#advertise = ""', 'advertise = "192.168.10.11"')
    assert 'advertise = "192.168.10.11"' in edited
    gateway.write(CONFIG, edited)
    gateway.run(["s2ctl", "inbound", "-q", "--uid-file", "/root/uid", "192.168.10.10:5001"])
    tunnel = gateway.run(["s2ctl", "list", "--quiet"]).stdout.strip()
    said = apt(gateway, "remove", "scistreamd")
    assert "which ends these tunnels" in said
    assert tunnel in said
    assert "192.168.10.10:5001" in said
    assert gateway.run(["cat", CONFIG]).stdout == edited
    # systemd forgets units a moment after they have stopped.
    left = ["sh", "-c", "ls /run/systemd/transient | grep scistream; ls -d /run/scistreamd"]
    gateway.wait_until(lambda: gateway.run(left, check=False).stdout == "", "without units and files of tunnels")
    assert gateway.run(["bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/5000"], check=False).returncode != 0
    assert gateway.state() == "running"

    install(gateway, _NEW)
    assert gateway.run(["cat", CONFIG]).stdout == edited
    assert 'advertise = "192.168.10.11"' in gateway.run(["s2ctl", "config", "show"]).stdout
    assert gateway.run(["s2ctl", "list", "--quiet"]).stdout == "", "what a removal has ended does not come back"
    assert gateway.state() == "running"


def test_an_edited_configuration_survives_an_upgrade(gateway: Host) -> None:
    _with_older_version(gateway)
    edited = gateway.run(["cat", CONFIG]).stdout + '\n[log]\nlevel = "debug"\n'
    gateway.write(CONFIG, edited)
    install(gateway, _NEW)
    assert gateway.run(["cat", CONFIG]).stdout == edited
    assert gateway.run(["dpkg-query", "-W", "-f", "${Version}", "scistreamd"]).stdout.startswith(__version__)


_FILES = """
find / -xdev -not -path '/proc/*' -not -path '/sys/*' -not -path '/var/log/*' -not -path '/var/cache/*' \\
    -not -path '/var/lib/dpkg/*' -not -path '/tmp/*' -not -path '/var/tmp/*' -not -path '/root/*' \\
    -not -path '/usr/lib/python3/*' -not -path '/var/lib/apt/*' -not -path '/var/lib/haproxy/*' | sort
"""


def test_purge_leaves_nothing(gateway: Host) -> None:
    apt(gateway, "purge", *OURS)
    gateway.run(["mkdir", "-p", "/etc/systemd/system.control"])  # systemd's own, for `set-property`
    before = gateway.run(["sh", "-c", _FILES]).stdout.splitlines()
    assert [name for name in before if "scistream" in name] == []
    install(gateway, _NEW)
    gateway.run(["s2ctl", "inbound", "-q", "--uid-file", "/root/uid", "192.168.10.10:5001"])
    gateway.run(["install", "-D", "-m", "644", "/dev/null", f"{CONFIG}.d/site.toml"])
    gateway.run(["systemctl", "enable", "scistreamd-metrics.socket"])
    gateway.run(["systemctl", "set-property", "scistream.slice", "MemoryMax=8G"])
    apt(gateway, "purge", *OURS)
    after = gateway.run(["sh", "-c", _FILES]).stdout.splitlines()
    assert sorted(set(after) - set(before)) == []
    assert gateway.run(["sh", "-c", "find / -xdev -nouser -o -xdev -nogroup"]).stdout == ""
    for verb in ("list-units", "list-unit-files"):
        listed = ["systemctl", verb, "--all", "--plain", "--no-legend", "scistream*"]
        gateway.wait_until(lambda: gateway.run(listed, check=False).stdout == "", f"without ours: {listed}")  # noqa: B023
    transient = ["ls", "/run/systemd/transient"]
    gateway.wait_until(lambda: gateway.run(transient, check=False).stdout == "", "without transient units")
    assert gateway.state() == "running"
