"""The systemd launcher on a real host, run with no more rights than the daemon has."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.system.host import Host
from tests.system.lab import Lab
from tests.system.launcher_driver import SCENES
from tests.system.project import PYTHON

pytestmark = pytest.mark.timeout(600)  # the first lab of a machine builds the base tree

_DRIVER = "/root/launcher_driver.py"
# The daemon's sandbox as far as it could be in a launcher's way.
_SANDBOX = (
    "CapabilityBoundingSet=CAP_NET_ADMIN",
    "NoNewPrivileges=yes",
    "ProtectSystem=strict",
    "PrivateTmp=yes",
    "PrivateDevices=yes",
    "ProtectProc=invisible",
    "ProcSubset=pid",
    "MemoryDenyWriteExecute=yes",
    "RestrictNamespaces=yes",
    "RuntimeDirectory=scistreamd",
    "RuntimeDirectoryMode=0700",
    "RuntimeDirectoryPreserve=yes",
    "UMask=0077",
    "SystemCallFilter=@system-service",
    "SystemCallFilter=~@privileged @resources",
    "SystemCallErrorNumber=EPERM",
    "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK",
)


@pytest.fixture(scope="module")
def host(lab: Lab) -> Host:
    host = lab["producers2"]
    host.write(_DRIVER, (Path(__file__).parent / "launcher_driver.py").read_text())
    return host


@pytest.mark.parametrize("name", SCENES)
def test_scene(host: Host, name: str) -> None:
    """Each asserts inside the host; a warning of Python's is a failure too."""
    sandbox = [word for setting in _SANDBOX for word in ("-p", setting)]
    run = ["systemd-run", "--quiet", "--pipe", "--wait", "--collect", *sandbox]
    done = host.run([*run, *PYTHON, "-X", "dev", _DRIVER, name], timeout=300, check=False)
    said = f"{done.stdout}{done.stderr}"
    print(said)
    assert done.returncode == 0, said
    assert "ResourceWarning" not in said and "never retrieved" not in said and "Traceback" not in said, said
    failed = host.run(["systemctl", "list-units", "--failed", "--plain", "--no-legend"]).stdout
    assert failed == ""
