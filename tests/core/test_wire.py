"""Everything the wire brings ends as a valid type or as INVALID_ARGUMENT naming the field."""

from __future__ import annotations

import ipaddress
import string
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from scistreamd import options
from scistreamd.control import scistream_pb2 as pb
from scistreamd.control import wire
from scistreamd.errors import Code, ScistreamError
from scistreamd.model import Answer, Endpoint, Options, Role, Security, Target, Uid

UID = "4f8583bc-a4d3-11ee-9fd6-034d1fcbd7c3"

hostile = st.text(max_size=80) | st.sampled_from(
    ["../../etc/passwd", UID + "\n", "a;b", 'a"b:1', "{:1", "127.1:80", "2130706433:80", "0x7f.1:80", "h:0", "h:65536"]
)
metadata = st.lists(
    st.tuples(
        st.sampled_from([*wire.KEYS, "scistream-x", "authorization", "scistream-x-bin"]),
        hostile | st.binary(max_size=9),
    ),
    max_size=4,
)


def request(**changes: Any) -> pb.Request:
    return pb.Request(**{"uid": UID, "role": "PROD", "num_conn": 1, "rate": 10000, **changes})


def refusal(call: Any, *arguments: Any) -> ScistreamError:
    with pytest.raises(ScistreamError) as caught:
        call(*arguments)
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert UID not in str(caught.value)
    return caught.value


def test_a_request_of_an_old_client() -> None:
    call = wire.parse_req(request(num_conn=3), [("authorization", "INVALID_TOKEN"), ("user-agent", "grpc-python")])
    assert call == wire.ReqCall(Uid.parse(UID), Role.PROD, 3, Options(sent_rate=10000))


def test_every_option() -> None:
    call = wire.parse_req(
        request(rate=250),
        [
            ("scistream-type", "nginx"),
            ("scistream-security", "TLS"),
            ("scistream-lifetime", "3600"),
            ("scistream-label", "Strahlrohr%20%C3%A4"),
            ("scistream-allow-from", "192.0.2.0/24, 2001:db8::/32,198.51.100.7"),
            ("scistream-exact-ports", "true"),
            ("scistream-rate-policy", "enforce"),
        ],
    )
    assert call.options == Options(
        data_server="nginx",
        security=Security.TLS,
        lifetime=3600,
        label="Strahlrohr ä",
        allow_from=tuple(map(ipaddress.ip_network, ("192.0.2.0/24", "2001:db8::/32", "198.51.100.7/32"))),
        exact_ports=True,
        rate=250,
    )


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"uid": ""}, "uid"),
        ({"uid": UID + "\n"}, "uid"),
        ({"uid": "../../../etc/passwd"}, "uid"),
        ({"uid": UID.replace("-", "")[:-1]}, "uid"),
        ({"role": "prod"}, "role"),
        ({"role": ""}, "role"),
        ({"num_conn": 0}, "num_conn"),
        ({"num_conn": -1}, "num_conn"),
        ({"num_conn": 65536}, "num_conn"),
        ({"num_conn": 2**31 - 1}, "num_conn"),
        ({"rate": -1}, "rate"),
        ({"rate": -(2**31)}, "rate"),
    ],
)
def test_a_request_out_of_bounds(changes: dict[str, Any], named: str) -> None:
    assert refusal(wire.parse_req, request(**changes)).message.startswith(f"{named}: ")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("scistream-type", ""),
        ("scistream-type", "a\x00b"),
        ("scistream-type", "x" * 65),
        ("scistream-security", "ssl3"),
        ("scistream-lifetime", "0"),
        ("scistream-lifetime", "-1"),
        ("scistream-lifetime", "1e3"),
        ("scistream-lifetime", " 1"),
        ("scistream-lifetime", "\u0661"),
        ("scistream-lifetime", str(options.MAX_LIFETIME + 1)),
        ("scistream-label", "x" * 65),
        ("scistream-label", "a%0Ab"),
        ("scistream-label", "100%"),
        ("scistream-label", "%ff"),
        ("scistream-label", "%E2%80%AE"),
        ("scistream-label", "\xe4"),
        ("scistream-allow-from", ""),
        ("scistream-allow-from", "10.0.0.0/8,"),
        ("scistream-allow-from", "10.0.0.1/8"),
        ("scistream-allow-from", "10.0.0.0/255.0.0.0"),
        ("scistream-allow-from", "10.0.0.0/33"),
        ("scistream-allow-from", "fe80::1%eth0"),
        ("scistream-allow-from", "everyone"),
        ("scistream-exact-ports", "True"),
        ("scistream-exact-ports", ""),
        ("scistream-rate-policy", "ignore"),
    ],
)
def test_an_option_of_no_sense_is_named(key: str, value: str) -> None:
    assert refusal(wire.parse_req, request(), [(key, value)]).message.startswith(key)


