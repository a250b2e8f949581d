"""The numbers of a campaign: exact before the ledger has an event, while it takes it, and afterwards."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.support.deployment import engine_in_process, issue, mint_batch
from tests.support.proxy import Proxy
from tests.support.records import persist

if TYPE_CHECKING:
    from engine.control.change import ControlPlane
    from tests.support.deployment import Merchant

pytestmark = pytest.mark.parametrize("shards", [1, 2])
SCOPES = ("redeem", "read", "adjust", "admin")
NUMBERS = tuple(f"redeem_campaign_{what}" for what in ("codes", "stock_left", "budget_left", "outstanding"))


async def numbers(merchant: Merchant, campaign: str) -> dict[str, Any]:
    """The numbers of a campaign; those in the list are the same."""
    status, body = await merchant.call("GET", f"/v1/campaigns/{campaign}")
    assert status == 200
    _, listed = await merchant.call("GET", "/v1/campaigns")
    assert {item["id"]: item["numbers"] for item in listed["items"]}[campaign] == body["numbers"]
    found: dict[str, Any] = body["numbers"]
    return found


async def act(merchant: Merchant, path: str, **body: object) -> dict[str, Any]:
    """Do something that must succeed."""
    status, answer = await merchant.call("POST", path, json=body)
    assert status == 200, answer
    done: dict[str, Any] = answer
    return done


async def test_a_sum_that_json_cannot_hold_is_said_to_be_inexact(plane: ControlPlane) -> None:
    most = 2**53 - 1
    campaign, codes = await issue(plane, 3000, kind="balance", amount=most, currency="EUR")
    async with engine_in_process(plane, scopes=SCOPES) as merchant:
        await act(merchant, "/v1/redemptions", code=codes[0], user="ann", amount=700)
        found = await numbers(merchant, campaign)
        assert (found["outstanding"], found["exact"], found["redeemed_amount"]) == (most, False, 700)


async def test_numbers_of_single_codes(plane: ControlPlane) -> None:
    campaign, codes = await issue(plane, 12, amount=500, currency="EUR", stock=20, budget=9000)
    async with engine_in_process(plane, scopes=SCOPES) as merchant:
        none = {
            "issued": 12, "redeemed": 0, "rolled_back": 0, "held": 0, "void": 0, "stock_left": 20,
            "budget_left": 9000, "redeemed_amount": 0, "held_amount": 0, "outstanding": 6000, "exact": True,
        }  # fmt: skip
        assert await numbers(merchant, campaign) == none
        done = [await act(merchant, "/v1/redemptions", code=code, user="ann") for code in codes[:4]]
        await act(merchant, f"/v1/redemptions/{done[0]['id']}/rollback", reason="returned")
        holds = [
            await act(merchant, "/v1/holds", code=code, user="ann", order=f"o{at}")
            for at, code in enumerate(codes[4:8])
        ]
        await act(merchant, "/v1/holds", code=codes[4], user="ann", order="o0")  # renewed
        await act(merchant, f"/v1/holds/{holds[0]['id']}/confirm")
        await act(merchant, f"/v1/holds/{holds[1]['id']}/release")
        await act(merchant, "/v1/codes/void", code=codes[8], reason="lost")
        some = none | {
            "redeemed": 4, "rolled_back": 1, "held": 2, "void": 1, "stock_left": 14, "budget_left": 6000,
            "redeemed_amount": 2000, "held_amount": 1000, "outstanding": 5 * 500,
        }  # fmt: skip
        assert await numbers(merchant, campaign) == some
        await persist(plane.settings)
        assert await numbers(merchant, campaign) == some
        await act(merchant, "/v1/redemptions", code=codes[9], user="ann")
        some |= {"redeemed": 5, "stock_left": 13, "budget_left": 5500, "redeemed_amount": 2500}
        assert await numbers(merchant, campaign) == some | {"outstanding": 4 * 500}


async def test_numbers_of_balances(plane: ControlPlane) -> None:
    campaign, codes = await issue(plane, 5, kind="balance", amount=1000, currency="EUR")
    async with engine_in_process(plane, scopes=SCOPES) as merchant:
        spent = await act(merchant, "/v1/redemptions", code=codes[0], user="ann", amount=700)
        await act(merchant, f"/v1/redemptions/{spent['id']}/rollback", amount=100, reason="returned")
        undone = await act(merchant, "/v1/redemptions", code=codes[1], user="ann", amount=300)
        await act(merchant, f"/v1/redemptions/{undone['id']}/rollback", reason="returned")
        await act(merchant, "/v1/holds", code=codes[2], user="ann", order="o", amount=250)
        await act(merchant, "/v1/holds", code=codes[2], user="ann", order="o", amount=150)  # renewed
        await act(merchant, "/v1/codes/adjust", code=codes[3], amount=50, reason="goodwill")
        some = {
            "issued": 5, "redeemed": 1, "rolled_back": 1, "held": 1, "void": 0, "stock_left": None,
            "budget_left": None, "redeemed_amount": 600, "held_amount": 150,
            "outstanding": 5000 + 50 - 600, "exact": True,
        }  # fmt: skip
        assert await numbers(merchant, campaign) == some
        await persist(plane.settings)
        assert await numbers(merchant, campaign) == some
        await act(merchant, "/v1/codes/void", code=codes[0], reason="lost")  # 400 of it are left
        some |= {"void": 1, "outstanding": 5000 + 50 - 600 - 400}
        assert await numbers(merchant, campaign) == some


async def test_void_ranges_count_what_was_neither_redeemed_nor_held(plane: ControlPlane) -> None:
    campaign, _ = await issue(plane, 1, amount=500, currency="EUR")
    batch, codes = await mint_batch(plane, campaign, 10)
    async with engine_in_process(plane, scopes=SCOPES) as merchant:
        await act(merchant, "/v1/redemptions", code=codes[0], user="ann")
        await act(merchant, "/v1/holds", code=codes[1], user="ann", order="o")
        await act(merchant, "/v1/codes/void", code=codes[2], reason="lost")
        await act(merchant, "/v1/codes/void", code=codes[9], reason="lost")
        await act(merchant, "/v1/codes/void", batch=batch, first_serial=0, last_serial=6, reason="lost")
        found = await numbers(merchant, campaign)
        assert (found["issued"], found["redeemed"], found["held"], found["void"]) == (11, 1, 1, 6)
        assert found["outstanding"] == (1 + 2) * 500


async def test_several_uses_have_nothing_outstanding(plane: ControlPlane) -> None:
    campaign, (code,) = await issue(plane, 1, kind="multi", max_uses=9)
    async with engine_in_process(plane, scopes=SCOPES) as merchant:
        for user in ("ann", "bob"):
            await act(merchant, "/v1/redemptions", code=code, user=user)
        found = await numbers(merchant, campaign)
        assert (found["issued"], found["redeemed"], found["outstanding"]) == (1, 2, None)
        assert found["redeemed_amount"] is None


async def test_the_newest_campaigns_that_have_not_ended_are_metrics(plane: ControlPlane) -> None:
    campaign, codes = await issue(plane, 3, amount=500, currency="EUR", stock=2)
    async with engine_in_process(plane, scopes=SCOPES, campaign_metrics_max=1) as merchant:
        await act(merchant, "/v1/redemptions", code=codes[0], user="ann")
        lines = await metric_lines(merchant)
        assert f'redeem_campaign_codes{{campaign="{campaign}",state="redeemed"}} 1.0' in lines
        assert f'redeem_campaign_stock_left{{campaign="{campaign}"}} 1.0' in lines
        assert f'redeem_campaign_outstanding{{campaign="{campaign}",currency="EUR"}} 1000.0' in lines
        newer, _ = await issue(plane, 1)
        assert {line.split('"')[1] for line in await metric_lines(merchant)} == {newer}
        await merchant.call("PATCH", f"/v1/campaigns/{newer}", json={"state": "ended"})
        assert {line.split('"')[1] for line in await metric_lines(merchant)} == {campaign}


async def metric_lines(merchant: Merchant) -> list[str]:
    async with merchant.session.get(f"{merchant.url}/metrics") as response:
        text = await response.text()
    return [line for line in text.splitlines() if line.startswith(NUMBERS)]


async def test_without_redis_a_campaign_is_shown_without_numbers(plane: ControlPlane) -> None:
    campaign, _ = await issue(plane, 1)
    async with (
        Proxy(plane.settings.redis_url) as proxy,
        engine_in_process(plane, scopes=SCOPES, redis_url=proxy.url) as merchant,
    ):
        proxy.replies_to(b"XRANGE", b"-ERR out of order\r\n")
        status, body = await merchant.call("GET", f"/v1/campaigns/{campaign}")
        assert (status, body["numbers"]) == (200, None)
