"""Two network namespaces joined by veth pairs: a host with a firewall, and its peers. Made and gone in milliseconds.

A namespace is a thread that has left its network namespace (unshare(2)): what runs in it, sockets that it makes
and programs that it starts are there. Nothing has a name, so nothing is left when the threads are gone.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import selectors
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import TypeVar

_T = TypeVar("_T")
_NEWNET = 0x40000000
_QUIET = 0.04  # seconds without an answer that mean: dropped; veth answers within microseconds
_PATIENCE = 3.0
PORT = 5100
HOST4, HOST6 = "10.1.0.1", "fd01::1"
HOST4_B, HOST6_B = "10.2.0.1", "fd02::1"
# Peers by the device that they come in by.
PEERS = {
    "eth0": (
        "10.1.0.2",
        "10.1.0.77",
        "10.1.9.3",
        "172.16.4.5",
        "192.0.2.7",
        "198.51.100.200",
        "fd01::2",
        "fd01:0:9::7",
    ),
    "eth1": ("10.2.0.2", "10.2.0.200", "203.0.113.9", "fd02::2", "2001:db8::9"),
}
LISTENERS = {"eth0": (HOST4, HOST6), "eth1": (HOST4_B, HOST6_B)}
_MAC = {"eth0": "02:00:00:00:00:01", "eth1": "02:00:00:00:00:02"}
_PEER_MAC = {"eth0": "02:00:00:00:01:01", "eth1": "02:00:00:00:01:02"}


class Namespace:
    """A network namespace of its own, with a thread in it."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, initializer=_leave)
        self.thread_id = 0
        self.thread_id = self.run(threading.get_native_id)

    def run(self, what: Callable[..., _T], *arguments: object) -> _T:
        """Call it in there; from there too."""
        if threading.get_native_id() == self.thread_id:
            return what(*arguments)
        return self._thread.submit(what, *arguments).result()

    def call(self, *argv: str, text: str = "") -> str:
        """Run a program in there; what it printed. AssertionError with its output where it fails."""
        done = self.run(lambda: subprocess.run(argv, input=text, capture_output=True, text=True))
        assert done.returncode == 0, f"{argv}\n{text}\n{done.stderr}"
        return done.stdout

    def close(self) -> None:
        """It is gone when its last socket is."""
        self._thread.shutdown()


