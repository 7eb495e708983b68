"""Every past finding and every seed of the fuzzers, and random input of a bounded number, through every target."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scistreamd.configread import read
from scistreamd.errors import ScistreamError
from tests.fuzz.__main__ import CORPUS, NAMES
from tests.fuzz.targets import TARGETS, ControlPort


def inputs(name: str) -> list[bytes]:
    """The corpus of one target."""
    return [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]


def test_each_target_has_a_corpus() -> None:
    assert {*TARGETS, "control"} == set(NAMES) == {path.name for path in CORPUS.iterdir()}
    assert all(inputs(name) for name in NAMES)


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_the_corpus_holds(name: str) -> None:
    for data in inputs(name):
        TARGETS[name](data)


@pytest.mark.parametrize("name", sorted(TARGETS))
@settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_what_is_near_the_corpus_holds(name: str, data: st.DataObject) -> None:
    seed = data.draw(st.sampled_from(inputs(name)))
    at = data.draw(st.integers(0, len(seed)))
    TARGETS[name](seed[:at] + data.draw(st.binary(max_size=16)) + seed[at + data.draw(st.integers(0, 8)) :])


@pytest.fixture
def port() -> Iterator[ControlPort]:
    made = ControlPort()
    yield made
    made.close()


def test_the_control_port_serves_on_after_all_of_its_corpus(port: ControlPort) -> None:
    for data in inputs("control"):
        port(data)


def test_a_configuration_that_is_too_deep_is_refused_as_any_other(tmp_path: Path) -> None:
    path = tmp_path / "scistreamd.toml"
    path.write_text("a = " + "[" * 100_000)
    with pytest.raises(ScistreamError) as refused:
        read(path, required=True)
    assert str(path) in refused.value.message
