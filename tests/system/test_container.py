"""The container image: built from packaging/container/Containerfile on mmdebstrap's Debian, and run without podman.

`buildah run --isolation chroot` runs a command with the image's user, directory and environment, on the network
of the host; here that is a network namespace with the address of SciStream's tutorial, section 8.8.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import secrets
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.system import base
from tests.system.tools import call
from tests.system.trees import Trees, digest, home

pytestmark = pytest.mark.timeout(900)  # the first build of a machine

ROOT = Path(__file__).parent.parent.parent
CONTAINERFILE = ROOT / "packaging" / "container" / "Containerfile"
ADDRESS = "192.168.150.1"
SECTION = (
    "podman run --rm --net=host -v ./server1:/scistream --entrypoint=s2uc castroflaviojr/scistream:1.2.1 "
    "inbound-request --remote_ip 192.168.150.1 --s2cs 192.168.150.1:5000 --receiver_ports 5300 "
    "--server_cert=/scistream/server.crt"
)
UID = 10005


class Store:
    """A storage of buildah's, with a base image and the layers that seldom change."""

    def __init__(self, directory: Path, run: Path) -> None:
        self._words = ["buildah", "--root", str(directory / "store"), "--runroot", str(run)]
        self._wheels = directory / "wheels"

    def words(self, *words: str | Path) -> list[str]:
        return [*self._words, *map(str, words)]

    def run(self, *words: str | Path) -> str:
        return call(self.words(*words)).strip()

    def build(self, tag: str) -> None:
        """The image of this tree, with libraries from wheels, since a build has no index of its own."""
        arguments = {"BASE": "localhost/base", "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "/wheels"}
        words = [word for name, value in arguments.items() for word in ("--build-arg", f"{name}={value}")]
        words += ["--isolation", "chroot", "--format", "docker", "--layers", "--quiet", "--volume"]
        self.run("build", *words, f"{self._wheels}:/wheels:ro", "--file", CONTAINERFILE, "--tag", tag, ROOT)

    def images(self) -> set[str]:
        return set(self.run("images", "--all", "--quiet", "--no-trunc").split())


def _make(directory: Path) -> None:
    tree = directory / "tree"
    (tree / "wheels").mkdir(parents=True)
    pip = [sys.executable, "-m", "pip", "--quiet", "wheel", "--wheel-dir", str(tree / "wheels")]
    call([*pip, str(ROOT), "setuptools>=66", "wheel"])
    for ours in (tree / "wheels").glob("scistreamd-*"):
        ours.unlink()
    archive = directory / "base.tar"
    call(["mmdebstrap", "--quiet", "--variant=minbase", base._release(), archive, *base._sources()])
    store = Store(tree, directory / "run")
    working = store.run("from", "scratch")
    store.run("add", "--quiet", working, archive, "/")
    store.run("commit", "--quiet", "--rm", working, "localhost/base")
    archive.unlink()
    store.build("localhost/first")


@dataclass
class Image:
    """The image, and a directory that is mounted at /scistream.

    ``containers``: one for each command that runs beside others, since buildah 1.28 falls over its own mounts else.
    """

    store: Store
    name: str
    containers: tuple[str, ...]
    mounted: Path
    namespace: str

    @property
    def config(self) -> dict[str, object]:
        found: dict[str, object] = json.loads(self.store.run("inspect", "--type", "image", self.name))["Docker"][
            "config"
        ]
        return found

    def words(self, *words: str, container: int = 0) -> list[str]:
        run = self.store.words("run", "--isolation", "chroot", "--volume", f"{self.mounted}:/scistream")
        run.append(self.containers[container])
        return ["ip", "netns", "exec", self.namespace, *run, "--", *words]

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.words(*words), capture_output=True, text=True, timeout=180)


