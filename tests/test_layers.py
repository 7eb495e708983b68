"""Who imports whom, as docs/architecture has it: core knows nothing, the service layer no adapter."""

from __future__ import annotations

import ast
import functools
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "scistreamd"

CORE = {
    "", "model", "identity", "rules", "rulefile", "errors", "config",
    "policy", "throttle", "ports", "lifecycle", "interfaces", "plans", "options", "names", "records",
    "units", "unit_properties", "nftrules", "sourcefilter", "netattributes", "shaping", "capacity", "portcheck",
    "counts", "hop", "legs", "sock", "tally",
    "nft", "nft.attributes", "nft.conditions", "nft.cuts", "nft.decode", "nft.evaluate", "nft.expressions", "nft.facts",
    "nft.host", "nft.judgement", "nft.packet", "nft.program", "nft.quote", "nft.quote_fields", "nft.quote_sets",
    "nft.quote_values", "nft.ruleset", "nft.shared", "nft.spans", "nft.steps", "nft.xt",
    "configfile", "configkeys", "control.limits", "introspection", "bus_messages",
    "dataserver", "dataserver.answer", "dataserver.common",
    "dataserver.haproxy", "dataserver.nginx", "dataserver.stunnel",
}  # fmt: skip
ADAPTERS = {
    "child", "process", "process_held", "places", "readiness", "sockets", "network", "keys", "runtime", "logs", "spawn",
    "activation", "capabilities", "configread", "controlcert", "certificate_watch",
    "store", "journal", "programs", "service_watch", "systemd1", "systemd_held", "systemd_launcher", "systemd_wire",
    "authenticators", "authenticators.claims", "authenticators.flights", "authenticators.jwks", "authenticators.web",
    "authenticators.metadata", "authenticators.mtls", "authenticators.oauth2", "authenticators.secret",
    "authenticators.tokens",
    "bus", "bus_wire", "polkit", "netlink", "nfttable", "nftmessages", "guard", "portview",
    "rates", "taken", "tc", "routes",
    "counterbooks", "sockdiag", "metrics", "metrics_http", "packetcount",
    "pathtest", "pathrate", "pskhello", "icmp",
    "nft_dump", "host_view", "firewall", "firewalld", "closings",
}  # fmt: skip
# What a command line tool and the daemon do alike.
SHARED = {"addresses", "files", "selfsigned", "tokenfile", "validity"}
SERVICE = {
    "gate", "identification", "manager", "course", "draining", "restoring", "rights", "books", "flows", "hoptests",
    "meter", "planning", "registry", "reservations", "tunnel",
}  # fmt: skip
CONTROL = "control"
BUS_DOOR = {"bus_api", "bus_calls", "bus_needs", "bus_objects", "bus_options", "bus_ports", "bus_signals", "bus_view"}
# They build the adapters, and join all parts.
ROOTS = {"daemon", "kernel", "service", "service_main", "policy_command", "bus_door"}
# s2cs starts the daemon in the foreground: the one command line tool that may.
DAEMON_SIDE = ADAPTERS | SERVICE | ROOTS | BUS_DOOR | {CONTROL}


@functools.cache
def modules() -> list[tuple[str, set[str]]]:
    """Every module by its name below scistreamd, with all that it imports, at any depth."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip(".")
        found.append((name, set(imports(ast.parse(path.read_text())))))
    return found


def imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "absolute imports only"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def ours(names: set[str]) -> set[str]:
    """Module names below scistreamd, without the names imported out of them."""
    known = {name for name, _ in modules()}
    found = set()
    for name in names:
        inner = name.removeprefix("scistreamd").removeprefix(".") if name.split(".")[0] == "scistreamd" else None
        while inner and inner not in known:
            inner = inner.rpartition(".")[0]
        if inner is not None:
            found.add(inner)
    return found


def foreign(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names} - sys.stdlib_module_names - {"scistreamd"}


def test_core_imports_core_and_the_standard_library_alone() -> None:
    for name, imported in modules():
        if name in CORE:
            assert ours(imported) <= CORE, name
            assert not foreign(imported), name


def test_core_opens_nothing() -> None:
    openers = {"socket", "subprocess", "asyncio", "pathlib.Path", "os", "shutil", "tempfile"}
    for name, imported in modules():
        if name in CORE:
            assert not {each for each in imported if each in openers or each.split(".")[0] in openers}, name


def test_the_service_layer_knows_no_adapter_and_no_wire() -> None:
    for name, imported in modules():
        if name in SERVICE:
            assert ours(imported) <= CORE | SERVICE, name
            assert not foreign(imported), name


def test_adapters_know_no_service_and_one_outside_system_each() -> None:
    for name, imported in modules():
        if name in ADAPTERS:
            assert ours(imported) <= CORE | ADAPTERS | SHARED, name
            assert len(foreign(imported)) <= 1, name


def test_what_tools_and_daemon_share_knows_neither() -> None:
    for name, imported in modules():
        if name in SHARED:
            assert ours(imported) <= CORE | SHARED, name
            assert len(foreign(imported)) <= 1, name


def test_front_doors_know_no_adapter() -> None:
    for name, imported in modules():
        if name.split(".")[0] == CONTROL:
            allowed = {each for each in ours(imported) if each in CORE | {"gate"} or each.split(".")[0] == CONTROL}
            assert ours(imported) == allowed, name
        if name in BUS_DOOR:
            assert ours(imported) <= CORE | BUS_DOOR | {"gate"}, name
            assert not foreign(imported), name


def test_tools_never_import_the_daemon_side() -> None:
    for name, imported in modules():
        if name.split(".")[0] == "cli" and name != "cli.s2cs":
            assert not {each for each in ours(imported) if each.split(".")[0] in DAEMON_SIDE} - {
                "control",
                "control.scistream_pb2",
                "control.scistream_v2_pb2",
            }, name


def test_only_the_composition_root_builds_adapters() -> None:
    for name, imported in modules():
        if name not in ADAPTERS | ROOTS | {"cli.s2cs"}:
            assert not ours(imported) & ADAPTERS, name


def test_every_module_has_a_place() -> None:
    """A new module belongs to a layer, so that the rules above see it."""
    placed = CORE | ADAPTERS | SHARED | SERVICE | ROOTS | BUS_DOOR | {"cli", CONTROL}
    for name, _ in modules():
        assert name in placed or name.split(".")[0] in {"cli", CONTROL}, name
