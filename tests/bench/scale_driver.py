"""Makes, lists and releases tunnels on a gateway of the lab; run there by its own Python, prints JSON.

scale_driver.py TUNNELS AT_ONCE TYPE
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

_LISTS = 5
_RESTARTS = 3
_MANAGER = ("org.scistream.scistreamd1", "/org/scistream/scistreamd1", "org.scistream.scistreamd1.Manager")
_TARGET = "192.168.10.10:5001"


def call(*argv: str) -> str:
    """What it prints; its failure is ours."""
    return subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True).stdout


def create(kind: str) -> float:
    """Seconds that one `busctl call` took."""
    began = time.monotonic()
    call("busctl", "call", *_MANAGER, "CreateInbound", "asa{sv}", "1", _TARGET, "1", "type", "s", kind)
    return time.monotonic() - began


def timed(*argv: str) -> float:
    """Seconds that it took."""
    began = time.monotonic()
    call(*argv)
    return time.monotonic() - began


def created(tunnels: int, at_once: int, kind: str) -> tuple[float, list[float]]:
    """Seconds for all, and for each."""
    began = time.monotonic()
    with ThreadPoolExecutor(at_once) as pool:
        each = list(pool.map(create, [kind] * tunnels))
    return time.monotonic() - began, each


def daemon() -> str:
    """Its process id."""
    return call("systemctl", "show", "-P", "MainPID", "scistreamd").strip()


def counted() -> int:
    """How many tunnels are active."""
    return sum(each["state"] == "active" for each in json.loads(call("s2ctl", "list", "--json=short")))


def main(words: Sequence[str]) -> dict[str, Any]:
    """Everything once; RSS of the daemon after all that, in bytes."""
    tunnels, at_once, kind = int(words[0]), int(words[1]), words[2]
    call("s2ctl", "list")  # it runs
    seconds, each = created(tunnels, at_once, kind)
    lists = [timed("s2ctl", "list") for _ in range(_LISTS)]
    restarts = []
    for _ in range(_RESTARTS):
        restarts.append(timed("systemctl", "restart", "scistreamd"))  # READY=1 comes when it has reconciled
        assert counted() == tunnels
    status = Path(f"/proc/{daemon()}/status").read_text()
    [rss] = [line.split()[1] for line in status.splitlines() if line.startswith("VmRSS:")]
    released = timed("s2ctl", "release", "--all", "--quiet")
    assert counted() == 0
    return {
        "tunnels": tunnels,
        "at_once": at_once,
        "kind": kind,
        "create": seconds,
        "create_p50": sorted(each)[len(each) // 2],
        "lists": lists,
        "restarts": restarts,
        "rss": int(rss) * 1024,
        "release": released,
    }


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1:])))
