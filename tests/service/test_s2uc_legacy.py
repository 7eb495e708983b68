"""s2uc drives a control server in the manners of SciStream 1.2 (grpcio, its errors, its races)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from scistreamd.cli import s2ctl
from tests.service.s2uc_support import Legacy, legacy, run

UID = "0e9c1b0e-70a9-4c1f-9e56-0f9c9a4e6f11"


@pytest.fixture(name="home")
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with the gateway's certificate, as the tutorial leaves it."""
    monkeypatch.chdir(tmp_path)
    assert s2ctl.main(["cert", "create", "--ip", "127.0.0.1"]) == 0
    return tmp_path


def _files(home: Path) -> tuple[bytes, bytes]:
    return (home / "server.key").read_bytes(), (home / "server.crt").read_bytes()


@pytest.mark.parametrize("name", ["inbound_request", "inbound-request"])
def test_inbound_as_the_tutorial_types_it(home: Path, name: str) -> None:
    with legacy(Legacy(["192.168.10.11:5100"], slow=0.3), *_files(home)) as server:
        s2cs = f"127.0.0.1:{server.port}"
        words = f"{name} --s2cs {s2cs} --remote_ip 192.168.10.10 --receiver_ports 5001 --mock True"
        result = run(*words.split(), cwd=home)
    assert result.lines == [
        "uid; s2cs; access_token; role",
        f"4f8583bc-a4d3-11ee-9fd6-034d1fcbd7c3 {s2cs} INVALID_TOKEN PROD",
        "sending client request message",
        "waiting for hello message",
        "sending for hello message",
        "Hello message sent successfully",
        "Listeners: ['192.168.10.11:5100']",
    ]
    assert result.status == 0
    assert result.err == ("s2uc: note: this UID is published in the SciStream tutorial: everyone can join the tunnel\n")
    # A hello that comes first is answered with an error, and may even be noted first.
    req = next(call for call in server.calls if call.name == "req")
    update = server.calls[-1]
    assert req.fields == {1: ["4f8583bc-a4d3-11ee-9fd6-034d1fcbd7c3"], 2: ["PROD"], 3: [1], 4: [10000]}
    assert req.metadata["authorization"] == "INVALID_TOKEN"
    assert not [key for key in req.metadata if key.startswith("scistream-")]
    assert update.fields == {1: req.fields[1], 2: ["192.168.10.10:5001"], 3: ["PROD"]}


def test_outbound_as_the_tutorial_types_it(home: Path) -> None:
    with legacy(Legacy(["192.168.30.10:5100"]), *_files(home)) as server:
        s2cs = f"127.0.0.1:{server.port}"
        words = f"outbound_request --s2cs {s2cs} --remote_ip 192.168.20.10 --receiver_ports 5100"
        result = run(*words.split(), UID, "192.168.10.11:5100", cwd=home)
    assert result.lines[:2] == ["uid; s2cs; access_token; role", f"{UID} {s2cs} INVALID_TOKEN CONS"]
    assert result.lines[-1] == "Listeners: ['192.168.30.10:5100']"
    assert (result.status, result.err) == (0, "")
    hello = next(call for call in server.calls if call.name == "hello")
    assert hello.fields == {1: [UID], 2: ["192.168.20.10:5100"], 3: ["PROD"]}
    assert server.calls[-1].fields == {1: [UID], 2: ["192.168.10.11:5100"], 3: ["CONS"]}


def test_a_wildcard_listener_is_explained(home: Path) -> None:
    with legacy(Legacy(["0.0.0.0:5100", "[::]:5101"]), *_files(home)) as server:
        result = run("inbound-request", f"--s2cs=127.0.0.1:{server.port}", "--receiver-ports=1,2", cwd=home)
    assert result.lines[-1] == "Listeners: ['0.0.0.0:5100', '[::]:5101']"
    assert result.err.splitlines() == [
        "s2uc: note: 0.0.0.0:5100 names no address: connect to 127.0.0.1:5100",
        "s2uc: note: [::]:5101 names no address: connect to 127.0.0.1:5101",
    ]


def test_a_missed_port_is_told_and_with_exact_port_released(home: Path) -> None:
    with legacy(Legacy(["192.168.30.10:5107"]), *_files(home)) as server:
        words = ["outbound-request", UID, "192.168.10.11:5100", f"--s2cs=127.0.0.1:{server.port}"]
        told = run(*words, "--receiver-ports", "5100", cwd=home)
        assert run("release", UID, f"--s2cs=127.0.0.1:{server.port}", cwd=home).out == "Release completed\n"
        failed = run(*words, "--receiver-ports", "5100", "--exact_port", cwd=home)
    assert told.status == 0
    assert told.err == ("s2uc: note: local port 5100 was not to be had; connect to the listeners that are printed\n")
    assert failed.status == 8
    assert "Listeners" not in failed.out
    assert [call.name for call in server.calls[-1:]] == ["release"]
    assert not [call for call in server.calls[-3:] if call.name == "update"]


def test_too_few_listeners_are_told_and_none_is_a_failure(home: Path) -> None:
    with legacy(Legacy(["192.168.30.10:5100"]), *_files(home)) as server:
        few = run("inbound-request", f"--s2cs=127.0.0.1:{server.port}", "--receiver-ports=1,2", cwd=home)
        server.listeners = []
        none = run("inbound-request", f"--s2cs=127.0.0.1:{server.port}", cwd=home)
    assert few.status == 0
    assert few.err == "s2uc: note: 2 listeners were asked for, the gateway gave 1\n"
    assert none.status == 8
    assert "Listeners" not in none.out
    assert server.calls[-1].name == "release"


def test_a_request_of_a_taken_uid_fails_and_spares_the_tunnel(home: Path) -> None:
    with legacy(Legacy(["192.168.30.10:5100"]), *_files(home)) as server:
        words = ["outbound-request", UID, "192.168.10.11:5100", f"--s2cs=127.0.0.1:{server.port}"]
        assert run(*words, cwd=home).status == 0
        again = run(*words, cwd=home)
    assert again.status == 6
    assert "Entry already found" in again.err
    assert "release" not in [call.name for call in server.calls]


def test_a_deaf_server_is_told_and_released(home: Path) -> None:
    with legacy(Legacy(["192.168.30.10:5100"], deaf=True), *_files(home)) as server:
        words = ["inbound-request", f"--s2cs=127.0.0.1:{server.port}", "--timeout=2"]
        result = run(*words, cwd=home)
    assert result.status == 4
    assert server.calls[-1].name == "release"
    assert "released again" in result.err
    assert result.err.splitlines()[-1].startswith("hint: ")


def test_release_of_an_unknown_uid_hides_it(home: Path) -> None:
    with legacy(Legacy([]), *_files(home)) as server:
        result = run("release", UID, "--s2cs", f"127.0.0.1:{server.port}", cwd=home)
    assert (result.status, result.out) == (5, "")
    assert UID not in result.err
    assert "<uid>" in result.err


def test_a_server_without_our_certificate_is_refused(home: Path) -> None:
    files = _files(home)
    os.rename(home / "server.crt", home / "old.crt")
    assert s2ctl.main(["cert", "create", "--ip", "127.0.0.1", "--force"]) == 0
    with legacy(Legacy([]), *files) as server:
        result = run("inbound-request", f"--s2cs=127.0.0.1:{server.port}", cwd=home)
    assert (result.status, result.out) == (14, "")
    assert "is not trusted by server.crt" in result.err
    assert server.calls == []
