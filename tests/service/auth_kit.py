"""What the tests of authentication share: calls with a token, and what they were answered."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import grpc
import grpc.aio
import pytest

from tests.oidc import SECRET, Provider
from tests.service.gateways import encode
from tests.service.service_kit import Daemon, daemon

PORTS = """
port_range = "28500-28509"
default_type = "Nginx"
[listen]
inbound = "127.0.0.1"
outbound = "127.0.0.1"
"""
# What a call is answered when its caller is known: there is no such tunnel.
KNOWN = grpc.StatusCode.NOT_FOUND
UNKNOWN = grpc.StatusCode.UNAUTHENTICATED


@dataclass(frozen=True)
class Said:
    """How a call was answered."""

    code: grpc.StatusCode
    message: str
    challenges: tuple[str, ...]


@pytest.fixture(scope="module")
def oidc() -> Iterator[Provider]:
    """One provider for the tests of a module."""
    here = Provider()
    asyncio.run(here.start())
    yield here
    here.stop()


def oauth2(here: Provider, home: Path, *lines: str) -> str:
    """A configuration that takes this provider's tokens, by introspection unless ``lines`` say otherwise."""
    secret = home / "secret"
    secret.touch(0o600)
    secret.write_text(SECRET + "\n")
    client = ('client_id = "gateway"', f'client_secret_file = "{secret}"')
    words = [f'issuer = "{here.issuer}"', *(client if not any("client_id" in each for each in lines) else ()), *lines]
    return PORTS + "[auth.oauth2]\n" + "\n".join(each for each in words if each != "no client_id") + "\n"


@contextlib.asynccontextmanager
async def gateway(home: Path, config: str) -> AsyncIterator[Daemon]:
    """scistreamd with this configuration, whose log shows nobody's secret."""
    async with daemon(home, config) as here:
        yield here
    assert SECRET not in here.log


async def ask(here: Daemon, token: str = "", *, channel: grpc.aio.Channel | None = None, uid: str = "") -> Said:
    """Release a tunnel that is not there, with a token as deployed clients send it."""
    async with contextlib.AsyncExitStack() as undo:
        way: grpc.aio.Channel = channel or await undo.enter_async_context(here.channel())
        metadata = (("authorization", token),) if token else ()
        try:
            await way.unary_unary("/scistream.Control/release")(
                encode({1: uid or str(uuid.uuid4())}), metadata=metadata, timeout=60
            )
        except grpc.aio.AioRpcError as error:
            trailing = error.trailing_metadata() or ()
            found = tuple(unquote(str(value)) for key, value in trailing if key == "scistream-challenge")
            return Said(error.code(), error.details() or "", found)
    raise AssertionError("there was such a tunnel")
