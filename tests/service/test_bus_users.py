"""The real polkit with our policy and rule: what root, a member of the group scistream, and nobody may."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import pwd
import re
import shutil
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from scistreamd import names
from scistreamd.bus import Bus
from scistreamd.bus_door import BusDoor
from scistreamd.config import Settings
from scistreamd.daemon import Gateway, Plugged
from scistreamd.model import PortRange
from scistreamd.polkit import Polkit
from scistreamd.runtime import runtime_directory
from tests.service.bus_kit import PrivateBus, connected

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="polkit is started as root, and callers as other users")

LOOPBACK = ipaddress.ip_address("127.0.0.1")
SETTINGS = Settings(
    listen_inbound=LOOPBACK, listen_outbound=LOOPBACK, port_range=PortRange(27840, 27849), default_type="Nginx"
)
DBUS = Path(__file__).parent.parent.parent / "dbus"
# Users that every Debian has; polkit alone sees `daemon` as a member of the group.
ROOT, MEMBER, NOBODY = (pwd.getpwnam(name).pw_uid for name in ("root", "daemon", "nobody"))

# polkit reads actions, rules and groups from fixed places; it sees ours there, and nobody else does.
_POLKIT = """
mount --bind {0}/actions /usr/share/polkit-1/actions
mount --bind {0}/rules.d /usr/share/polkit-1/rules.d
mount --bind {0}/group /etc/group
exec /usr/lib/polkit-1/polkitd --no-debug
"""


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory that all users can reach: pytest's own are for its user alone."""
    made = Path(tempfile.mkdtemp())
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


def _equip(directory: Path) -> None:
    for kind, ours in (("actions", "policy"), ("rules.d", "rules")):
        shutil.copytree(f"/usr/share/polkit-1/{kind}", directory / kind)
        shutil.copy(DBUS / f"{names.SERVICE}.{ours}", directory / kind)
        (directory / kind).chmod(0o755)
    (directory / "group").write_text(Path("/etc/group").read_text() + "scistream:x:64300:daemon\n")


@contextlib.asynccontextmanager
async def polkit(directory: Path, address: str) -> AsyncIterator[None]:
    """The host's polkitd, on this bus and with our files."""
    _equip(directory)
    process = await asyncio.create_subprocess_exec(
        *("unshare", "--mount", "--propagation", "private", "sh", "-ec", _POLKIT.format(directory)),
        env={**os.environ, "DBUS_SYSTEM_BUS_ADDRESS": address},
    )
    try:
        async with connected(address) as client:
            while not await client.has_owner("org.freedesktop.PolicyKit1"):  # noqa: ASYNC110  (it says nothing)
                await asyncio.sleep(0.05)
        yield
    finally:
        process.terminate()
        await process.wait()


