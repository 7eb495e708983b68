"""``s2uc login``, ``logout`` and ``check-auth``."""

from __future__ import annotations

import json
import time
from argparse import Namespace
from typing import TYPE_CHECKING, Any

from scistreamd.cli import output
from scistreamd.cli.auth.store import GLOBUS, Login, Store, full_scope
from scistreamd.cli.ctl import human
from scistreamd.cli.known import KnownGateways
from scistreamd.errors import Code, ScistreamError

if TYPE_CHECKING:
    from scistreamd.cli.auth.provider import Provider


def login(options: Namespace) -> int:
    """``s2uc login``: gets tokens for a scope, unless there are good ones."""
    issuer = (options.issuer or GLOBUS).rstrip("/")
    if not options.scope:
        raise ScistreamError(
            Code.INVALID_ARGUMENT, "scope: whose tokens are wanted?", "--scope ID, as the operator says"
        )
    scope = full_scope(options.scope, issuer)
    store = Store()
    former = store.find(scope, issuer, options.audience)
    if former is not None and former.fresh(time.time()) and not options.force:
        output.result(f"You are already logged in{_as(former)}; s2uc logout ends that, --force logs in again")
        return 0
    # Imported here: they take a quarter of a second.
    from scistreamd.cli.auth import flows
    from scistreamd.cli.auth.provider import Provider

    provider = Provider(issuer, options.client_id)
    wanted = Login(issuer, scope, options.scope, provider.client_id, audience=options.audience)
    if options.device or (provider.device_flow and options.browser and flows.headless()):
        made = flows.by_device(provider, wanted)
    else:
        made = flows.by_code(provider, wanted, browser=options.browser)
    store.keep(made)
    output.result(f"Logged in{_as(made)} for {made.scope}{_until(made)}")
    return 0


def logout(options: Namespace) -> int:
    """``s2uc logout``: forgets tokens, and has the provider revoke them."""
    store = Store()
    meant = _meant(store, options)
    if not meant:
        output.result("no token stored")
        return 0
    failed: ScistreamError | None = None
    for each in meant:
        try:
            _provider(each).revoke(each)
            output.result(f"logged out of {each.scope}{f' for {each.audience}' if each.audience else ''}")
        except ScistreamError as problem:
            failed = problem
            output.note("s2uc", f"the tokens for {each.scope} are forgotten here, but not revoked: {problem.message}")
        store.forget(each)
    if failed is not None:
        raise ScistreamError(failed.code, "not every token was revoked; they end by themselves", failed.hint)
    return 0


def check_auth(options: Namespace) -> int:
    """``s2uc check-auth``: who is logged in, for what, until when."""
    store = Store()
    found = _meant(store, options)
    if options.ip:
        bound = _bound(options.ip)
        found = [each for each in found if (each.issuer, each.scope, each.audience) in bound]
    if not found:
        what = f" for {options.scope or options.ip}" if options.scope or options.ip else ""
        raise ScistreamError(Code.UNAUTHENTICATED, f"no token stored{what}", "s2uc login --scope ID")
    if options.json:
        output.result(json.dumps([_facts(each, secret=options.show_token) for each in found], indent=2))
    else:
        for each in found:
            state = "logged in" if _counts(each) or each.out_of_reach else "login ended"
            aimed = f" for {each.audience}" if each.audience else ""
            output.result(f"{each.scope}: {state}{_as(each)} at {each.issuer}{aimed}{_until(each)}")
            if options.show_token and each.access_token:
                output.result(each.access_token)
    return 0 if any(map(_counts, found)) else Code.UNAUTHENTICATED.exit_status


def _meant(store: Store, options: Namespace) -> list[Login]:
    logins = store.logins()
    if options.scope:
        logins = [each for each in logins if each.meant(options.scope)]
    return [each for each in logins if not options.issuer or each.issuer == options.issuer.rstrip("/")]


def _provider(login: Login) -> Provider:
    from scistreamd.cli.auth.provider import Provider

    return Provider(login.issuer, login.client_id)


def _bound(host: str) -> set[tuple[str, str, str]]:
    """Issuer, scope and audience of what was confirmed for the gateways of a host, or for one as ``HOST:PORT``."""
    logins = KnownGateways().logins().items()
    found = (each for name, each in logins if host in (name, name.rpartition(":")[0].strip("[]")))
    return {(each.issuer, each.scope, each.audience) for each in found}


def _facts(login: Login, *, secret: bool) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "issuer": login.issuer,
        "scope": login.scope,
        "audience": login.audience or None,
        "name": login.name,
        "identity": login.identity or None,
        "expires": login.expires or None,
        "refreshable": bool(login.refresh_token),
    }
    return {**facts, "access_token": login.access_token} if secret else facts


def _counts(login: Login) -> bool:
    """Whether there is a token to send, or one to be had without a person."""
    return bool(login.refresh_token) or (bool(login.access_token) and not 0 < login.expires <= time.time())


def _as(login: Login) -> str:
    return f" as {output.printable(login.identity)}" if login.identity else ""


def _until(login: Login) -> str:
    if login.out_of_reach:
        return ", its tokens are in a keyring that cannot be had here"
    if not _counts(login):
        return ", log in again: s2uc login"
    if not login.expires:
        return ""
    left = login.expires - time.time()
    renewed = ", renewed by itself" if login.refresh_token else ""
    return f", for {human.span(left)}{renewed}" if left > 0 else f", expired{renewed}"
