"""From parsed TOML to `Settings` and back; the keys are those of `configkeys`.

Reading files is `configread`'s job.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from scistreamd import dataserver
from scistreamd.config import GLOBUS, Auth, Settings
from scistreamd.configkeys import KEYS, Key
from scistreamd.errors import Code, ScistreamError, did_you_mean
from scistreamd.model import shown

# A file's name and what TOML made of its text.
Document = tuple[str, Mapping[str, Any]]

_BY_NAME = {key.name: key for key in KEYS}
_TABLES = {
    ".".join(words[:length]) for words in (key.name.split(".") for key in KEYS) for length in range(1, len(words))
}


def parse(documents: Sequence[Document]) -> Settings:
    """The settings that the documents make, a later one before an earlier one, over the defaults.

    Raises ScistreamError(INVALID_ARGUMENT) naming file, key, and what was expected.
    """
    settings = Settings()
    origin: dict[str, str] = {}
    for file, document in documents:
        for name, value in _leaves(file, document, ""):
            settings = _set(settings, _BY_NAME[name].path, _parsed(file, _BY_NAME[name], value, settings))
            origin[name] = file
    _check_together(settings, origin)
    return settings


def naming(documents: Sequence[Document], message: str) -> str:
    """Which file and key of the documents name a file that the message speaks of, as its beginning; or ""."""
    words = re.split(r"[\s:;,]+", message)
    for file, document in reversed(documents):
        for name, value in _leaves(file, document, ""):
            if isinstance(value, str) and value.startswith("/") and str(PurePosixPath(value)) in words:
                return f"{file}: {name}: "
    return ""


def needs_restart(before: Settings, after: Settings) -> list[str]:
    """The keys that differ and that a running daemon does not take up."""
    return [key.name for key in KEYS if key.restart and key.value(before) != key.value(after)]


def effective(settings: Settings) -> str:
    """The settings as a configuration file that says all of them."""
    lines: list[str] = []
    table = ""
    for key in sorted(KEYS, key=lambda key: key.name.rpartition(".")[0]):
        parent, _, name = key.name.rpartition(".")
        if parent != table:
            lines += ["", f"[{parent}]"]
            table = parent
        lines.append(f"{name} = {key.toml(settings)}")
    return "\n".join(lines) + "\n"


def reference() -> str:
    """The table of all keys, as Markdown."""
    rows = ["| key | default | what it is | value |", "|---|---|---|---|"]
    for key in KEYS:
        name = f"`{key.name}`" + (" (*)" if key.restart else "")
        rows.append(f"| {name} | `{key.default}` | {key.about} | {key.kind.expected} |")
    return "\n".join(rows) + "\n"


def _leaves(file: str, table: Mapping[str, Any], above: str) -> Iterator[tuple[str, Any]]:
    """Every known key of a document with its value; an unknown one is an error."""
    for word, value in table.items():
        name = above + word
        if name in _BY_NAME:
            yield name, value
        elif name not in _TABLES:
            raise _unknown(file, name)
        elif isinstance(value, Mapping):
            yield from _leaves(file, value, f"{name}.")
        else:
            raise _wrong(file, name, f"{_shown(value)} is not a table", f"[{name}] with keys below it")


def _parsed(file: str, key: Key, value: Any, settings: Settings) -> Any:
    try:
        parsed = key.kind.parse(value)
        return key.kind.join(key.value(settings), parsed) if key.kind.join else parsed
    except (ValueError, ScistreamError) as problem:
        if key.kind.detailed and isinstance(problem, ScistreamError):
            raise ScistreamError(problem.code, f"{file}: {problem.message}", problem.hint) from None
        raise _wrong(file, key.name, f"{_shown(value)} is not valid", f"expected {key.kind.expected}") from None


def _set(target: Any, path: str, value: Any) -> Any:
    name, _, rest = path.partition(".")
    inner = _set(getattr(target, name), rest, value) if rest else value
    return dataclasses.replace(target, **{name: inner})


def _check_together(settings: Settings, origin: Mapping[str, str]) -> None:
    """What no key can tell alone."""

    def blame(*names: str) -> tuple[str, str]:
        name = next((name for name in names if name in origin), names[0])
        return origin.get(name, "the defaults"), name

    default = settings.default_security
    kind = dataserver.parse_type(settings.default_type)
    if default not in settings.allowed_security:
        file, name = blame("security.default", "security.allowed")
        raise _wrong(file, name, f"the default {default.value} is not among security.allowed", "add it there")
    if default not in kind.server.securities:
        file, name = blame("security.default", "default_type")
        able = " or ".join(each.name for each in dataserver.DATA_SERVERS if default in each.securities)
        raise _wrong(file, name, f"{kind.name} cannot do {default.value}", f'default_type = "{able}" can')
    if (settings.control.certificate is None) != (settings.control.key is None):
        file, name = blame("control.certificate", "control.key")
        raise _wrong(file, name, "control.certificate and control.key go together", "set both, or none")
    _check_auth(settings.auth, blame)
    limits = settings.control.limits
    if limits.pending_bytes < limits.message_bytes:
        file, name = blame("control.limits.pending_bytes", "control.limits.message_bytes")
        raise _wrong(file, name, "pending_bytes is less than message_bytes", "one whole message must fit")


def _check_auth(auth: Auth, blame: Callable[..., tuple[str, str]]) -> None:
    oauth2 = auth.oauth2
    if oauth2.client_secret_file is not None and not oauth2.client_id:
        file, name = blame("auth.oauth2.client_secret_file")
        raise _wrong(file, name, "a secret without auth.oauth2.client_id", "set the client id that it is of")
    if oauth2.issuer != GLOBUS and not oauth2.client_id and not oauth2.audience:
        file, name = blame("auth.oauth2.issuer")
        problem = "a provider, but neither auth.oauth2.client_id nor auth.oauth2.audience"
        raise _wrong(file, name, problem, "client_id for introspection of tokens, audience to validate JWTs here")
    if auth.mtls.crl is not None and auth.mtls.ca is None:
        file, name = blame("auth.mtls.crl")
        raise _wrong(file, name, "revoked certificates without auth.mtls.ca", "name the CA's file")


def _unknown(file: str, name: str) -> ScistreamError:
    # A key is often right and only its table forgotten or misspelt.
    of_last_word = [known for known in _BY_NAME if known.rpartition(".")[2] == name.rpartition(".")[2]]
    hint = f"did you mean {of_last_word[0]}?" if of_last_word else did_you_mean(name, [*_BY_NAME, *_TABLES])
    return _wrong(file, shown(name)[1:-1], "no such key", hint or "docs/configuration.md lists the keys")


def _wrong(file: str, name: str, problem: str, hint: str) -> ScistreamError:
    return ScistreamError(Code.INVALID_ARGUMENT, f"{file}: {name}: {problem}", hint)


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return shown(value) if isinstance(value, str) else shown(str(value))[1:-1]
