"""What a provider says of a token, judged."""

from __future__ import annotations

import hashlib
from base64 import urlsafe_b64encode
from typing import Any

import pytest

from scistreamd.authenticators.claims import challenge, judge
from scistreamd.config import GLOBUS, OAuth2
from scistreamd.errors import Code, ScistreamError

ISSUER = "https://login.example.org"
SETTINGS = OAuth2(issuer=ISSUER, client_id="gateway", audience="us", leeway=30)
NOW = 1_800_000_000.0
GOOD: dict[str, Any] = {"sub": "17", "aud": ["them", "us"], "scope": "openid scistream", "exp": NOW + 1, "iss": ISSUER}


def of(certificate: bytes = b"", settings: OAuth2 = SETTINGS, **claims: Any) -> str:
    """Why not, or an empty string."""
    try:
        judge(
            {name: value for name, value in {**GOOD, **claims}.items() if value is not None}, settings, NOW, certificate
        )
    except ScistreamError as problem:
        assert problem.code is Code.UNAUTHENTICATED
        assert problem.hint
        return problem.message
    return ""


CERTIFICATE = b"a certificate"
BOUND = {"x5t#S256": urlsafe_b64encode(hashlib.sha256(CERTIFICATE).digest()).decode().rstrip("=")}


@pytest.mark.parametrize(
    ("claims", "why"),
    [
        ({}, ""),
        ({"exp": NOW - 29}, ""),
        ({"exp": NOW - 31}, "expired"),
        ({"exp": "soon"}, "no time"),
        ({"exp": True}, "no time"),
        ({"exp": None}, ""),  # the provider has just said that it is active; JWTs must have one
        ({"nbf": NOW + 29}, ""),
        ({"nbf": NOW + 31}, "not valid yet"),
        ({"iss": ISSUER + "/"}, ""),
        ({"iss": "https://evil.example"}, "another provider"),
        ({"iss": None}, ""),
        ({"aud": "us"}, ""),
        ({"aud": "usual"}, "not for us"),
        ({"aud": None}, "not for us"),
        ({"aud": {"us": 1}}, "not for us"),
        ({"scope": "scistream-2"}, "lacks the scope scistream"),
        ({"scope": None}, "lacks the scope"),
        ({"scope": None, "scp": ["a", "scistream"]}, ""),
        ({"scope": ["scistream"]}, ""),
        ({"token_type": "bearer"}, ""),
        ({"token_type": "DPoP"}, "no access token"),
        ({"typ": "Refresh"}, "no access token"),
        ({"typ": "ID"}, "no access token"),
        ({"token_type": "Bearer", "token_use": "refresh_token"}, "no access token"),
        ({"token_use": "id"}, "no access token"),
        ({"token_use": "access"}, ""),
        ({"token_use": "access_token"}, ""),
        ({"cnf": {"jkt": "x"}}, "bound to a key"),
        ({"cnf": BOUND}, "bound to a client certificate"),
        ({"sub": None}, "nothing of whose"),
        ({"sub": None, "client_id": "robot"}, ""),
        ({"sub": 17}, "nothing of whose"),
    ],
)
def test_what_a_token_must_be(claims: dict[str, Any], why: str) -> None:
    said = of(**claims)
    assert why in said and bool(why) is bool(said)


def test_a_token_bound_to_a_certificate_needs_it() -> None:
    assert of(CERTIFICATE, cnf=BOUND) == ""
    assert "was not shown" in of(b"another", cnf=BOUND)


def test_names_are_those_that_somebody_vouches_for() -> None:
    people = {
        "sub": "17", "username": "alice@anl.example", "email": "Alice@Lab.example", "preferred_username": "root",
        "groups": ["staff", 5, "a\nb"],
    }  # fmt: skip
    found = judge({**GOOD, **people}, SETTINGS, NOW, b"")
    assert (found.method, found.key, found.name) == ("oauth2", f"{ISSUER}#17", "alice@anl.example")
    assert found.names == {"alice@anl.example", "Alice@Lab.example", "17"}
    assert found.groups == {"staff"}
    assert found.domains == {"anl.example", "lab.example"}
    for unverified in (False, "false"):
        assert (
            "Alice@Lab.example" not in judge({**GOOD, **people, "email_verified": unverified}, SETTINGS, NOW, b"").names
        )
    odd = judge({**GOOD, "username": "a\x1b[31m\n", "email": "x" * 300}, SETTINGS, NOW, b"")
    assert odd.name == "17"


def test_a_machine_is_another_than_the_person_of_its_name() -> None:
    person, machine = {"sub": "robot"}, {"sub": None, "client_id": "robot"}
    found = [judge({**GOOD, **each}, SETTINGS, NOW, b"").principal for each in (person, machine)]
    assert found[0] != found[1]


def test_scopes_of_globus_and_of_others() -> None:
    globus = OAuth2(client_id="c0ffee")
    assert globus.wanted_scope == "https://auth.globus.org/scopes/c0ffee/scistream"
    assert (globus.issuer, globus.judges_jwts) == (GLOBUS, False)
    assert str(challenge(globus)) == f'oauth2 issuer="{GLOBUS}", scope="{globus.wanted_scope}"'
    assert SETTINGS.wanted_scope == "scistream"
    told = str(challenge(OAuth2(issuer=ISSUER, client_id="g", scope="a b", audience="us", login_client_id="cli")))
    assert told == f'oauth2 issuer="{ISSUER}", scope="a b", audience="us", client_id="cli"'
