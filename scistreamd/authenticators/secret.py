"""Where the secret of our client at the provider comes from."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from scistreamd.config import Auth
from scistreamd.errors import Code, ScistreamError

CREDENTIAL = "oauth2-client-secret"
VARIABLE = "SCISTREAM_CLIENT_SECRET"
_MOST = 4096


def client_secret(auth: Auth, environment: Mapping[str, str] = os.environ) -> str:
    """The secret: of the configured file, else systemd's credential, else the environment.

    Raises FAILED_PRECONDITION where there is none, or its file cannot be read.
    """
    credentials = environment.get("CREDENTIALS_DIRECTORY")
    if auth.oauth2.client_secret_file is not None:
        return read(Path(str(auth.oauth2.client_secret_file)))
    if credentials and (Path(credentials) / CREDENTIAL).exists():
        return read(Path(credentials) / CREDENTIAL)
    if environment.get(VARIABLE):
        return environment[VARIABLE]
    raise ScistreamError(
        Code.FAILED_PRECONDITION,
        "auth.oauth2.client_id is set, but its secret is not",
        "put it in a file (auth.oauth2.client_secret_file, s2cs --client-secret-file), in systemd's credential "
        f"{CREDENTIAL}, or in the environment's {VARIABLE}",
    )


def read(path: Path) -> str:
    """The one line of a file; FAILED_PRECONDITION where it cannot be read, is empty, or others can read it."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            text = file.read(_MOST).decode().strip()
    except (OSError, UnicodeDecodeError) as problem:
        reason = problem.strerror if isinstance(problem, OSError) else "it is not UTF-8"
        raise ScistreamError(
            Code.FAILED_PRECONDITION, f"cannot read the client secret {path}: {reason}", "check owner and mode"
        ) from None
    if mode & 0o007:
        message = f"the client secret {path} is open to every user of this host"
        raise ScistreamError(Code.FAILED_PRECONDITION, message, f"chmod 600 {path}")
    if not text or "\n" in text:
        message = f"the client secret {path} is not one line"
        raise ScistreamError(Code.FAILED_PRECONDITION, message, "put the secret alone in it")
    return text
