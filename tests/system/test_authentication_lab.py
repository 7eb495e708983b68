"""Who may call an installed gateway: what the operator is told, static tokens, a provider's secret as a credential."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.system.host import Host
from tests.system.installed import CONFIG, DROP_INS, as_installed
from tests.system.lab import Lab
from tests.system.project import PYTHON

pytestmark = pytest.mark.timeout(600)  # the first lab of a machine builds the base tree

_REFUSED = "no authentication is configured: requests of other hosts are refused"
_OPEN = "NO AUTHENTICATION: whoever reaches the control port may use this gateway"
# Asks for the release of a tunnel that is not there, by the installed library; prints the status that it gets.
_ASK = """
import asyncio, ssl, sys
from grpclib.client import Channel, UnaryUnaryMethod
from grpclib.exceptions import GRPCError
from scistreamd.control import scistream_pb2 as pb

async def main(token):
    context = ssl.create_default_context(cafile="/var/lib/scistreamd/control/server.crt")
    context.set_alpn_protocols(["h2"])
    channel = Channel("127.0.0.1", 5000, ssl=context)
    try:
        method = UnaryUnaryMethod(channel, "/scistream.Control/release", pb.Release, pb.Response)
        await method(pb.Release(uid="0" * 32), metadata={"authorization": token})
    except GRPCError as error:
        print(error.status.name)
    finally:
        channel.close()

asyncio.run(main(sys.argv[1]))
"""


@pytest.fixture
def gateway(lab: Lab) -> Iterator[Host]:
    """A host with scistreamd as installed, and as installed again at the end."""
    with as_installed(lab["producers2"]) as host:
        yield host


def told(host: Host) -> tuple[str, str, str]:
    """Status of the unit, `s2ctl status`, and the log since the last start."""
    status = host.run(["systemctl", "show", "--value", "-p", "StatusText", "scistreamd.service"]).stdout
    run = host.run(["systemctl", "show", "--value", "-p", "InvocationID", "scistreamd.service"]).stdout.strip()
    return (
        status,
        host.run(["s2ctl", "status"]).stdout,
        host.journal(f"_SYSTEMD_INVOCATION_ID={run}"),
    )


def asked(host: Host, token: str) -> str:
    return host.run([*PYTHON, "-c", _ASK, token]).stdout.strip()


def test_the_operator_sees_who_is_served(gateway: Host) -> None:
    gateway.run(["s2ctl", "list"])
    gateway.wait_until(lambda: all(_REFUSED in each for each in told(gateway)), "told of whom it refuses")
    # What users compare with what s2uc shows them.
    shown = gateway.run(["s2ctl", "cert", "show"]).stdout
    assert shown.split("sha256: ")[1].strip() in gateway.journal("-u", "scistreamd")
    gateway.write(CONFIG, "require_auth = false\n")
    gateway.run(["systemctl", "reload", "scistreamd"])
    gateway.wait_until(lambda: all(_OPEN in each for each in told(gateway)), "told of whom it serves")


def test_a_token_of_the_operators(gateway: Host) -> None:
    gateway.run(["s2ctl", "list"])
    made = gateway.run(["s2ctl", "token", "create", "detector", "--expires", "1d"])
    assert "/etc/scistreamd/tokens" in made.stderr
    token = made.stdout.strip()
    titles, row, *_ = gateway.run(["s2ctl", "token", "list"]).stdout.splitlines()
    assert titles.split() == ["NAME", "ID", "MADE", "ENDS"]
    assert row[titles.index("ENDS") :].startswith("20")
    gateway.write(CONFIG, '[auth.tokens]\nfile = "/etc/scistreamd/tokens"\n')
    gateway.run(["systemctl", "reload", "scistreamd"])
    assert _REFUSED not in told(gateway)[1]
    assert asked(gateway, token) == "NOT_FOUND"
    assert asked(gateway, "INVALID_TOKEN") == "UNAUTHENTICATED"
    assert gateway.run(["stat", "-c", "%a %U", "/etc/scistreamd/tokens"]).stdout == "600 root\n"
    gateway.run(["s2ctl", "token", "revoke", "detector"])
    assert asked(gateway, token) == "UNAUTHENTICATED"
    assert token not in gateway.journal()


def test_a_provider_out_of_reach_lets_nobody_in(gateway: Host) -> None:
    """The secret as systemd's credential; everything that asking takes, inside the sandbox of the unit."""
    gateway.write("/etc/scistreamd/secret", "of the lab\n")
    gateway.run(["chmod", "600", "/etc/scistreamd/secret"])
    gateway.run(["mkdir", "-p", DROP_INS])
    drop_in = "[Service]\nLoadCredential=oauth2-client-secret:/etc/scistreamd/secret\n"
    gateway.write(f"{DROP_INS}/secret.conf", drop_in)
    gateway.write(CONFIG, '[auth.oauth2]\nclient_id = "lab"\nissuer = "https://192.168.10.10"\ntimeout = 2\n')
    gateway.run(["systemctl", "daemon-reload"])
    gateway.run(["systemctl", "restart", "scistreamd.service"])
    assert asked(gateway, "a-token") == "UNAVAILABLE"
    _, status, log = told(gateway)
    assert "the provider cannot be asked: https://192.168.10.10/.well-known/openid-configuration" in log
    assert "Warning" not in status
    assert "of the lab" not in log and "a-token" not in log
    gateway.run(["rm", f"{DROP_INS}/secret.conf"])
    gateway.run(["systemctl", "daemon-reload"])
    assert gateway.run(["systemctl", "restart", "scistreamd.service"], check=False).returncode != 0
    assert "client_id is set, but its secret is not" in gateway.journal("-t", "scistreamd")
