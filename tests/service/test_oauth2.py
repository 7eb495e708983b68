"""Tokens of a real provider on the control port: by introspection, and as JWTs."""

from __future__ import annotations

import asyncio
import base64
import json
import time
import uuid
from pathlib import Path

import grpc
import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.oidc import Provider, claims, provider
from tests.service.auth_kit import KNOWN, UNKNOWN, ask, gateway, oauth2, oidc
from tests.service.gateways import Deployed, application, encode

__all__ = ["oidc"]  # pytest finds a fixture by its name in the module

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
JWT = "urn:scistream:jwt"


async def test_a_token_of_the_provider_and_only_a_good_one_opens_the_gateway(oidc: Provider, tmp_path: Path) -> None:
    alice, robot = await oidc.user_token("alice"), await oidc.robot_token()
    async with gateway(tmp_path, oauth2(oidc, tmp_path)) as here:
        assert (await ask(here, alice)).code is KNOWN
        assert (await ask(here, f"Bearer {alice}")).code is KNOWN
        assert (await ask(here, robot)).code is KNOWN
        for token in ("", "INVALID_TOKEN"):
            said = await ask(here, token)
            assert (said.code, said.challenges) == (UNKNOWN, (f'oauth2 issuer="{oidc.issuer}", scope="scistream"',))
        before = await oidc.asked()
        bad = await ask(here, "x" * 40)
        assert (bad.code, bool(bad.challenges), "is not valid" in bad.message) == (UNKNOWN, True, True)
        assert await oidc.asked() == before + 1
        for token in ("a b", "=", "'; --", "x" * 9000):
            assert (await ask(here, token)).code in (UNKNOWN, grpc.StatusCode.RESOURCE_EXHAUSTED), token
        assert await oidc.asked() == before + 1
        other = await ask(here, await oidc.robot_token("other"))
        assert other.code is UNKNOWN
        assert "lacks the scope scistream" in other.message
    for token in (alice, robot, "x" * 40):
        assert token not in here.log
    assert "release by alice@anl.example from 127.0.0.1" in here.log


async def test_whose_tunnel_it_is_and_who_asks(oidc: Provider, tmp_path: Path) -> None:
    """A whole tunnel by one person, out of reach for another one."""
    async with gateway(tmp_path, oauth2(oidc, tmp_path)) as here, application(b"got ") as target, here.channel() as way:
        alice, bob = [Deployed(way, await oidc.user_token(name)) for name in ("alice", "bob")]
        uid = str(uuid.uuid4())
        await alice.request(uid, "PROD", 1, [target])
        await alice.update(uid, [target], "PROD")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await bob.release(uid)
        assert caught.value.code() is KNOWN
        await alice.release(uid)


async def test_users_groups_and_domains_in_policies(oidc: Provider, tmp_path: Path) -> None:
    rules = """
[[policy]]
name = "staff"
group = ["staff"]
[[policy]]
name = "ornl"
domain = ["ornl.example"]
"""
    config = oauth2(oidc, tmp_path) + rules
    names = {name: await oidc.user_token(name) for name in ("alice", "bob", "mallory")}
    async with gateway(tmp_path, config) as here, here.channel() as way:
        codes = {}
        for name, token in names.items():
            call = way.unary_unary("/scistream.Control/req")
            fields = encode({1: str(uuid.uuid4()), 2: "PROD", 3: 1})
            seconds = 60 if name == "mallory" else 2
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(fields, metadata=(("authorization", token),), timeout=seconds)
            codes[name] = str(caught.value.details())
        assert codes["alice"] == codes["bob"] == "Deadline Exceeded"  # they waited for hello
        # She has Alice's address, but nobody has verified that.
        assert "no policy rule allows mallory from 127.0.0.1 to create an inbound tunnel" in codes["mallory"]


