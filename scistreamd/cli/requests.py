"""The commands of the user client that talk to a gateway."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import re
import signal
from argparse import Namespace
from collections.abc import Callable, Coroutine
from functools import cache
from typing import Any, TypeVar
from urllib.parse import quote

from scistreamd.cli import failures, output, session, uids
from scistreamd.cli.auth.attach import NO_TOKEN, Tokens
from scistreamd.cli.gateway import Gateway
from scistreamd.cli.options import UsageError, checked
from scistreamd.cli.request_options import DEFAULT_NUM_CONN
from scistreamd.cli.session import Hello, Opened, Session, Wish
from scistreamd.cli.trust import Trust
from scistreamd.errors import Code, ScistreamError
from scistreamd.model import PUBLIC_UID, Role, Security, Target, Uid, parse_address, shown

# What deployed clients send, asked for a rate or not; without the policy below nobody enforces it.
_OLD_RATE = 10000
_SECONDS = 60
_HEALTH_SECONDS = 10
# A gateway waits 180 s for a hello; ours are the last words.
_HELLO_SECONDS = 200
_DEFAULT_PORT = 5000
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,31}", re.ASCII)

T = TypeVar("T")


@cache
def _note(sentence: str) -> None:
    """Tell the user once, also where the gateway says the same as we do."""
    output.note("s2uc", sentence)


_say = output.result


def inbound(options: Namespace) -> int:
    """``s2uc inbound-request``."""
    uid = _own_uid(options)
    receivers = _receivers(options)
    _note_if_unequal(options, len(receivers), "receiver ports")
    wish = _wish(options, uid, Role.PROD, len(receivers), Hello(Role.PROD, receivers), fresh=not options.mock)
    return _request(options, wish, hidden=options.uid_file is not None)


def prod_req(options: Namespace) -> int:
    """``s2uc prod-req``."""
    wish = _wish(options, _own_uid(options), Role.PROD, DEFAULT_NUM_CONN, None, fresh=not options.mock)
    return _request(options, wish, hidden=options.uid_file is not None)


def outbound(options: Namespace) -> int:
    """``s2uc outbound-request``."""
    targets = _listeners(options.listeners)
    local = options.receiver_ports
    # As deployed clients do: what an outbound tunnel wishes to listen on travels as a hello of role PROD.
    hello = Hello(Role.PROD, _receivers(options)) if local else Hello(Role.CONS, ())
    _note_if_unequal(options, len(local), "local ports")
    uid = _given_uid(options)
    wish = _wish(
        options,
        uid,
        Role.CONS,
        len(local) or len(targets),
        hello,
        targets=targets,
        local_ports=local,
        exact_ports=options.exact_port,
    )
    return _request(options, wish, hidden=options.uid_file is not None or uids.is_hidden(options.uid))


def hello(options: Namespace) -> int:
    """``s2uc hello``."""
    receivers, uid = _receivers(options), _given_uid(options)

    async def work(gateway: Gateway) -> None:
        _say("sending for hello message")
        answer = await gateway.hello(uid.reveal(), Role.PROD.value, receivers)
        _say("Hello message sent successfully")
        if answer.listeners:
            _say(f"Listeners: {list(answer.listeners)!r}")

    return run(options, work, _SECONDS, "hello")


def release(options: Namespace) -> int:
    """``s2uc release``."""
    by_id = uids.is_id(options.uid)
    uid = None if by_id else uids.read(options.uid)

    async def work(gateway: Gateway) -> None:
        if uid is None:
            await gateway.end(options.uid)
        else:
            await gateway.release(uid.reveal())
        _say("Release completed")

    return run(options, work, _SECONDS, "release")


def health(options: Namespace) -> int:
    """``s2uc health``: prints the state; UNAVAILABLE where it is any other than SERVING."""

    async def work(gateway: Gateway) -> None:
        state = await gateway.health()
        if state != "SERVING":
            raise ScistreamError(Code.UNAVAILABLE, f"{gateway.address} says {state}", "the gateway's log may say more")
        _say(f"{gateway.address}: {state}")

    return run(options, work, _HEALTH_SECONDS, "the answer")


def _request(options: Namespace, wish: Wish, *, hidden: bool) -> int:
    """Open the tunnel and print it, in the lines that scripts parse or as JSON."""
    as_json = getattr(options, "json", False)
    say = (lambda line: None) if as_json else _say
    name = wish.uid.id if hidden else wish.uid.reveal()

    async def work(gateway: Gateway) -> None:
        with uids.kept_in(options.uid_file, wish.uid, at_once=wish.hello is None) as keep:
            say("uid; s2cs; access_token; role")
            shown = NO_TOKEN if gateway.token == NO_TOKEN else "***"
            say(f"{name} {options.s2cs} {shown} {wish.role.value}")

            def hand_over(opened: Opened) -> None:
                keep()
                for sentence in session.dialable(opened.listeners, gateway.address.host):
                    _note(sentence)
                say(f"Listeners: {list(opened.listeners)!r}")
                if as_json:
                    _say(_as_json(options, wish, opened, None if hidden else name))

            await Session(gateway, wish, say, _note).open(hand_over)

    return run(options, work, _SECONDS if wish.hello else _HELLO_SECONDS, "the request")


def _as_json(options: Namespace, wish: Wish, opened: Opened, uid: str | None) -> str:
    return json.dumps(
        {
            "uid": uid,
            "id": wish.uid.id,
            "role": wish.role.value,
            "s2cs": options.s2cs,
            "listeners": opened.listeners,
            "targets": opened.targets,
        }
    )


def _wish(
    options: Namespace,
    uid: Uid,
    role: Role,
    listeners: int,
    hello: Hello | None,
    *,
    fresh: bool = False,
    targets: tuple[str, ...] = (),
    local_ports: tuple[int, ...] = (),
    exact_ports: bool = False,
) -> Wish:
    return Wish(
        uid=uid,
        fresh=fresh,
        role=role,
        num_conn=listeners if options.num_conn is None else options.num_conn,
        rate=_OLD_RATE if options.rate is None else options.rate,
        hello=hello,
        targets=targets,
        local_ports=local_ports,
        exact_ports=exact_ports,
        options=_metadata(options, exact_ports),
    )


def _metadata(options: Namespace, exact_ports: bool) -> dict[str, str]:
    """What is asked for beyond the 1.2 protocol, as ``scistream-<option>``; only what was asked for."""
    if options.type is not None and not _NAME.fullmatch(options.type):
        raise UsageError(f"type: {shown(options.type)} is not the name of a data server type")
    networks = [_network(part) for text in options.allow_from for part in text.split(",")]
    asked = {
        "type": options.type,
        "security": options.security and checked(Security.parse)(options.security).value,
        "lifetime": options.lifetime and str(options.lifetime),
        "label": quote(options.label, safe=""),
        "allow-from": ",".join(networks),
        "exact-ports": "true" if exact_ports else None,
        "rate-policy": "enforce" if options.rate else None,
    }
    return {f"scistream-{name}": value for name, value in asked.items() if value}


def _network(text: str) -> str:
    try:
        return str(ipaddress.ip_network(text.strip()))
    except ValueError:
        raise UsageError(f"allow-from: {shown(text)} is not a network", "ADDRESS/LENGTH, as 192.0.2.0/24") from None


def _own_uid(options: Namespace) -> Uid:
    if not options.mock:
        return Uid.random()
    uid = Uid.parse(PUBLIC_UID)
    _note(uid.warning)
    return uid


def _given_uid(options: Namespace) -> Uid:
    uid = uids.read(options.uid)
    if uid.warning:
        _note(uid.warning)
    return uid


def _receivers(options: Namespace) -> tuple[str, ...]:
    return checked(lambda host: session.receivers(host.strip("[]"), options.receiver_ports))(options.remote_ip)


def _listeners(text: str) -> tuple[str, ...]:
    found = [checked(lambda part: Target.parse(part, "LISTENER"))(part.strip()) for part in text.split(",")]
    for target in found:
        if target.address is not None and target.address.is_unspecified:
            raise UsageError(f"LISTENER: {target} names no address", "put the inbound gateway's address in its place")
    return tuple(str(target) for target in found)


def _note_if_unequal(options: Namespace, given: int, what: str) -> None:
    if given and options.num_conn is not None and 0 < options.num_conn < given:
        _note(f"{given} {what} for {options.num_conn} listeners: the last ones are not used")


def control(text: str) -> Target:
    """``HOST:PORT`` of a control port; the port may be left out."""
    with contextlib.suppress(Exception):
        return Target(str(parse_address(text)), _DEFAULT_PORT)
    has_port = text.rpartition(":")[2].isdecimal() and not text.endswith("]")
    return checked(lambda word: Target.parse(word, "s2cs"))(text if has_port else f"{text}:{_DEFAULT_PORT}")


def _is_loopback(target: Target) -> bool:
    return target.address.is_loopback if target.address else target.host == "localhost"


def run(options: Namespace, work: Callable[[Gateway], Coroutine[Any, Any, None]], limit: int, what: str) -> int:
    """Connect and do the work, within the time, ending cleanly on SIGINT, SIGTERM and SIGHUP."""
    address = control(options.s2cs)
    trust = None if options.no_tls else Trust.of_option(options.server_cert)
    if trust is None and not _is_loopback(address):
        _note("without TLS everybody on the way reads the UID, which is the tunnel's key")

    async def connected() -> None:
        tokens = Tokens(options, address)
        certificate = (options.client_cert, options.client_key) if options.client_cert else None
        dialled = Gateway(
            address, trust, _note, fingerprint=options.trust_fingerprint, tokens=tokens, certificate=certificate
        )
        async with dialled as gateway:
            await work(gateway)

    return asyncio.run(_until_signal(connected(), options.timeout or limit, what))


async def _until_signal(work: Coroutine[Any, Any, None], limit: int, what: str) -> int:
    """0 when the work is done; a signal ends the process, with 128 and its number, after all was given back.

    That takes seconds at most. Signals meanwhile change nothing: a terminal's Ctrl-C comes twice
    to a program behind another that passes it on (sudo, podman).
    """
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(asyncio.wait_for(work, limit))
    received: list[int] = []

    def stop(number: int) -> None:
        if not received:
            received.append(number)
            task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # A terminal that is closed ends who stays behind it, but for what nohup(1) started.
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            loop.add_signal_handler(number, stop, number)
    try:
        await task
    except asyncio.TimeoutError:
        raise failures.too_late(limit, what) from None
    except asyncio.CancelledError:
        if not received:
            raise
        # Here and now: a return waits for the thread that may be looking up a name.
        output.end(128 + received[0])
    return 0
