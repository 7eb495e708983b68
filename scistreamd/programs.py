"""Where programs are found, for all that start one."""

from __future__ import annotations

import shutil
from pathlib import Path

from scistreamd.interfaces import DataServer

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# Beside the code, where an installation from source builds it, and where packages put it.
_LIBRARIES = (Path(__file__).parent / "dataserver", Path("/usr/lib/scistreamd"), Path("/usr/lib64/scistreamd"))
_SUFFIXES = (".abi3.so", ".so")


def locate(program: str, path: str = PATH) -> str | None:
    """The path of an executable by its bare name, None where it is not installed."""
    return shutil.which(program, path=path)


def missing(server: DataServer, path: str = PATH) -> str:
    """Why this data server cannot run here, with what to install, or an empty string."""
    if locate(server.program, path):
        return ""
    return f"{server.name} needs the program {server.program}, which is not installed: install {server.package}"


def library(name: str) -> Path | None:
    """The path of a library of ours by its bare name; None where it has not been built, and for an empty name."""
    if not name:
        return None
    every = (directory / f"{name}{suffix}" for directory in _LIBRARIES for suffix in _SUFFIXES)
    return next((path for path in every if path.is_file()), None)


def lacking(server: DataServer) -> str:
    """What is wrong with this data server without its library, or an empty string."""
    if not server.library or library(server.library):
        return ""
    return (
        f"{server.name} may lose the last kilobytes of a stream: the library {server.library}.so is not there"
        " (install a C compiler, then scistreamd again; or ask for another data server type)"
    )
