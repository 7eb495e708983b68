"""``s2ctl test``: tests the hop from this gateway to the inbound one."""

from __future__ import annotations

import sys
import threading
from argparse import Namespace
from dataclasses import asdict

from scistreamd.cli import output, uids
from scistreamd.cli.ctl import human, permission, remote
from scistreamd.cli.ctl.screen import Screen
from scistreamd.cli.ctl.tunnels import Hop, Options, Tunnels
from scistreamd.cli.options import UsageError
from scistreamd.errors import Code, ScistreamError
from scistreamd.model import Target

_NAME = "s2ctl"

_STATUS = {
    "wrong-uid": Code.UNAUTHENTICATED,
    "other-security": Code.FAILED_PRECONDITION,
    "no-answerer": Code.FAILED_PRECONDITION,
    "odd": Code.FAILED_PRECONDITION,
}


def test(options: Namespace) -> int:
    """Exit status 0 where every hop is fine, else that of the first which is not."""
    screen = Screen.of(options)
    uid = uids.read(options.uid) if options.uid else None
    if uid is None and options.security:
        raise UsageError("--security is for a listener without a tunnel", "give --uid too, or leave it out")
    wanted: Options = {"throughput": options.throughput} if options.throughput else {}
    interactive = permission.may_ask(options)
    with remote.bus(options, interactive=interactive) as bus, permission.agent(options, interactive):
        tunnels = Tunnels(bus)
        with _Progress(options):
            if uid is not None:
                more: Options = {"security": options.security} if options.security else {}
                found = [tunnels.test_path(uid, options.what, {**wanted, **more})]
            else:
                found = _of_tunnel(tunnels, options.what, wanted)
    if screen.json:
        screen.data([asdict(each) for each in found])
    elif not options.quiet:
        for each in found:
            _show(each)
    return next((_status(each) for each in found if not each.ok), 0)


def _of_tunnel(tunnels: Tunnels, what: str, wanted: Options) -> list[Hop]:
    """The hops of a tunnel that is named by itself, or the one hop that is named by its listener."""
    target = _listener(what)
    if target is None:
        return tunnels.test(tunnels.find(what), wanted)
    ids = [row.id for row in tunnels.rows() if row.role == "CONS" and str(target) in row.targets]
    if not ids:
        raise ScistreamError(
            Code.NOT_FOUND, f"no outbound tunnel here goes to {target}", "--uid tests a listener without a tunnel"
        )
    found = tunnels.test(ids[0], wanted)
    return [each for each in found if each.listener == str(target)] or found


def _listener(text: str) -> Target | None:
    """HOST:PORT, or None for what is an id or a label."""
    try:
        return Target.parse(text)
    except ScistreamError:
        return None


def _status(hop: Hop) -> int:
    return _STATUS.get(hop.outcome, Code.UNAVAILABLE).exit_status


def _show(hop: Hop) -> None:
    output.result(f"{hop.listener}: {hop.message}")
    times = (("TCP", hop.connect_usec), ("TLS", hop.handshake_usec), ("answer", hop.rtt_usec))
    told = [f"{name} {human.milliseconds(usec)}" for name, usec in times if usec]
    if told:
        output.result(f"  {', '.join(told)}")
    if hop.sent_bytes:
        output.result(f"  throughput {human.size(hop.throughput * 8)}bit/s ({human.size(hop.sent_bytes)}B arrived)")
    if hop.hint:
        output.note(_NAME, hop.hint)


class _Progress:
    """A line that counts seconds on the terminal while throughput is measured."""

    def __init__(self, options: Namespace) -> None:
        self._seconds = options.throughput or 0
        self._wanted = bool(self._seconds) and not options.quiet and sys.stderr.isatty()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._count, daemon=True)

    def __enter__(self) -> None:
        if self._wanted:
            self._thread.start()

    def __exit__(self, *exception: object) -> None:
        if self._wanted:
            self._over.set()
            self._thread.join()
            sys.stderr.write("\r\x1b[K")

    def _count(self) -> None:
        second = 0
        while not self._over.wait(1):
            second += 1
            sys.stderr.write(f"\rmeasuring throughput: {second} s of {self._seconds} s")
            sys.stderr.flush()