async def test_what_the_provider_said_is_remembered_for_a_short_time(oidc: Provider, tmp_path: Path) -> None:
    token = await oidc.robot_token()
    async with (
        gateway(tmp_path, oauth2(oidc, tmp_path, "cache = 5", "negative_cache = 3")) as here,
        here.channel() as way,
    ):
        before = await oidc.asked()
        began = time.monotonic()
        answers = await asyncio.gather(*(ask(here, token, channel=way) for _ in range(10)))
        assert {each.code for each in answers} == {KNOWN}
        assert await oidc.asked() == before + 1
        await oidc.revoke(token)
        again = await ask(here, token)
        assert again.code is KNOWN or time.monotonic() - began > 5
        await asyncio.sleep(5)
        began = time.monotonic()
        assert (await ask(here, token)).code is UNKNOWN
        assert await oidc.asked() == before + 2
        assert (await ask(here, token)).code is UNKNOWN
        asked = await oidc.asked()
        assert asked == before + 2 or time.monotonic() - began > 3
        await asyncio.sleep(3)
        assert (await ask(here, token)).code is UNKNOWN
        assert await oidc.asked() == asked + 1


async def test_a_token_ends_when_it_ends_however_long_answers_are_remembered(oidc: Provider, tmp_path: Path) -> None:
    async with gateway(tmp_path, oauth2(oidc, tmp_path, "cache = 3600", "leeway = 0")) as here:
        token = await oidc.robot_token(client="short-robot")
        assert (await ask(here, token)).code is KNOWN
        await asyncio.sleep(4)
        assert (await ask(here, token)).code is UNKNOWN


async def test_the_audience_of_a_token(oidc: Provider, tmp_path: Path) -> None:
    config = oauth2(oidc, tmp_path, 'audience = "urn:scistream:here"')
    async with gateway(tmp_path, config) as here:
        assert (await ask(here, await oidc.robot_token(resource="urn:scistream:here"))).code is KNOWN
        for resource in ("urn:scistream:there", ""):
            said = await ask(here, await oidc.robot_token(resource=resource))
            assert said.code is UNKNOWN
            assert "not for urn:scistream:here" in said.message
        assert 'audience="urn:scistream:here"' in said.challenges[0]


async def test_a_provider_that_is_slow_or_down_lets_nobody_in(tmp_path: Path) -> None:
    async with provider() as own:
        token = await own.robot_token()
        config = oauth2(own, tmp_path, "cache = 0", "negative_cache = 0", "timeout = 3")
        async with gateway(tmp_path, config) as here:
            assert (await ask(here, token)).code is KNOWN
            own.freeze()
            said = await ask(here, token)
            assert said.code is UNAVAILABLE
            assert own.issuer not in said.message
            assert "no answer in 3 s" in here.log
            # Who brings nothing is told where to log in all the same, and health answers.
            assert (await ask(here)).code is UNKNOWN
            own.thaw()
            assert (await ask(here, token)).code is KNOWN
            own.stop()
            assert (await ask(here, token)).code is UNAVAILABLE
            await own.start()
            assert (await ask(here, token)).code is UNKNOWN  # a new provider, which never gave this token
            assert (await ask(here, await own.robot_token())).code is KNOWN
        assert token not in here.log


async def test_a_wrong_secret_is_the_operators_to_see(oidc: Provider, tmp_path: Path) -> None:
    config = oauth2(oidc, tmp_path)
    (tmp_path / "secret").write_text("wrong")
    async with gateway(tmp_path, config) as here:
        assert (await ask(here, await oidc.robot_token())).code is UNAVAILABLE
        assert "the provider refuses this gateway" in here.log
        assert "check auth.oauth2.client_id and its secret" in here.log


