"""Stunnel as a data server: stunnel(8) of 5.68.

One process, a thread per connection. HUP reads the configuration again;
connections that run keep the one they began with.
"""

from __future__ import annotations

import signal

from scistreamd.dataserver.answer import (
    ANSWER_NAME,
    ANSWER_SECONDS,
    ANSWER_TEXT,
    BODY_HEADER,
    MOST_BODY,
    answers,
)
from scistreamd.dataserver.common import (
    CERTIFICATE_NAME,
    CIPHER_SUITES,
    IDLE_SECONDS,
    KEEPALIVE_INTERVAL_SECONDS,
    KEEPALIVE_PROBES,
    plain,
    tcp_sockets,
)
from scistreamd.model import Endpoint, Role, Security
from scistreamd.plans import CA_FILE, LEAF_FILE, PSK_FILE, Bind, LogSays, Places, Plan, Program

CONFIG = "stunnel.conf"
ANSWER_SCRIPT = "answer.sh"
# The script's path is in the environment, for Stunnel splits arguments at spaces and knows no quotes.
_SCRIPT_VARIABLE = "SCISTREAM_ANSWER"
# Read by the library: Stunnel itself knows no limit but that of its open files.
_CONNECTIONS_VARIABLE = "SCISTREAM_CONNECTIONS"
# As well: what is given to SSL_write at once is a record.
_RECORD_VARIABLE = "SCISTREAM_RECORD"
# SHA-1 first: about 1.4 times the throughput of SHA-384, which a 1.2 peer would prefer; HMAC-SHA-1 is not broken.
PSK_CIPHERS = "ECDHE-PSK-NULL-SHA:ECDHE-PSK-NULL-SHA256:ECDHE-PSK-NULL-SHA384:aPSK+eNULL"


class Stunnel:
    """`interfaces.DataServer` for Stunnel 5.68 and later."""

    name = "Stunnel"
    program = "stunnel"
    package = "stunnel4"
    library = "stunnel_poll"
    securities = frozenset({Security.TLS, Security.PSK_NULL})
    udp_securities: frozenset[Security] = frozenset()
    filters_sources = False

    def render(self, plan: Plan, places: Places) -> Program:
        """Render the plan; BugError for a path that the configuration cannot hold."""
        security = _tls(plan, places) if plan.security is Security.TLS else _psk_null(places)
        services = [_service(plan, index, bind) for index, _, bind in tcp_sockets(plan)]
        # Stunnel 5.68 takes one `sni` of a service, although its manual has it that there may be several.
        answering = [_answer(plan, index) for index in range(len(services)) if answers(plan)]
        text = "\n".join([_global(plan), security, *services, *answering])
        return Program(
            argv=("stunnel", str(places.config / CONFIG)),
            environment=_environment(plan, places),
            config={CONFIG: text, ANSWER_SCRIPT: _SCRIPT} if answers(plan) else {CONFIG: text},
            ready=LogSays(f"Service [{_name(plan, len(services) - 1)}] (FD="),
            reload_signal=signal.SIGHUP,
            drain_signal=None,
            rejected="Failed to reload the configuration file",
            routine=(" LOG5[", " LOG6["),
            library=self.library,
        )


def _environment(plan: Plan, places: Places) -> dict[str, str]:
    script = {_SCRIPT_VARIABLE: str(places.config / ANSWER_SCRIPT)} if answers(plan) else {}
    record = {_RECORD_VARIABLE: str(plan.tuning.record_bytes)} if plan.tuning.record_bytes else {}
    return {_CONNECTIONS_VARIABLE: str(plan.tuning.connections), **record, **script}


def _name(plan: Plan, index: int) -> str:
    return f"g{plan.generation}-l{index}"