@pytest.fixture(scope="module")
def namespace() -> Iterator[str]:
    name = f"container{os.getpid()}"
    call(["ip", "netns", "add", name])
    for words in (["link", "set", "lo", "up"], ["address", "add", f"{ADDRESS}/24", "dev", "lo"]):
        call(["ip", "-netns", name, *words])
    yield name
    call(["ip", "netns", "del", name])


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory, namespace: str) -> Iterator[Image]:
    trees = Trees(home(), print)
    sources = (source.read_text() for source in base._sources())
    key = digest(base._release(), *sources, CONTAINERFILE.read_bytes(), (ROOT / "pyproject.toml").read_bytes())
    try:
        tree = trees.tree("container", key, "building the container image's base (two minutes, once)", _make)
        with tree.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield from _built(Store(tree, tmp_path_factory.mktemp("run")), tmp_path_factory.mktemp("place"), namespace)
    finally:
        trees.close()


def _built(store: Store, place: Path, namespace: str) -> Iterator[Image]:
    mounted = place / "server1"
    mounted.mkdir()
    subprocess.run([Path(sys.executable).parent / "s2ctl", "cert", "create", "--ip", ADDRESS], cwd=mounted, check=True)
    for each in (place, mounted, *mounted.iterdir()):
        os.chown(each, UID, UID)
    before = store.images()
    name = f"localhost/scistreamd-{secrets.token_hex(4)}"
    try:
        store.build(name)
        containers = tuple(store.run("from", "--pull-never", name) for _ in range(3))
        try:
            yield Image(store, name, containers, mounted, namespace)
        finally:
            store.run("rm", *containers)
    finally:
        if made := store.images() - before:
            store.run("rmi", "--force", *made)


def test_what_the_image_says_of_itself(image: Image) -> None:
    config = image.config
    assert config["Entrypoint"] == ["s2cs"]
    assert config["User"] == f"{UID}:{UID}"
    assert config["WorkingDir"] == "/scistream"
    assert config["StopSignal"] == "SIGTERM"
    assert config["Healthcheck"]["Test"] == ["CMD", "/opt/scistream/bin/python", "-m", "scistreamd.cli.healthcheck"]  # type: ignore[index]


def test_the_programs_are_there_and_pip_is_not(image: Image) -> None:
    from scistreamd import __version__

    assert image.run("s2cs", "--version").stdout == f"s2cs, version: {__version__}\n"
    assert image.run("s2ctl", "version").stdout == f"scistreamd {__version__}\n"
    for program in ("haproxy", "nginx", "stunnel"):
        assert image.run("sh", "-c", f"command -v {program}").returncode == 0
    assert "pip" not in image.run("ls", "/opt/scistream/bin").stdout
    assert image.run("sh", "-c", "command -v gcc").returncode == 127
    assert image.run("id", "-u").stdout == f"{UID}\n"


@contextlib.contextmanager
def s2cs(image: Image, container: int, *options: str) -> Iterator[int]:
    """The entry point in the foreground; yields its process id, and ends it by SIGTERM with status 0."""
    log = image.mounted.parent / f"log{container}"
    with log.open("w") as output:
        process = subprocess.Popen(image.words("s2cs", *options, container=container), stdout=output, stderr=output)
    try:
        _wait(lambda: "Server started" in log.read_text() or process.poll() is not None)
        assert process.poll() is None, log.read_text()
        pid = _descendant(process.pid, "s2cs")
        try:
            yield pid
        finally:
            os.kill(pid, signal.SIGTERM)
            status = process.wait(90)
        assert status == 0, log.read_text()
    finally:
        process.kill()
        process.wait()


def _wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 180
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _descendant(pid: int, name: str) -> int:
    """The process below ``pid`` that runs the script ``name``."""
    pids = [pid]
    for each in pids:
        words = Path(f"/proc/{each}/cmdline").read_bytes().decode().split("\0")
        if len(words) > 1 and words[0].endswith("python3") and Path(words[1]).name == name:
            return each
        for listed in Path(f"/proc/{each}/task").glob("*/children"):
            pids += map(int, listed.read_text().split())
    raise AssertionError(f"no {name} runs")


def section(image: Image) -> subprocess.CompletedProcess[str]:
    """The line of section 8.8, with what podman would make of its options done by buildah."""
    words = shlex.split(SECTION)
    entry = next(word for word in words if word.startswith("--entrypoint=")).partition("=")[2]
    assert words[words.index("-v") + 1] == f"./{image.mounted.name}:/scistream"
    return image.run(entry, *words[words.index("castroflaviojr/scistream:1.2.1") + 1 :])


