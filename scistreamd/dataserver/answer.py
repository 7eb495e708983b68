"""How an inbound data server answers a test of the path: a name that no application has (docs/data-servers.md).

A gateway that knows the UID asks for `ANSWER_NAME` by SNI (RFC 6066, section 3), with the certificate
of every stream. What it says then never reaches the application: the data server itself answers
HTTP/1.1 (RFC 9112), any request with 200 and the header `BODY_HEADER`: how long a body may be.
"""

from __future__ import annotations

from scistreamd.model import Role, Security
from scistreamd.plans import Plan

# Also in the inbound gateway's certificate: who does not find it there sends no byte, for an application would get it.
ANSWER_NAME = "test.scistream.invalid"
ANSWER_SOCKET = "answer.sock"
BODY_HEADER = "Scistream-Test-Body"
MOST_BODY = 64 << 20
ANSWER_TEXT = "scistream test"
# No test is longer: whoever knows the UID keeps the data server busy for so long with one connection.
ANSWER_SECONDS = 60
ANSWERS_AT_ONCE = 4


def answers(plan: Plan) -> bool:
    """Whether this data server is one that answers tests."""
    return plan.role is Role.PROD and plan.security is Security.TLS
