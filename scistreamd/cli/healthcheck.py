"""Whether the s2cs of this container serves: python3 -m scistreamd.cli.healthcheck.

A container's image cannot know the options that its s2cs is started with. The
process has them, so they are read there (proc(5)) and understood by s2cs's own
parser; then the control port is asked, as `s2uc health` does it.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

from scistreamd.cli import s2cs, s2uc
from scistreamd.model import join_host_port

_ABSENT = 1


def main() -> int:
    """Ask; 0 where it serves, else the status of `s2uc health`, or 1 where no s2cs runs."""
    for process in Path("/proc").glob("[0-9]*"):
        for words in _arguments(process):
            return s2uc.main(["health", *question(s2cs.parse(words), process / "cwd")])
    print("no s2cs runs here", file=sys.stderr)
    return _ABSENT


def _arguments(process: Path) -> Iterator[list[str]]:
    """The options of the process, where it is an s2cs: an interpreter, its options, a script of that name."""
    try:
        words = (process / "cmdline").read_bytes().decode().split("\0")[1:-1]
    except (OSError, UnicodeDecodeError):  # it has ended, or is no process of ours
        return
    script = next((index for index, word in enumerate(words) if not word.startswith("-")), len(words))
    if words[script : script + 1] and Path(words[script]).name == "s2cs":
        yield words[script + 1 :]


def question(options: Namespace, directory: Path) -> list[str]:
    """The options of `s2uc health` for an s2cs with ``options`` whose working directory is ``directory``."""
    address = options.listener_ip
    host = "localhost" if address is None or address.is_unspecified else str(address)
    words = ["--s2cs", join_host_port(host, options.port)]
    return [*words, "--server-cert", str(directory / options.server_crt)] if options.ssl else [*words, "--no-tls"]


if __name__ == "__main__":
    sys.exit(main())
