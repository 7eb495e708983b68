"""Cached trees: complete or absent, also after a builder was killed, and pruned only when nobody uses them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.system.test_lab_ends import descendants
from tests.system.trees import Trees, digest

ROOT = Path(__file__).parent.parent.parent
_BUILDER = """
import sys, time
from pathlib import Path
from tests.system.trees import Trees
def build(directory):
    (directory / "tree").mkdir()
    (directory / "tree" / "half").touch()
    print("half built", flush=True)
    time.sleep(60)
Trees(Path(sys.argv[1]), lambda text: None).tree("kind", "key", "", build)
"""
_STARTER = "import sys; from tests.system.lab import Lab; Lab.start('killed', say=lambda text: print(text, flush=True))"


def whole(directory: Path) -> None:
    (directory / "tree").mkdir()
    (directory / "tree" / "whole").touch()


def never(directory: Path) -> None:
    raise AssertionError("built again")


def made(directory: Path, key: str = "key") -> Path:
    trees = Trees(directory, lambda text: None)
    try:
        return trees.tree("kind", key, "", whole)
    finally:
        trees.close()


def test_a_tree_is_built_once(tmp_path: Path) -> None:
    said: list[str] = []
    trees = Trees(tmp_path, said.append)
    first = trees.tree("kind", "key", "building it", whole)
    assert trees.tree("kind", "key", "building it", never) == first
    assert (first / "whole").exists()
    assert said == ["building it"]
    trees.close()


def test_a_killed_builder_leaves_no_half_tree(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", _BUILDER, tmp_path], cwd=ROOT, stdout=subprocess.PIPE) as builder:
        assert builder.stdout is not None
        assert builder.stdout.readline() == b"half built\n"
        builder.kill()
    assert not (tmp_path / "kind-key").exists()
    assert (tmp_path / "kind-key.half").exists()
    assert sorted(path.name for path in made(tmp_path).iterdir()) == ["whole"]
    assert not list(tmp_path.glob("*.half"))


def test_a_failed_builder_leaves_no_tree(tmp_path: Path) -> None:
    trees = Trees(tmp_path, lambda text: None)
    with pytest.raises(AssertionError):
        trees.tree("kind", "key", "", never)
    assert not (tmp_path / "kind-key").exists()
    trees.close()
    made(tmp_path)


def lying(directory: Path, name: str, days: float) -> Path:
    """A tree that nobody has asked for in these days."""
    tree = directory / name
    then = time.time() - days * 24 * 3600
    (tree / "tree").mkdir(parents=True)
    tree.with_suffix(".used").touch()
    os.utime(tree.with_suffix(".used"), (then, then))
    return tree


def test_old_trees_go_when_nobody_uses_them(tmp_path: Path) -> None:
    """Of every kind, also of one that is no longer made; the newest stay, and those of today up to a number."""
    old = [lying(tmp_path, f"old-{days}", days) for days in range(2, 7)]
    today = [lying(tmp_path, f"today-{number}", number / 100) for number in range(22)]
    used = Trees(tmp_path, lambda text: None)
    in_use = used.tree("today", "inuse", "", whole)
    os.utime(in_use.with_suffix(".used"), (0, 0))
    newest = made(tmp_path)
    assert [tree.exists() for tree in old] == [True] * 3 + [False] * 2
    assert [tree.exists() for tree in today] == [True] * 20 + [False] * 2
    assert in_use.exists()
    assert newest.exists()
    assert {mark.stem for mark in tmp_path.glob("*.used")} == {
        path.name for path in tmp_path.iterdir() if path.is_dir()
    }
    assert not list(tmp_path.glob("*.half"))
    used.close()


def test_names_tell_contents_apart() -> None:
    assert digest("ab", "c") != digest("a", "bc")
    assert digest("a") == digest(b"a")


def test_the_build_of_the_base_tree_ends_with_the_one_who_asked_for_it(tmp_path: Path) -> None:
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    words = [sys.executable, "-c", _STARTER]
    with subprocess.Popen(words, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout is not None
        assert "base tree" in starter.stdout.readline()
        halves = tmp_path / "scistreamd-lab"
        deadline = time.monotonic() + 100
        while not list(halves.glob("base-*.half/tree/var")):
            assert time.monotonic() < deadline, "mmdebstrap does not begin"
            time.sleep(0.05)
        processes = list(descendants(starter.pid))
        starter.send_signal(signal.SIGKILL)
    unshare = processes[0]
    assert len(processes) > 3
    deadline = time.monotonic() + 60
    while [pid for pid in processes if pid != unshare and Path(f"/proc/{pid}").exists()]:
        assert time.monotonic() < deadline, "the build goes on"
        time.sleep(0.05)
    assert os.waitpid(unshare, 0)[0] == unshare  # ours since its parent was killed
    assert not (halves / "labs" / "killed").exists()
    assert [path.suffix for path in halves.glob("base-*")] == [".half"]
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()
