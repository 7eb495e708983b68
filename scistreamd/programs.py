"""Where programs are found, for all that start one."""

from __future__ import annotations

import shutil

from scistreamd.interfaces import DataServer

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def locate(program: str, path: str = PATH) -> str | None:
    """The path of an executable by its bare name, None where it is not installed."""
    return shutil.which(program, path=path)


def missing(server: DataServer, path: str = PATH) -> str:
    """Why this data server cannot run here, with what to install, or an empty string."""
    if locate(server.program, path):
        return ""
    return f"{server.name} needs the program {server.program}, which is not installed: install {server.package}"
