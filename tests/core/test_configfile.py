"""The configuration file: defaults, every kind of value, and what is said about a wrong one."""

from __future__ import annotations

import ipaddress
import sys
from pathlib import Path
from typing import Any

import pytest

from scistreamd import configfile
from scistreamd.config import Settings
from scistreamd.configkeys import KEYS
from scistreamd.configread import read
from scistreamd.errors import Code, ScistreamError
from scistreamd.model import PortRange, Security

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent.parent
NAME = "scistreamd.toml"


def parse(text: str, *more: str) -> Settings:
    names = [NAME, *(f"{number}.toml" for number in range(len(more)))]
    return configfile.parse([(name, tomllib.loads(each)) for name, each in zip(names, (text, *more), strict=True)])


def refusal(*texts: str) -> ScistreamError:
    with pytest.raises(ScistreamError) as caught:
        parse(*texts)
    assert caught.value.code is Code.INVALID_ARGUMENT
    return caught.value


def test_nothing_said_is_every_default() -> None:
    assert configfile.parse([]) == Settings()
    assert parse("") == Settings()


def test_every_key_can_be_said() -> None:
    """All that `effective` writes is read back, also where no value is the default."""
    settings = parse(
        """
        advertise = "192.0.2.7"
        port_range = "6000-6100"
        default_type = "nginxsubprocess"
        require_auth = false
        idle_exit = 90.5
        [listen]
        inbound = "::"
        outbound = "192.0.2.1"
        [security]
        default = "none"
        allowed = ["tls", "none"]
        [control]
        certificate = "/etc/scistreamd/server.crt"
        key = "/etc/scistreamd/server.key"
        limits.connections = 5
        [log]
        level = "debug"
        [quotas]
        pending = 3
        [times]
        hello = 9
        [tuning]
        threads = 2
        """
    )
    assert settings.listen_inbound == ipaddress.ip_address("::")
    assert settings.port_range == PortRange(6000, 6100)
    assert settings.default_type == "NginxSubprocess"
    assert settings.allowed_security == {Security.TLS, Security.NONE}
    assert (settings.require_auth, settings.idle_exit, settings.log_level) == (False, 90.5, "debug")
    assert (settings.quotas.pending, settings.times.hello, settings.tuning.threads) == (3, 9, 2)
    assert settings.control.limits.connections == 5
    assert str(settings.control.key) == "/etc/scistreamd/server.key"
    assert parse(configfile.effective(settings)) == settings
    assert parse(configfile.effective(Settings())) == Settings()


def test_drop_ins_count_in_order_and_key_by_key() -> None:
    settings = parse("times.hello = 1\ntimes.update = 2", "[times]\nhello = 3", 'port_range = "7000"')
    assert (settings.times.hello, settings.times.update) == (3, 2)
    assert settings.port_range == PortRange(7000, 7000)
    assert parse('listen.inbound = "192.0.2.1"', 'listen.inbound = ""') == Settings()


WRONG: list[tuple[str, str]] = [
    ('listen.inbound = "nowhere"', "listen.inbound"),
    ("listen.inbound = 5", "listen.inbound"),
    ('listen.outbound = "0.0.0.0"', "listen.outbound"),
    ('advertise = "::"', "advertise"),
    ('port_range = "9-5"', "port_range"),
    ("port_range = 5100", "port_range"),
    ('default_type = "S2DS"', "default_type"),
    ('security.default = "ssl"', "security.default"),
    ("security.allowed = []", "security.allowed"),
    ('security.allowed = "tls"', "security.allowed"),
    ("security.allowed = [5]", "security.allowed"),
    ('require_auth = "no"', "require_auth"),
    ("idle_exit = -1", "idle_exit"),
    ("idle_exit = nan", "idle_exit"),
    ("idle_exit = true", "idle_exit"),
    ('log.level = "loud"', "log.level"),
    ("log.level = []", "log.level"),
    ("quotas.pending = 0", "quotas.pending"),
    ("quotas.pending = 1.5", "quotas.pending"),
    ("quotas.pending = true", "quotas.pending"),
    ("times.hello = 0", "times.hello"),
    ("times.hello = inf", "times.hello"),
    ('control.certificate = "server.crt"', "control.certificate"),
    ("control.limits.streams = 0", "control.limits.streams"),
    ("times = 5", "times"),
    ("control.limits = 5", "control.limits"),
]


@pytest.mark.parametrize(("text", "key"), WRONG, ids=[text for text, _ in WRONG])
def test_a_wrong_value_names_file_key_and_what_was_expected(text: str, key: str) -> None:
    error = refusal("", text)
    assert error.message.startswith(f"0.toml: {key}: ")
    assert "expected" in error.hint or "with keys below it" in error.hint


