"""nginx as a data server: the stream modules of nginx 1.22, nginx.org/en/docs/stream/.

HUP starts new workers with the new configuration, the old ones live as long as
their streams. Inherited sockets are named in the variable NGINX, each by the
address that its ``listen`` has.
"""

from __future__ import annotations

import signal

from scistreamd.dataserver.answer import (
    ANSWER_NAME,
    ANSWER_SECONDS,
    ANSWER_SOCKET,
    ANSWER_TEXT,
    BODY_HEADER,
    MOST_BODY,
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
    socket_count,
)
from scistreamd.model import Endpoint, Role, Security
from scistreamd.plans import CA_FILE, FIRST_FD, LEAF_FILE, Bind, LogSays, Places, Plan, Program, SocketSays

CONFIG = "nginx.conf"
UDP_IDLE = "10m"

# Where the stream module is not built in, the distributions' one-line files load it; a pattern that
# matches nothing is no error, so one text serves all of them.
_MODULE_FILES = ("/usr/share/nginx/modules-available/mod-stream.conf*", "/usr/share/nginx/modules/mod-stream.conf*")


class Nginx:
    """`interfaces.DataServer` for nginx 1.22 and later."""

    name = "Nginx"
    program = "nginx"
    package = "nginx and libnginx-mod-stream"
    library = ""
    securities = frozenset({Security.TLS, Security.NONE})
    udp_securities = frozenset({Security.NONE})
    filters_sources = True

    def render(self, plan: Plan, places: Places) -> Program:
        """Render the plan; BugError for a path that cannot be quoted."""
        fds = range(FIRST_FD, FIRST_FD + socket_count(plan))
        return Program(
            argv=("nginx", "-e", "stderr", "-c", str(places.config / CONFIG)),
            environment={"NGINX": "".join(f"{fd};" for fd in fds)},
            config={CONFIG: _main(plan, places) + _stream(plan, places) + _answer(plan, places)},
            ready=SocketSays(places.scratch / READY_SOCKET, b"", _word(plan).encode()),
            reload_signal=signal.SIGHUP,
            drain_signal=signal.SIGQUIT,
            # The new workers answer 0.1 s before the old ones are told to stop (ngx_reconfigure).
            retired=LogSays("gracefully shutting down", _workers(plan)),
            rejected="[emerg]",
            routine=("[notice]", " connected to ", "disconnected, "),
        )


def _word(plan: Plan) -> str:
    return f"tunnel {plan.tunnel_id} generation {plan.generation}."


def _workers(plan: Plan) -> int:
    # Without reuseport each worker would take packets of the same UDP sender, and forward from a port of its own.
    return 1 if any(bind.udp for bind in plan.listeners) else plan.tuning.threads


def _main(plan: Plan, places: Places) -> str:
    modules = "".join(f"include {pattern};\n" for pattern in _MODULE_FILES)
    return f"""{modules}daemon off;
worker_processes {_workers(plan)};
pid {quoted(places.scratch / "nginx.pid")};
error_log stderr notice;

events {{
    worker_connections {2 * plan.tuning.connections + 64};
}}
"""


def _stream(plan: Plan, places: Places) -> str:
    tuning = plan.tuning
    servers = "".join(_servers(plan, index) for index in range(len(plan.listeners)))
    if answers(plan):
        servers = f"    upstream answer {{\n        server {_unix(places, ANSWER_SOCKET)};\n    }}\n" + servers
    return f"""
stream {{
    proxy_buffer_size {buffer_bytes(plan)};
    proxy_timeout {IDLE_DAYS}d;
    proxy_half_close on;
    proxy_connect_timeout {tuning.connect_seconds}s;
    proxy_socket_keepalive on;
    limit_conn_zone $hostname zone=streams:32k;
    limit_conn_log_level notice;
{_tls(plan, places)}
    server {{
        listen {_unix(places, READY_SOCKET)};
        return "{_word(plan)}";
    }}
{servers}}}
"""


def _unix(places: Places, name: str) -> str:
    """A socket in the scratch directory; the prefix is inside the quotes."""
    return quoted(places.scratch / name).replace('"', '"unix:', 1)


