"""What Globus Auth is asked and answers, as its documents and SDK have it; nobody reaches it from a test."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from scistreamd import options
from scistreamd.authenticators import claims
from scistreamd.cli import output
from scistreamd.cli.auth import provider
from scistreamd.cli.auth.attach import _log_in
from scistreamd.cli.auth.provider import Provider
from scistreamd.cli.auth.store import GLOBUS, Login, full_scope
from scistreamd.cli.challenges import offers
from scistreamd.config import OAuth2
from scistreamd.errors import ScistreamError

GATEWAY = "c42c0dac-0a52-408e-a04f-5d31bfe0aef8"
SCOPE = f"https://auth.globus.org/scopes/{GATEWAY}/scistream"
TOKENS = {
    "access_token": "of auth.globus.org",
    "scope": "email profile openid",
    "resource_server": "auth.globus.org",
    "expires_in": 172800,
    "token_type": "Bearer",
    "id_token": "e30.eyJwcmVmZXJyZWRfdXNlcm5hbWUiOiAiYWxpY2VAYW5sLmdvdiJ9.x",
    "other_tokens": [
        {
            "access_token": "of the gateway",
            "refresh_token": "its own",
            "scope": SCOPE,
            "resource_server": GATEWAY,
            "expires_in": 172000,
            "token_type": "Bearer",
        }
    ],
}


class Offline(Provider):
    """Globus where its metadata cannot be had."""

    def _discover(self) -> Mapping[str, Any]:
        return provider._GLOBUS


def test_the_url_to_log_in_at() -> None:
    login = Login(GLOBUS, full_scope(GATEWAY, GLOBUS), GATEWAY, "")
    globus = Offline(GLOBUS, "")
    url, state = globus.authorization_url(login, globus.fixed_redirect, "v" * 64)
    asked = {name: value for name, [value] in parse_qs(urlsplit(url).query).items()}
    assert url.startswith("https://auth.globus.org/v2/oauth2/authorize?")
    assert asked.pop("code_challenge")
    assert asked == {
        "response_type": "code",
        "client_id": "4787c84e-9c55-4881-b941-cb6720cea11c",
        "redirect_uri": "https://auth.globus.org/v2/web/auth-code",
        "scope": f"openid email profile {SCOPE}",
        "state": state,
        "access_type": "offline",
        "code_challenge_method": "S256",
    }


@pytest.mark.parametrize("first", [True, False])
def test_the_token_is_that_of_the_scope(first: bool) -> None:
    gateway = TOKENS["other_tokens"][0]  # type: ignore[index]
    said = {**gateway, "other_tokens": [TOKENS]} if first else TOKENS
    assert provider._of_scope(said, SCOPE)["access_token"] == "of the gateway"


def test_a_token_without_word_of_its_scope_has_what_was_asked_for() -> None:
    assert provider._of_scope({"access_token": "a"}, SCOPE) == {"access_token": "a"}


def test_what_introspection_says() -> None:
    said = {
        "active": True,
        "scope": SCOPE,
        "sub": "79cb54bb-2296-424a-9ab2-8dabcf1457ff",
        "username": "alice@anl.gov",
        "name": None,
        "email": None,
        "client_id": "4787c84e-9c55-4881-b941-cb6720cea11c",
        "aud": [GATEWAY, "4787c84e-9c55-4881-b941-cb6720cea11c"],
        "iss": "https://auth.globus.org",
        "exp": 1915236549,
        "iat": 1599703671,
        "nbf": 1599703671,
        "identities_set": ["79cb54bb-2296-424a-9ab2-8dabcf1457ff"],
    }
    for settings in (OAuth2(client_id=GATEWAY), OAuth2(client_id=GATEWAY, audience=GATEWAY)):
        found = claims.judge(said, settings, 1600000000, b"")
        assert (found.name, set(found.domains)) == ("alice@anl.gov", {"anl.gov"})
    with pytest.raises(ScistreamError, match="lacks the scope"):
        claims.judge({**said, "scope": "openid"}, OAuth2(client_id=GATEWAY), 1600000000, b"")


def test_a_gateway_writes_no_command_of_its_own_into_a_hint() -> None:
    [offer] = offers(['oauth2 issuer="https://login.example.org", scope="a;$(reboot) b", client_id="s2uc"'])
    hint = _log_in(offer, None, again=False).hint
    assert hint == "s2uc login --scope 'a;$(reboot) b' --issuer https://login.example.org --client-id s2uc"
    assert not offers(['oauth2 issuer="https://login.example.org", scope=" a"'])


@pytest.mark.parametrize("hide", [options.veiled, output.harmless])
def test_ids_of_providers_are_not_hidden_as_uids_are(hide: Callable[[str], str]) -> None:
    for said in (
        f"the gateway asks for a login: scope {SCOPE} at {GLOBUS}",
        f"s2uc login --scope {GATEWAY} --issuer https://login.example.org/{GATEWAY}/v2.0 --client-id {GATEWAY}",
        f"this token is not for {GATEWAY}",
    ):
        assert hide(said) == said
        assert GATEWAY not in hide(f"{said}; {GATEWAY} and https://a.example {GATEWAY}").removeprefix(said)
