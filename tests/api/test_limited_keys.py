"""To a key that is limited to campaigns, everything of other campaigns looks as if it did not exist."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from engine.control import api_keys
from engine.errors import Refusal
from tests.support.deployment import Merchant, engine_in_process, issue
from tests.support.records import persist

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from engine.control.change import ControlPlane

SCOPES = ("redeem", "read", "adjust", "events")


@asynccontextmanager
async def two_merchants(plane: ControlPlane, own: str) -> AsyncIterator[tuple[Merchant, Merchant]]:
    """A merchant whose key is limited to one campaign, and one whose key is not limited."""
    async with engine_in_process(plane, scopes=SCOPES) as unlimited:
        made = await api_keys.create(plane, "partner", SCOPES, campaigns=[own])
        yield Merchant(unlimited.session, unlimited.url, made.value.key), unlimited


async def refused_with(merchant: Merchant, method: str, path: str, body: object = None) -> tuple[int, str]:
    status, answer = await merchant.call(method, path, json=body)
    return status, answer.get("code", "")


@pytest.mark.parametrize("shards", [1, 2])
async def test_a_code_of_another_campaign_is_not_found_and_not_touched(plane: ControlPlane) -> None:
    own, (mine, mine_too, third) = await issue(plane, 3)
    _, (foreign,) = await issue(plane, 1)
    async with two_merchants(plane, own) as (partner, unlimited):
        missing = (404, "code_not_found")
        code = {"code": foreign, "user": "ann"}
        assert await refused_with(partner, "POST", "/v1/redemptions", code) == missing
        assert await refused_with(partner, "POST", "/v1/holds", code | {"order": "o-1"}) == missing
        assert await refused_with(partner, "POST", "/v1/codes/check", {"code": foreign}) == missing
        order: dict[str, Any] = {"user": "ann", "order": "o-1", "codes": [{"code": mine}, {"code": foreign}]}
        status, answer = await partner.call("POST", "/v1/redemptions/combined", json=order)
        assert (status, answer["refusals"]) == (404, [{"item": 1, "code": "code_not_found"}])
        items = [{"code": one, "user": "ann"} for one in (foreign, mine_too)]
        _, answer = await partner.call("POST", "/v1/redemptions/batch", json={"items": items})
        assert [result["status"] for result in answer["results"]] == [404, 200]
        assert (await partner.redeem(mine))[0] == (await unlimited.redeem(foreign))[0] == 200
        hold = {"code": third, "user": "ann", "order": "o-2"}
        assert (await partner.call("POST", "/v1/holds", json=hold))[0] == 200


async def test_what_others_did_cannot_be_seen_listed_or_undone(plane: ControlPlane) -> None:
    own, (mine,) = await issue(plane, 1, amount=100, currency="EUR")
    other, (foreign, held) = await issue(plane, 2, amount=900, currency="EUR")
    async with two_merchants(plane, own) as (partner, unlimited):
        _, seen = await partner.redeem(mine, order="o-1")
        _, hidden = await unlimited.redeem(foreign, order="o-1")
        body = {"code": held, "user": "ann", "order": "o-2"}
        _, hold = await unlimited.call("POST", "/v1/holds", json=body)
        undo = {"reason": "returned"}
        for method, path, sent, missing in (
            ("GET", f"/v1/redemptions/{hidden['id']}", None, "redemption_not_found"),
            ("POST", f"/v1/redemptions/{hidden['id']}/rollback", undo, "redemption_not_found"),
            ("POST", f"/v1/holds/{hold['id']}/confirm", {}, "hold_not_found"),
            ("POST", f"/v1/holds/{hold['id']}/release", {}, "hold_not_found"),
            ("GET", f"/v1/redemptions?campaign={other}", None, "campaign_not_found"),
            ("GET", f"/v1/redemptions?campaign={other}&user=ann", None, "campaign_not_found"),
            ("GET", f"/v1/events?campaign={own},{other}", None, "campaign_not_found"),
            ("GET", "/v1/campaigns", None, "forbidden"),
        ):
            assert (await refused_with(partner, method, path, sent))[1] == missing, path
        for in_ledger in (False, True):
            if in_ledger:
                await persist(plane.settings)
            for query in ("user=ann", "order=o-1", "order=o-1&user=ann", f"campaign={own}"):
                _, page = await partner.call("GET", f"/v1/redemptions?{query}")
                assert [item["id"] for item in page["items"]] == [seen["id"]], query
            _, page = await unlimited.call("GET", "/v1/redemptions?order=o-1")
            assert [item["id"] for item in page["items"]] == [hidden["id"], seen["id"]]
            _, user = await partner.call("GET", "/v1/users/ann")
            assert [(total["campaign"], total["amount"]) for total in user["totals"]] == [(own, 100)]
            assert user["first_seen"] == user["last_seen"] == seen["redeemed_at"]
        _, page = await partner.call("GET", "/v1/events")
        assert [event["redemption"] for event in page["items"]] == [seen["id"]]
        assert (await partner.call("GET", f"/v1/redemptions/{seen['id']}"))[0] == 200
        path = f"/v1/redemptions/{seen['id']}/rollback"
        assert (await partner.call("POST", path, json=undo))[0] == 200


async def test_the_limit_is_shown_and_must_be_one_that_can_be_kept(plane: ControlPlane) -> None:
    own, _ = await issue(plane, 1)
    made = (await api_keys.create(plane, "partner", ["redeem"], campaigns=[own, own])).value
    assert made.document()["campaigns"] == (own,)
    assert (await api_keys.page(plane, after=None, limit=9))[-1].campaigns == (own,)
    for campaigns, scopes, code in (
        ([], ["redeem"], "malformed_request"),
        ([own] * 2 + [f"cmp_{number}" for number in range(100, 200)], ["redeem"], "malformed_request"),
        ([own], ["redeem", "admin"], "malformed_request"),
        (["cmp_99"], ["redeem"], "campaign_not_found"),
    ):
        with pytest.raises(Refusal, match=code):
            await api_keys.create(plane, "partner", scopes, campaigns=campaigns)
