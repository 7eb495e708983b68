"""``s2uc trust``: the gateways that the user has trusted."""

from __future__ import annotations

from argparse import Namespace

from scistreamd.cli import output
from scistreamd.cli.ctl import human
from scistreamd.cli.ctl.screen import Screen
from scistreamd.cli.ctl.table import Cell, render
from scistreamd.cli.known import Binding, Known, KnownGateways
from scistreamd.cli.requests import control

_TITLES = ("GATEWAY", "SINCE", "CERTIFICATE ENDS", "LOGIN", "SHA-256 FINGERPRINT")


def listed(options: Namespace) -> int:
    """``s2uc trust list``: also the gateways that only a login was confirmed for, which others vouch for."""
    screen = Screen.of(Namespace(**{**vars(options), "json": "pretty" if options.json else "off"}))
    known = KnownGateways()
    gateways, logins = known.all(), known.logins()
    names = sorted({*gateways, *logins})
    if screen.json:
        screen.data([_facts(name, gateways.get(name), logins.get(name)) for name in names])
        return 0
    rows = [_row(name, gateways.get(name), logins.get(name)) for name in names]
    screen.text(render(screen, _TITLES, rows, f"{human.counted(len(rows), 'gateway')}.".capitalize()))
    return 0


def _row(name: str, known: Known | None, login: Binding | None) -> list[Cell | str]:
    scope = login.scope if login else "-"
    if known is None:
        return [name, "-", "-", scope, "-"]
    return [name, known.since, human.moment(int(known.ends * 1_000_000)), scope, known.fingerprint]


def _facts(name: str, known: Known | None, login: Binding | None) -> dict[str, object]:
    return {
        "gateway": name,
        "since": known.since if known else None,
        "ends": known.ends if known else None,
        "certificate": known.fingerprint if known else None,
        "key": known.key if known else login.key if login else None,
        "login": {"issuer": login.issuer, "scope": login.scope} if login else None,
    }


def remove(options: Namespace) -> int:
    """``s2uc trust remove``."""
    address = str(control(options.gateway))
    KnownGateways().forget(address)
    output.result(f"{address} is not trusted any more")
    return 0
