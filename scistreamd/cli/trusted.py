"""``s2uc trust``: the gateways that the user has trusted."""

from __future__ import annotations

from argparse import Namespace

from scistreamd.cli import output
from scistreamd.cli.ctl import human
from scistreamd.cli.ctl.screen import Screen
from scistreamd.cli.ctl.table import render
from scistreamd.cli.known import KnownGateways
from scistreamd.cli.requests import control

_TITLES = ("GATEWAY", "SINCE", "CERTIFICATE ENDS", "SHA-256 FINGERPRINT")


def listed(options: Namespace) -> int:
    """``s2uc trust list``."""
    screen = Screen.of(Namespace(**{**vars(options), "json": "pretty" if options.json else "off"}))
    gateways = KnownGateways().all()
    if screen.json:
        screen.data(
            [
                {
                    "gateway": name,
                    "since": each.since,
                    "ends": each.ends,
                    "certificate": each.fingerprint,
                    "key": each.key,
                }
                for name, each in gateways.items()
            ]
        )
        return 0
    rows = [
        [name, each.since, human.moment(int(each.ends * 1_000_000)), each.fingerprint]
        for name, each in gateways.items()
    ]
    screen.text(render(screen, _TITLES, rows, f"{human.counted(len(rows), 'gateway')}.".capitalize()))
    return 0


def remove(options: Namespace) -> int:
    """``s2uc trust remove``."""
    address = str(control(options.gateway))
    KnownGateways().forget(address)
    output.result(f"{address} is not trusted any more")
    return 0