def _global(plan: Plan) -> str:
    keepalive = "".join(
        f"""socket = {side}:SO_KEEPALIVE=1
socket = {side}:TCP_KEEPIDLE={plan.tuning.keepalive_idle_seconds}
socket = {side}:TCP_KEEPINTVL={KEEPALIVE_INTERVAL_SECONDS}
socket = {side}:TCP_KEEPCNT={KEEPALIVE_PROBES}
socket = {side}:TCP_NODELAY=1
"""
        for side in ("l", "r")
    )
    return f"""foreground = yes
syslog = no
pid =
debug = info
{keepalive}"""


def _tls(plan: Plan, places: Places) -> str:
    # EOF without close_notify is how nginx ends one direction of a stream.
    name = f"checkHost = {CERTIFICATE_NAME[Role.PROD]}\n" if plan.role is Role.CONS else ""
    return f"""sslVersion = TLSv1.3
ciphersuites = {CIPHER_SUITES}
cert = {plain(places.secrets / LEAF_FILE)}
key = {plain(places.secrets / LEAF_FILE)}
CAfile = {plain(places.secrets / CA_FILE)}
verifyChain = yes
options = IGNORE_UNEXPECTED_EOF
options = NO_TICKET
sessionResume = no
{name}"""


def _psk_null(places: Places) -> str:
    return f"""sslVersion = TLSv1.2
securityLevel = 0
ciphers = {PSK_CIPHERS}
options = CIPHER_SERVER_PREFERENCE
PSKsecrets = {plain(places.secrets / PSK_FILE)}
options = IGNORE_UNEXPECTED_EOF
sessionResume = no
"""


def _service(plan: Plan, index: int, bind: Bind) -> str:
    connects = "".join(f"connect = {_address(target)}\n" for target in plan.targets[index])
    client = "yes" if plan.role is Role.CONS else "no"
    return f"""[{_name(plan, index)}]
debug = warning
client = {client}
accept = {_address(bind.endpoint)}
{connects}failover = prio
TIMEOUTbusy = {plan.tuning.handshake_seconds}
TIMEOUTconnect = {plan.tuning.connect_seconds}
TIMEOUTidle = {IDLE_SECONDS}
TIMEOUTclose = {IDLE_SECONDS}
"""


_ANSWER = rf"HTTP/1.1 200 OK\r\n{BODY_HEADER}: {MOST_BODY}\r\nContent-Length: {len(ANSWER_TEXT)}\r\n\r\n{ANSWER_TEXT}"
# The configuration is readable by all, and so is this. dash reads a pipe byte by byte, so the body is left to head.
# One printf: Stunnel's socket to it would hold a second one back until the first is acknowledged, 40 ms.
_SCRIPT = f"""# Answers tests of the path: one HTTP/1.1 request after the other, until the time is over.
carriage_return=$(printf '\\r')
while read -r method rest; do
    length=0
    while read -r name value && [ "$name" != "$carriage_return" ]; do
        case $name in
        [Cc]ontent-[Ll]ength:) length=${{value%"$carriage_return"}} ;;
        esac
    done
    case $length in
    '' | *[!0-9]* | ?????????*) exit 1 ;;
    esac
    if [ "$length" -gt 0 ]; then
        head -c "$length" > /dev/null
    fi
    printf '{_ANSWER}'
done
"""


def _answer(plan: Plan, index: int) -> str:
    """A service that takes from the listener's what asks for its name (stunnel(8), sni)."""
    return f"""[{_name(plan, index)}-answer]
debug = warning
client = no
sni = {_name(plan, index)}:{ANSWER_NAME}
exec = /usr/bin/timeout
execArgs = timeout {ANSWER_SECONDS} /bin/sh -c exec${{IFS}}/bin/sh${{IFS}}"${_SCRIPT_VARIABLE}"
TIMEOUTbusy = {plan.tuning.handshake_seconds}
TIMEOUTidle = {ANSWER_SECONDS}
TIMEOUTclose = 1
"""


def _address(endpoint: Endpoint) -> str:
    """Stunnel takes the last colon as the port's and knows no brackets."""
    return f"{endpoint.address}:{endpoint.port}"
