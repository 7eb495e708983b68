"""Log records as journald gets them."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from scistreamd import logs


def fields(datagram: bytes) -> dict[str, str]:
    """The fields of a datagram in the form with lengths (systemd.io, JOURNAL_NATIVE_PROTOCOL)."""
    found = {}
    while datagram:
        name, _, rest = datagram.partition(b"\n")
        size = int.from_bytes(rest[:8], "little")
        found[name.decode()] = rest[8 : 8 + size].decode()
        assert rest[8 + size : 9 + size] == b"\n"
        datagram = rest[9 + size :]
    return found


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bound:
        bound.bind(str(tmp_path / "journal"))
        bound.setblocking(False)
        yield bound


@pytest.fixture
def handler(tmp_path: Path) -> Iterator[logs.JournalHandler]:
    made = logs.JournalHandler(str(tmp_path / "journal"), "scistreamd")
    yield made
    made.close()


def record(message: str, level: int = logging.INFO, tunnel: str = "") -> logging.LogRecord:
    made = logging.LogRecord("scistreamd.test", level, "here.py", 1, message, None, None)
    if tunnel:
        made.tunnel = tunnel
    return made


def test_a_record_has_its_priority_and_its_tunnel(journal: socket.socket, handler: logs.JournalHandler) -> None:
    handler.emit(record("ended: released", logging.WARNING, "0123456789ab"))
    assert fields(journal.recv(65536)) == {
        "MESSAGE": "[0123456789ab] ended: released",
        "PRIORITY": "4",
        "LOGGER": "scistreamd.test",
        "SYSLOG_IDENTIFIER": "scistreamd",
        "TUNNEL_ID": "0123456789ab",
    }
    audit = record("release by anonymous tunnel=0123456789ab: OK")
    audit.about = "0123456789ab"
    handler.emit(audit)
    found = fields(journal.recv(65536))
    assert (found["MESSAGE"], found["TUNNEL_ID"]) == (audit.getMessage(), "0123456789ab")
    handler.emit(record("serves"))
    assert "TUNNEL_ID" not in fields(journal.recv(65536))


def test_no_peer_can_forge_a_field(journal: socket.socket, handler: logs.JournalHandler) -> None:
    handler.emit(record("first\nPRIORITY=0\n\ud800"))
    found = fields(journal.recv(65536))
    assert found["MESSAGE"] == "first\nPRIORITY=0\n\\ud800"
    assert found["PRIORITY"] == "6"


def test_what_is_too_long_is_cut(journal: socket.socket, handler: logs.JournalHandler) -> None:
    handler.emit(record("x" * 1_000_000))
    assert len(fields(journal.recv(1 << 20))["MESSAGE"]) == 65536


def test_without_a_journal_stderr_keeps_it(handler: logs.JournalHandler, capfd: pytest.CaptureFixture[str]) -> None:
    handler._fallback.setStream(open(2, "w", closefd=False))  # noqa: SIM115  pytest has put another in its place
    handler.emit(record("said", logging.ERROR, "0123456789ab"))
    assert capfd.readouterr().err == "<3>[0123456789ab] said\n"


def test_levels() -> None:
    ours = logging.getLogger("scistreamd")
    before = ours.level
    try:
        for name, level in (("debug", 10), ("info", 20), ("warning", 30), ("error", 40)):
            logs.set_level(name)
            assert ours.level == level
    finally:
        ours.setLevel(before)
