"""Commands in a directory that their user may not look into, as `sudo -u alice s2uc` in root's home."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from scistreamd import files
from scistreamd.cli.trust import Trust
from scistreamd.cli.uids import kept_in
from scistreamd.errors import Code, ScistreamError
from scistreamd.model import Uid

_NOBODY = 65534


@pytest.fixture
def closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current directory, which nobody but root can search; and we are not root."""
    made = tmp_path / "closed"
    made.mkdir()
    (made / "server.crt").touch()
    (made / "link").symlink_to("nowhere")
    monkeypatch.chdir(made)
    made.chmod(0)
    with contextlib.ExitStack() as undo:
        undo.callback(made.chmod, 0o700)
        if os.geteuid() == 0:
            os.seteuid(_NOBODY)
            undo.callback(os.seteuid, 0)
        yield made


def test_nothing_is_there(closed: Path) -> None:
    with pytest.raises(PermissionError):
        os.stat("server.crt")
    assert not files.there(Path("server.crt"))
    assert not files.there(Path("link"), links=True)
    assert Trust.of_option(None).path is None


def test_what_is_named_is_told(closed: Path) -> None:
    with pytest.raises(ScistreamError, match=r"server\.crt: Permission denied"):
        Trust.of_option("server.crt")
    with pytest.raises(ScistreamError) as caught, kept_in("uid", Uid.random(), at_once=True):
        pass
    assert caught.value.code is Code.FAILED_PRECONDITION
    assert caught.value.message.endswith("closed/uid: Permission denied")


def test_where_we_may_look(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("nowhere")
    assert files.there(tmp_path)
    assert not files.there(tmp_path / "link")
    assert files.there(tmp_path / "link", links=True)