async def test_jwts_are_validated_without_asking(oidc: Provider, tmp_path: Path) -> None:
    """By the provider's keys: kind of signature, issuer, audience, scope."""
    good = await oidc.user_token("alice", "scistream", resource=JWT)
    async with gateway(tmp_path, oauth2(oidc, tmp_path, "no client_id", f'audience = "{JWT}"')) as here:
        before = await oidc.asked()
        assert (await ask(here, good)).code is KNOWN
        rs256 = await ask(here, await oidc.robot_token(resource=f"{JWT}:rs256"))
        assert "this token is not for" in rs256.message
        assert "lacks the scope" in (await ask(here, await oidc.robot_token("other", resource=JWT))).message
        head, body, signature = good.split(".")
        changed = json.loads(base64.urlsafe_b64decode(body + "=="))
        forged = base64.urlsafe_b64encode(json.dumps({**changed, "sub": "bob"}).encode()).decode().rstrip("=")
        kid = jwt.get_unverified_header(good)["kid"]
        own_key = ec.generate_private_key(ec.SECP256R1())
        public = own_key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        forgeries = {
            "another's claims": f"{head}.{forged}.{signature}",
            "no signature": jwt.encode(changed, "", "none", headers={"kid": kid}),
            "our own key": jwt.encode(changed, own_key, "ES256", headers={"kid": kid}),
            "a shared secret": jwt.encode(changed, public.hex(), "HS256", headers={"kid": kid}),
            "another kid": jwt.encode(changed, own_key, "ES256", headers={"kid": "x"}),
            "an ID token's type": jwt.encode(changed, own_key, "ES256", headers={"kid": kid, "typ": "dpop+jwt"}),
            "another issuer": jwt.encode({**changed, "iss": "https://evil.example"}, own_key, "ES256"),
        }
        for what, token in forgeries.items():
            assert (await ask(here, token)).code is UNKNOWN, what
        assert (await ask(here, await oidc.robot_token())).code is UNKNOWN  # opaque, and nobody to ask
        assert await oidc.asked() == before
        assert await oidc.asked("/jwks") <= 2
    assert good not in here.log


async def test_an_id_token_is_no_access_token(oidc: Provider, tmp_path: Path) -> None:
    tokens = await oidc.user_tokens("alice")
    async with gateway(
        tmp_path, oauth2(oidc, tmp_path, "no client_id", 'audience = "s2uc"', 'scope = "openid"')
    ) as here:
        said = await ask(here, tokens["id_token"])
        assert (said.code, "no access token" in said.message) == (UNKNOWN, True)
        assert (await ask(here, tokens["refresh_token"])).code is UNKNOWN


async def test_new_keys_of_the_provider_are_found_and_a_provider_that_is_down_is_no_yes(tmp_path: Path) -> None:
    async with provider() as own:
        old = await own.robot_token(resource=JWT)
        config = oauth2(own, tmp_path, "no client_id", f'audience = "{JWT}"', "timeout = 20")
        async with gateway(tmp_path, config) as here:
            assert (await ask(here, old)).code is KNOWN
            own.stop()
            assert (await ask(here, old)).code is KNOWN  # that is what the keys are for
            await own.start()
            await asyncio.sleep(5)  # new keys are not looked for more often
            assert (await ask(here, await own.robot_token(resource=JWT))).code is KNOWN
            own.stop()
            before = here.log
            unknown_key = jwt.encode(
                claims(old), ec.generate_private_key(ec.SECP256R1()), "ES256", headers={"kid": "y"}
            )
            assert (await ask(here, unknown_key)).code in (UNKNOWN, UNAVAILABLE)
            assert here.log != before


@pytest.mark.parametrize(("offset", "leeway", "code"), [(-605, 30, KNOWN), (-605, 0, UNKNOWN)])
async def test_clocks_that_differ(tmp_path: Path, offset: int, leeway: int, code: grpc.StatusCode) -> None:
    """Tokens live for 600 s by the provider's clock."""
    async with provider(clock=offset) as own:
        token = await own.robot_token(resource=JWT)
        assert abs(claims(token)["iat"] - time.time() - offset) < 60
        opaque = await own.robot_token()
        jwts = oauth2(own, tmp_path, "no client_id", f'audience = "{JWT}"', f"leeway = {leeway}")
        async with gateway(tmp_path, jwts) as here:
            assert (await ask(here, token)).code is code
            here.config.write_text(oauth2(own, tmp_path, f"leeway = {leeway}"))
            told = len(here.said)
            here.process.send_signal(1)
            await here.said_anew("READY=1", told)
            assert (await ask(here, opaque)).code is code
