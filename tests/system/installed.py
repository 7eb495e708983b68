"""scistreamd on a host as its package leaves it: tests begin with that, and put it back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from tests.system.host import Host

CONFIG = "/etc/scistreamd/scistreamd.toml"
DROP_INS = "/etc/systemd/system/scistreamd.service.d"
_CLEAR = f"""
rm -rf /var/lib/scistreamd/* /run/scistreamd {DROP_INS}
find /etc/scistreamd -mindepth 1 ! -path {CONFIG} -delete
"""


@contextlib.contextmanager
def as_installed(host: Host) -> Iterator[Host]:
    """The host, whose tunnels, state and configuration of scistreamd go at the end; the socket listens again."""
    installed = host.run(["cat", CONFIG]).stdout
    try:
        yield host
    finally:
        host.run(["systemctl", "stop", "scistreamd.socket", "scistreamd.service", "scistream.slice"], check=False)
        host.run(["systemctl", "reset-failed"])
        host.write(CONFIG, installed)
        host.run(["sh", "-c", _CLEAR])
        host.run(["systemctl", "daemon-reload"])
        host.run(["systemctl", "start", "scistreamd.socket"])
    assert host.run(["dpkg", "--verify", "scistreamd", "scistream-client", "scistream-common"]).stdout == ""
    assert host.state() == "running"
