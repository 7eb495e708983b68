"""Two gateways and the pair of tunnels between them, with a wiretap in the hop of the last listener."""

from __future__ import annotations

import json
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.demo import proof
from tests.demo.stage import Running, Stage, StepFailed

_UID_FILE = "uid"
# Short: the data servers' control sockets lie below, and unix(7) limits a socket's path to 108 bytes.
_RUNTIME = {"inbound": "i", "outbound": "o"}


@dataclass(frozen=True)
class Hosts:
    """The loopback addresses that stand for four hosts."""

    application: str
    inbound: str
    outbound: str
    tap: str

    @classmethod
    def of_process(cls) -> Hosts:
        """A network of our own in 127.0.0.0/8, so that another demo on this host meets none of our ports."""
        number = os.getpid()
        return cls(*(f"127.{number // 250 % 250 + 1}.{number % 250}.{host}" for host in range(1, 5)))


@dataclass(frozen=True)
class Gateway:
    """One running s2cs: where its control port is, and the directory for its keys."""

    name: str
    program: Running
    control: str
    runtime: Path

    def line(self, *words: str) -> list[str]:
        """The s2uc command line for this gateway."""
        return ["s2uc", *words, "--s2cs", self.control, "--server-cert", f"{self.name}.crt"]


class Pair:
    """An inbound and an outbound gateway; ``listeners`` are all that they and their tunnels ever listened on."""

    def __init__(self, stage: Stage, hosts: Hosts, port_range: str, *options: str) -> None:
        """Start both; ``options`` are further ones of s2cs."""
        self._stage = stage
        self._hosts = hosts
        self.listeners: list[str] = []
        self.inbound: list[str] = []
        self.outbound: list[str] = []
        self._tap: Running | None = None
        line = ["--port=0", f"--port-range={port_range}", *options]
        self._gateways = [
            self._gateway("inbound", hosts.inbound, "--type=Haproxy", *line),
            self._gateway("outbound", hosts.outbound, "--type=Nginx", *line),
        ]

    def _gateway(self, name: str, address: str, *options: str) -> Gateway:
        runtime = self._stage.directory / _RUNTIME[name]
        runtime.mkdir(exist_ok=True)
        runtime.chmod(0o711)
        line = [
            "s2cs",
            "--verbose",
            f"--listener-ip={address}",
            *options,
            f"--server-crt={name}.crt",
            f"--server-key={name}.key",
        ]
        # As systemd tells its services; s2cs keeps keys there if it is a tmpfs, else in the temporary directory.
        places = {"RUNTIME_DIRECTORY": str(runtime), "TMPDIR": str(runtime)}
        program = self._stage.start(f"{name} gateway", *line, more=places)
        started = program.expect(r"^.*gRPC Server started on (\S+)$")
        self._stage.say(started[0])
        self.listeners.append(started[1])
        return Gateway(name, program, started[1], runtime)

    @property
    def controls(self) -> str:
        """Both control ports."""
        return " and ".join(gateway.control for gateway in self._gateways)

    def open(self, receiver_ports: list[str], marker: str, *options: str) -> None:
        """Both requests. The outbound tunnel is told of the tap in place of the last inbound listener."""
        incoming, outgoing = self._gateways
        application = ["--remote-ip", self._hosts.application, "--receiver-ports", ",".join(receiver_ports)]
        self.inbound = self._request(incoming.line("inbound-request", *application, "--uid-file", _UID_FILE, *options))
        self._tap = self._stage.start(
            "wiretap", sys.executable, "-m", "tests.demo.tap", f"{self._hosts.tap}:0", self.inbound[-1], marker
        )
        tapped = self._tap.expect(r"listening on (\S+)$")[1]
        self.listeners.append(tapped)
        self._stage.say(f"wiretap listening on {tapped}, in front of {self.inbound[-1]}")
        targets = ",".join([*self.inbound[:-1], tapped])
        self.outbound = self._request(outgoing.line("outbound-request", f"@{_UID_FILE}", targets, *options))

    def _request(self, line: list[str]) -> list[str]:
        printed = re.search(r"^Listeners: \[(.*)\]$", self._stage.run(*line), re.MULTILINE)
        if printed is None:
            raise StepFailed("s2uc printed no listeners")
        found = [each.strip(" '") for each in printed[1].split(",")]
        self.listeners += found
        return found

    def prove_uid_secret(self) -> None:
        """StepFailed where others on this host, or whoever reads a log, could see the UID."""
        uid = (self._stage.directory / _UID_FILE).read_text().strip()
        if found := proof.whereabouts(uid, self._stage.directory):
            raise StepFailed(f"the UID is in {', '.join(found)}")
        self._stage.say("the UID is in no process list, no log and no file name")

    def hang_up_tap(self) -> dict[str, Any]:
        """End the tap; returns its report on the file's connection: the last, after the outbound gateway's own test."""
        if self._tap is None or self._tap.process.stdin is None:
            raise StepFailed("there is no wiretap")
        self._tap.process.stdin.close()
        if self._tap.wait():
            raise StepFailed(f"the wiretap failed:\n{self._tap.output()}")
        reports = json.loads(self._tap.output().splitlines()[-1])
        if len(reports) not in (1, 2):  # one without encryption: then nothing is tested
            raise StepFailed(f"{len(reports)} connections passed the wiretap, expected were 1 or 2")
        report: dict[str, Any] = reports[-1]
        return report

    def release(self, *, keys: bool) -> None:
        """Release both tunnels and prove that ports, data servers and keys are gone; ``keys``: there must be some."""
        servers = [each for gateway in self._gateways for each in proof.descendants(gateway.program.process.pid)]
        if not servers or bool(self._keys()) is not keys:
            raise StepFailed(f"before the release: {len(servers)} data servers, {len(self._keys())} files of keys")
        self._stage.say(f"before: {', '.join(map(str, servers))}; {len(self._keys())} files of keys")
        for gateway in self._gateways:
            self._stage.run(*gateway.line("release", f"@{_UID_FILE}"))
        for listener in self.inbound + self.outbound:
            if reason := proof.why_not_free(listener):
                raise StepFailed(f"{listener} is not free after the release: {reason}")
            self._stage.say(f"{listener} is free: bound by the demo and let go again")
        if still := [str(each) for each in servers if each.runs()] + [str(path) for path in self._keys()]:
            raise StepFailed(f"left after the release: {', '.join(still)}")
        self._stage.say("after: no data server, no file of keys")

    def _keys(self) -> list[Path]:
        return [path for gateway in self._gateways for path in proof.key_files(gateway.runtime)]

    def end(self) -> None:
        """SIGTERM to both; StepFailed where one does not end well or leaves a file."""
        for gateway in self._gateways:
            status = gateway.program.end()
            self._stage.say(f"SIGTERM to the {gateway.name} gateway: it ended with exit status {status}")
            if status:
                raise StepFailed(f"the {gateway.name} gateway did not end well")
            if left := list(gateway.runtime.iterdir()):
                raise StepFailed(f"left behind: {', '.join(map(str, left))}")
