"""What is fuzzed: a target takes bytes and returns, whatever they are. What it raises is a finding."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import logging
import sys
from collections.abc import Callable
from typing import Any

from google.protobuf.message import DecodeError, Message

from scistreamd import bus_options, configfile, options, rulefile, tokenfile
from scistreamd.bus_messages import Typed
from scistreamd.bus_wire import LONGEST_MESSAGE, _Reader, call_of, too_long
from scistreamd.control import scistream_pb2 as pb
from scistreamd.control import wire
from scistreamd.errors import BugError, ScistreamError
from scistreamd.model import Listen, PortRange, Role, Security, Target, Uid, parse_address
from scistreamd.records import BadRecord, Record

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_WORDS: tuple[Callable[[str], object], ...] = (
    Uid.parse, Role.parse, Security.parse, Target.parse, PortRange.parse, Listen.parse, parse_address,
    lambda text: options.targets(text.split(","), "targets", empty=True),
    lambda text: options.data_server(text, "type"),
    lambda text: options.label(text, "label"),
    lambda text: options.network(text, "allow-from"),
    lambda text: rulefile.parse_reach(text, "targets"),
    lambda text: tokenfile.parse(text, "tokens"),
)  # fmt: skip


def words(data: bytes) -> None:
    """Endpoints, targets, ports, UIDs, networks: all that is parsed from one text."""
    text = data.decode("utf-8", "surrogateescape")
    for parse in _WORDS:
        with _refusals():
            again = parse(text)
            if isinstance(again, Target | PortRange):
                assert type(again).parse(str(again)) == again
            if isinstance(again, Uid):
                assert again.reveal() not in repr(again) + str(again)


def configuration(data: bytes) -> None:
    """The configuration file, from bytes to settings, and back."""
    try:
        document = tomllib.loads(data.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError):
        return
    except RecursionError:  # `configread` turns it into a refusal
        return
    with _refusals():
        settings = configfile.parse([("file", document)])
        tomllib.loads(configfile.effective(settings))


def policy(data: bytes) -> None:
    """Policy rules, from TOML to values and back to the same."""
    try:
        raw = tomllib.loads(data.decode()).get("policy", [])
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError):
        return
    with _refusals():
        rules = rulefile.parse(raw)
        assert rulefile.parse(tomllib.loads(f"policy = {rulefile.toml(rules)}")["policy"]) == rules


def record(data: bytes) -> None:
    """A record of the books."""
    try:
        raw = json.loads(data)
    except (ValueError, RecursionError):
        return
    try:
        found = Record.from_json(raw)
    except BadRecord:
        return
    json.dumps(found.to_json())


_CALLS: dict[int, tuple[type[Message], Callable[[Any, wire.Metadata], object]]] = {
    0: (pb.Request, wire.parse_req),
    1: (pb.Hello, wire.parse_hello),
    2: (pb.UpdateTargets, wire.parse_update),
    3: (pb.Release, wire.parse_release),
}


def messages(data: bytes) -> None:
    """A gRPC message with metadata: which call, a line of metadata, then the message."""
    kind, _, rest = data.partition(b"\n")
    line, _, body = rest.partition(b"\n")
    message, parse = _CALLS[(kind[0] if kind else 0) % 4]
    pairs = [each.partition("=")[::2] for each in line.decode("latin-1").split(";") if each]
    found = message()
    try:
        found.ParseFromString(body)
    except DecodeError:
        return
    with _refusals():
        parse(found, pairs)
    with _refusals():
        wire.credentials(pairs, b"")


def bus(data: bytes) -> None:
    """A message as it comes from the bus, and the options in it.

    The bus daemon judges each message before we see it, so the errors of
    dbus-next itself end a connection that no caller can reach.
    """
    reader = _Reader(io.BytesIO(data))  # type: ignore[no-untyped-call]  # dbus-next has it untyped
    try:
        message = reader.unmarshall()
    except Exception as problem:
        if _is_foreign(problem):
            return
        raise
    if message is None or too_long(message) or len(data) > LONGEST_MESSAGE:
        return
    call = call_of(message)
    for value in call.body:
        if isinstance(value, dict) and all(isinstance(each, Typed) for each in value.values()):
            for parse in (
                lambda given: bus_options.creation(given, bus_options.INBOUND),
                bus_options.amendment,
                bus_options.drain,
            ):
                with _refusals():
                    parse(value)


def _is_foreign(problem: BaseException) -> bool:
    """Whether dbus-next or what it calls raised it, and not our reader."""
    trace = problem.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and not trace.tb_frame.f_code.co_filename.endswith("bus_wire.py")


class ControlPort:
    """Bytes of a peer through a real control port on loopback, which must serve the next peer."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._problems: list[str] = []
        self._count = 0
        handler = logging.Handler(logging.WARNING)
        handler.emit = lambda record: self._problems.append(record.getMessage())  # type: ignore[method-assign]
        logging.getLogger("scistreamd").addHandler(handler)
        self._loop.set_exception_handler(lambda _, context: self._problems.append(str(context)))
        self._handler = handler
        self._port = self._loop.run_until_complete(self._start())

    async def _start(self) -> Any:
        from tests.service.control_kit import control_port

        self._context = control_port(first_request_seconds=0.5, message_seconds=0.5)
        return await self._context.__aenter__()

    def close(self) -> None:
        """Stop the port; AssertionError where something of it is left."""
        self._loop.run_until_complete(self._context.__aexit__(None, None, None))
        logging.getLogger("scistreamd").removeHandler(self._handler)
        self._loop.close()

    def __call__(self, data: bytes) -> None:
        """The first byte says what the rest is: raw, frames, a call's data, or a call's message."""
        self._loop.run_until_complete(asyncio.wait_for(self._feed(data), 60))
        assert not self._problems, self._problems

    async def _feed(self, data: bytes) -> None:
        from tests.service.control_kit import Raw, framed, still_serves

        kind = data[0] % 4 if data else 0
        async with Raw.to(self._port, preface=False) as raw:
            if kind >= 1:
                raw.h2.initiate_connection()
                raw.flush()
            if kind >= 2:
                name = ("req", "hello", "update", "release")[data[0] // 4 % 4]
                stream = raw.call(f"/scistream.Control/{name}")
                if kind == 3:
                    raw.send(stream, framed(data[1:]))
            if kind < 3:
                raw.writer.write(data[1:])
            with contextlib.suppress(ConnectionError, OSError):
                raw.writer.write_eof()
                while await raw.reader.read(65536):
                    pass
        self._count += 1
        if self._count % 20 == 0:
            await still_serves(self._port)


@contextlib.contextmanager
def _refusals() -> Any:
    """What a caller may be told. `BugError` says that the fault is ours."""
    try:
        yield
    except BugError:
        raise
    except ScistreamError as refused:
        assert str(refused)


TARGETS: dict[str, Callable[[bytes], None]] = {
    "words": words,
    "configuration": configuration,
    "policy": policy,
    "record": record,
    "messages": messages,
    "bus": bus,
}
