"""Metrics for Prometheus: read by the library's own parsers, served within bounds, asked for by the dashboard."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from prometheus_client import openmetrics
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families

from scistreamd.counts import Counts, Health, Totals
from scistreamd.errors import Code, ScistreamError
from scistreamd.gate import Gate, Verb
from scistreamd.metrics import Metrics
from scistreamd.metrics_http import MetricsDoor
from scistreamd.model import Caller, Options, Role, Target, Uid
from scistreamd.network import HostNetwork
from tests.service.bus_kit import LOOPBACK, SETTINGS, Counted, Tunnels
from tests.service.service_kit import daemon, listener

ROOT = Path(__file__).parent.parent.parent
DASHBOARD = ROOT / "packaging" / "grafana" / "scistreamd.json"
UNIT = ROOT / "systemd" / "scistreamd-metrics.socket"


@pytest_asyncio.fixture(name="tunnels")
async def _tunnels() -> AsyncIterator[Tunnels]:
    tunnels = Tunnels()
    network = HostNetwork(1)
    grant = Gate(SETTINGS, network).admit(Caller("test", peer=LOOPBACK, reached=LOOPBACK), Verb.CREATE)
    await tunnels.create(grant, Role.PROD, (Target("192.0.2.1", 5001),), Options(label='a "label"\\'), Uid.random())
    await tunnels.create(grant, Role.CONS, (Target("192.0.2.1", 5100),), Options(), Uid.random())
    yield tunnels
    network.close()


@pytest.fixture(name="counted")
def _counted(tunnels: Tunnels) -> Counted:
    counted = Counted(tunnels)
    first = tunnels.tunnels()[0].id
    counted.values[first] = Counts(
        connections=2,
        connections_total=7,
        plain=Totals(1 << 60, 5, 6, 8),
        wan=Totals(9, 10, 11, 12),
        retransmits=3,
        health=Health(2, 1500, 20, 12345),
        used=1_700_000_000.5,
    )
    return counted


def families(text: bytes) -> dict[str, Metric]:
    return {family.name: family for family in text_string_to_metric_families(text.decode())}


def samples(text: bytes) -> dict[tuple[str, str, str], float]:
    """By name, id or state, and direction."""
    return {
        (each.name, each.labels.get("id") or each.labels.get("state", ""), each.labels.get("direction", "")): each.value
        for family in text_string_to_metric_families(text.decode())
        for each in family.samples
    }


def test_values_and_labels(tunnels: Tunnels, counted: Counted) -> None:
    text, content_type = Metrics(tunnels, counted).text("")
    assert content_type.startswith("text/plain; version=")
    first, second = (view.id for view in tunnels.tunnels())
    found = samples(text)
    prefix = "scistreamd_tunnel_"
    expected = {
        ("bytes_total", "in"): 1 << 60, ("bytes_total", "out"): 5, ("packets_total", "in"): 6,
        ("packets_total", "out"): 8, ("wan_bytes_total", "in"): 9, ("wan_bytes_total", "out"): 10,
        ("connections_total", ""): 7, ("open_connections", ""): 2, ("wan_retransmits_total", ""): 3,
        ("wan_rtt_seconds", ""): 0.0015, ("wan_cwnd_segments", ""): 20, ("wan_connections", ""): 2,
        ("wan_delivery_rate_bytes_per_second", ""): 12345, ("used_timestamp_seconds", ""): 1_700_000_000.5,
        ("estimated", ""): 0,
    }  # fmt: skip
    assert {
        (name.removeprefix(prefix), way): value for (name, of, way), value in found.items() if of == first
    } == expected
    assert found[f"{prefix}bytes_total", second, "in"] == 0
    assert found["scistreamd_tunnels", "active", ""] == 2
    assert found["scistreamd_tunnels", "failed", ""] == 0
    assert found["scistreamd_counters_available", "", ""] == 1
    labels = [each.labels for family in families(text).values() for each in family.samples if "id" in each.labels]
    assert {frozenset(each) - {"direction"} for each in labels} == {frozenset({"id", "label", "role", "type"})}
    assert {each["label"] for each in labels} == {'a "label"\\', ""}
    for uid in tunnels.uids.values():
        assert uid.reveal().encode() not in text
    assert b"192.0.2" not in text


def test_names_and_units_by_the_conventions(tunnels: Tunnels, counted: Counted) -> None:
    """prometheus.io/docs/practices/naming, as far as a program can say; OpenMetrics' parser is strict beyond."""
    text, content_type = Metrics(tunnels, counted).text("application/openmetrics-text; version=1.0.0")
    assert content_type.startswith(openmetrics.exposition.CONTENT_TYPE_LATEST.partition(";")[0])
    strict = list(openmetrics_families(text.decode()))
    for family in strict:
        assert re.fullmatch(r"scistreamd(_[a-z]+)+", family.name)
        assert family.documentation
        assert family.type in ("counter", "gauge")
        assert not re.search(r"milli|micro|usec|kilo|_ms\b|_total", family.name)
        assert all(each.name.endswith("_total") == (family.type == "counter") for each in family.samples)
    assert {each.name for each in strict} == set(families(Metrics(tunnels, counted).text("")[0]))


def test_what_cannot_be_seen_is_not_zero(tunnels: Tunnels, counted: Counted) -> None:
    counted.problem = ScistreamError(Code.UNAVAILABLE, "the kernel tells nothing")
    found = samples(Metrics(tunnels, counted).text("")[0])
    assert found["scistreamd_counters_available", "", ""] == 0
    assert not [name for name, *_ in found if name.startswith("scistreamd_tunnel_")]
    assert found["scistreamd_tunnels", "active", ""] == 2


