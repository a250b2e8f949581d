"""A user token says who the customer of a page is. What does not is refused, and says why."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import orjson
import pytest

from engine.control import api_keys, blocks, signing_secrets
from engine.control.blocks import NewBlock
from tests.support.browsers import FREE, ORIGIN, Page
from tests.support.deployment import engine_in_process, issue
from tests.support.user_tokens import HS256, signed, user_token
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.control.change import ControlPlane
    from tests.support.browsers import Seen
    from tests.support.deployment import Merchant

DOCS: Final = Path(__file__).parents[2] / "docs" / "card.md"
UNKNOWN: Final = "0000-0000-0000-0000"


@dataclass(frozen=True)
class SignedPage(Page):
    """A page, and the backend of its shop, which knows the secret of its key."""

    key_id: str = ""
    secret: str = ""

    def token(self, user: object = "ann", **claims: object) -> str:
        return user_token(self.key_id, self.secret, user, **claims)

    async def redeem_as(self, token: str, code: str, **fields: object) -> Seen:
        return await self.post("/v1/redemptions", {"code": code, **fields}, User_Token=token)

    async def history(self, token: str, query: str = "") -> Any:  # noqa: ANN401 - JSON
        answer = await self.send("GET", f"/v1/card/redemptions{query}", None, {"User-Token": token})
        assert answer.status == 200, answer
        return orjson.loads(answer.body)


async def signed_page(plane: ControlPlane, merchant: Merchant, *campaigns: str) -> SignedPage:
    made = await api_keys.create_for_browsers(plane, "page", campaigns=campaigns, origins=[ORIGIN])
    issued = made.value
    assert issued.signing_secret
    return SignedPage(merchant, issued.key, key_id=issued.api_key.id, secret=issued.signing_secret.secret)


async def test_the_token_says_who_redeems_holds_and_checks(plane: ControlPlane) -> None:
    campaign, codes = await issue(plane, 3, per_user_limit=1)
    async with engine_in_process(plane, **FREE) as merchant:
        page = await signed_page(plane, merchant, campaign)
        ann, bob = page.token("ann"), page.token("bob")
        done = await page.redeem_as(ann, codes[0])
        assert (done.status, orjson.loads(done.body)["user"]) == (200, "ann")
        assert done.header("access-control-allow-origin") == ORIGIN
        over_limit = await page.redeem_as(ann, codes[1])  # the limit per user is that of the token's user
        assert (over_limit.status, over_limit.code) == (404, "code_not_found")
        checked = await page.post("/v1/codes/check", {"code": codes[1]}, User_Token=ann)
        assert checked.status == 404
        assert (await page.post("/v1/codes/check", {"code": codes[1]}, User_Token=bob)).status == 200
        held = await page.post("/v1/holds", {"code": codes[1], "order": "o-1"}, User_Token=bob)
        assert (held.status, orjson.loads(held.body)["user"]) == (200, "bob")
        assert (await page.redeem_as(page.token("cid"), codes[2], user="cid")).status == 200


@pytest.mark.parametrize("path", ["/v1/redemptions", "/v1/holds", "/v1/codes/check"])
async def test_another_user_in_the_body_is_refused(plane: ControlPlane, path: str) -> None:
    campaign, (code,) = await issue(plane, 1)
    async with engine_in_process(plane, **FREE) as merchant:
        page = await signed_page(plane, merchant, campaign)
        body: dict[str, object] = {"code": code, "user": "bob"}
        if path == "/v1/holds":
            body["order"] = "o"
        answer = await page.post(path, body, User_Token=page.token("ann"))
        assert (answer.status, answer.code) == (400, "malformed_request")
        assert b"user token" in answer.body
        without = await page.post(path, {"code": code, **({"order": "o"} if "order" in body else {})})
        assert without.status == (200 if path == "/v1/codes/check" else 400)  # no token, no user


def hostile(page: SignedPage) -> dict[str, tuple[str, str]]:
    """Tokens that must be refused: each with a word of the detail."""
    now = int(time.time())
    claims: dict[str, object] = {"sub": "ann", "aud": page.key_id, "iat": now, "exp": now + 60}
    head, body, _ = signed(claims, page.secret).split(".")
    none = signed(claims, page.secret, {"alg": "none", "typ": "JWT"}).rpartition(".")[0] + "."
    return {
        "alg none": (none, "alg must be HS256"),
        "alg none with a signature": (signed(claims, page.secret, {"alg": "none"}), "alg must be HS256"),
        "HS512": (signed(claims, page.secret, {"alg": "HS512"}, "sha512"), "alg must be HS256"),
        "RS256": (signed(claims, page.secret, {"alg": "RS256"}), "alg must be HS256"),
        "no signature": (f"{head}.{body}.", "not signed"),
        "other secret": (signed(claims, "rs_" + "x" * 43), "not signed"),
        "no secret": (signed(claims, ""), "not signed"),
        "the public key": (signed(claims, page.key), "not signed"),
        "other audience": (page.token(aud="key_0123456789ab"), "aud must be the id"),
        "many audiences": (page.token(aud=[page.key_id, "key_0123456789ab"]), "aud must be the id"),
        "no audience": (page.token(aud=None), "claims sub, aud, iat, exp"),
        "no user": (page.token(None), "claims sub, aud, iat, exp"),
        "number": (page.token(7), "sub must be a text"),
        "empty user": (page.token(""), "sub: user must have"),
        "long user": (page.token("x" * 1000), "sub: user must have"),
        "no time": (page.token(iat=None), "claims sub, aud, iat, exp"),
        "for ever": (page.token(exp=None), "claims sub, aud, iat, exp"),
        "expired": (page.token(iat=now - 60, exp=now - 1), "expired"),
        "too long": (page.token(exp=now + 901), "at most 900 seconds"),
        "early": (page.token(iat=now + 120, exp=now + 180), "iat is later"),
        "not yet": (page.token(nbf=now + 120), "nbf is later"),
        "text as time": (page.token(exp="soon"), "whole seconds"),
        "endless": (page.token(exp=2**70), "at most 900 seconds"),
        "truth as time": (page.token(exp=True), "whole seconds"),
        "no token": ("", "no JSON Web Token"),
        "text": ("ann", "no JSON Web Token"),
        "list": (signed([], page.secret), "no JSON Web Token"),  # type: ignore[arg-type] # a token that PyJWT signs although it is none
        "large": ("x" * 4097, "more than 4096"),
        "critical": (signed(claims, page.secret, {**HS256, "crit": ["x"], "x": 1}), "no JSON Web Token"),
    }


async def test_a_token_that_does_not_say_who_the_user_is_is_refused_and_does_nothing(
    plane: ControlPlane, caplog: pytest.LogCaptureFixture
) -> None:
    campaign, (code,) = await issue(plane, 1)
    async with engine_in_process(plane, **FREE) as merchant:
        page = await signed_page(plane, merchant, campaign)
        for name, (token, why) in hostile(page).items():
            answer = await page.redeem_as(token, code)
            assert (answer.status, answer.code) == (401, "invalid_user_token"), (name, answer)
            assert why in orjson.loads(answer.body)["detail"], (name, answer)
            assert answer.header("access-control-allow-origin") == ORIGIN
            listed = await page.send("GET", "/v1/card/redemptions", None, {"User-Token": token})
            assert listed.code == "invalid_user_token", name
        other = await signed_page(plane, merchant, campaign)
        assert (await page.redeem_as(other.token(), code)).code == "invalid_user_token"
        assert (await page.send("GET", "/v1/card/redemptions", None, {})).code == "invalid_user_token"
        longest = page.token(exp=int(time.time()) + 880)
        assert (await page.redeem_as(longest, code)).status == 200
    assert "eyJ" not in caplog.text  # no token is logged


async def test_both_secrets_are_good_while_they_are_rotated(plane: ControlPlane) -> None:
    campaign, _ = await issue(plane, 1)
    async with engine_in_process(plane, **FREE) as merchant:
        page = await signed_page(plane, merchant, campaign)
        first = (await api_keys.page(plane, after=None, limit=9))[-1].signing_secrets[0]
        second = (await signing_secrets.rotate(plane, page.key_id)).value
        newer = SignedPage(merchant, page.key, key_id=page.key_id, secret=second.secret)
        assert await newer.history(newer.token()) == await page.history(page.token())
        await signing_secrets.retire(plane, page.key_id, first)
        refused = await page.send("GET", "/v1/card/redemptions", None, {"User-Token": page.token()})
        assert refused.code == "invalid_user_token"
        await newer.history(newer.token())


async def test_a_key_without_a_secret_can_be_given_one(plane: ControlPlane) -> None:
    """As one that an earlier version made."""
    campaign, _ = await issue(plane, 1)
    async with engine_in_process(plane, **FREE) as merchant:
        page = await signed_page(plane, merchant, campaign)
        async with plane.database.connection() as connection:
            await connection.execute("DELETE FROM signing_secrets")
        added = (await signing_secrets.rotate(plane, page.key_id)).value
        page = SignedPage(merchant, page.key, key_id=page.key_id, secret=added.secret)
        assert (await page.history(page.token()))["items"] == []


async def test_a_user_sees_what_it_has_redeemed_and_nothing_else(plane: ControlPlane) -> None:
    campaign, codes = await issue(plane, 5, amount=500, currency="EUR")
    _, (elsewhere,) = await issue(plane, 1)
    async with engine_in_process(plane, **FREE) as merchant:
        page = await signed_page(plane, merchant, campaign)
        for code in codes[:3]:
            assert (await page.redeem_as(page.token("ann"), code)).status == 200
        assert (await merchant.redeem(codes[3], "ann", order="o-7"))[0] == 200
        assert (await merchant.redeem(codes[4], "bob"))[0] == 200
        assert (await merchant.redeem(elsewhere, "ann"))[0] == 200
        first = await page.history(page.token("ann"), "?limit=3")
        assert [item["last4"] for item in first["items"]] == [code[-4:] for code in codes[3:0:-1]]
        second = await page.history(page.token("ann"), f"?limit=3&after={first['next']}")
        assert [item["last4"] for item in second["items"]] == [codes[0][-4:]]
        assert second["next"] is None
        (shown,) = second["items"]
        assert shown.keys() == {
            *("id", "status", "campaign", "last4", "amount", "currency", "rolled_back", "redeemed_at")
        }
        assert (await page.history(page.token("nobody")))["items"] == []
        wrong = await page.send("GET", "/v1/card/redemptions?user=bob", None, {"User-Token": page.token()})
        assert wrong.code == "malformed_request"


async def test_the_limit_of_attempts_counts_the_user_of_a_token(plane: ControlPlane) -> None:
    """And not what a page says without one: anybody could use up the limit of others."""
    campaign, _ = await issue(plane, 1)
    limited: dict[str, Any] = FREE | {"guard_attempts_per_min": 1, "guard_attempts_burst": 2}
    trusted: dict[str, Any] = {"trusted_proxies": "127.0.0.0/8", "client_address_header": "x-real-ip"}
    async with engine_in_process(plane, **limited, **trusted) as merchant:
        page = await signed_page(plane, merchant, campaign)

        async def tries(address: str, **headers: str) -> int:
            sent = {"X_Real_IP": address, **headers}
            body = {"code": UNKNOWN} if headers else {"code": UNKNOWN, "user": "ann"}
            return (await page.post("/v1/redemptions", body, **sent)).status

        assert [await tries(f"203.0.113.{n}") for n in range(4)] == [404] * 4
        token: Callable[[], str] = page.token
        assert [await tries(f"198.51.100.{n}", User_Token=token()) for n in range(3)] == [404, 404, 429]
        assert await tries("198.51.100.9", User_Token=page.token("bob")) == 404


async def test_a_blocked_user_is_blocked_by_its_token(plane: ControlPlane) -> None:
    campaign, (code,) = await issue(plane, 1)
    async with engine_in_process(plane, **FREE) as merchant:
        page = await signed_page(plane, merchant, campaign)
        await blocks.create(plane, NewBlock(kind="user", subject="ann", reason="test"), actor="cli")

        async def refused() -> bool:
            return (await page.redeem_as(page.token("ann"), UNKNOWN)).code == "code_not_found"

        await wait_until_async(refused)
        assert (await page.redeem_as(page.token("ann"), code)).code == "code_not_found"
        assert (await page.redeem_as(page.token("bob"), code)).status == 200


async def test_the_examples_of_the_docs_sign_tokens_that_are_accepted(plane: ControlPlane) -> None:
    text = DOCS.read_text(encoding="utf-8")
    (in_python,) = [block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "jwt" in block]
    (in_shell,) = [block for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) if "openssl" in block]
    campaign, _ = await issue(plane, 1)
    async with engine_in_process(plane, **FREE) as merchant:
        page = await signed_page(plane, merchant, campaign)
        known: dict[str, Any] = {"SIGNING_SECRET": page.secret}
        exec(in_python.replace("key_0123456789ab", page.key_id), known)  # noqa: S102 - it is ours
        tokens = [known["user_token"]("ann")]
        if shutil.which("openssl"):
            script = in_shell.partition("curl")[0] + 'printf %s "$head.$body.$mac"'
            environment = os.environ | {"KEY_ID": page.key_id, "SIGNING_SECRET": page.secret}
            done = await asyncio.create_subprocess_exec(
                "sh", "-c", script, env=environment, stdout=asyncio.subprocess.PIPE
            )
            out, _ = await asyncio.wait_for(done.communicate(), 30)
            tokens.append(out.decode())
        for token in tokens:
            assert (await page.history(token))["items"] == []
