"""Properties of units, and the armour that every data server wears."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_EPERM = 1  # errno(3)


@dataclass(frozen=True)
class Property:
    """One property of a unit: its name and its D-Bus value. A list-like setting may come twice."""

    name: str
    signature: str
    value: Any


@dataclass(frozen=True)
class Limits:
    """What the data server of one tunnel may use."""

    memory_bytes: int = 2**30
    tasks: int = 4200  # Stunnel: a thread for each of Tuning.connections
    files: int = 65536


# systemd.exec(5). `systemd-analyze security` then says 1.1; the lab's test holds it to 1.5.
ARMOUR = (
    Property("DynamicUser", "b", True),
    Property("NoNewPrivileges", "b", True),
    Property("CapabilityBoundingSet", "t", 0),
    Property("AmbientCapabilities", "t", 0),
    Property("PrivateUsers", "b", True),
    Property("PrivateTmp", "b", True),
    Property("PrivateDevices", "b", True),
    Property("DevicePolicy", "s", "closed"),
    Property("ProtectSystem", "s", "strict"),
    Property("ProtectHome", "s", "yes"),
    Property("ProtectProc", "s", "invisible"),
    Property("ProcSubset", "s", "pid"),
    Property("ProtectClock", "b", True),
    Property("ProtectHostname", "b", True),
    Property("ProtectKernelLogs", "b", True),
    Property("ProtectKernelModules", "b", True),
    Property("ProtectKernelTunables", "b", True),
    Property("ProtectControlGroups", "b", True),
    Property("MemoryDenyWriteExecute", "b", True),
    Property("LockPersonality", "b", True),
    Property("RestrictNamespaces", "t", 0),  # none may be made
    Property("RestrictRealtime", "b", True),
    Property("RestrictSUIDSGID", "b", True),
    Property("RemoveIPC", "b", True),
    Property("KeyringMode", "s", "private"),
    Property("UMask", "u", 0o077),
    Property("LimitCORE", "t", 0),  # its memory holds the tunnel's keys
    Property("LimitCORESoft", "t", 0),
    Property("RestrictAddressFamilies", "(bas)", [True, ["AF_INET", "AF_INET6", "AF_UNIX"]]),
    Property("SystemCallArchitectures", "as", ["native"]),
    Property("SystemCallFilter", "(bas)", [True, ["@system-service"]]),
    Property("SystemCallFilter", "(bas)", [False, ["@privileged", "@resources"]]),
    # Stunnel calls sched_setscheduler(2), and can do without.
    Property("SystemCallErrorNumber", "i", _EPERM),
)
