"""The steps of the demo, in their order. Each raises StepFailed where its claim does not hold."""

from __future__ import annotations

import re
import secrets
import socket
import sys
from collections.abc import Callable
from typing import Any

from tests.demo import proof
from tests.demo.pair import Hosts, Pair
from tests.demo.stage import Running, Stage, StepFailed

_ATTEMPTS = 5
_PLAIN_MEBIBYTES = 64


class Demo:
    """What the steps have in common."""

    def __init__(self, stage: Stage, mebibytes: int, seconds: int, port_range: str) -> None:
        """``mebibytes`` of file, ``seconds`` of iperf3 a direction, ``port_range`` of both gateways."""
        self._stage = stage
        self._mebibytes = mebibytes
        self._seconds = seconds
        self._port_range = port_range
        self._hosts = Hosts.of_process()
        # In every line of the file; nobody else's bytes hold it.
        self._marker = f"plaintext-{secrets.token_hex(8)}"
        self._pairs: list[Pair] = []
        self._iperf: Running | None = None
        self._receiver: Running | None = None
        self._application: list[str] = []

    def steps(self) -> list[tuple[str, Callable[[], str]]]:
        """Title and work of each step; the work returns what the summary says of it."""
        return [
            ("Certificates for the control ports of two gateways", self._certificates),
            ("Two gateways on loopback addresses", self._gateways),
            ("A tunnel: inbound request, outbound request", self._tunnel),
            ("A stream through it: iperf3", self._throughput),
            (f"A file of {self._mebibytes} MiB through it, past a wiretap", self._file),
            ("What the wiretap between the gateways saw", self._tap_is_blind),
            ("A stranger without the UID", self._stranger),
            ("Release: ports, data servers and keys are gone", self._release),
            ("Does the wiretap work? The same without encryption", self._tap_sees),
            ("The end: nothing is left", self._end),
        ]

    def _certificates(self) -> str:
        for name, address in (("inbound", self._hosts.inbound), ("outbound", self._hosts.outbound)):
            self._stage.run("s2ctl", "cert", "create", "--ip", address, "--out", f"{name}.crt", "--key", f"{name}.key")
        return "one each, made by s2ctl"

    def _gateways(self) -> str:
        self._pairs.append(Pair(self._stage, self._hosts, self._port_range))
        return self._pair.controls

    @property
    def _pair(self) -> Pair:
        return self._pairs[-1]

    def _tunnel(self) -> str:
        ports = [self._iperf_server(), self._receive()]
        self._pair.open(ports, self._marker)
        return f"{', '.join(self._pair.outbound)} to {', '.join(self._pair.inbound)}"

    def _throughput(self) -> str:
        host, port = self._pair.outbound[0].split(":")
        line = ["iperf3", "--client", host, "--port", port, "--time", str(self._seconds), "--format", "g"]
        there = _gigabits(self._stage.run(*line))
        back = _gigabits(self._stage.run(*line, "--reverse"))
        if self._iperf:
            self._iperf.end()
        return f"{there} Gbit/s there, {back} Gbit/s back"

    def _file(self) -> str:
        return f"{self._send(self._mebibytes)}; SHA-256 equal at both ends"

    def _tap_is_blind(self) -> str:
        seen = self._pair.hang_up_tap()
        self._show(seen)
        if not all(way["all_tls"] and not way["markers"] for way in (seen["towards"], seen["back"])):
            raise StepFailed("there is plaintext on the hop between the gateways")
        if seen["protocol"] != "TLS 1.3":
            raise StepFailed("the hop is not TLS 1.3")
        return f"{seen['protocol']} {seen['cipher']}, no plaintext"

    def _stranger(self) -> str:
        listener = self._pair.inbound[-1]
        out = self._stage.run("openssl", "s_client", "-connect", listener, "-brief", "-ign_eof", status=1)
        if "alert certificate required" not in out:
            raise StepFailed("the inbound gateway did not refuse the stranger")
        self._pair.prove_uid_secret()
        return "refused: certificate required"

    def _release(self) -> str:
        self._pair.release(keys=True)
        return f"{len(self._pair.inbound + self._pair.outbound)} ports free"

    def _tap_sees(self) -> str:
        self._pair.end()
        self._pairs.append(Pair(self._stage, self._hosts, self._port_range, "--allow-security=none"))
        self._pair.open([self._receive()], self._marker, "--security=none")
        self._send(min(_PLAIN_MEBIBYTES, self._mebibytes))
        seen = self._pair.hang_up_tap()
        self._show(seen)
        there, back = seen["towards"]["markers"], seen["back"]["markers"]
        if not (there and back):
            raise StepFailed("the wiretap found no marker in plaintext, so it proves nothing")
        self._pair.release(keys=False)
        return f"yes, it finds plaintext: {there} markers there, {back} back"

    def _end(self) -> str:
        self._pair.end()
        listeners = [listener for pair in self._pairs for listener in pair.listeners] + self._application
        if busy := [listener for listener in listeners if proof.why_not_free(listener)]:
            raise StepFailed(f"still in use: {', '.join(busy)}")
        self._stage.say(f"all {len(listeners)} listeners of this demo can be bound by others")
        return "gateways ended, all ports free"

    # The applications

    def _iperf_server(self) -> str:
        """Its port. It takes no port 0: a free one is looked for, and another one where that was lost meanwhile."""
        for _ in range(_ATTEMPTS):
            with socket.create_server((self._hosts.application, 0)) as probe:
                port = str(probe.getsockname()[1])
            line = ["iperf3", "--server", "--bind", self._hosts.application, "--port", port, "--forceflush"]
            self._iperf = self._stage.start("iperf3 server", *line)
            if "listening" in self._iperf.expect("Server listening|already in use")[0]:
                self._application.append(f"{self._hosts.application}:{port}")
                return port
        raise StepFailed("iperf3 found no free port")

    def _receive(self) -> str:
        """Start the receiver of a file; returns its port."""
        line = [sys.executable, "-m", "tests.demo.stream", "receive", f"{self._hosts.application}:0", self._marker]
        self._receiver = self._stage.start("receiver", *line)
        listening = self._receiver.expect(r"listening on (\S+)$")
        self._stage.say(listening[0])
        self._application.append(listening[1])
        return listening[1].rpartition(":")[2]

    def _send(self, mebibytes: int) -> str:
        """Send a file to the outbound tunnel; returns the throughput. StepFailed unless both ends agree on it."""
        entry = self._pair.outbound[-1]
        line = [sys.executable, "-m", "tests.demo.stream", "send", entry, str(mebibytes), self._marker]
        out = self._stage.run(*line)
        if self._receiver is None:
            raise StepFailed("there is no receiver")
        received = self._receiver.expect(r"^received +(.*)$")[1]
        self._stage.say(f"received  {received}")
        sent = re.search(r"^sent +(.*)$", out, re.MULTILINE)
        if self._receiver.wait() or sent is None or sent[1] != received:
            raise StepFailed("what was received is not what was sent")
        return out.splitlines()[-1]

    def _show(self, seen: dict[str, Any]) -> None:
        chosen = f"{seen['protocol']}, {seen['cipher']} (read from the ServerHello)" if seen["protocol"] else "no TLS"
        self._stage.say(f"protocol: {chosen}")
        for title, way in (("outbound to inbound", seen["towards"]), ("inbound to outbound", seen["back"])):
            inside = f"all inside {sum(way['records'].values())} TLS records" if way["all_tls"] else "not TLS"
            packed = f"zlib makes them {way['compresses_to']:.0%} of their size"
            found = f"marker found {way['markers']} times"
            self._stage.say(f"{title}: {way['bytes']} bytes, {inside}, {packed}, {found}")


def _gigabits(out: str) -> str:
    """What arrived, from iperf3's last table."""
    found = re.findall(r"([0-9.]+) Gbits/sec +.*receiver", out)
    if not found:
        raise StepFailed("iperf3 told no throughput")
    return str(found[-1])
