"""The tutorial's four hosts as network namespaces, and a reader of documents with console blocks.

A console block shows what is typed on which host, and what comes out; the prompt of root is ``#``:

    producer$ s2uc release UID --s2cs 192.168.10.11:5007
    Release completed

In the output ``...`` stands for any text, on a line of its own for any lines.
A block of any language with ``HOST:FILE`` behind it is that file's content. ``^C`` ends the command above.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

HOSTS = ("producer", "producers2", "consumers2", "consumer")
_LINKS = (
    (("producer", "192.168.10.10/24"), ("producers2", "192.168.10.11/24")),
    (("producers2", "192.168.20.10/24"), ("consumers2", "192.168.20.11/24")),
    (("consumers2", "192.168.30.10/24"), ("consumer", "192.168.30.11/24")),
)
_ROUTE = ("consumers2", "192.168.10.0/24", "192.168.20.10")
_SECONDS = 90
_POLL = 0.02
_BLOCK = re.compile(r"^```(\w+)(?: ([\w:./-]+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_PROMPT = re.compile(rf"^({'|'.join(HOSTS)})[$#] (.*)$")
# Such as print what others have yet to do, or to log.
_LOOKS = re.compile(
    r"s2ctl|(s2ctl (list|status|show|logs)|journalctl|systemctl (status|is-active|list-units|show)|ss|ps|find)( [^>]*)?"
)


@dataclass
class Typed:
    """One command of a document with the output that it shows, or a file with its text."""

    host: str
    command: str = ""
    output: list[str] = field(default_factory=list)
    file: str = ""

    @property
    def interrupted(self) -> bool:
        """Whether the reader ends it with Ctrl-C."""
        return self.output[-1:] == ["^C"]

    @property
    def stays(self) -> bool:
        """Whether it serves in the foreground, so that the reader goes on in another terminal."""
        return bool(re.match(r"s2cs (?!.*;)|iperf3? -s", self.command))

    @property
    def looks(self) -> bool:
        """Whether it changes nothing."""
        return bool(_LOOKS.fullmatch(self.command))

    def shows(self, output: str) -> bool:
        """Whether this is the output that the document shows.

        Notes are compared for themselves: they are on standard error, and what
        a gateway says may come before or after a line of standard output.
        """
        expected = self.output[:-1] if self.interrupted else self.output
        real_notes, real = _apart(output.splitlines())
        notes, lines = _apart(expected)
        return bool(_pattern(lines).fullmatch(_text(real))) and bool(
            _pattern(sorted(notes)).fullmatch(_text(sorted(real_notes)))
        )


def _apart(lines: list[str]) -> tuple[list[str], list[str]]:
    """The notes of our tools, and all other lines."""
    notes = [line for line in lines if re.match(r"s2(cs|uc|ctl): note: ", line)]
    return notes, [line for line in lines if line not in notes]


def _text(lines: list[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def _pattern(lines: list[str]) -> re.Pattern[str]:
    return re.compile("".join(r"(?:.*\n)*?" if line == "..." else _loosely(line) + r"[ \t]*\n" for line in lines))


def _loosely(line: str) -> str:
    return ".*".join(re.escape(part) for part in line.rstrip().split("..."))


def read(document: Path) -> list[Typed]:
    """Every command and every file of the document, in its order."""
    found: list[Typed] = []
    for language, name, body in _BLOCK.findall(document.read_text()):
        host, _, file = name.partition(":")
        if file:
            found.append(Typed(host, file=file, output=body.splitlines()))
        elif language == "console":
            found += _commands(body)
    return found


def _commands(body: str) -> Iterator[Typed]:
    typed: Typed | None = None
    for line in body.splitlines():
        if prompt := _PROMPT.match(line):
            if typed:
                yield typed
            typed = Typed(prompt[1], prompt[2])
        elif typed is None:
            raise ValueError(f"a console block must begin with a prompt: {line!r}")
        else:
            typed.output.append(line)
    if typed:
        yield typed


class Server:
    """A command that stays, on a terminal as a reader has it, so that its output comes line by line."""

    def __init__(self, lab: Lab, typed: Typed) -> None:
        self.typed = typed
        self._master, slave = os.openpty()
        try:
            self.process = subprocess.Popen(
                lab.words(typed),
                cwd=lab.home(typed.host),
                env=lab.environment(),
                stdin=slave,
                stdout=slave,
                stderr=slave,
            )
        finally:
            os.close(slave)
        os.set_blocking(self._master, False)
        self._output = ""

    def output(self) -> str:
        """All that it wrote so far."""
        with contextlib.suppress(BlockingIOError, OSError):  # EIO: it has ended
            while data := os.read(self._master, 65536):
                self._output += data.decode(errors="replace").replace("\r\n", "\n")
        return self._output

    def matches(self) -> bool:
        """Whether its output becomes what the document shows."""
        deadline = time.monotonic() + _SECONDS
        while not self.typed.shows(self.output()):
            if self.process.poll() is not None or time.monotonic() > deadline:
                return self.typed.shows(self.output())
            time.sleep(_POLL)
        return True

    def end(self, number: int = signal.SIGINT) -> int:
        """End it as Ctrl-C does; returns its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(_SECONDS)
        finally:
            self.process.kill()
            self.process.wait()
            self.output()
            os.close(self._master)


