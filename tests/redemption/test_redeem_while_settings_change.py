"""Campaigns, API keys, mint keys and batches change while workers run: the next redemption knows it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from engine.codes import mint_keys
from engine.control import campaigns
from engine.control.campaigns import CampaignChange
from tests.support.deployment import engine_in_process, engine_of_processes, issue, mint
from tests.support.redeeming import check_refused, post

if TYPE_CHECKING:
    from engine.control.change import ControlPlane


async def test_a_change_of_a_campaign_holds_from_the_next_redemption_on_every_worker(
    plane: ControlPlane,
) -> None:
    campaign, codes = await issue(plane, 8)
    async with engine_in_process(plane) as one, engine_in_process(plane) as other:
        assert (await one.redeem(codes[0]))[0] == (await other.redeem(codes[1]))[0] == 200
        for state, code in (
            ("paused", "campaign_inactive"),
            ("active", None),
            ("ended", "campaign_ended"),
        ):
            assert (await campaigns.update(plane, campaign, CampaignChange(state=state))).published
            for worker in (one, other):
                answer = await post(worker, {"code": codes.pop(), "user": "ann"})
                if code is None:
                    assert answer.status == 200
                else:
                    check_refused(answer, 409, code)


async def test_a_pause_holds_on_real_workers_with_the_next_redemption(plane: ControlPlane) -> None:
    campaign, codes = await issue(plane, 60)
    async with engine_of_processes(plane, workers=2) as merchant:
        redeemed = await asyncio.gather(*(merchant.redeem(code) for code in codes[:20]))
        assert {status for status, _ in redeemed} == {200}
        await campaigns.update(plane, campaign, CampaignChange(state="paused"))
        refused = await asyncio.gather(*(merchant.redeem(code) for code in codes[20:]))
        assert {body["code"] for _, body in refused} == {"campaign_inactive"}


async def test_codes_under_a_new_mint_key_redeem_at_once_and_old_ones_still_do(plane: ControlPlane) -> None:
    settings = replace(plane.settings, mint_keys="")
    mint_keys.create_file(settings.mint_keys_path)
    plane = replace(plane, settings=settings)
    campaign, old = await issue(plane, 2)
    async with engine_in_process(plane) as one, engine_in_process(plane) as other:
        assert (await one.redeem(old[0]))[0] == 200
        assert (await other.redeem("0000-0000-0000-0000"))[0] == 404
        assert mint_keys.rotate(settings.mint_keys_path) == "k2"
        new = await mint(plane, campaign, 2)
        assert (await one.redeem(new[0]))[0] == (await other.redeem(new[1]))[0] == 200
        assert (await other.redeem(old[1]))[0] == 200


async def test_mint_keys_that_cannot_be_read_are_answered_for_and_taken_up_when_they_can(
    plane: ControlPlane,
) -> None:
    settings = replace(plane.settings, mint_keys="")
    path = settings.mint_keys_path
    mint_keys.create_file(path)
    plane = replace(plane, settings=settings)
    campaign, (old,) = await issue(plane, 1)
    async with engine_in_process(plane) as worker:
        assert (await worker.redeem("0000-0000-0000-0000"))[0] == 404
        mint_keys.rotate(path)
        (new,) = await mint(plane, campaign, 1)
        good = path.read_bytes()
        path.write_bytes(b"no keys here")
        for code in (new, old):
            status, body = await worker.redeem(code)
            assert status == 200 or (status, body["code"]) == (503, "store_unavailable")
        path.write_bytes(good)
        assert (await worker.redeem(new))[0] == 200
        assert (await worker.redeem(old))[1]["status"] in {"redeemed", 409}


async def test_a_batch_minted_a_moment_ago_redeems_at_once(plane: ControlPlane) -> None:
    campaign, (first,) = await issue(plane, 1)
    async with engine_in_process(plane) as one, engine_in_process(plane) as other:
        assert (await one.redeem(first))[0] == 200
        (second,) = await mint(plane, campaign, 1, format_name="digits-18", prefix="NEW")
        assert (await other.redeem(second))[0] == 200
