"""What the user is asked and told about a gateway that nobody vouches for, or that shows another key than before."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

from scistreamd import validity
from scistreamd.cli.known import Known
from scistreamd.errors import Code, ScistreamError
from scistreamd.model import Target


def confirm(address: Target, shown: Known, why: str, fingerprint: str | None) -> None:
    """Have the user confirm a gateway that nobody vouches for, by ``--trust-fingerprint`` or by a question.

    Raises UNAVAILABLE where the user says no, or cannot be asked.
    """
    if fingerprint is not None:
        if _bare(fingerprint) not in (shown.certificate, shown.key):
            raise ScistreamError(
                Code.UNAVAILABLE,
                f"{address} shows a certificate with the SHA-256 fingerprint {shown.fingerprint}, not the given one",
                "this is another gateway, or somebody stands in between: ask its operator",
            )
        return
    if not sys.stderr.isatty():
        raise ScistreamError(
            Code.UNAVAILABLE,
            f"{why}; its SHA-256 fingerprint is {shown.fingerprint}",
            "compare it with what the operator says, then --trust-fingerprint FINGERPRINT, or --server-cert FILE",
        )
    print(
        f"{why}.\nThe SHA-256 fingerprint of its certificate is\n  {shown.fingerprint}\n"
        "Compare it with what the gateway's operator told you (s2ctl cert show prints it there).",
        file=sys.stderr,
    )
    if not yes("Trust this gateway from now on (yes/no)? "):
        raise ScistreamError(Code.UNAVAILABLE, f"{address} was not trusted", "ask its operator for the fingerprint")


def of_change(address: Target, known: Known, shown: Known, path: Path) -> ScistreamError:
    """What to say, loudly, where a known gateway shows another key."""
    stars = "*" * 72
    print(
        f"{stars}\nTHE KEY OF {address} HAS CHANGED SINCE {known.since}.\n"
        "Somebody may stand between you and the gateway and read what you send, the UIDs\n"
        "among it; or the gateway has been set up anew. Ask its operator which.\n"
        f"  known: {known.fingerprint}\n  shown: {shown.fingerprint}\n{stars}",
        file=sys.stderr,
    )
    return ScistreamError(
        Code.UNAVAILABLE,
        f"the key of {address} is not the one in {path}: nothing was sent",
        f"only when the operator confirms the new fingerprint: s2uc trust remove {address}",
    )


def ending(ends: float, now: float) -> str:
    """That a certificate is near its end or beyond, for people, or an empty string."""
    if ends > now + validity.SOON_DAYS * 86400:
        return ""
    if ends <= now:
        return f"has ended on {time.strftime('%Y-%m-%d', time.localtime(ends))}"
    days = max(1, round((ends - now) / 86400))
    return f"ends in {days} day{'s' if days > 1 else ''}"


def yes(question: str) -> bool:
    """Ask at the terminal, whatever standard input is; Ctrl-C ends the question at once."""
    # An event loop's own handler would wait until the line is read.
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with Path("/dev/tty").open(encoding="utf-8", errors="replace") as terminal:
            while True:
                print(question, end="", file=sys.stderr, flush=True)
                answer = terminal.readline().strip().lower()
                if answer in ("yes", "no", ""):
                    return answer == "yes"
                question = "Please type yes or no: "
    except OSError as error:
        raise ScistreamError(
            Code.UNAVAILABLE, f"nobody can be asked: {error.strerror}", "--trust-fingerprint FINGERPRINT"
        ) from None
    finally:
        signal.signal(signal.SIGINT, former)


def _bare(fingerprint: str) -> str:
    return fingerprint.lower().removeprefix("sha256:").replace(":", "")
