"""ruff and mypy --strict are test cases."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TOOLS = {
    "ruff": ["ruff", "check", "."],
    "format": ["ruff", "format", "--check", "."],
    "mypy": ["mypy"],
}


@pytest.mark.timeout(600)  # the first run of mypy in a tree
@pytest.mark.parametrize("tool", TOOLS)
def test_clean(tool: str) -> None:
    program, *arguments = TOOLS[tool]
    done = subprocess.run([sys.executable, "-m", program, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