@pytest.mark.parametrize(
    ("kind", "where"),
    [("Haproxy", ()), ("Nginx", ()), ("Stunnel", (f"--listener-ip={ADDRESS}", f"--lan={ADDRESS}/32"))],
)
def test_the_line_of_section_8_8_and_a_stream(image: Image, kind: str, where: tuple[str, ...]) -> None:
    """Both gateways, the client and the applications on one host: a tunnel, its other end, and what goes through.

    A gateway that was given an address needs to be told that its own one may be a target.
    """
    with s2cs(image, 1, f"--type={kind}", *where) as pid:
        made = section(image)
        assert made.returncode == 0, made.stderr
        uid = made.stdout.splitlines()[1].split()[0]
        listener = re.search(r"Listeners: \['(.*)'\]", made.stdout)
        assert listener is not None
        assert listener[1].startswith(f"{ADDRESS}:51")
        other = ("--listener-ip=127.0.0.2", "--port=5001", "--port-range=5400-5409")
        with s2cs(image, 2, f"--type={kind}", *other):
            asked = ["outbound-request", "--s2cs", "127.0.0.2:5001", "--server_cert=/scistream/server.crt"]
            opened = image.run("s2uc", *asked, uid, listener[1])
            assert opened.returncode == 0, opened.stderr
            local = re.search(r"Listeners: \['(.*)'\]", opened.stdout)
            assert local is not None
            sent = os.urandom(3_000_000)
            assert through(image.namespace, local[1], sent) == sent
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        assert children
        assert Path(f"/proc/{children[0]}").stat().st_uid == UID
    assert not Path(f"/proc/{children[0]}").exists()


_STREAM = """
import socket, sys, threading
host, port = sys.argv[1].rsplit(":", 1)
server = socket.create_server(("192.168.150.1", 5300))
got = bytearray()
def serve():
    connection = server.accept()[0]
    while data := connection.recv(65536):
        got.extend(data)
    connection.close()
thread = threading.Thread(target=serve)
thread.start()
client = socket.create_connection((host, int(port)))
client.sendall(sys.stdin.buffer.read())
client.shutdown(socket.SHUT_WR)
thread.join()
sys.stdout.buffer.write(got)
"""


def through(namespace: str, listener: str, sent: bytes) -> bytes:
    """What an application at 192.168.150.1:5300 gets of what a client sends to the listener."""
    words = ["ip", "netns", "exec", namespace, sys.executable, "-c", _STREAM, listener]
    return subprocess.run(words, input=sent, stdout=subprocess.PIPE, check=True, timeout=180).stdout


def test_as_process_1_it_serves_ends_and_tells_its_health(image: Image, tmp_path: Path) -> None:
    """As podman starts it: s2cs itself is process 1 of a PID namespace, as the image's user, in its directory."""
    root = image.store.run("mount", image.containers[0])
    inside = f"exec setpriv --reuid={UID} --regid={UID} --clear-groups --no-new-privs"
    script = (
        f"mount --rbind /dev {root}/dev && mount -t proc proc {root}/proc"
        f" && mount --bind {image.mounted} {root}/scistream"
        f' && exec chroot {root} sh -c "cd /scistream && {inside} s2cs --listener-ip={ADDRESS} --port=5055"'
    )
    words = [
        "ip",
        "netns",
        "exec",
        image.namespace,
        "unshare",
        "--mount",
        "--pid",
        "--fork",
        "--kill-child",
        "sh",
        "-c",
    ]
    with subprocess.Popen([*words, script], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert "Server started" in process.stdout.readline()
            [first] = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            assert Path(f"/proc/{first}").stat().st_uid == UID
            enter = ["nsenter", "-t", first, "-m", "-p", "-n", "-r", "-w", "-S", str(UID), "-G", str(UID), "--"]
            check = image.config["Healthcheck"]["Test"][1:]  # type: ignore[index]
            health = subprocess.run([*enter, *check], capture_output=True, text=True)
            assert (health.returncode, health.stdout) == (0, f"{ADDRESS}:5055: SERVING\n"), health.stderr
            os.kill(int(first), signal.SIGTERM)
            assert process.wait(90) == 0
        finally:
            process.kill()
    image.store.run("umount", image.containers[0])
