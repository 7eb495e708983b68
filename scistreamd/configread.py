"""Reads the configuration file and its drop-ins."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from scistreamd import configfile
from scistreamd.config import Settings
from scistreamd.errors import Code, ScistreamError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def read(path: Path, *, required: bool) -> Settings:
    """The settings of ``path`` and of the ``*.toml`` in the directory ``path``.d, by name, later ones first.

    Where the file is missing the defaults stand, unless it is ``required``.
    Raises ScistreamError: INVALID_ARGUMENT naming file and line or key,
    NOT_FOUND, FAILED_PRECONDITION where something cannot be read.
    """
    return configfile.parse(_documents(path, required))


@contextlib.contextmanager
def blaming(path: Path, *, required: bool) -> Iterator[None]:
    """An error in here about a file that the configuration names begins with the configuration's file and key."""
    try:
        yield
    except ScistreamError as problem:
        where = configfile.naming(_documents(path, required), problem.message)
        raise ScistreamError(problem.code, f"{where}{problem.message}", problem.hint) from None


def _documents(path: Path, required: bool) -> list[configfile.Document]:
    return [(str(file), _document(file)) for file in files(path, required=required)]


def files(path: Path, *, required: bool) -> list[Path]:
    """The files that make the configuration, in the order in which they count."""
    main = [path] if required or path.exists() else []
    drop_ins = path.with_name(f"{path.name}.d")
    try:
        found = sorted(each for each in drop_ins.iterdir() if each.suffix == ".toml" and not each.name.startswith("."))
    except FileNotFoundError:
        found = []
    except OSError as problem:
        raise _unreadable(drop_ins, problem) from None
    return main + found


def _document(path: Path) -> dict[str, object]:
    text = ""
    try:
        text = path.read_bytes().decode()
        return tomllib.loads(text)
    except FileNotFoundError:
        raise ScistreamError(Code.NOT_FOUND, f"{path} is not there", "name the file by --config FILE") from None
    except OSError as problem:
        raise _unreadable(path, problem) from None
    except UnicodeDecodeError as problem:
        raise ScistreamError(
            Code.INVALID_ARGUMENT, f"{path}: byte {problem.start} is not UTF-8", "TOML files are UTF-8"
        ) from None
    except RecursionError:
        raise ScistreamError(
            Code.INVALID_ARGUMENT, f"{path}: values are nested too deeply", "no key takes lists within lists"
        ) from None
    except tomllib.TOMLDecodeError as problem:
        lines = text.count("\n") + 1
        where = str(problem).replace("at end of document", f"at line {lines}, the end of the file")
        raise ScistreamError(
            Code.INVALID_ARGUMENT, f"{path}: {where}", "text stands in quotes, a table's name in [brackets]"
        ) from None


def _unreadable(path: Path, problem: OSError) -> ScistreamError:
    return ScistreamError(Code.FAILED_PRECONDITION, f"cannot read {path}: {problem.strerror}", "check owner and mode")
