"""Tests in a network namespace of their own, which is gone with them."""

from __future__ import annotations

import asyncio
import ctypes
import functools
import os
import subprocess
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

_CLONE_NEWNET = 0x40000000  # unshare(2)

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")


def run(*words: str) -> str:
    """Run a command in the namespace that the thread is in; its output, or an error with what it said."""
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stderr or done.stdout}"
    return done.stdout


def _unshare() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare")
    run("ip", "link", "set", "lo", "up")


def within(work: Callable[..., Any], *arguments: Any) -> Any:
    """Call ``work`` in a thread in a new network namespace, with all that it starts; what it returns or raises."""
    outcome: dict[str, Any] = {}

    def thread() -> None:
        try:
            _unshare()
            outcome["result"] = work(*arguments)
        except BaseException as problem:
            outcome["problem"] = problem

    runner = threading.Thread(target=thread)
    runner.start()
    runner.join()
    if "problem" in outcome:
        raise outcome["problem"]
    return outcome["result"]


def in_netns(test: Callable[..., Coroutine[Any, Any, None]]) -> Any:
    """An asynchronous test whose event loop, with all that it starts, is in a new network namespace with loopback."""

    @functools.wraps(test)
    def wrapped(*arguments: Any, **named: Any) -> None:
        within(lambda: asyncio.run(test(*arguments, **named)))

    return needs_root(wrapped)
