"""Prints the configuration file that packages install: every key with its default, commented out.

It needs no library beyond Python's own, so that it runs while a package is built.
"""

from __future__ import annotations

import sys
import textwrap
from itertools import groupby
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scistreamd.configkeys import KEYS, Key

_HEAD = """\
# Configuration of scistreamd: scistreamd.toml(5).
#
# Each line that begins with #KEY shows a default; to change one, take the # away, from the [TABLE] above it too.
# Settings of your own may also go into files in /etc/scistreamd/scistreamd.toml.d/, which upgrades never touch.
# After a change: scistreamd --check-config, then systemctl reload scistreamd.
"""


def text() -> str:
    """The file. Uncommented as a whole it is valid and changes nothing."""
    parts = [_HEAD]
    ordered = sorted(KEYS, key=_table)  # TOML wants keys without a table first, and each table once
    for table, keys in groupby(ordered, key=_table):
        if table:
            parts.append(f"\n#[{table}]\n")
        parts += map(_entry, keys)
    return "".join(parts)


def _table(key: Key) -> str:
    return key.name.rpartition(".")[0]


def _entry(key: Key) -> str:
    restart = " Taken up by the next start, not by a reload." if key.restart else ""
    about = f"{key.about[0].upper()}{key.about[1:]}. Value: {key.kind.expected}.{restart}"
    lines = textwrap.wrap(about, 116, break_on_hyphens=False)
    comment = "".join(f"# {line}\n" for line in lines)
    return f"\n{comment}#{key.name.rpartition('.')[2]} = {key.default}\n"


if __name__ == "__main__":
    print(text(), end="")
