"""HAProxy as a data server: configuration.txt and management.txt of HAProxy 2.6.

Master and worker (``-W``): SIGUSR2 makes the master run itself again with the
new configuration, the old worker lives as long as its streams.
"""

from __future__ import annotations

import signal

from scistreamd.dataserver.answer import (
    ANSWER_NAME,
    ANSWER_SECONDS,
    ANSWER_SOCKET,
    ANSWER_TEXT,
    ANSWERS_AT_ONCE,
    BODY_HEADER,
    answers,
)
from scistreamd.dataserver.common import (
    CERTIFICATE_NAME,
    CIPHER_SUITES,
    IDLE_DAYS,
    KEEPALIVE_INTERVAL_SECONDS,
    KEEPALIVE_PROBES,
    READY_SOCKET,
    buffer_bytes,
    quoted,
    tcp_sockets,
)
from scistreamd.model import Endpoint, Role, Security
from scistreamd.plans import CA_FILE, LEAF_FILE, Bind, LogSays, Places, Plan, Program, SocketSays

CONFIG = "haproxy.cfg"
# How long it waits for a first byte, or for the end of the client's direction, before it connects. HAProxy gives up
# connecting for a client that closes with nothing sent in that time; one that has closed before is served.
_LISTEN_MS = 20

# One line for a stream that did not end well; %ts is its termination state (configuration.txt 8.5).
_LOG = (
    "stream from %ci:%cp to %fi:%fp, target %si:%sp, ended %ts after %Tt ms, in %U out %B bytes,"
    " error: %[bc_err_str] %[ssl_bc_err_str]"
)
_ERROR_LOG = "refused %ci:%cp at %fi:%fp: %[fc_err_str] %[ssl_fc_err_str]"


class Haproxy:
    """`interfaces.DataServer` for HAProxy 2.6 and later."""

    name = "Haproxy"
    program = "haproxy"
    package = "haproxy"
    library = ""
    securities = frozenset({Security.TLS, Security.NONE})
    udp_securities: frozenset[Security] = frozenset()
    filters_sources = True

    def render(self, plan: Plan, places: Places) -> Program:
        """Render the plan; BugError for a path that cannot be quoted."""
        # Its directory keeps others out; the mode lets in a daemon that is root without capabilities.
        # The master's socket, for it answers when it can take signals; it hands `@1` on to its newest worker.
        socket = places.scratch / READY_SOCKET
        sections = [_global(plan), _defaults(plan), *_answer(plan, places), *_listeners(plan, places)]
        return Program(
            argv=("haproxy", "-W", "-S", f"{socket},mode,666", "-db", "-f", str(places.config / CONFIG)),
            environment={},
            config={CONFIG: "\n".join(sections)},
            ready=SocketSays(socket, b"@1 show info;quit\n", _description(plan).encode() + b"\n"),
            reload_signal=signal.SIGUSR2,
            drain_signal=signal.SIGUSR1,
            retired=LogSays(f"Proxy l{len(plan.listeners) - 1} stopped"),
            rejected="Loading failure!",
            routine=("[NOTICE]", "Proxy l", "Proxy <", "Proxy answer"),
        )


def _description(plan: Plan) -> str:
    return f"tunnel {plan.tunnel_id} generation {plan.generation}"


def _global(plan: Plan) -> str:
    # edge-triggered: else HAProxy 2.6 loses the end of a stream that its sender half-closes while data flows
    # both ways against back-pressure: it sees the hang-up without the unread data (docs/data-servers.md).
    # httpclient: HAProxy's own HTTP client, which nothing here uses, would load the system's CAs at each start.
    # tune.ssl.cachesize 0 and no-tls-tickets: no resumption, every connection proves itself anew.
    return f"""global
    description {_description(plan)}
    log stderr format raw local0 info
    nbthread {plan.tuning.threads}
    maxconn {plan.tuning.connections}
    no strict-limits
    tune.bufsize {buffer_bytes(plan)}
    tune.ssl.cachesize 0
    httpclient.ssl.verify none
    expose-experimental-directives
    tune.fd.edge-triggered on
"""


