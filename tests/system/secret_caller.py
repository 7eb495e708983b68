"""Runs on a gateway of the lab: one tunnel's life as a client with a token asks for it, with what goes wrong in one.

Prints every answer; /root/secrets.json has the UID, the token and the data server type, and where the gateway is not
scistreamd itself: its address, its certificate, and the security mode. Such a one takes every token.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import sys
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

from grpclib.client import Channel, UnaryUnaryMethod
from grpclib.exceptions import GRPCError

from scistreamd.control import scistream_pb2 as pb

_SCISTREAMD = {"host": "127.0.0.1", "port": 5000, "certificate": "/var/lib/scistreamd/control/server.crt"}
_REPLIES: dict[str, Any] = {"hello": pb.AppResponse}
_REQUESTS: dict[str, Any] = {"req": pb.Request, "hello": pb.Hello, "update": pb.UpdateTargets, "release": pb.Release}


class Caller:
    """Calls with a token."""

    def __init__(self, channel: Channel, token: str) -> None:
        self._channel = channel
        self._token = token

    def call(
        self, name: str, *, token: str = "", options: dict[str, str] | None = None, **fields: Any
    ) -> Awaitable[Any]:
        """One call of the control port."""
        method: UnaryUnaryMethod[Any, Any] = UnaryUnaryMethod(
            self._channel, f"/scistream.Control/{name}", _REQUESTS[name], _REPLIES.get(name, pb.Response)
        )
        metadata = {
            "authorization": token or self._token,
            **{f"scistream-{key}": (options or {})[key] for key in options or {}},
        }
        return method(_REQUESTS[name](**fields), metadata=metadata)

    async def refused(self, name: str, **words: Any) -> None:
        """One call that must not succeed; prints why it did not."""
        try:
            await self.call(name, **words)
        except GRPCError as problem:
            print("refused", name, problem.status.name, problem.message)
            return
        sys.exit(f"{name} was not refused")


async def _begin(caller: Caller, uid: str, options: dict[str, str]) -> None:
    asked = asyncio.ensure_future(caller.call("req", uid=uid, role="PROD", num_conn=1, rate=0, options=options))
    await asyncio.sleep(0.5)
    await caller.refused("req", uid=uid, role="PROD", num_conn=1, rate=0)
    await caller.call("hello", uid=uid, role="PROD", prod_listeners=["192.168.10.10:7001"])
    print("listeners", *(await asked).listeners)
    await caller.refused("update", uid=uid, role="PROD", remote_listeners=["127.0.0.1:22"])
    await caller.call("update", uid=uid, role="PROD", remote_listeners=["192.168.10.10:7001"])


async def _go_wrong(caller: Caller, uid: str) -> None:
    """Secrets where they do not belong."""
    await caller.refused("req", uid=uid, role=uid, num_conn=1, rate=0)
    await caller.refused("req", uid=uid, role="PROD", num_conn=70000, rate=0)
    await caller.refused("req", uid=uid + "0", role="PROD", num_conn=1, rate=0)
    await caller.refused("update", uid=uid, remote_listeners=[uid])
    await caller.refused("update", uid=uid, remote_listeners=[f"{uid}:1"])
    for option in ("type", "security", "lifetime", "allow-from", "exact-ports", "rate-policy", "listen"):
        await caller.refused("req", uid=uid, role="PROD", num_conn=1, rate=0, options={option: uid})


async def main() -> None:
    """Make the tunnel and spoil it, or release it."""
    known = _SCISTREAMD | json.loads(Path("/root/secrets.json").read_text())
    context = ssl.create_default_context(cafile=known["certificate"])
    context.check_hostname = False
    context.set_alpn_protocols(["h2"])
    channel = Channel(known["host"], known["port"], ssl=context)
    caller = Caller(channel, known["token"])
    try:
        if sys.argv[1] == "begin":
            await _begin(caller, known["uid"], {key: known[key] for key in ("type", "security") if key in known})
            if known["port"] == _SCISTREAMD["port"]:
                other = known["token"][:-1] + "x"
                await caller.refused("update", token=other, uid=known["uid"], remote_listeners=["192.168.10.10:7001"])
            await _go_wrong(caller, known["uid"])
        else:
            await caller.call("release", uid=known["uid"])
            await caller.refused("update", uid=known["uid"], remote_listeners=["192.168.10.10:7001"])
    finally:
        channel.close()


if __name__ == "__main__":
    asyncio.run(main())
