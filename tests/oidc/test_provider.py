"""The tests' provider does what the tests of login and gateway rely on."""

from __future__ import annotations

from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from tests.oidc import SECRET, Provider, claims, provider


async def introspected(here: Provider, token: str) -> dict[str, object]:
    async with httpx.AsyncClient(trust_env=False, timeout=60) as http:
        answer = await http.post(f"{here.issuer}/token/introspection", data={"token": token}, auth=("gateway", SECRET))
    found: dict[str, object] = answer.json()
    return found


async def test_every_flow_that_tests_use() -> None:
    async with provider() as here:
        tokens = await here.user_tokens("alice", "scistream")
        found = await introspected(here, tokens["access_token"])
        assert (found["active"], found["sub"], found["scope"]) == (True, "alice", "openid offline_access scistream")
        assert found["email"] == "alice@anl.example"
        refresh = {"grant_type": "refresh_token", "refresh_token": tokens["refresh_token"], "client_id": "s2uc"}
        rotated = await here.post("/token", refresh, "")
        assert rotated["refresh_token"] != tokens["refresh_token"]
        with pytest.raises(AssertionError, match="invalid_grant"):
            await here.post("/token", refresh, "")
        robot = await here.robot_token()
        assert (await introspected(here, robot))["client_id"] == "robot"
        await here.revoke(robot)
        assert await introspected(here, robot) == {"active": False}
        jwt = await here.user_token("bob", "scistream", resource="urn:scistream:jwt")
        assert claims(jwt)["aud"] == "urn:scistream:jwt" and claims(jwt)["groups"] == ["guests"]
        refused = await here.browse(
            f"{here.issuer}/auth?client_id=s2uc&response_type=code&redirect_uri=http://127.0.0.1:99/callback"
            "&scope=openid&code_challenge=" + "a" * 43 + "&code_challenge_method=S256",
            "nobody",
        )
        assert parse_qs(urlsplit(refused).query)["error"] == ["access_denied"]
        before = here.issuer
        here.stop()
        await here.start()
        assert here.issuer == before


async def test_a_device_gets_its_token_once_a_person_confirmed() -> None:
    async with provider() as here:
        asked = await here.post("/device/auth", {"client_id": "s2uc", "scope": "openid scistream"}, "")
        poll = {
            "grant_type": "urn:ietf:params:oauth:grant-type:device_code",
            "device_code": asked["device_code"],
            "client_id": "s2uc",
        }
        with pytest.raises(AssertionError, match="authorization_pending"):
            await here.post("/token", poll, "")
        await here.approve_device(asked["verification_uri_complete"], "bob")
        token = (await here.post("/token", poll, ""))["access_token"]
        assert (await introspected(here, token))["sub"] == "bob"