def _answer(plan: Plan, places: Places) -> str:
    """What answers tests of the path; it throws away what it is sent. The temporary paths are made at each start."""
    if not answers(plan):
        return ""
    temporary = "".join(
        f"    {kind}_temp_path {quoted(places.scratch / 'http')};\n"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    return f"""
http {{
    access_log off;
{temporary}
    server {{
        listen {_unix(places, ANSWER_SOCKET)};
        default_type text/plain;
        client_max_body_size {MOST_BODY};
        client_body_timeout {plan.tuning.handshake_seconds}s;
        keepalive_timeout {plan.tuning.handshake_seconds}s;
        keepalive_time {ANSWER_SECONDS}s;
        keepalive_requests 1000000;
        add_header {BODY_HEADER} {MOST_BODY};
        return 200 "{ANSWER_TEXT}";
    }}
}}
"""


def _servers(plan: Plan, index: int) -> str:
    """The upstream and the servers of one listener."""
    bind, tuning = plan.listeners[index], plan.tuning
    keepalive = f"so_keepalive={tuning.keepalive_idle_seconds}s:{KEEPALIVE_INTERVAL_SECONDS}s:{KEEPALIVE_PROBES}"
    ssl = " ssl" if plan.security is Security.TLS and plan.role is Role.PROD else ""
    text = _upstream(index, plan.targets[index])
    to = f"t{index}"
    if answers(plan):
        to = f"$to{index}"
        text += f"    map $ssl_server_name {to} {{\n        default t{index};\n        {ANSWER_NAME} answer;\n    }}\n"
    # One count for all listeners and workers; who is one too many is turned away before TLS.
    more = f"        limit_conn streams {tuning.connections};\n" + _allow(bind)
    text += _server(f"{_address(bind)}{ssl} {keepalive} backlog={tuning.connections}", to, more)
    if bind.udp:
        text += _server(f"{_address(bind)} udp", f"t{index}", f"        proxy_timeout {UDP_IDLE};\n" + more)
    return text


def _upstream(index: int, targets: tuple[Endpoint, ...]) -> str:
    """Addresses in turn for each connection anew (max_fails=0): one that refused may run again."""
    lines = [
        f"        server {target} max_fails=0{' backup' if number else ''};\n" for number, target in enumerate(targets)
    ]
    return f"\n    upstream t{index} {{\n{''.join(lines)}    }}\n"


def _server(listen: str, to: str, more: str) -> str:
    return f"    server {{\n        listen {listen};\n        proxy_pass {to};\n{more}    }}\n"


def _allow(bind: Bind) -> str:
    """Who may connect; decided before TLS (ngx_stream_access_module)."""
    if not bind.allow_from:
        return ""
    return "".join(f"        allow {network};\n" for network in bind.allow_from) + "        deny all;\n"


def _address(bind: Bind) -> str:
    """As the socket is bound; ``::`` takes IPv4 as well."""
    return f"{bind.endpoint} ipv6only=off" if str(bind.endpoint.address) == "::" else str(bind.endpoint)


def _tls(plan: Plan, places: Places) -> str:
    if plan.security is not Security.TLS:
        return ""
    leaf, authority = quoted(places.secrets / LEAF_FILE), quoted(places.secrets / CA_FILE)
    if plan.role is Role.PROD:
        # nginx tells of a refused client at level info, and of every connection besides.
        return f"""
    error_log stderr info;
    ssl_certificate {leaf};
    ssl_certificate_key {leaf};
    ssl_client_certificate {authority};
    ssl_verify_client on;
    ssl_protocols TLSv1.3;
    ssl_conf_command Ciphersuites {CIPHER_SUITES};
    ssl_session_cache off;
    ssl_session_tickets off;
    ssl_handshake_timeout {plan.tuning.handshake_seconds}s;
"""
    return f"""
    proxy_ssl on;
    proxy_ssl_certificate {leaf};
    proxy_ssl_certificate_key {leaf};
    proxy_ssl_trusted_certificate {authority};
    proxy_ssl_verify on;
    proxy_ssl_name {CERTIFICATE_NAME[Role.PROD]};
    proxy_ssl_protocols TLSv1.3;
    proxy_ssl_conf_command Ciphersuites {CIPHER_SUITES};
    proxy_ssl_session_reuse off;
"""
