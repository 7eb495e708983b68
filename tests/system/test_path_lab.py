"""`s2ctl test` across the tutorial's hosts: every type as a sandboxed unit, and the faults that users meet."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.system.gateways import (
    APPLICATION,
    INBOUND_ADDRESS,
    OUTBOUND_ADDRESS,
    PRODUCER,
    TYPES,
    gateway,
    one,
)
from tests.system.host import Host
from tests.system.lab import Lab

pytestmark = pytest.mark.timeout(600)  # the first lab of a machine builds the base tree

UID_FILE = "/vagrant/uid-path"
STRANGER = "9f9aa3c0-3c44-4d9c-8f55-0e2a64a6b001"
FAILED, UNAVAILABLE, UNAUTHENTICATED = 9, 14, 16


def hops(host: Host, *words: str) -> tuple[int, list[dict[str, Any]]]:
    """Exit status and findings of `s2ctl test`."""
    done = host.run(["s2ctl", "test", "--json=short", *words], check=False)
    return done.returncode, json.loads(done.stdout or "[]")


def test_the_hop_of_every_type_and_its_faults(lab: Lab) -> None:
    near, far, producer = lab["producers2"], lab["consumers2"], lab["producer"]
    with gateway(near), gateway(far):
        script = (
            "import socket\n"
            f"l = socket.create_server(('{PRODUCER}', {APPLICATION}))\n"
            "print('listening', flush=True)\n"
            "while True:\n    l.accept()\n    print('accepted', flush=True)\n"
        )
        with producer.start(["python3", "-c", script]) as application:
            producer.wait_until(lambda: "listening" in application.output(), "listening")
            for kind in TYPES:
                ask = ["s2ctl", "inbound", "-q", "--type", kind, "--uid-file", UID_FILE, "--listen", INBOUND_ADDRESS]
                inbound = near.run([*ask, f"{PRODUCER}:{APPLICATION}"]).stdout.strip()
                [listener] = one(near, inbound)["listeners"]
                status, [before] = hops(far, listener, "--uid", f"@{UID_FILE}", "--throughput", "1")
                assert (status, before["outcome"]) == (0, "ok"), (kind, before)
                assert before["sent_bytes"] > 100_000, kind
                ask = ["s2ctl", "outbound", "-q", "--type", kind, "--listen", OUTBOUND_ADDRESS]
                outbound = far.run([*ask, f"@{UID_FILE}", listener]).stdout.strip()
                assert one(far, outbound)["warnings"] == [], kind
                for words in ([outbound], [listener]):
                    assert hops(far, *words)[0] == 0, kind
                refused = near.run(["s2ctl", "test", inbound], check=False)
                assert (refused.returncode, "from the outbound gateway" in refused.stderr) == (FAILED, True)

                wrong = hops(far, listener, "--uid", STRANGER)
                assert (wrong[0], wrong[1][0]["outcome"]) == (UNAUTHENTICATED, "wrong-uid"), kind

                near.run(["s2ctl", "release", "-q", inbound])
                status, [gone] = hops(far, outbound)
                assert (status, gone["outcome"]) == (UNAVAILABLE, "refused"), kind
                assert any("refused" in warning for warning in one(far, outbound)["warnings"]), kind
                far.run(["s2ctl", "release", "-q", outbound])
                near.run(["rm", UID_FILE])
            assert "accepted" not in application.output()

        # An outbound tunnel that cannot reach its listener is made all the same, and says so.
        typed = f"echo {STRANGER} | s2ctl outbound --listen {OUTBOUND_ADDRESS} - {INBOUND_ADDRESS}:5199"
        made = far.run(["sh", "-c", typed])
        assert "refused: nothing listens there" in made.stderr
        far.run(["s2ctl", "release", "--all", "-q"])
