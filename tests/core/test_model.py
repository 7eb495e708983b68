from __future__ import annotations

import hashlib
import ipaddress
import uuid

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from scistreamd.errors import Code, ScistreamError
from scistreamd.model import PUBLIC_UID, Endpoint, PortRange, Role, Security, Target, Uid, unmapped

BAD_TARGETS = [
    "", ":", ":80", "host", "host:", "192.0.2.1", "192.0.2.1:0", "192.0.2.1:65536", "192.0.2.1:-1", "192.0.2.1:+80",
    "192.0.2.1: 80", "192.0.2.1:80 ", " 192.0.2.1:80", "192.0.2.1:80\n", "192.0.2.1\n:80", "192.0.2.1:8\u0660",
    "127.1:80", "2130706433:80", "0x7f.1:80", "0x7f000001:80", "0177.0.0.1:80", "127.0.0.01:80", "1.2.3.4.5:80",
    "host.1:80",
    "::1:80", "[::1]", "[::1]80", "[::1:80", "[fe80::1%eth0]:80", "[192.0.2.1]:80", "[]:80", "a b:80", 'a"b:80',
    "a;b:80",
    "a{b}:80", "a'b:80", "a\\b:80", "-host:80", "host-:80", "a..b:80", ".:80", "münchen.example:80", "a/b:80",
    "user@host:80",
    "h" * 64 + ":80", "http://host:80", "unix:/run/x:80", "${x}:80", "%d:80", "a\x00b:80", "x." * 130 + "y:80",
]  # fmt: skip


@pytest.mark.parametrize("text", BAD_TARGETS)
def test_bad_targets_are_refused_by_name(text: str) -> None:
    with pytest.raises(ScistreamError) as caught:
        Target.parse(text, "remote_listeners[3]")
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert caught.value.message.startswith("remote_listeners[3]: ")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("192.0.2.1:5001", "192.0.2.1:5001"),
        ("[2001:DB8:0::1]:1", "[2001:db8::1]:1"),
        ("Data.Example.ORG.:65535", "data.example.org:65535"),
        ("localhost:80", "localhost:80"),
        ("xn--mnchen-3ya.example:80", "xn--mnchen-3ya.example:80"),
        ("node_1:80", "node_1:80"),
    ],
)
def test_good_targets(text: str, canonical: str) -> None:
    assert str(Target.parse(text)) == canonical


@given(st.text(max_size=300))
def test_any_text_is_a_target_or_a_clear_error(text: str) -> None:
    try:
        target = Target.parse(text)
    except ScistreamError as problem:
        assert problem.code is Code.INVALID_ARGUMENT
        return
    assert 1 <= target.port <= 65535
    assert not set(str(target)) & set(" \n\r\t\"';{}$%\\\0/")
    assert Target.parse(str(target)) == target


@given(st.ip_addresses(), st.integers(1, 65535))
@example(ipaddress.IPv6Address("::ffff:192.0.2.1"), 1)
def test_endpoints_read_back_as_targets(address: ipaddress.IPv4Address, port: int) -> None:
    target = Target.parse(str(Endpoint(address, port)))
    assert (target.address, target.port) == (unmapped(address), port)


@given(st.binary(min_size=16, max_size=16))
def test_uid_has_two_spellings_and_hides(raw: bytes) -> None:
    text = str(uuid.UUID(bytes=raw))
    uid = Uid.parse(text)
    assert uid == Uid.parse(text.replace("-", "")) == Uid.parse(text.upper())
    assert uid.reveal() == text
    assert uid.id == hashlib.sha256(raw).hexdigest()[:12]
    for shown in (repr(uid), str(uid), f"{uid}"):
        assert text not in shown
        assert raw.hex() not in shown


@pytest.mark.parametrize(
    "text",
    [
        "", "x", "../../etc/passwd", PUBLIC_UID + "\n", "\n" + PUBLIC_UID, "{" + PUBLIC_UID + "}",
        "urn:uuid:" + PUBLIC_UID,
        PUBLIC_UID[:-1], PUBLIC_UID + "0", PUBLIC_UID.replace("-", "")[:-1] + "g", PUBLIC_UID.replace("-", "_"),
        " " * 36,
        "4f8583bca4d3-11ee-9fd6-034d1fcbd7c3-", "٤f8583bc-a4d3-11ee-9fd6-034d1fcbd7c3", "K" * 32,
    ],
)  # fmt: skip
def test_nothing_else_is_a_uid_and_it_is_not_echoed(text: str) -> None:
    with pytest.raises(ScistreamError) as caught:
        Uid.parse(text)
    assert caught.value.code is Code.INVALID_ARGUMENT
    if len(text) > 2:
        assert text not in str(caught.value)


def test_which_uids_protect_little() -> None:
    assert "published" in Uid.parse(PUBLIC_UID).warning
    assert "guessed" in Uid.parse(str(uuid.uuid1())).warning
    assert not Uid.random().warning
    assert uuid.UUID(Uid.random().reveal()).version == 4


def test_port_range() -> None:
    ports = PortRange.parse("5100-5200")
    assert (len(ports), 5100 in ports, 5200 in ports, 5201 in ports) == (101, True, True, False)
    assert str(PortRange.parse("5100")) == "5100-5100"


@pytest.mark.parametrize(
    "text", ["", "-", "5200-5100", "0-10", "1-65536", "a-b", "1-2-3", "5100--5200", "-5100", "5100-"]
)
def test_bad_port_range(text: str) -> None:
    with pytest.raises(ScistreamError, match="port-range") as caught:
        PortRange.parse(text)
    assert caught.value.hint == "FIRST-LAST, for example 5100-5200"


def test_roles_and_security() -> None:
    assert Role.parse("PROD") is Role.PROD
    assert Security.parse("PSK-Null") is Security.PSK_NULL
    for bad in ("prod", "", "BOTH", "PROD\n"):
        with pytest.raises(ScistreamError, match="role"):
            Role.parse(bad)
    with pytest.raises(ScistreamError, match="tls, psk-null, none"):
        Security.parse("ssl")