def test_the_dashboard_asks_for_what_there_is(tunnels: Tunnels, counted: Counted) -> None:
    text = Metrics(tunnels, counted).text("")[0]
    there = {each.name: set(each.labels) for family in families(text).values() for each in family.samples}
    dashboard = json.loads(DASHBOARD.read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    queries += [each["query"] for each in dashboard["templating"]["list"] if each["type"] == "query"]
    asked = set()
    for query in queries:
        names = re.findall(r"\bscistreamd_\w+", query)
        assert names, query
        asked |= set(names)
        for name, selector in re.findall(r"(scistreamd_\w+)\{([^}]*)\}", query):
            labels = set(re.findall(r"(\w+)\s*=~?", selector)) - {"instance"}  # Prometheus adds that one
            assert labels <= there[name], query
        for name, label in re.findall(r"label_values\((\w+), (\w+)\)", query):
            assert label == "instance" or label in there[name], query
        for by in re.findall(r"by \(([^)]*)\)", query):
            assert set(re.split(r",\s*", by)) <= set.union(*(there[name] for name in names)), query
    assert asked - {"scistreamd_build_info"} == there.keys() - {"scistreamd_build_info"}
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in dashboard["panels"]]
    assert len(set(places)) == len(places)


# The door


@pytest_asyncio.fixture(name="port")
async def _port() -> AsyncIterator[int]:
    with listener() as bound:
        door = MetricsDoor([bound], lambda accept: (f"accept {accept}\n".encode(), "text/x"))
        await door.open()
        door.serve()
        yield bound.getsockname()[1]
        await door.close()


async def asked(port: int, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """Status, header and body of the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    raw = await reader.read()
    writer.close()
    await writer.wait_closed()
    head, _, body = raw.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    return int(first.split()[1]), dict(line.split(": ", 1) for line in lines), body


async def test_http(port: int) -> None:
    get = b"GET /metrics?x=1 HTTP/1.1\r\nHost: x\r\nAccept: a/b\r\naccept: c/d;q=0.5\r\n\r\n"
    status, header, body = await asked(port, get)
    assert (status, body) == (200, b"accept a/b,c/d;q=0.5\n")
    assert header == {"Content-Type": "text/x", "Content-Length": str(len(body)), "Connection": "close"}
    status, head, nothing = await asked(port, get.replace(b"GET", b"HEAD"))
    assert (status, head, nothing) == (200, header, b"")
    for request, expected in (
        (b"GET / HTTP/1.1\r\n\r\n", 404),
        (b"POST /metrics HTTP/1.1\r\nContent-Length: 0\r\n\r\n", 405),
        (b"GET /metrics\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.1\r\nX: " + b"x" * 70_000, 431),
    ):
        assert (await asked(port, request))[0] == expected
    assert (await asked(port, b"PUT /metrics HTTP/1.1\r\n\r\n"))[1]["Allow"] == "GET, HEAD"


async def test_http_is_bounded(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight that say nothing keep nobody out for long, and hold nothing for ever."""
    monkeypatch.setattr("scistreamd.metrics_http._READ_SECONDS", 2)
    silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(8)]
    assert (await asked(port, b"GET /metrics HTTP/1.1\r\n\r\n"))[0] == 503
    for reader, writer in silent:
        assert (await reader.read()).startswith(b"HTTP/1.1 408 ")
        writer.close()
    assert (await asked(port, b"GET /metrics HTTP/1.1\r\n\r\n"))[0] == 200


async def test_the_service_serves_the_socket_named_metrics(tmp_path: Path) -> None:
    """As scistreamd-metrics.socket passes it beside the control port's; and the daemon does not listen otherwise."""
    assert "FileDescriptorName=metrics\n" in UNIT.read_text()
    assert re.findall(r"^ListenStream=(.*)$", UNIT.read_text(), re.MULTILINE) == ["127.0.0.1:9641"]
    with listener() as control, listener() as metrics:
        names = {"LISTEN_FDNAMES": "scistreamd.socket:metrics"}
        async with daemon(tmp_path, listeners=[control, metrics], environment=names) as here:
            status, header, body = await asked(here.ports[1], b"GET /metrics HTTP/1.1\r\n\r\n")
            assert (status, header["Content-Type"].partition(";")[0]) == (200, "text/plain")
            assert samples(body)["scistreamd_tunnels", "active", ""] == 0
            with pytest.raises(ConnectionError), socket.create_connection(("127.0.0.1", here.ports[0])) as plain:
                plain.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
                while plain.recv(100):
                    pass
                raise ConnectionError("it closed at once")


async def test_without_the_library_the_page_says_so(tmp_path: Path) -> None:
    (tmp_path / "prometheus_client").mkdir()
    (tmp_path / "prometheus_client" / "__init__.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'prometheus_client'\", name='prometheus_client')\n"
    )
    with listener() as control, listener() as metrics:
        more = {
            "LISTEN_FDNAMES": "scistreamd.socket:metrics",
            "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}",
        }
        async with daemon(tmp_path, listeners=[control, metrics], environment=more) as here:
            status, _, body = await asked(here.ports[1], b"GET /metrics HTTP/1.1\r\n\r\n")
            assert (status, b"install python3-prometheus-client" in body) == (503, True)
            assert "metrics need Python's prometheus_client" in here.log
