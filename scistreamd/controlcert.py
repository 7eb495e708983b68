"""The control port's certificate where the operator gave none: made once, kept until somebody renews it."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from scistreamd.errors import Code, ScistreamError

# Users pin it, so it lasts; beyond 825 days TLS clients and scanners call a certificate's validity too long (CA/Browser
# Forum, ballot 193). Its near end is told of, see `certificate_watch`.
_DAYS = 824
_log = logging.getLogger("scistreamd.control")


def ensure(directory: Path) -> tuple[Path, Path]:
    """The self-signed certificate and key in ``directory``, made there where there are none.

    Says the fingerprint when it makes one. Raises ScistreamError where the
    directory cannot be written, or holds one of the two files alone.
    """
    certificate, key = directory / "server.crt", directory / "server.key"
    there = [path.exists() for path in (certificate, key)]
    if not any(there):
        _make(certificate, key)
    elif not all(there):
        alone, gone = (certificate, key) if there[0] else (key, certificate)
        raise ScistreamError(
            Code.FAILED_PRECONDITION,
            f"{alone} is there, but {gone.name} is not",
            f"put {gone.name} back, or remove {alone} and let scistreamd make a new pair",
        )
    return certificate, key


def _make(certificate: Path, key: Path) -> None:
    # Imported here: they take half a second, once in the gateway's life.
    from scistreamd import addresses, selfsigned  # noqa: PLC0415

    try:
        certificate.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as problem:
        raise ScistreamError(
            Code.FAILED_PRECONDITION, f"cannot make {certificate.parent}: {problem.strerror}", "check owner and mode"
        ) from None
    # In a thread: since 0.9 pyroute2's plain API runs an event loop of its own, which cannot stand inside ours.
    with ThreadPoolExecutor(1) as aside:
        names, ips = aside.submit(addresses.own).result()
    pair = selfsigned.make(names, ips, _DAYS)
    pair.write(certificate, key, replace=False)
    _log.info(
        "made a self-signed certificate for %s: %s, SHA-256 fingerprint %s",
        ", ".join([*names, *map(str, ips)]),
        certificate,
        selfsigned.fingerprint(pair.certificate),
    )
