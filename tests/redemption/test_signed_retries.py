"""The engine tries a signed operation again by itself, and does not take its own try for a replay."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from engine.control import campaigns
from engine.redemption import cross_shard, hold_calls
from tests.support.deployment import engine_in_process, issue
from tests.support.signing import a_signer
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    from engine.control.change import ControlPlane
    from tests.support.signing import Signer


@pytest.fixture
def shards() -> int:
    return 3


async def send(signer: Signer, path: str, document: object, key: str) -> tuple[int, Any]:
    body = json.dumps(document).encode()
    return await signer.send(signer.sign(body, key, path=path), body, path=path)


async def test_a_hold_that_is_renewed_while_it_is_confirmed(
    plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, codes = await issue(plane, 6)
    read = hold_calls._read_settled
    renewals: list[str] = []  # the keys of those to come
    renewal: dict[str, object] = {}

    async def read_then_renew(*arguments: Any) -> bytes | None:  # noqa: ANN401 - passed on
        record = await read(*arguments)
        if renewals:
            assert (await send(signer, "/v1/holds", renewal, renewals.pop()))[0] == 200
        return record

    async with engine_in_process(plane) as merchant:
        signer = await a_signer(plane, merchant)
        for number, code in enumerate(codes):  # their keys have several homes
            asked = {"code": code, "user": "ann", "order": f"o{number}"}
            _, held = await send(signer, "/v1/holds", asked, f"h{number}")
            renewal = asked | {"ttl_s": 900}
            renewals.append(f"r{number}")
            with monkeypatch.context() as context:
                context.setattr(hold_calls, "_read_settled", read_then_renew)
                status, answer = await send(signer, f"/v1/holds/{held['id']}/confirm", {}, f"c{number}")
            assert (status, answer.get("status"), renewals) == (200, "redeemed", []), answer


async def test_a_configuration_that_changes_while_a_combined_order_is_decided(
    plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, codes = await issue(plane, 12)
    take = cross_shard._Transaction.step
    names: list[str] = []

    async def step_after_a_change(self: Any, name: str, *rest: Any, **more: Any) -> Any:  # noqa: ANN401 - as it is
        if name == "decide" and name not in names:
            await campaigns.create(plane, campaigns.define(campaigns.NewCampaign(name="other")))
        names.append(name)
        return await take(self, name, *rest, **more)

    monkeypatch.setattr(cross_shard._Transaction, "step", step_after_a_change)
    async with engine_in_process(plane) as merchant:
        signer = await a_signer(plane, merchant)
        order = {"codes": [{"code": code} for code in codes], "user": "ann", "order": "o"}
        status, answer = await send(signer, "/v1/redemptions/combined", order, "k")
    assert (status, names.count("begin"), names.count("decide")) == (200, 2, 2), answer


async def test_a_retry_that_waits_for_a_combined_order_under_way(
    plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, codes = await issue(plane, 12)
    take, go_on = cross_shard._Transaction.step, asyncio.Event()
    words: list[str] = []

    async def step_that_waits(self: Any, name: str, *rest: Any, **more: Any) -> Any:  # noqa: ANN401 - as it is
        if name == "decide":
            await go_on.wait()
        result = await take(self, name, *rest, **more)
        words.append(result.word)
        return result

    monkeypatch.setattr(cross_shard._Transaction, "step", step_that_waits)
    async with engine_in_process(plane) as merchant:
        signer = await a_signer(plane, merchant)
        order = {"codes": [{"code": code} for code in codes], "user": "ann", "order": "o"}
        first = asyncio.create_task(send(signer, "/v1/redemptions/combined", order, "k"))
        await wait_until_async(lambda: asyncio.sleep(0, "begun" in words))
        retry = asyncio.create_task(send(signer, "/v1/redemptions/combined", order, "k"))
        await wait_until_async(lambda: asyncio.sleep(0, words.count("busy") > 1))
        go_on.set()
        assert (await first)[0] == 200
        status, answer = await retry
        assert (status, answer.get("replayed")) == (200, True), answer
