"""From the a{sv} of D-Bus methods to options: every key known, every type right, nothing ignored."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from scistreamd import names, options
from scistreamd.bus_messages import Typed
from scistreamd.errors import invalid
from scistreamd.model import Listen, Options, Security, Uid, shown
from scistreamd.options import MAX_ENTRIES, MAX_LIFETIME

MAX_RATE = 1_000_000_000
MAX_DRAIN = 24 * 3600
MAX_THROUGHPUT = 30

Given = Mapping[str, Typed]

OUTBOUND = ("type", "listen", "rate", "security", "lifetime", "allow-from", "label")
INBOUND = ("uid", *OUTBOUND)
UPDATE = ("rate", "lifetime")
RELEASE = ("drain",)
TEST = ("throughput",)
TEST_PATH = ("security", "throughput")


@dataclass(frozen=True)
class Amendment:
    """What Update changes beside the targets; None: leave it."""

    rate: int | None
    lifetime: int | None


def creation(given: Given, known: Collection[str]) -> tuple[Uid | None, Options]:
    """The options of CreateInbound or CreateOutbound, and the UID among them."""
    _check(given, known)
    found = Options()
    if "type" in given:
        found = replace(found, data_server=options.data_server(given["type"].value, "type"))
    if "security" in given:
        found = replace(found, security=Security.parse(given["security"].value))
    listen = tuple(Listen.parse(text, f"listen[{index}]") for index, text in enumerate(_entries(given, "listen")))
    networks = tuple(
        options.network(text, f"allow-from[{index}]") for index, text in enumerate(_entries(given, "allow-from"))
    )
    uid = Uid.parse(given["uid"].value) if "uid" in given else None
    return uid, replace(
        found,
        lifetime=_number(given, "lifetime", MAX_LIFETIME),
        rate=_number(given, "rate", MAX_RATE) or 0,
        label=options.label(given["label"].value, "label") if "label" in given else "",
        listen=listen,
        allow_from=networks,
        # Whoever names a port here wants that one; D-Bus has no clients from before this rule.
        exact_ports=any(each.port for each in listen),
    )


def amendment(given: Given) -> Amendment:
    """The options of Update."""
    _check(given, UPDATE)
    return Amendment(_number(given, "rate", MAX_RATE), _number(given, "lifetime", MAX_LIFETIME))


def drain(given: Given) -> int:
    """The option of Release, in seconds."""
    _check(given, RELEASE)
    return _number(given, "drain", MAX_DRAIN) or 0


def throughput(given: Given, known: Collection[str] = TEST) -> int:
    """The option of Test, in seconds; 0: do not measure."""
    _check(given, known)
    return _number(given, "throughput", MAX_THROUGHPUT) or 0


def path(given: Given) -> tuple[Security | None, int]:
    """The options of TestPath: the security mode, and as `throughput`."""
    seconds = throughput(given, TEST_PATH)
    return Security.parse(given["security"].value) if "security" in given else None, seconds


def _check(given: Given, known: Collection[str]) -> None:
    for name, typed in given.items():
        if name not in known:
            raise invalid("options", f"{shown(name)} is not an option here", f"one of: {', '.join(known)}")
        if typed.signature != names.OPTION_SIGNATURES[name]:
            raise invalid(name, f"has the type {typed.signature}", f"it takes {names.OPTION_SIGNATURES[name]}")


def _number(given: Given, name: str, most: int) -> int | None:
    if name not in given:
        return None
    number = given[name].value
    if number > most:
        raise invalid(name, f"{number} is more than {most}", f"from 0 to {most}")
    return int(number)


def _entries(given: Given, name: str) -> list[str]:
    entries: list[str] = given[name].value if name in given else []
    if len(entries) > MAX_ENTRIES:
        raise invalid(name, f"{len(entries)} entries, at most {MAX_ENTRIES} are taken", "make several tunnels")
    return entries
