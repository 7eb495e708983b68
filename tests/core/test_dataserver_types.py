"""The list of data server types, and what every one of them renders."""

from __future__ import annotations

import ipaddress
import itertools
import signal
from dataclasses import replace
from pathlib import PurePosixPath

import pytest

from scistreamd.dataserver import DATA_SERVERS, parse_type
from scistreamd.dataserver.haproxy import Haproxy
from scistreamd.errors import BugError, Code, ScistreamError
from scistreamd.interfaces import DataServer
from scistreamd.model import Endpoint, Role, Security
from scistreamd.plans import Bind, Places, Plan, Tuning

PLACES = Places(*(PurePosixPath("/run/scistreamd/0123456789ab") / name for name in ("config", "secrets", "scratch")))
DEFAULTS = Tuning()
EVERY = [
    (server, security, role)
    for server in DATA_SERVERS
    for security, role in itertools.product(sorted(server.securities, key=str), Role)
]


def endpoint(address: str, port: int) -> Endpoint:
    return Endpoint(ipaddress.ip_address(address), port)


def plan(role: Role, security: Security, *, udp: bool = False, generation: int = 1, tuning: Tuning = DEFAULTS) -> Plan:
    """Two listeners, the second with two target addresses."""
    return Plan(
        "0123456789ab",
        role,
        security,
        (Bind(endpoint("192.0.2.1", 5100), udp), Bind(endpoint("::", 5101), udp)),
        ((endpoint("198.51.100.1", 7000),), (endpoint("2001:db8::1", 7001), endpoint("198.51.100.1", 7001))),
        generation,
        tuning,
    )


@pytest.mark.parametrize("name", ["Haproxy", "Nginx", "Stunnel"])
@pytest.mark.parametrize("suffix", ["", "Subprocess"])
@pytest.mark.parametrize("spelt", [str, str.lower, str.upper])
def test_types_are_known_in_any_case(name: str, suffix: str, spelt: type[str]) -> None:
    found = parse_type(spelt(name + suffix))
    assert (found.name, found.server.name, found.subprocess) == (name + suffix, name, bool(suffix))


@pytest.mark.parametrize("text", ["", "mock", "Haproxy ", "HaproxySubprocessSubprocess", "ha\nproxy", "x" * 10_000])
def test_an_unknown_type_is_an_error_with_the_list(text: str) -> None:
    with pytest.raises(ScistreamError) as failure:
        parse_type(text)
    assert failure.value.code is Code.INVALID_ARGUMENT
    assert failure.value.message.startswith("type: ")
    assert "NginxSubprocess" in failure.value.hint
    assert len(str(failure.value)) < 300


@pytest.mark.parametrize(("server", "security", "role"), EVERY)
def test_rendering_is_pure_and_names_the_generation(server: DataServer, security: Security, role: Role) -> None:
    first = server.render(plan(role, security), PLACES)
    assert server.render(plan(role, security), PLACES) == first
    second = server.render(plan(role, security, generation=2), PLACES)
    assert second.ready != first.ready
    assert (second.argv, second.environment) == (first.argv, first.environment)
    assert first.argv[0] == server.program


@pytest.mark.parametrize(("server", "security", "role"), EVERY)
def test_only_the_tunnels_own_files_are_named(server: DataServer, security: Security, role: Role) -> None:
    program = server.render(plan(role, security), PLACES)
    text = "\n".join([*program.argv, *program.config.values()])
    named = [word for word in text.replace('"', " ").replace(",", " ").replace("unix:", " ").split() if word[0] == "/"]
    outside = {word.rstrip(";") for word in named if not word.startswith("/run/scistreamd/0123456789ab/")}
    allowed = {"/usr/share/nginx/modules-available/mod-stream.conf*", "/usr/share/nginx/modules/mod-stream.conf*"}
    allowed |= {"/usr/bin/timeout", "/bin/sh", "/dev/null"}  # what answers tests of the path under Stunnel
    assert outside <= allowed


@pytest.mark.parametrize(("server", "security", "role"), EVERY)
def test_idle_streams_outlive_a_week_and_fit_31_bits(server: DataServer, security: Security, role: Role) -> None:
    text = "\n".join(server.render(plan(role, security), PLACES).config.values())
    wanted = {
        "Haproxy": ["timeout tunnel 20d", "timeout client-fin 20d", "timeout server-fin 20d"],
        "Nginx": ["proxy_timeout 20d;", "proxy_half_close on;"],
        "Stunnel": ["TIMEOUTidle = 1728000", "TIMEOUTclose = 1728000"],
    }
    assert all(line in text for line in wanted[server.name])
    assert 7 * 86400 < 1728000 < 2**31 / 1000


def test_haproxy_reads_who_may_connect_before_where_to() -> None:
    """In the other order it does the same, and warns of it at each start."""
    wanted = plan(Role.PROD, Security.TLS)
    few = tuple(replace(each, allow_from=(ipaddress.ip_network("192.0.2.0/24"),)) for each in wanted.listeners)
    text = Haproxy().render(replace(wanted, listeners=few), PLACES).config["haproxy.cfg"]
    for listener in text.split("\nlisten ")[1:]:
        assert 0 < listener.index("tcp-request connection reject") < listener.index("use_backend answer")
        assert "tcp-request" not in listener.partition("use_backend")[2]