def _leave() -> None:
    if ctypes.CDLL(None, use_errno=True).unshare(_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare")


@dataclass
class Knock:
    """One connection that a peer opens: from where, by which device, and what came of it."""

    device: str
    source: str
    port: int
    target: str
    target_port: int = PORT
    came: str = ""
    line: socket.socket | None = field(default=None, repr=False)


class Arena:
    """``host`` listens on `PORT` of every address; ``peer`` has the addresses of `PEERS`."""

    def __init__(self) -> None:
        self.host, self.peer = Namespace(), Namespace()
        self._next_port = 33000
        self._listener: socket.socket | None = None
        try:
            self._wire()
            self._listener = self.host.run(_listen)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Arena:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End both namespaces."""
        if self._listener is not None:
            self._listener.close()
        self.host.close()
        self.peer.close()

    def _wire(self) -> None:
        for side in (self.host, self.peer):
            side.call("ip", "link", "set", "lo", "up")
            for name, value in _SYSCTLS.items():
                side.run(_write, name, value)
        for device in PEERS:
            peer_side = ["peer", "name", device, "netns", str(self.peer.thread_id), "address", _PEER_MAC[device]]
            self.host.call("ip", "link", "add", device, "address", _MAC[device], "type", "veth", *peer_side)
        self.host.call("ip", "-batch", "-", text="\n".join(_host_lines()))
        self.peer.call("ip", "-batch", "-", text="\n".join(_peer_lines()))

    def rules(self, text: str) -> None:
        """Load this ruleset in place of the one before."""
        self.host.call("nft", "-f", "-", text=f"flush ruleset\n{text}")

    def rules_that_nft_takes(self, text: str) -> str:
        """As `rules`, without the lines that nft or the kernel refuse; what is left."""
        lines = ["flush ruleset", *text.splitlines()]
        while refused := self._refused("\n".join(lines)):
            lines = [line for number, line in enumerate(lines, 1) if number not in refused]
        return "\n".join(lines)

    def _refused(self, text: str) -> set[int]:
        words = ["nft", "-f", "-"]
        done = self.host.run(lambda: subprocess.run(words, input=text, capture_output=True, text=True))
        named = {int(number) for number in re.findall(r"^/dev/stdin:(\d+):", done.stderr, re.MULTILINE)}
        assert named or not done.returncode, f"{text}\n{done.stderr}"
        return named

    def knocks(self, port: int = PORT) -> list[Knock]:
        """A connection from each peer to the address of the device that it comes in by."""
        made = []
        for device, peers in PEERS.items():
            for source in peers:
                target = LISTENERS[device][":" in source]
                self._next_port = self._next_port + 1 if self._next_port < 60000 else 33000
                made.append(Knock(device, source, self._next_port, target, port))
        return made

    def knock(self, knocks: Sequence[Knock], expected: Callable[[Knock], str]) -> None:
        """Open them all and note what came: accept, reject or drop.

        A silence that was not ``expected`` is given the time that a machine under load may take.
        """
        self.peer.run(_open, knocks)
        assert self._listener is not None
        try:
            _watch(self._listener, knocks, _QUIET, lambda _: True)
            _watch(self._listener, knocks, _PATIENCE, lambda each: expected(each) in ("accept", "reject"))
        finally:
            for each in knocks:
                if each.line is not None:
                    each.line.close()
                each.came = each.came or "drop"


_SYSCTLS = {
    "net/ipv4/icmp_ratelimit": "0",
    "net/ipv6/icmp/ratelimit": "0",
    "net/ipv4/conf/all/rp_filter": "0",
    "net/ipv4/conf/default/rp_filter": "0",
    "net/ipv6/conf/default/accept_dad": "0",
    "net/ipv4/tcp_syn_retries": "6",
    "net/ipv4/icmp_msgs_per_sec": "1000000",
    "net/ipv4/icmp_msgs_burst": "1000000",
}


def _write(name: str, value: str) -> None:
    try:
        with open(f"/proc/sys/{name}", "w") as file:
            file.write(value)
    except FileNotFoundError:
        pass  # this kernel has it for all namespaces together, or not at all


def _host_lines() -> Iterable[str]:
    for device, addresses in LISTENERS.items():
        yield f"link set {device} up"
        for address in addresses:
            yield f"address add {address}/{64 if ':' in address else 24} dev {device} nodad"
        for peer in PEERS[device]:
            yield f"route replace {peer} dev {device}"
            yield f"neighbour replace {peer} lladdr {_PEER_MAC[device]} dev {device}"


def _peer_lines() -> Iterable[str]:
    for device, peers in PEERS.items():
        yield f"link set {device} up"
        for peer in peers:
            yield f"address add {peer}/{128 if ':' in peer else 32} dev {device} nodad"
        for address in LISTENERS[device]:
            yield f"route replace {address} dev {device}"
            yield f"neighbour replace {address} lladdr {_MAC[device]} dev {device}"


def _listen() -> socket.socket:
    listener = socket.create_server(("::", PORT), family=socket.AF_INET6, backlog=4096, dualstack_ipv6=True)
    listener.setblocking(False)
    return listener


def _open(knocks: Iterable[Knock]) -> None:
    for each in knocks:
        line = socket.socket(socket.AF_INET6 if ":" in each.source else socket.AF_INET, socket.SOCK_STREAM)
        line.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        line.setblocking(False)
        line.bind((each.source, each.port))
        each.line = line
        code = line.connect_ex((each.target, each.target_port))
        if code != errno.EINPROGRESS:
            each.came = "accept" if code == 0 else "reject"


def _watch(listener: socket.socket, knocks: Iterable[Knock], seconds: float, wanted: Callable[[Knock], bool]) -> None:
    """Wait until all that are wanted are settled, or the time is over: accepted is who gets a byte from the host."""
    waiting = {each.line: each for each in knocks if not each.came and wanted(each) and each.line is not None}
    deadline = time.monotonic() + seconds
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        for line in waiting:
            selector.register(line, selectors.EVENT_READ)
        while waiting and time.monotonic() < deadline:
            for key, _ in selector.select(max(0, deadline - time.monotonic())):
                if key.fileobj is listener:
                    _greet(listener)
                    continue
                assert isinstance(key.fileobj, socket.socket)
                selector.unregister(key.fileobj)
                waiting.pop(key.fileobj).came = _heard(key.fileobj)


def _greet(listener: socket.socket) -> None:
    line, _ = listener.accept()
    with line, contextlib.suppress(ConnectionError):
        line.send(b"!")


def _heard(line: socket.socket) -> str:
    try:
        return "accept" if line.recv(1) else "reject"
    except OSError:
        return "reject"


def is_possible() -> bool:
    """Whether this process may make namespaces."""
    return os.geteuid() == 0