@pytest.mark.parametrize(
    ("text", "key", "guess"),
    [
        ('port-range = "5100-5200"', "port-range", "port_range"),
        ("[time]\nhello = 5", "time", "times"),
        ("[quota]\npending = 5", "quota", "quotas"),
        ("pending = 5", "pending", "quotas.pending"),
        ("[times]\nhelo = 5", "times.helo", "times.hello"),
        ("control.limits.conections = 5", "control.limits.conections", "control.limits.connections"),
    ],
)
def test_an_unknown_key_is_an_error_with_a_guess(text: str, key: str, guess: str) -> None:
    error = refusal(text)
    assert error.message == f"{NAME}: {key}: no such key"
    assert error.hint == f"did you mean {guess}?"


def test_an_unknown_key_like_no_other() -> None:
    assert "docs/configuration.md" in refusal("zzz = 1").hint
    assert "\n" not in refusal('"a\\nb" = 1').message


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('security.default = "none"', "security.default"),
        ('security.allowed = ["none"]', "security.allowed"),
        ('security.default = "psk-null"\nsecurity.allowed = ["psk-null"]', "security.default"),
        ('control.certificate = "/a"', "control.certificate"),
        ('control.key = "/a"', "control.key"),
        ("control.limits.pending_bytes = 1024", "control.limits.pending_bytes"),
    ],
)
def test_keys_that_do_not_go_together(text: str, key: str) -> None:
    assert refusal("", text).message.startswith(f"0.toml: {key}: ")


def test_what_a_reload_does_not_take_up_is_named() -> None:
    after = parse("control.limits.streams = 5\ntimes.hello = 5")
    assert configfile.needs_restart(Settings(), after) == ["control.limits.streams"]


def test_files_are_read_in_order(tmp_path: Path) -> None:
    main = tmp_path / NAME
    assert read(main, required=False) == Settings()
    main.write_text("times.hello = 1\n")
    drop_ins = tmp_path / f"{NAME}.d"
    drop_ins.mkdir()
    (drop_ins / "20-b.toml").write_text("times.hello = 3\n")
    (drop_ins / "10-a.toml").write_text("times.hello = 2\ntimes.update = 2\n")
    for ignored in ("30.toml~", ".40.toml", "README"):
        (drop_ins / ignored).write_text("no TOML at all")
    settings = read(main, required=True)
    assert (settings.times.hello, settings.times.update) == (3, 2)


def unreadable(path: Path, content: bytes) -> ScistreamError:
    path.write_bytes(content)
    with pytest.raises(ScistreamError) as caught:
        read(path, required=True)
    assert caught.value.message.startswith(str(path))
    return caught.value


def test_a_file_that_is_no_toml_names_the_line(tmp_path: Path) -> None:
    assert "line 2" in unreadable(tmp_path / NAME, b"advertise = ''\nport_range = 5100-5200\n").message
    assert "line 3" in unreadable(tmp_path / NAME, b"[times]\nhello = 1\nhello = 2\n").message
    assert "byte 1 is not UTF-8" in unreadable(tmp_path / NAME, b"#\xff").message


def test_a_file_that_is_missing_or_a_directory(tmp_path: Path) -> None:
    with pytest.raises(ScistreamError, match="is not there") as caught:
        read(tmp_path / NAME, required=True)
    assert caught.value.code is Code.NOT_FOUND
    (tmp_path / NAME).mkdir()
    with pytest.raises(ScistreamError, match="cannot read") as caught:
        read(tmp_path / NAME, required=False)
    assert caught.value.code is Code.FAILED_PRECONDITION


def test_every_setting_has_a_key_and_every_key_a_default() -> None:
    def leaves(value: Any, path: str) -> set[str]:
        fields = getattr(value, "__dataclass_fields__", {})
        if not fields or isinstance(value, PortRange):
            return {path}
        return {leaf for name in fields for leaf in leaves(getattr(value, name), f"{path}.{name}".lstrip("."))}

    of_the_rate = {"tuning.record_bytes"}  # of each tunnel, by its rate
    assert leaves(Settings(), "") - of_the_rate == {key.path for key in KEYS}
    assert len({key.name for key in KEYS}) == len(KEYS)
    for key in KEYS:
        assert key.kind.parse(tomllib.loads(f"x = {key.default}")["x"]) == key.value(Settings()), key.name


def test_the_document_has_the_table() -> None:
    assert configfile.reference() in (ROOT / "docs" / "configuration.md").read_text()
