"""`make demo`: run every step, end everything, print what held."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType

from tests.demo.stage import Stage, StepFailed
from tests.demo.steps import Demo

_FAILED = 1


class Interrupted(BaseException):
    """A signal asked the demo to end; everything that it started ends on the way out."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def main(argv: list[str] | None = None) -> int:
    """0 where every step held, 1 where one did not, 128 and the signal's number where one interrupted."""
    options = _parser().parse_args(argv)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        with Stage() as stage:
            demo = Demo(stage, options.mebibytes, options.seconds, options.port_range)
            try:
                return _play(stage, demo.steps())
            finally:
                # From here on everything is being ended: a second signal must not stop that.
                for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                    signal.signal(number, signal.SIG_IGN)
    except Interrupted as interrupted:
        print(f"\ninterrupted by {signal.Signals(interrupted.number).name}: everything is ended", file=sys.stderr)
        return 128 + interrupted.number


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.demo", description=__doc__)
    parser.add_argument("--mebibytes", type=int, default=1024, help="size of the file (default: 1024)")
    parser.add_argument("--seconds", type=int, default=3, help="of iperf3 in each direction (default: 3)")
    parser.add_argument("--port-range", default="5100-5200", help="of both gateways (default: 5100-5200)")
    return parser


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise Interrupted(number)


def _play(stage: Stage, steps: list[tuple[str, Callable[[], str]]]) -> int:
    """Run the steps up to the first that fails, then print the table."""
    begun, results = time.monotonic(), []
    for number, (title, work) in enumerate(steps, 1):
        stage.heading(f"{number}. {title}")
        started = time.monotonic()
        try:
            said = work()
        except (StepFailed, OSError) as failure:
            print(f"\nFAILED in step {number} ({title}): {failure}", file=sys.stderr)
            print(stage.last_words(), file=sys.stderr, flush=True)
            return _FAILED
        results.append((number, title, said, time.monotonic() - started))
    stage.heading(f"Summary: all {len(steps)} steps held, {time.monotonic() - begun:.0f} s")
    width = max(len(title) for title, _ in steps)
    for number, title, said, seconds in results:
        print(f"  {number:>2}  {title:<{width}}  {seconds:5.1f} s  {said}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
