"""The decision is the one moment of a combined redemption over several shards that counts.

The replies of the shards that have prepared the codes are held back, so that the gap before the decision
stays open while something changes.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import pytest

from engine.control import api_keys, campaigns, voids
from engine.control.voids import VoidDeclaration
from engine.redemption.prepared import Prepare
from tests.support.cross_shard import combined, nothing_is_left, types
from tests.support.deployment import engine_in_process, issue
from tests.support.proxy import Calls, Fate, Proxy, Way
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from engine.control.change import ControlPlane


@pytest.fixture
def shards() -> int:
    return 2


async def revoke(plane: ControlPlane, campaign: str, key_id: str) -> None:  # noqa: ARG001 - the others use it
    await api_keys.revoke(plane, key_id)


async def pause(plane: ControlPlane, campaign: str, key_id: str) -> None:  # noqa: ARG001 - likewise
    await campaigns.update(plane, campaign, campaigns.CampaignChange(state="paused"))


async def make_void(plane: ControlPlane, campaign: str, key_id: str) -> None:  # noqa: ARG001 - likewise
    declared = VoidDeclaration(batch=0, first_serial=1, last_serial=1, reason="leaked")
    await voids.declare(plane, declared, void=True, actor="cli")


async def change_another(plane: ControlPlane, campaign: str, key_id: str) -> None:  # noqa: ARG001 - likewise
    await issue(plane, 1)


REFUSED: Final[list[tuple[Callable[[ControlPlane, str, str], Awaitable[None]], int, str]]] = [
    (revoke, 401, "unauthenticated"),
    (pause, 409, "campaign_inactive"),
    (make_void, 409, "code_void"),
]


async def change_in_the_gap(
    plane: ControlPlane, change: Callable[[ControlPlane, str, str], Awaitable[None]]
) -> tuple[int, Any]:
    """The answer to a combined redemption of four codes; ``change`` is made when all codes are prepared."""
    campaign, codes = await issue(plane, 4)
    async with (
        Proxy(plane.settings.redis_url) as proxy,
        engine_in_process(plane, redis_url=proxy.url, attempt_deadline_ms=30_000) as merchant,
    ):
        proxy.rule = held = Calls(Way.TO_ENGINE, Fate.HOLD, times=2, script=Prepare.script)
        answer = asyncio.create_task(combined(merchant, codes, key="k"))
        await wait_until_async(lambda: held.seen == 2)
        await change(plane, campaign, "key_" + merchant.key.split("_")[1])
        proxy.release()
        return await answer


@pytest.mark.parametrize(("change", "status", "code"), REFUSED)
async def test_what_is_forbidden_before_the_decision_is_not_done(
    plane: ControlPlane,
    change: Callable[[ControlPlane, str, str], Awaitable[None]],
    status: int,
    code: str,
) -> None:
    answered, body = await change_in_the_gap(plane, change)
    assert (answered, body["code"]) == (status, code)
    assert set(await types(plane.redis)) <= {"voided"}
    assert await nothing_is_left(plane.redis)


async def test_a_change_of_something_else_before_the_decision_does_not_matter(plane: ControlPlane) -> None:
    status, body = await change_in_the_gap(plane, change_another)
    assert (status, len(body["redemptions"])) == (200, 4)
    assert await types(plane.redis) == ["redeemed"] * 4
    assert await nothing_is_left(plane.redis)
