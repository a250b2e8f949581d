"""An API key in use moves to signed requests while it is used, in several workers."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.deployment import Merchant, engine_in_process, issue
from tests.support.lanes import LANES
from tests.support.signing import Signer
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    from engine.control.change import ControlPlane


class Workers:
    """Several workers, and the signer of one API key at each."""

    def __init__(self, merchants: list[Merchant], key_id: str, key: str) -> None:
        self.merchants = [Merchant(merchant.session, merchant.url, key) for merchant in merchants]
        self.key_id, self.key = key_id, key
        self.number = 0

    async def unsigned(self, codes: list[str]) -> list[tuple[int, Any]]:
        self.number += 1
        keys = [f"u{self.number}-{at}" for at in range(len(self.merchants))]
        return [await one.redeem(codes.pop(), key=key) for one, key in zip(self.merchants, keys, strict=True)]

    async def signed(self, codes: list[str], keyid: str, secret: str) -> list[tuple[int, Any]]:
        self.number += 1
        signers = [Signer(one, self.key_id, self.key, keyid, secret) for one in self.merchants]
        return [await signer.redeem(codes.pop(), f"s{self.number}-{at}") for at, signer in enumerate(signers)]


def said(answers: list[tuple[int, Any]]) -> set[str]:
    return {answer["status"] if status == 200 else answer["code"] for status, answer in answers}


@pytest.mark.parametrize("lane", LANES)
async def test_a_key_in_use_moves_to_signed_requests_without_a_failed_call(
    plane: ControlPlane, lane: str
) -> None:
    _, codes = await issue(plane, 100_000)
    async with AsyncExitStack() as stack:
        merchants = [
            await stack.enter_async_context(engine_in_process(plane, scopes=("redeem", "admin"), lane=lane))
            for _ in range(2)
        ]
        admin = merchants[0]
        _, issued = await admin.call("POST", "/v1/keys", json={"name": "shop", "scopes": ["redeem"]})
        path = f"/v1/keys/{issued['id']}"
        workers = Workers(merchants, issued["id"], issued["key"])
        assert said(await workers.unsigned(codes)) == {"redeemed"}
        go_on = True

        async def shop() -> set[str]:
            answered: set[str] = set()
            while go_on:
                answered |= said(await workers.unsigned(codes))
            return answered

        unsigned = asyncio.create_task(shop())
        key = {"Idempotency-Key": "on"}
        status, optional = await admin.call("PATCH", path, json={"signing": "optional"}, headers=key)
        assert (status, optional["published"]) == (200, True)
        first = optional["signing_secret"]
        again = await admin.call("PATCH", path, json={"signing": "optional"}, headers=key)
        assert again == (200, optional | {"replayed": True})

        async def are_verified() -> bool:
            wrong = said(await workers.signed(codes, first["id"], "rs_another"))
            assert wrong <= {"redeemed", "signature_invalid"}
            return wrong == {"signature_invalid"}

        await wait_until_async(are_verified)
        assert said(await workers.signed(codes, first["id"], first["secret"])) == {"redeemed"}
        go_on = False
        assert await unsigned == {"redeemed"}

        assert (await admin.call("PATCH", path, json={"signing": "required"}))[0] == 200

        async def are_required() -> bool:
            assert said(await workers.signed(codes, first["id"], first["secret"])) == {"redeemed"}
            return said(await workers.unsigned(codes)) == {"signature_required"}

        await wait_until_async(are_required)
        status, second = await admin.call("POST", f"{path}/signing-secrets")
        assert status == 201
        for secret in (first, second):
            assert said(await workers.signed(codes, secret["id"], secret["secret"])) == {"redeemed"}
        assert (await admin.call("DELETE", f"{path}/signing-secrets/{first['id']}"))[0] == 200

        async def is_retired() -> bool:
            assert said(await workers.signed(codes, second["id"], second["secret"])) == {"redeemed"}
            return said(await workers.signed(codes, first["id"], first["secret"])) == {
                "signature_key_unknown"
            }

        await wait_until_async(is_retired)


@pytest.mark.parametrize("lane", LANES)
async def test_a_key_that_is_limited_later_no_longer_redeems_codes_of_other_campaigns(
    plane: ControlPlane, lane: str
) -> None:
    campaign, mine = await issue(plane, 10_000)
    _, others = await issue(plane, 10_000)
    async with engine_in_process(plane, scopes=("redeem", "admin"), lane=lane) as merchant:
        _, issued = await merchant.call("POST", "/v1/keys", json={"name": "shop", "scopes": ["redeem"]})
        shop = Merchant(merchant.session, merchant.url, issued["key"])
        assert (await shop.redeem(others.pop()))[0] == 200
        path = f"/v1/keys/{issued['id']}"
        assert (await merchant.call("PATCH", path, json={"campaigns": [campaign]}))[0] == 200

        async def is_limited() -> bool:
            return bool((await shop.redeem(others.pop()))[1].get("code") == "code_not_found")

        await wait_until_async(is_limited)
        assert (await shop.redeem(mine.pop()))[0] == 200
