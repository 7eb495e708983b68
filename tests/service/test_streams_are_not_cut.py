"""Idle and half-closed streams of every pair of data servers live on: long_streams.py, beside the other tests."""

from __future__ import annotations

import subprocess

import pytest

from scistreamd.model import Security
from tests.service.dataplane_kit import pairs


@pytest.mark.meanwhile("tests.service.long_streams")
@pytest.mark.timeout(300)
def test_idle_and_half_closed_streams_live(meanwhile: dict[str, subprocess.Popen[str]]) -> None:
    program = meanwhile["tests.service.long_streams"]
    said, _ = program.communicate()
    assert program.returncode == 0, said
    assert said == f"{4 * len(list(pairs(*Security)))} streams wait\n"