def _defaults(plan: Plan) -> str:
    tuning = plan.tuning
    keepalive = "".join(
        f"""
    option {side}tcpka
    {side}tcpka-idle {tuning.keepalive_idle_seconds}s
    {side}tcpka-intvl {KEEPALIVE_INTERVAL_SECONDS}s
    {side}tcpka-cnt {KEEPALIVE_PROBES}"""
        for side in ("cli", "srv")
    )
    # `timeout client` is the limit for a handshake; once both legs are connected `timeout tunnel` replaces it.
    return f"""defaults
    mode tcp
    log global
    log-format "{_LOG}"
    error-log-format "{_ERROR_LOG}"
    option dontlog-normal{keepalive}
    timeout connect {tuning.connect_seconds}s
    timeout client {tuning.handshake_seconds}s
    timeout server {IDLE_DAYS}d
    timeout tunnel {IDLE_DAYS}d
    timeout client-fin {IDLE_DAYS}d
    timeout server-fin {IDLE_DAYS}d
    balance roundrobin
    option redispatch 1
"""


def _answer(plan: Plan, places: Places) -> list[str]:
    """What answers tests of the path; a body must fit into a buffer, or it would not be read to its end."""
    if not answers(plan):
        return []
    # A quoted word may not begin in the middle of one that has a prefix: the prefix is inside.
    socket = quoted(places.scratch / ANSWER_SOCKET).replace('"', '"unix@', 1)
    body = buffer_bytes(plan) // 2
    text = f"""frontend answers
    mode http
    bind {socket} mode 600
    timeout http-keep-alive {plan.tuning.handshake_seconds}s
    http-request set-var(sess.began) date unless {{ var(sess.began) -m found }}
    http-request reject if {{ date,sub(sess.began) gt {ANSWER_SECONDS} }}
    http-request wait-for-body time {plan.tuning.handshake_seconds}s if METH_POST
    http-request return status 200 content-type text/plain hdr {BODY_HEADER} {body} string "{ANSWER_TEXT}"
backend answer
    timeout tunnel {ANSWER_SECONDS}s
    server answer {socket} maxconn {ANSWERS_AT_ONCE}
"""
    return [text]


def _listeners(plan: Plan, places: Places) -> list[str]:
    return [
        _listener(
            index,
            [f"bind fd@{fd}{_bind_tls(plan, places)}", *_allow(bind), *_first_byte(), *_to_answer(plan)],
            plan.targets[index],
            _server_tls(plan, places),
        )
        for index, fd, bind in tcp_sockets(plan)
    ]


def _to_answer(plan: Plan) -> list[str]:
    return [f"use_backend answer if {{ ssl_fc_sni -i {ANSWER_NAME} }}"] if answers(plan) else []


def _first_byte() -> list[str]:
    return [f"tcp-request inspect-delay {_LISTEN_MS}ms", "tcp-request content accept if { req.len gt 0 }"]


def _listener(index: int, begins: list[str], targets: tuple[Endpoint, ...], server_tls: str) -> str:
    # A target is tried once: HAProxy waits a second before it tries the same one again.
    lines = [f"listen l{index}", *(f"    {line}" for line in begins), f"    retries {len(targets) - 1}"]
    for number, target in enumerate(targets):
        # The first address is the best one; the others are for its failures.
        weight = 256 if number == 0 else 1
        lines.append(f"    server t{number} {_address(target)} weight {weight}{server_tls}")
    return "\n".join(lines) + "\n"


def _allow(bind: Bind) -> list[str]:
    """Who may connect, one network a line (HAProxy takes 64 words); decided before TLS."""
    if not bind.allow_from:
        return []
    allowed = [f"acl allowed src {network}" for network in bind.allow_from]
    return [*allowed, "tcp-request connection reject unless allowed"]


def _address(target: Endpoint) -> str:
    """HAProxy takes the last colon as the port's, and knows the family by this prefix."""
    return f"ipv{target.address.version}@{target.address}:{target.port}"


def _bind_tls(plan: Plan, places: Places) -> str:
    if plan.security is not Security.TLS or plan.role is not Role.PROD:
        return ""
    return f" ssl{_tls(places)}"


def _server_tls(plan: Plan, places: Places) -> str:
    if plan.security is not Security.TLS or plan.role is not Role.CONS:
        return ""
    return f" ssl{_tls(places)} verifyhost {CERTIFICATE_NAME[Role.PROD]} no-ssl-reuse"


def _tls(places: Places) -> str:
    return (
        f" crt {quoted(places.secrets / LEAF_FILE)} ca-file {quoted(places.secrets / CA_FILE)} verify required"
        f" ssl-min-ver TLSv1.3 ciphersuites {CIPHER_SUITES} no-tls-tickets"
    )
