"""`scistreamd policy test` as an operator types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scistreamd.service_main import main

POLICY = """
[[policy]]
name = "beamline 7"
user = "alice@example.org"
targets = ["10.1.0.0/16:5000-5100"]
max_rate = 100

[[policy]]
name = "no bob"
user = "bob@example.org"
effect = "deny"

[[policy]]
group = "operators"
role = "CONS"
"""


@pytest.fixture
def config(tmp_path: Path) -> str:
    file = tmp_path / "scistreamd.toml"
    file.write_text(POLICY)
    return f"--config={file}"


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (
            ["--as=user:alice@example.org", "--target=10.1.1.1:5000"],
            0,
            "allowed by rule beamline 7, with max_rate 100\n",
        ),
        (
            ["--as", "user:alice@example.org", "--target", "10.2.1.1:5000"],
            7,
            "refused: policy beamline 7 does not reach",
        ),
        (["--as=user:alice@example.org", "--rate=101"], 7, "refused by rule beamline 7: "),
        (["--as=user:bob@example.org"], 7, "refused by rule no bob: policy no bob forbids bob@example.org"),
        (["--as=user:carol@example.org", "--group=operators", "--role=outbound"], 0, "allowed by rule 3\n"),
        (["--as=user:carol@example.org"], 7, "refused: no policy rule allows carol@example.org to create an inbound"),
        ([], 7, "refused: no policy rule allows those who have proved nothing to create an inbound tunnel"),
    ],
)
def test_which_rule_decides(
    capsys: pytest.CaptureFixture[str], config: str, words: list[str], status: int, said: str
) -> None:
    assert main(["policy", "test", config, *words]) == status
    assert capsys.readouterr().out.startswith(said)


def test_as_json(capsys: pytest.CaptureFixture[str], config: str) -> None:
    words = ["policy", "test", config, "--json", "--as=user:alice@example.org", "--target=10.1.1.1:5000"]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out) == {
        "allowed": True,
        "rule": "beamline 7",
        "limits": {"max_rate": 100},
        "listeners": "",
        "addresses": {"10.1.1.1:5000": ["10.1.1.1"]},
    }


@pytest.mark.parametrize(
    ("word", "named"),
    [("--as=alice", "KIND:NAME"), ("--as=x:y", "KIND:NAME"), ("--role=x", "PROD"), ("--frm=x", "--from")],
)
def test_wrong_usage(capsys: pytest.CaptureFixture[str], word: str, named: str) -> None:
    assert main(["policy", "test", word]) == 2
    assert named in capsys.readouterr().err


def test_a_broken_configuration_is_told(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text("[[policy]]\ntargets = ['host.example']\n")
    assert main(["policy", "test", f"--config={file}"]) == 3
    assert "policy[1].targets" in capsys.readouterr().err
