"""The base tree: Debian with what a host of the lab needs, except scistreamd."""

from __future__ import annotations

import platform
import re
from collections.abc import Sequence
from pathlib import Path

from tests.system.tools import LabError, call
from tests.system.trees import Trees, digest

_CONTROL = Path(__file__).parent.parent.parent / "packaging" / "debian" / "control"
PACKAGES = (
    "systemd,systemd-sysv,dbus,polkitd,libpam-systemd,bash-completion,less,man-db,"
    "iproute2,iputils-ping,procps,nftables,openssl,iperf,iperf3,"
    "openssh-server,openssh-client,haproxy,nginx-light,libnginx-mod-stream,stunnel4,python3,python3-venv,rpm"
)
# The distribution's own services stay off, and nothing starts by the clock in the middle of a test.
_DISABLED = "haproxy.service nginx.service stunnel.target ssh.service"
_MASKED = (
    "apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service "
    "fstrim.timer man-db.timer console-getty.service"
)
_HOOKS = (
    f'chroot "$1" systemctl --quiet disable {_DISABLED}',
    f'chroot "$1" systemctl --quiet mask {_MASKED}',
    # A host makes its own identity; a journal of another identity leaves it degraded now and then.
    'truncate --size=0 "$1/etc/machine-id" && rm -rf "$1/var/log/journal"',
    'rm -f "$1/etc/hostname" "$1/etc/resolv.conf"',
)
# A host before anything of ours: the least that boots. What apt would download for us is there already.
_MINIMAL = "systemd,systemd-sysv,dbus,iproute2"
_MINIMAL_HOOKS = (
    'chroot "$1" apt-get -o APT::Install-Recommends=true install -qq --yes --download-only '
    "haproxy openssl {dependencies}",
    f'chroot "$1" systemctl --quiet mask {_MASKED}',
    *_HOOKS[2:],
)
_SUITES = ("", "-updates", "-security")


def dependencies() -> list[str]:
    """The packages of Debian that ours depend on, so that these install without a network."""
    text = re.sub(r"\n ", " ", _CONTROL.read_text())
    named = ",".join(re.findall(r"^Depends: (.*)$", text, re.MULTILINE))
    words = {word.split("(")[0].split("|")[0].strip() for word in named.split(",")}
    ours = set(re.findall(r"^Package: (.*)$", text, re.MULTILINE))
    return sorted(word for word in words - ours if word and not word.startswith("$"))


def key() -> str:
    """Changes with everything that the tree is made from."""
    return digest(PACKAGES, *dependencies(), *_HOOKS, _release(), *(source.read_text() for source in _sources()))


def base_tree(trees: Trees) -> Path:
    """The tree of this machine's own Debian release, from this machine's own archives."""
    return trees.tree("base", key(), f"building the base tree of Debian {_release()} (a minute, once)", _build)


def minimal_tree(trees: Trees) -> Path:
    """A minimal Debian that boots, with the archives of what our packages need in apt's cache, not installed."""
    hooks = [hook.replace("{dependencies}", " ".join(dependencies())) for hook in _MINIMAL_HOOKS]
    made = digest(_MINIMAL, *hooks, _release(), *(source.read_text() for source in _sources()))

    def build(directory: Path) -> None:
        _bootstrap(directory, _MINIMAL, hooks, "--skip=cleanup/apt")

    return trees.tree("minimal", made, f"building a minimal tree of Debian {_release()} (once)", build)


def _build(directory: Path) -> None:
    _bootstrap(directory, ",".join([PACKAGES, *dependencies()]), _HOOKS)


def _bootstrap(directory: Path, packages: str, hooks: Sequence[str], *options: str) -> None:
    words = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={packages}", *options]
    words += [f"--customize-hook={hook}" for hook in hooks]
    call([*words, _release(), directory / "tree", *_sources()])


def _release() -> str:
    codename = platform.freedesktop_os_release().get("VERSION_CODENAME")
    if not codename:
        raise LabError(
            "the lab's hosts are made from the machine's own Debian archives; /etc/os-release names no release"
        )
    return codename


def _sources() -> list[Path]:
    """The machine's apt sources that hold this release and nothing else (sources.list(5))."""
    suites = {_release() + suffix for suffix in _SUITES}
    files = [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]
    found = [file for file in files if file.suffix in {".list", ".sources"} and _named(file) and _named(file) <= suites]
    if not found:
        raise LabError(f"no file of /etc/apt names the archive of {_release()} alone")
    return found


def _named(file: Path) -> set[str]:
    """The suites in a file of either style."""
    suites: set[str] = set()
    for line in file.read_text().splitlines() if file.exists() else []:
        words = line.partition("#")[0].split()
        if words[:1] == ["Suites:"]:
            suites |= set(words[1:])
        elif words[:1] == ["deb"]:
            rest = line.partition("]")[2].split() if "[" in line else words[1:]
            suites.add(rest[1])
    return suites