@pytest.mark.parametrize("pair", [("scistream-shiny", "1"), ("scistream-type-bin", "x"), ("scistream-", "")])
def test_an_unknown_option_is_named(pair: tuple[str, str]) -> None:
    assert pair[0] in refusal(wire.parse_req, request(), [pair]).message


def test_a_binary_value_and_a_repeated_key_are_refused() -> None:
    assert "scistream-type" in refusal(wire.parse_req, request(), [("scistream-type", b"x")]).message
    twice = [("scistream-type", "nginx"), ("scistream-type", "nginx")]
    assert "more than once" in refusal(wire.parse_req, request(), twice).message


@pytest.mark.parametrize("key", wire.KEYS)
def test_options_elsewhere_are_refused_and_not_ignored(key: str) -> None:
    pair = [(key, "true")]
    assert refusal(wire.parse_hello, pb.Hello(uid=UID, role="CONS"), pair).message.startswith(key)
    update = pb.UpdateTargets(uid=UID, remote_listeners=["h:1"])
    assert refusal(wire.parse_update, update, pair).message.startswith(key)
    assert refusal(wire.parse_release, pb.Release(uid=UID), pair).message.startswith(key)


def test_rate_counts_only_where_it_is_to_be_enforced() -> None:
    assert wire.parse_req(request(rate=10000)).options.rate == 0
    assert wire.parse_req(request(rate=10000), [("scistream-rate-policy", "enforce")]).options.rate == 10000
    assert wire.parse_req(request(rate=0), [("scistream-rate-policy", "enforce")]).options.rate == 0


def test_hello_names_its_entries() -> None:
    hello = pb.Hello(uid=UID, role="PROD", prod_listeners=["192.0.2.1:5001", "[2001:db8::1]:5002"])
    assert wire.parse_hello(hello).entries == (Target("192.0.2.1", 5001), Target("2001:db8::1", 5002))
    hello.prod_listeners.append("192.0.2.1")
    assert refusal(wire.parse_hello, hello).message.startswith("prod_listeners[2]: ")


def test_only_an_outbound_hello_may_be_empty() -> None:
    assert wire.parse_hello(pb.Hello(uid=UID, role="CONS")).entries == ()
    assert refusal(wire.parse_hello, pb.Hello(uid=UID, role="PROD")).message.startswith("prod_listeners: ")
    assert refusal(wire.parse_update, pb.UpdateTargets(uid=UID)).message.startswith("remote_listeners: ")


def test_update_of_an_older_client_has_no_role() -> None:
    call = wire.parse_update(pb.UpdateTargets(uid=UID, remote_listeners=["gateway.example:5100"]))
    assert call == wire.UpdateCall(Uid.parse(UID), None, (Target("gateway.example", 5100),))
    assert refusal(wire.parse_update, pb.UpdateTargets(uid=UID, role="X")).message.startswith("role: ")