@pytest.mark.parametrize("server", DATA_SERVERS)
@pytest.mark.parametrize("role", Role)
def test_tls_is_1_3_mutual_and_aes_128_first(server: DataServer, role: Role) -> None:
    text = "\n".join(server.render(plan(role, Security.TLS), PLACES).config.values())
    assert "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256" in text
    assert "TLSv1.3" in text
    assert "TLSv1.2" not in text
    insists = {
        ("Haproxy", Role.PROD): "verify required",
        ("Haproxy", Role.CONS): "verify required ssl-min-ver",
        ("Nginx", Role.PROD): "ssl_verify_client on;",
        ("Nginx", Role.CONS): "proxy_ssl_verify on;",
        ("Stunnel", Role.PROD): "verifyChain = yes",
        ("Stunnel", Role.CONS): "verifyChain = yes",
    }
    assert insists[server.name, role] in text
    assert ("prod.scistream.invalid" in text) == (role is Role.CONS)


@pytest.mark.parametrize(("server", "security", "role"), EVERY)
def test_keys_are_named_only_where_they_are_needed(server: DataServer, security: Security, role: Role) -> None:
    text = "\n".join(server.render(plan(role, security), PLACES).config.values())
    assert ("leaf.pem" in text) == (security is Security.TLS)
    assert ("psk.txt" in text) == (security is Security.PSK_NULL)


@pytest.mark.parametrize("server", DATA_SERVERS)
@pytest.mark.parametrize("path", ['/run/a"b', "/run/a$b", "/run/a\nb", "/run/a;b", "/run/ü", "relative", "/run/a{b}"])
def test_a_path_that_would_need_quoting_is_a_bug(server: DataServer, path: str) -> None:
    places = Places(PurePosixPath(path), PurePosixPath(path), PurePosixPath(path))
    with pytest.raises(BugError):
        server.render(plan(Role.PROD, Security.TLS), places)


def test_haproxy_takes_the_sockets_in_order_and_tries_addresses_in_turn() -> None:
    program = parse_type("haproxy").server.render(plan(Role.CONS, Security.NONE), PLACES)
    listeners = program.config["haproxy.cfg"].partition("listen l0")[2]
    first_byte = "    tcp-request inspect-delay 20ms\n    tcp-request content accept if { req.len gt 0 }\n"
    assert listeners == (
        f"\n    bind fd@3\n{first_byte}    retries 0\n    server t0 ipv4@198.51.100.1:7000 weight 256\n"
        f"\nlisten l1\n    bind fd@4\n{first_byte}    retries 1\n    server t0 ipv6@2001:db8::1:7001 weight 256\n"
        "    server t1 ipv4@198.51.100.1:7001 weight 1\n"
    )
    assert (program.reload_signal, program.drain_signal) == (signal.SIGUSR2, signal.SIGUSR1)


def test_nginx_takes_tcp_and_udp_sockets_by_address() -> None:
    wanted = plan(Role.PROD, Security.NONE, udp=True, tuning=Tuning(threads=4))
    program = parse_type("nginx").server.render(wanted, PLACES)
    text = program.config["nginx.conf"]
    assert program.environment == {"NGINX": "3;4;5;6;"}
    listens = [line.strip() for line in text.splitlines() if line.strip().startswith("listen ")]
    assert listens == [
        'listen "unix:/run/scistreamd/0123456789ab/scratch/ready.sock";',
        "listen 192.0.2.1:5100 so_keepalive=60s:15s:8 backlog=4096;",
        "listen 192.0.2.1:5100 udp;",
        "listen [::]:5101 ipv6only=off so_keepalive=60s:15s:8 backlog=4096;",
        "listen [::]:5101 ipv6only=off udp;",
    ]
    assert "server [2001:db8::1]:7001 max_fails=0;\n        server 198.51.100.1:7001 max_fails=0 backup;" in text
    assert "worker_processes 1;" in text  # with UDP; else as many as threads
    alone = parse_type("nginx").server.render(plan(Role.PROD, Security.NONE, tuning=Tuning(threads=4)), PLACES)
    assert "worker_processes 4;" in alone.config["nginx.conf"]
    assert alone.retired is not None
    assert alone.retired.count == 4


def test_stunnel_insists_on_the_key_under_psk_null() -> None:
    program = parse_type("stunnel").server.render(plan(Role.CONS, Security.PSK_NULL), PLACES)
    text = program.config["stunnel.conf"]
    (ciphers,) = [line for line in text.splitlines() if line.startswith("ciphers = ")]
    assert all("PSK" in name for name in ciphers.removeprefix("ciphers = ").split(":"))
    assert "sslVersion = TLSv1.2" in text
    assert text.index("192.0.2.1:5100") < text.index(":::5101")  # descriptors go in section order
    assert "connect = 2001:db8::1:7001\nconnect = 198.51.100.1:7001\nfailover = prio" in text


def test_what_each_type_can_do() -> None:
    can = {server.name: (set(server.securities), set(server.udp_securities)) for server in DATA_SERVERS}
    assert can == {
        "Haproxy": ({Security.TLS, Security.NONE}, set()),
        "Nginx": ({Security.TLS, Security.NONE}, {Security.NONE}),
        "Stunnel": ({Security.TLS, Security.PSK_NULL}, set()),
    }