class Lab:
    """Four hosts, each with a home directory; ``vagrant`` in it is shared by all of them."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._prefix = f"tutorial{os.getpid()}-"

    def __enter__(self) -> Lab:
        try:
            self._build()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for host in HOSTS:
            subprocess.run(["ip", "netns", "del", self._prefix + host], check=False, capture_output=True)

    def _build(self) -> None:
        shared = self._directory / "vagrant"
        shared.mkdir()
        for host in HOSTS:
            self.home(host).mkdir()
            (self.home(host) / "vagrant").symlink_to(shared)
            _ip("netns", "add", self._prefix + host)
            self._in(host, "link", "set", "lo", "up")
        for number, ((left, left_address), (right, right_address)) in enumerate(_LINKS):
            wire = f"eth{number}"
            names = [self._prefix + left, self._prefix + right]
            _ip("link", "add", wire, "netns", names[0], "type", "veth", "peer", "name", wire, "netns", names[1])
            for host, address in ((left, left_address), (right, right_address)):
                self._in(host, "address", "add", address, "dev", wire)
                self._in(host, "link", "set", wire, "up")
        host, network, gateway = _ROUTE
        self._in(host, "route", "add", network, "via", gateway)

    def _in(self, host: str, *words: str) -> None:
        _ip("-netns", self._prefix + host, *words)

    def home(self, host: str) -> Path:
        """The directory that commands run in."""
        return self._directory / host

    def environment(self) -> dict[str, str]:
        """That of a user who has the tools in PATH."""
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        return {"PATH": path, "LC_ALL": "C.UTF-8", "TERM": "dumb", "HOME": str(self._directory)}

    def words(self, typed: Typed) -> list[str]:
        """The command on its host, by a shell as a reader has it."""
        # One minute is for people to look at.
        command = typed.command.replace("-t 60", "-t 1")
        line = f"exec {command}" if typed.stays else command
        return ["ip", "netns", "exec", self._prefix + typed.host, "bash", "-c", line]

    def run(self, typed: Typed) -> str:
        """Run to its end; returns all that it printed. The reader looks again where it is not there yet."""
        deadline = time.monotonic() + _SECONDS
        while not typed.shows(output := self._run(typed)) and typed.looks and time.monotonic() < deadline:
            time.sleep(_POLL)
        return output

    def _run(self, typed: Typed) -> str:
        done = subprocess.run(
            self.words(typed),
            cwd=self.home(typed.host),
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_SECONDS,
        )
        return done.stdout

    def write(self, typed: Typed) -> None:
        """Write a file of the document where it belongs."""
        (self.home(typed.host) / typed.file).write_text("\n".join(typed.output) + "\n")


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
