"""The machine and the programs that were measured."""

from __future__ import annotations

import datetime
import os
import platform
import shutil
import ssl
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.bench.rig import ROOT, program

_PROGRAMS = {
    "haproxy": ["haproxy", "-v"],
    "nginx": ["nginx", "-v"],
    "stunnel": ["stunnel", "-version"],
    "iperf3": ["iperf3", "--version"],
    "openssl": ["openssl", "version"],
}
_LIBRARIES = ("grpclib", "h2", "protobuf", "cryptography", "pyroute2")


def describe() -> dict[str, Any]:
    """Facts for the report; raises BenchError where a program that is measured is missing."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "processor": _processor(),
        "processors": os.cpu_count() or 1,
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": _system(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "python_ssl": ssl.OPENSSL_VERSION,
        "programs": {name: _first_line(argv) for name, argv in _PROGRAMS.items()},
        "libraries": {name: version(name) for name in _LIBRARIES},
        "scistreamd": version("scistreamd"),
        "commit": _commit(),
        "load_at_start": round(os.getloadavg()[0], 2),
    }


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    found = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    return found.get("model name", platform.machine())


def _system() -> str:
    return platform.freedesktop_os_release().get("PRETTY_NAME", platform.system())


def _first_line(argv: list[str]) -> str:
    done = subprocess.run([program(argv[0]), *argv[1:]], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    lines = [line for line in (done.stdout + done.stderr).splitlines() if any(map(str.isdigit, line))]
    return lines[0].partition(" - http")[0].partition(" (Library")[0].strip() if lines else "unknown"


def _commit() -> str:
    """The commit that was measured, with a plus sign where product code differs from it."""
    git = ["git", "-C", str(ROOT)]
    if not shutil.which("git") or not (ROOT / ".git").exists():
        return "not from git"
    head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True)
    changed = subprocess.run([*git, "status", "--porcelain", "--", "scistreamd"], capture_output=True, text=True)
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")
