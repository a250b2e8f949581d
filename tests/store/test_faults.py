"""Bugs and half-done changes around the core: whatever they are, every attempt has its answer."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from engine.redemption.redeem import Redemption
from engine.store import keys
from engine.store.configuration import ConfigurationCache
from engine.worker import serving
from tests.support.deployment import engine_in_process, issue
from tests.support.waiting import TIMEOUT_S

if TYPE_CHECKING:
    from engine.control.change import ControlPlane

OTHER_MINT_KEYS = "k9:" + "77" * 32


@pytest.mark.parametrize("step", ["write_to", "found", "answered"])
async def test_a_bug_in_one_attempt_leaves_no_other_without_an_answer(
    plane: ControlPlane, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    _, codes = await issue(plane, 6)
    sound = getattr(Redemption, step)

    def broken(attempt: Redemption, *arguments: object) -> None:
        if attempt.user == "broken":
            raise KeyError(step)
        sound(attempt, *arguments)

    monkeypatch.setattr(Redemption, step, broken)
    async with engine_in_process(plane, lane="python") as merchant:  # compiled code cannot be replaced
        users = ["ann", "broken", "bob"]
        answers = await asyncio.gather(
            *(merchant.redeem(code, user) for code, user in zip(codes, users, strict=False))
        )
        assert all(body["code"] in {"internal_error", "outcome_unknown"} for _, body in answers[1:2])
        assert {status for status, _ in answers} <= {200, 500, 503}
        monkeypatch.setattr(Redemption, step, sound)
        assert [(await merchant.redeem(code))[0] for code in codes[3:]] == [200] * 3


async def test_without_its_mint_key_a_code_is_not_said_to_be_unknown(plane: ControlPlane) -> None:
    _, [code] = await issue(plane, 1)
    elsewhere = replace(plane, settings=replace(plane.settings, mint_keys=OTHER_MINT_KEYS, port=0))
    async with engine_in_process(plane) as merchant, serving(elsewhere.settings, None) as port:
        merchant.url = f"http://{elsewhere.settings.host}:{port}"
        status, body = await merchant.redeem(code)
        assert (status, body["code"]) == (503, "store_unavailable")
        status, body = await merchant.call("GET", "/readyz")
        assert (status, body["parts"]["mint_keys"]) == (503, "missing: k1")


@pytest.mark.parametrize("shards", [2])
async def test_a_campaign_that_a_shard_does_not_have_yet_refuses_nothing_for_good(
    plane: ControlPlane,
) -> None:
    campaign, codes = await issue(plane, 2)
    name = keys.campaign(1, campaign)
    async with engine_in_process(plane) as merchant:
        fields: dict[Any, Any] = await plane.redis.hgetall(name)
        await plane.redis.delete(name)
        status, body = await merchant.redeem(codes[1], key="a")
        assert (status, body["code"]) == (503, "store_unavailable")
        assert (await merchant.redeem(codes[0]))[0] == 200
        await plane.redis.hset(name, mapping=fields)
        status, body = await merchant.redeem(codes[1], key="a")
        assert (status, body["replayed"]) == (200, False)


async def test_a_bug_while_redis_is_asked_for_news_leaves_nobody_without_an_answer(
    plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(_: ConfigurationCache) -> None:
        raise KeyError("broken")

    async with engine_in_process(plane) as merchant:
        monkeypatch.setattr(ConfigurationCache, "confirm", broken)
        async with asyncio.timeout(TIMEOUT_S):
            status, body = await merchant.redeem("0000-0000-0000-0000")
        assert (status, body["code"]) == (500, "internal_error")
        monkeypatch.undo()
        assert (await merchant.redeem("0000-0000-0000-0000"))[0] == 404