@dataclass
class Scene:
    """A gateway whose callers are judged by polkit."""

    address: str

    async def call(self, user: int, path: str, interface: str, *words: str) -> str:
        """Call a method by busctl as a user who cannot be asked for a password; the output, or the error."""
        line = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"]
        line += ["busctl", "--allow-interactive-authorization=no", "call", names.SERVICE, path, interface, *words]
        process = await asyncio.create_subprocess_exec(
            *line,
            env={"PATH": os.environ["PATH"], "DBUS_SYSTEM_BUS_ADDRESS": self.address},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        out, _ = await process.communicate()
        return out.decode().strip()

    async def created(self, user: int) -> str:
        """Make a tunnel; its object path, or the error."""
        out = await self.call(user, names.ROOT, names.MANAGER, "CreateInbound", "asa{sv}", "1", "10.0.0.1:1", "0")
        found = re.search(r'"(/\S+)"', out)
        return found[1] if found else out

    async def change(self, user: int, path: str) -> dict[str, str]:
        """Try all that changes a tunnel or shows its UID; what each came to."""
        calls = {
            "update": ("Update", "asa{sv}", "1", "10.0.0.2:1", "0"),
            "reveal": ("GetUid",),
            "release": ("Release", "a{sv}", "0"),
        }
        return {verb: await self.call(user, path, names.TUNNEL, *words) for verb, words in calls.items()}


@pytest_asyncio.fixture
async def scene(public: Path) -> AsyncIterator[Scene]:
    private = PrivateBus(public)
    await private.start()
    bus = Bus(private.address)
    door = [lambda manager, gate, counters: BusDoor(bus, manager, gate, lambda: None, LOOPBACK, counters=counters)]
    with runtime_directory() as runtime:
        gateway = Gateway(SETTINGS, runtime, LOOPBACK, Plugged(authority=Polkit(bus), doors=door))
        await gateway.start([], None)
        try:
            async with polkit(public, private.address):
                yield Scene(private.address)
        finally:
            await gateway.close()
            await private.stop()


def denied(outcome: str, verb: str) -> bool:
    return outcome.startswith(f"Call failed: {verb}: ") and " may not" in outcome


async def test_a_member_has_tunnels_of_its_own_and_no_others(scene: Scene) -> None:
    roots, own = await scene.created(ROOT), await scene.created(MEMBER)
    assert roots.startswith(names.TUNNELS)
    assert own.startswith(names.TUNNELS)
    for verb, outcome in (await scene.change(MEMBER, roots)).items():
        assert denied(outcome, verb), outcome
    for verb, outcome in (await scene.change(MEMBER, own)).items():
        assert re.fullmatch(r's "[0-9a-f-]{36}"' if verb == "reveal" else "", outcome), outcome
    assert denied(await scene.call(MEMBER, names.ROOT, names.MANAGER, "Reload"), "reload")


async def test_the_uid_of_another_is_as_one_of_nobody(scene: Scene) -> None:
    async def released(user: int, uid: str) -> str:
        return await scene.call(user, names.ROOT, names.MANAGER, "Release", "sa{sv}", uid, "0")

    async def uid_of(user: int) -> str:
        found = re.search(r"[0-9a-f-]{36}", await scene.call(user, await scene.created(user), names.TUNNEL, "GetUid"))
        assert found
        return found[0]

    roots, own, unknown = await uid_of(ROOT), await uid_of(MEMBER), str(uuid.uuid4())
    for user in (MEMBER, NOBODY):
        assert "no such tunnel" in await released(user, unknown)
        assert await released(user, roots) == await released(user, unknown)
    assert "no such tunnel" in await released(NOBODY, own)
    assert await released(MEMBER, own) == ""
    assert await released(ROOT, roots) == ""


async def test_nobody_reads_and_changes_nothing(scene: Scene) -> None:
    members = await scene.created(MEMBER)
    listed = await scene.call(NOBODY, names.ROOT, names.MANAGER, "ListTunnels")
    assert members in listed
    assert denied(await scene.created(NOBODY), "create")
    for verb, outcome in (await scene.change(NOBODY, members)).items():
        assert denied(outcome, verb), outcome
    assert denied(await scene.call(NOBODY, names.ROOT, names.MANAGER, "Reload"), "reload")


async def test_root_may_everything(scene: Scene) -> None:
    members = await scene.created(MEMBER)
    for outcome in (await scene.change(ROOT, members)).values():
        assert "failed" not in outcome, outcome
    assert not await scene.call(ROOT, names.ROOT, names.MANAGER, "Reload")


async def test_only_root_can_have_the_name(scene: Scene) -> None:
    line = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "busctl", "call"]
    line += ["org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "RequestName", "su"]
    process = await asyncio.create_subprocess_exec(
        *(*line, names.SERVICE, "4"),
        env={"PATH": os.environ["PATH"], "DBUS_SYSTEM_BUS_ADDRESS": scene.address},
        stderr=asyncio.subprocess.PIPE,
    )
    assert b"Access denied" in (await process.communicate())[1]
