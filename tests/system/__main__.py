"""The lab as a playground: `make lab`, `make lab-shell HOST=producer`, `make lab-down`."""

from __future__ import annotations

import argparse
import os
import sys

from tests.system import wires
from tests.system.host import ENVIRONMENT
from tests.system.lab import Lab
from tests.system.tools import LabError

_FAILED = 1
_INTERRUPTED = 130
_OVERVIEW = """
{about}

  producer .10.10 --- .10.11 producers2 .20.10 --- .20.11 consumers2 .30.10 --- .30.11 consumer     (192.168.)
  server app          inbound gateway              outbound gateway            client app

  make lab-shell HOST=producers2    a root shell on a host, in as many terminals as you like
  make lab-down                     ends the lab; what was written in it is gone

The hosts share /vagrant (~/vagrant), keep their files over `reboot`, and reach nothing outside the lab.
docs/tutorial.md begins here, on producers2, with

  openssl genrsa -out server.key 2048
"""


def main(argv: list[str] | None = None) -> int:
    """0; 1 with the reason on stderr; 130 on Ctrl-C. ``shell`` does not return, but becomes the shell."""
    options = _parser().parse_args(argv)
    try:
        if os.geteuid() != 0:
            raise LabError("the lab needs root, for namespaces and mounts")
        if options.verb == "up":
            _up(options.name)
        elif options.verb == "down":
            _down(options.name)
        else:
            _shell(options.name, options.host)
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return _FAILED
    except KeyboardInterrupt:
        print("\nlab: interrupted; nothing of it is left", file=sys.stderr)
        return _INTERRUPTED
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.system", description=__doc__)
    parser.add_argument(
        "--name", default="playground", help="of the lab, where there are several (default: playground)"
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("up", help="boot the lab")
    verbs.add_parser("down", help="end it")
    shell = verbs.add_parser("shell", help="a shell on one of its hosts")
    shell.add_argument("host", choices=wires.HOSTS)
    return parser


def _up(name: str) -> None:
    if Lab.attach(name) is not None:
        print(_OVERVIEW.format(about="The lab is up already."), end="")
        return
    lab = Lab.start(name, say=lambda text: print(f"lab: {text}", flush=True))
    release = lab["producer"].run(["sh", "-c", '. /etc/os-release; echo "$PRETTY_NAME"']).stdout.strip()
    version = lab["producer"].run(["s2cs", "--version"]).stdout.strip()
    lab.stay()
    print(_OVERVIEW.format(about=f"The lab is up: four hosts with {release}, each with {version}."), end="")


def _down(name: str) -> None:
    lab = Lab.attach(name)
    if lab is None:
        print("The lab is not up.")
        return
    lab.stop()
    print("The lab is down.")


def _shell(name: str, host: str) -> None:
    """Become a login shell on the host. script(1) gives it a terminal of the host's own, as ssh does."""
    lab = Lab.attach(name)
    if lab is None:
        raise LabError("the lab is not up: `make lab` boots it")
    words = ["bash", "--login"]
    if sys.stdin.isatty():
        words = ["script", "--quiet", "--command", "exec bash --login", "/dev/null"]
    words = lab[host].command(words)
    os.execvpe(words[0], words, {**ENVIRONMENT, "TERM": os.environ.get("TERM", "dumb")})


if __name__ == "__main__":
    sys.exit(main())
