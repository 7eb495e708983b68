from __future__ import annotations

import ipaddress

import pytest

from scistreamd.errors import Code, ScistreamError
from scistreamd.policy import Quotas, why_no_target

ALWAYS = [
    "0.0.0.0", "0.1.2.3", "::", "224.0.0.1", "ff02::1", "255.255.255.255", "240.0.0.1", "169.254.0.1",
    "169.254.169.254",
    "fe80::1", "fd00:ec2::254", "100.100.100.200", "168.63.129.16", "192.0.0.192", "::ffff:169.254.169.254",
    "64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::1", "::a9fe:a9fe",
]  # fmt: skip
LOOPBACK = ["127.0.0.1", "127.255.255.254", "::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "::7f00:1"]
FINE = ["192.0.2.1", "10.0.0.1", "172.16.0.1", "192.168.1.1", "8.8.8.8", "2001:db8::1", "fd12::1", "::ffff:10.0.0.1"]


def why(text: str, *, own: bool = False, loopback_gateway: bool = False) -> str:
    return why_no_target(ipaddress.ip_address(text), own=own, loopback_gateway=loopback_gateway)


@pytest.mark.parametrize("text", ALWAYS)
def test_never_a_target(text: str) -> None:
    assert why(text)
    assert why(text, loopback_gateway=True)


@pytest.mark.parametrize("text", LOOPBACK)
def test_loopback_is_for_gateways_on_loopback(text: str) -> None:
    assert "loopback" in why(text)
    assert not why(text, loopback_gateway=True)


@pytest.mark.parametrize("text", FINE)
def test_other_hosts_are_targets(text: str) -> None:
    assert not why(text)
    assert "gateway itself" in why(text, own=True)
    assert not why(text, own=True, loopback_gateway=True)


@pytest.mark.parametrize(("count", "of_peer", "pending"), [(129, 0, 0), (1, 512, 0), (1, 0, 1024)])
def test_quotas(count: int, of_peer: int, pending: int) -> None:
    Quotas().check(128, 511, 1023)
    with pytest.raises(ScistreamError) as caught:
        Quotas().check(count, of_peer, pending)
    assert caught.value.code is Code.RESOURCE_EXHAUSTED
