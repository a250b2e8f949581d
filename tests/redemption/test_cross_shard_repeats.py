"""Combined redemptions over several shards: codes named twice, and what happens between decided and done."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from redis.asyncio import Redis  # noqa: TC002 - the fixtures' type is read

from engine.control import campaigns
from engine.control.change import ControlPlane  # noqa: TC001 - likewise
from engine.redemption import cross_shard
from engine.store import keys
from tests.support.cross_shard import combined, nothing_is_left, types
from tests.support.deployment import issue

if TYPE_CHECKING:
    from engine.api.outcomes import Redeemed
    from tests.support.deployment import Merchant


@pytest.fixture
def shards() -> int:
    return 2


async def test_a_code_that_is_used_whole_and_named_twice_is_refused(
    merchant: Merchant, plane: ControlPlane, redis: Redis
) -> None:
    _, codes = await issue(plane, 2)
    status, body = await combined(merchant, [codes[0], codes[0].lower(), codes[1]], key="k")
    assert (status, body["code"]) == (409, "already_redeemed")
    assert body["refusals"] == [{"item": 1, "code": "already_redeemed"}]
    assert "retry_after_s" not in body
    assert await nothing_is_left(redis)
    assert not await types(redis)
    assert (await combined(merchant, codes))[0] == 200


async def test_a_code_with_several_uses_is_used_as_often_as_it_is_named(
    merchant: Merchant, plane: ControlPlane, redis: Redis
) -> None:
    _, codes = await issue(plane, 2)
    _, [word] = await issue(plane, 1, kind="multi", max_uses=3)
    _, [card] = await issue(plane, 1, kind="balance", amount=100, currency="EUR")
    refused: list[str | tuple[str, object]] = [word, word, word, word, *codes, (card, 60), (card, 50)]
    status, body = await combined(merchant, refused)
    assert (status, [refusal["item"] for refusal in body["refusals"]]) == (409, [3, 7])
    status, body = await combined(merchant, [word, word, *codes, (card, 60), (card, 30)])
    assert status == 200
    assert len({redemption["id"] for redemption in body["redemptions"]}) == 6
    assert [redemption.get("balance") for redemption in body["redemptions"][4:]] == [40, 10]
    _, check = await merchant.call("POST", "/v1/codes/check", json={"code": word})
    assert check["uses_left"] == 1
    _, check = await merchant.call("POST", "/v1/codes/check", json={"code": card})
    assert check["balance"] == 10
    assert await nothing_is_left(redis)


@pytest.mark.parametrize("what", ["batch void", "code void", "paused", "ended"])
async def test_what_was_decided_is_done_whatever_happens_in_between(
    merchant: Merchant, plane: ControlPlane, redis: Redis, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    campaign, codes = await issue(plane, 4)
    complete = cross_shard._complete
    void = {"code": codes[0], "reason": "leaked"}

    async def change_then_complete(*arguments: Any) -> list[Redeemed]:  # noqa: ANN401 - those of the function it stands before
        if what == "batch void":
            await merchant.call("POST", "/v1/codes/void", json={"batch": 0, "reason": "leaked"})
            await merchant.call("POST", "/v1/codes/check", json={"code": codes[0]})  # now the worker knows
        elif what == "code void":
            status, body = await merchant.call("POST", "/v1/codes/void", json=void)
            assert (status, body["code"]) == (503, "overloaded")
        else:
            await campaigns.update(plane, campaign, campaigns.CampaignChange(state=what))
        return await complete(*arguments)

    monkeypatch.setattr(cross_shard, "_complete", change_then_complete)
    assert (await combined(merchant, codes, key="k"))[0] == 200
    assert (await types(redis)).count("redeemed") == 4
    assert await nothing_is_left(redis)
    for shard in range(2):
        bits = redis.bitfield(keys.state(shard, 0, 0))
        for at in range(2):
            bits = bits.get("u2", f"#{at}")
        assert await bits.execute() == [keys.REDEEMED] * 2
