"""The demo's instruments are instruments: each finds what it is there to find. And the demo as a whole, in small."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scistreamd.keys import TunnelKeys
from scistreamd.model import Role, Security, Uid
from tests.demo import proof, stream, tap
from tests.demo.__main__ import _play
from tests.demo.addresses import shown
from tests.demo.stage import ROOT, Stage, StepFailed
from tests.demo.tls import Records, server_hello

SECONDS = 240
MARKER = b"plaintext-0123"


@pytest.fixture
def stage() -> Iterator[Stage]:
    with Stage() as made:
        yield made
    assert not made.directory.exists()


def feed(direction: tap.Direction, pieces: list[bytes]) -> None:
    for piece in pieces:
        room = direction.room()
        room[: len(piece)] = piece
        assert direction.take(len(piece)) == piece


@given(st.lists(st.one_of(st.just(MARKER), st.binary(max_size=20), st.sampled_from([MARKER[:5], MARKER[5:]]))))
def test_the_tap_finds_every_marker_wherever_the_pieces_are_cut(pieces: list[bytes]) -> None:
    direction = tap.Direction(MARKER)
    feed(direction, [piece for piece in pieces if piece])
    assert direction.markers == b"".join(pieces).count(MARKER)
    assert direction.bytes == len(b"".join(pieces))


def handshake(directory: Path, version: ssl.TLSVersion) -> tuple[bytes, bytes]:
    """What client and server of a real handshake write."""
    for name, content in TunnelKeys().files(Uid.random(), Role.PROD, Security.TLS).items():
        (directory / name).write_bytes(content)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / "leaf.pem")
    context.maximum_version = version
    asking = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    asking.check_hostname = False
    asking.verify_mode = ssl.CERT_NONE
    a, b, c, d = (ssl.MemoryBIO() for _ in range(4))
    sides = [asking.wrap_bio(a, b), context.wrap_bio(c, d, server_side=True)]
    client = server = b""
    for _ in range(3):
        for side in sides:
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
            finally:
                sent, answered = b.read(), d.read()
                c.write(sent)
                a.write(answered)
                client, server = client + sent, server + answered
    return client, server


def test_version_and_cipher_are_read_off_a_real_handshake(tmp_path: Path) -> None:
    client, server = handshake(tmp_path, ssl.TLSVersion.TLSv1_3)
    assert server_hello(server) in {("TLS 1.3", f"TLS_{name}") for name in ("AES_256_GCM_SHA384", "AES_128_GCM_SHA256")}
    assert server_hello(client) is None
    _, older = handshake(tmp_path, ssl.TLSVersion.TLSv1_2)
    found = server_hello(older)
    assert found is not None
    assert found[0] == "TLS 1.2"


@pytest.mark.parametrize("size", [1, 3, 5, 1000])
def test_records_are_walked_in_pieces_of_any_size(tmp_path: Path, size: int) -> None:
    _, server = handshake(tmp_path, ssl.TLSVersion.TLSv1_3)
    records = Records()
    for start in range(0, len(server), size):
        records.feed(memoryview(server[start : start + size]))
    assert records.whole
    assert records.count["handshake"] == 1
    assert records.count["application_data"] >= 1
    records.feed(memoryview(b"and then plaintext"))
    assert not records.whole


def test_a_file_passes_the_tap_whole_and_is_seen(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    marker = MARKER.decode()
    module = [sys.executable, "-m"]
    receiver = stage.start("receiver", *module, "tests.demo.stream", "receive", "127.0.0.1:0", marker)
    target = receiver.expect(r"listening on (\S+)$")[1]
    wiretap = stage.start("tap", *module, "tests.demo.tap", "127.0.0.1:0", target, marker)
    assert stream.send(wiretap.expect(r"listening on (\S+)$")[1], 3, MARKER) == 0
    assert receiver.wait() == 0
    assert receiver.expect("^received +(.*)$")[1] in capsys.readouterr().out
    assert wiretap.process.stdin is not None
    wiretap.process.stdin.close()
    assert wiretap.wait() == 0
    [report] = json.loads(wiretap.output().splitlines()[-1])
    assert report["protocol"] == ""
    assert report["towards"]["bytes"] == 3 * stream.BLOCK
    assert report["towards"]["markers"] > 20000
    assert report["towards"]["compresses_to"] < 0.6
    assert not report["towards"]["all_tls"]
    assert report["back"]["markers"] == 1


def test_the_sender_notices_a_receiver_that_got_something_else(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def wrong() -> None:
            peer, _ = listener.accept()
            with peer:
                while peer.recv(1 << 20):
                    pass
                peer.sendall(MARKER + b": 1048576 bytes, SHA-256 " + b"0" * 64 + b"\n")

        thread = threading.Thread(target=wrong)
        thread.start()
        assert stream.send(shown(listener.getsockname()), 1, MARKER) == 1
        thread.join()
    assert "confirmed 1048576 bytes, SHA-256 000" in capsys.readouterr().out


def test_a_port_in_use_is_not_free_and_one_in_time_wait_is() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        name = shown(listener.getsockname())
        assert "in use" in proof.why_not_free(name)
        client = socket.create_connection(listener.getsockname())
        accepted, _ = listener.accept()
        accepted.close()
        client.close()
    assert proof.why_not_free(name) == ""


def test_processes_below_one_are_found_and_their_end_too(stage: Stage) -> None:
    # The grandchild says that it runs only once it is what it will be.
    inner = "import time; print('started', flush=True); time.sleep(100)"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}])"
    running = stage.start("parent", sys.executable, "-c", outer)
    running.expect("started")
    [sleeper] = proof.descendants(running.process.pid)
    assert str(sleeper).startswith("python")
    assert sleeper.runs()
    os.kill(sleeper.pid, signal.SIGKILL)
    assert running.wait() >= 0
    assert not sleeper.runs()


def test_a_secret_that_leaked_is_found(stage: Stage) -> None:
    secret = Uid.random().reveal()
    assert proof.whereabouts(secret, stage.directory) == []
    running = stage.start("careless", "sh", "-c", f"echo {secret.replace('-', '')}; exec cat")
    running.expect(".")
    (stage.directory / f"{secret}.conf").touch()
    found = proof.whereabouts(secret, stage.directory)
    assert any(each == "the log careless.log" for each in found)
    assert any(each.endswith(f"{secret}.conf") for each in found)


def test_a_step_that_fails_is_named_and_ends_the_play(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    steps = [
        ("one", lambda: "good"),
        ("two", lambda: stage.run("sh", "-c", "exit 3")),
        ("three", lambda: pytest.fail("not reached")),
    ]
    assert _play(stage, steps) == 1
    assert "FAILED in step 2 (two): sh ended with exit status 3, expected was 0" in capsys.readouterr().err
    with pytest.raises(StepFailed, match="no-such-program"):
        stage.run("no-such-program")
    with pytest.raises(StepFailed, match="the quitter ended"):
        stage.start("quitter", "true").expect("never said")


def demo(port_range: str) -> subprocess.Popen[str]:
    line = [sys.executable, "-m", "tests.demo", "--mebibytes=4", "--seconds=1", f"--port-range={port_range}"]
    return subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.timeout(300)
def test_the_demo_in_small() -> None:
    with demo("28200-28229") as process:
        out, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, out
    assert "all 10 steps held" in out
    assert "\033" not in out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("step", ["2.", "4."])
def test_an_interrupted_demo_leaves_nothing(number: signal.Signals, step: str) -> None:
    with demo("28230-28259") as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(step):
                break
        time.sleep(0.3)  # into the middle of the step
        while not (started := proof.descendants(process.pid)):
            time.sleep(0.05)
        directories = {os.readlink(f"/proc/{each.pid}/cwd") for each in started if each.program == "s2cs"}
        process.send_signal(number)
        process.stdout.read()
        assert process.wait(SECONDS) == 128 + number
    assert started
    assert not [str(each) for each in started if each.runs()]
    assert not [each for each in directories if Path(each).exists()]