@pytest.mark.parametrize("entry", ["h:1\n", 'h":1', "h;:1", "{h:1", "h h:1", "h", "h:0", "h:65536", "127.1:1", "ä:1"])
def test_the_entry_that_is_wrong_is_named(entry: str) -> None:
    update = pb.UpdateTargets(uid=UID, remote_listeners=["a:1", "b:1", "c:1", entry])
    assert refusal(wire.parse_update, update).message.startswith("remote_listeners[3]: ")


def test_ten_thousand_entries_are_too_many() -> None:
    assert len(wire.parse_update(pb.UpdateTargets(uid=UID, remote_listeners=["h:1"] * 1000)).targets) == 1000
    many = pb.UpdateTargets(uid=UID, remote_listeners=["h:1"] * 10_000)
    assert "10000 entries" in refusal(wire.parse_update, many).message


def test_answers_are_text() -> None:
    listeners = (Endpoint(ipaddress.ip_address("192.0.2.9"), 5100), Endpoint(ipaddress.ip_address("2001:db8::9"), 5101))
    answer = Answer(listeners, (Target("host.example", 5001),))
    text = ["192.0.2.9:5100", "[2001:db8::9]:5101"]
    assert wire.response(answer) == pb.Response(listeners=text, prod_listeners=["host.example:5001"])
    prod, cons = wire.app_response(Role.PROD, answer), wire.app_response(Role.CONS, answer)
    assert prod == pb.AppResponse(message="Sending Prod listeners...", listeners=text)
    assert cons == pb.AppResponse(message="Sending listeners...", listeners=text)


@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=64).filter(str.isprintable))
@example("100 % ä")
def test_a_label_travels_percent_encoded(label: str) -> None:
    assert wire.parse_options([("scistream-label", quote(label))]).label == label


@given(hostile, hostile, st.integers(-(2**31), 2**31 - 1), st.integers(-(2**31), 2**31 - 1), metadata)
def test_any_request_is_parsed_or_refused(
    uid: str, role: str, count: int, rate: int, pairs: list[tuple[str, str | bytes]]
) -> None:
    message = pb.Request(uid=_sendable(uid), role=_sendable(role), num_conn=count, rate=rate)
    _parsed_or_refused(wire.parse_req, message, pairs)


@given(st.sampled_from(["PROD", "CONS", ""]), st.lists(hostile, max_size=5), metadata)
def test_any_list_is_parsed_or_refused(role: str, entries: list[str], pairs: list[tuple[str, str | bytes]]) -> None:
    texts = [_sendable(entry) for entry in entries]
    _parsed_or_refused(wire.parse_hello, pb.Hello(uid=UID, role=role, prod_listeners=texts), pairs)
    _parsed_or_refused(wire.parse_update, pb.UpdateTargets(uid=UID, role=role, remote_listeners=texts), pairs)


def _sendable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def _parsed_or_refused(call: Any, message: Any, pairs: list[tuple[str, str | bytes]]) -> None:
    try:
        call(message, pairs)
    except ScistreamError as error:
        assert error.code is Code.INVALID_ARGUMENT
        # What goes into trailers, terminals and logs: no control character, no UID.
        told = options.veiled(str(error))
        assert all(character in string.printable for character in told)
        assert "\n" not in told
        assert UID not in told


@pytest.mark.parametrize(
    ("sent", "token"),
    [
        ("abc", "abc"),
        ("Bearer abc", "abc"),
        ("bearer  abc ", "abc"),
        ("INVALID_TOKEN", ""),
        ("Bearer INVALID_TOKEN", ""),
        ("", ""),
        ("Bearer", ""),
    ],
)
def test_tokens_come_bare_or_as_bearer(sent: str, token: str) -> None:
    assert wire.credentials([("authorization", sent), ("other", "x")], b"").token == token
    assert not wire.credentials([], b"")
    assert wire.credentials([], b"der")
    assert "abc" not in repr(wire.credentials([("authorization", sent)], b""))
    with pytest.raises(ScistreamError, match="more than once"):
        wire.credentials([("authorization", sent), ("authorization", sent)], b"")
