"""The lab that the tests of this directory share."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator

import pytest

from tests.system.lab import Lab


# For all of them, so that it is there before the check for processes left behind looks around.
@pytest.fixture(scope="session", autouse=True)
def lab() -> Iterator[Lab]:
    """Four booted hosts. What a test changes in them it puts back."""
    if os.geteuid() != 0:
        pytest.skip("a lab of systemd hosts needs root")
    with Lab.start(f"tests-{os.getpid()}-{secrets.token_hex(2)}", say=print) as lab:
        yield lab
