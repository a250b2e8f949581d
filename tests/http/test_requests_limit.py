"""The limit of calls for each address with a browser key, and the headers that say how much is left of it."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from engine.control import blocks
from engine.control.blocks import NewBlock
from engine.guard.limits import Limit, LimitTable
from engine.observability.metrics import GUARD_OBSERVED
from engine.settings import Settings
from tests.support.browsers import page_of
from tests.support.deployment import engine_in_process, engine_of_processes, issue
from tests.support.lanes import LANES
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    from engine.control.change import ControlPlane
    from tests.support.browsers import Seen

UNKNOWN = "0000-0000-0000-0000"
SLOW: dict[str, Any] = {"guard_requests_per_min": 1, "guard_requests_burst": 3}


def left(answer: Seen) -> tuple[int, int]:
    found = re.fullmatch(r'"requests";r=([0-9]+);t=([0-9]+)', answer.header("ratelimit") or "")
    assert found is not None
    return int(found[1]), int(found[2])


@pytest.mark.parametrize("lane", LANES)
async def test_each_call_counts_and_the_next_is_refused(plane: ControlPlane, lane: str) -> None:
    campaign, (code,) = await issue(plane, 1)
    async with engine_in_process(plane, lane=lane, **SLOW) as merchant:
        page = await page_of(plane, merchant, campaign)
        assert (await page.redeem(UNKNOWN)).status == 404
        assert (await page.post("/v1/codes/check", {"code": UNKNOWN})).status == 404
        assert (await page.post("/v1/holds", {})).status == 400
        for refused in (await page.redeem(code), await page.post("/v1/holds", {})):
            assert (refused.status, refused.code) == (429, "too_many_attempts")
            assert 0 < int(refused.header("retry-after") or 0) <= 60
            assert refused.header("access-control-allow-origin") == page.origin
            assert refused.header("ratelimit") is None  # it was not turned on
        other = await page_of(plane, merchant, campaign)
        assert (await replace(other, origin=None).redeem(code)).status == 403  # of no page: not counted
        assert (await other.redeem(code)).status == 200
        for _ in range(5):  # a server key has no such limit
            assert (await merchant.redeem(UNKNOWN))[0] == 404


async def test_the_headers_say_what_is_left(plane: ControlPlane) -> None:
    campaign, _ = await issue(plane, 1)
    async with engine_in_process(plane, ratelimit_headers=True, **SLOW) as merchant:
        page = await page_of(plane, merchant, campaign)
        answers = [await page.redeem(UNKNOWN) for _ in range(4)]
        assert [answer.status for answer in answers] == [404, 404, 404, 429]
        assert {answer.header("ratelimit-policy") for answer in answers} == {'"requests";q=3;w=180'}
        assert [left(answer)[0] for answer in answers] == [2, 1, 0, 0]
        waits = [left(answer)[1] for answer in answers]
        assert all(60 * at < wait <= 60 * (at + 1) for at, wait in enumerate([*waits[:3]]))
        assert "RateLimit" in (answers[0].header("access-control-expose-headers") or "")
        async with merchant.session.get(merchant.url + "/healthz") as answer:
            assert "RateLimit" not in answer.headers


async def test_an_allowed_network_is_not_limited(plane: ControlPlane) -> None:
    campaign, _ = await issue(plane, 1)
    allow = NewBlock(kind="network", subject="127.0.0.0/8", action="allow", reason="test")
    await blocks.create(plane, allow, actor="cli")
    async with engine_in_process(plane, **SLOW) as merchant:
        page = await page_of(plane, merchant, campaign)
        assert {(await page.redeem(UNKNOWN)).status for _ in range(8)} == {404}


async def test_observing_counts_and_refuses_nobody(plane: ControlPlane) -> None:
    campaign, _ = await issue(plane, 1)
    before = GUARD_OBSERVED.labels("requests")._value.get()
    async with engine_in_process(plane, guard_limits_mode="observe", **SLOW) as merchant:
        page = await page_of(plane, merchant, campaign)
        assert {(await page.redeem(UNKNOWN)).status for _ in range(8)} == {404}
    assert GUARD_OBSERVED.labels("requests")._value.get() - before == 5


async def test_it_is_a_rule_that_is_changed_while_the_engine_runs(plane: ControlPlane) -> None:
    campaign, _ = await issue(plane, 1)
    async with engine_in_process(plane, scopes=("redeem", "admin"), guard_share_ms=10, **SLOW) as merchant:
        page = await page_of(plane, merchant, campaign)

        async def set_mode(mode: str, expected: int) -> None:
            _, answer = await merchant.call("PUT", "/v1/guard/rules", json={"rules": {"requests": mode}})
            assert answer["published"]

            async def is_in_force() -> bool:
                return (await page.redeem(UNKNOWN)).status == expected

            await wait_until_async(is_in_force)

        for _ in range(3):
            assert (await page.redeem(UNKNOWN)).status == 404
        assert (await page.redeem(UNKNOWN)).status == 429
        await set_mode("observe", 404)

        async def would_have() -> bool:
            _, answer = await merchant.call("GET", "/v1/guard/rules")
            (found,) = (rule for rule in answer["items"] if rule["name"] == "requests")
            return bool(found["mode"] == "observe" and found["would_have"])

        await wait_until_async(would_have)
        await set_mode("enforce", 429)
        await set_mode("off", 404)
        assert {(await page.redeem(UNKNOWN)).status for _ in range(8)} == {404}


async def test_workers_share_it(plane: ControlPlane) -> None:
    campaign, _ = await issue(plane, 1)
    limits: dict[str, Any] = {"guard_requests_per_min": 1, "guard_requests_burst": 6, "guard_share_ms": 10}
    async with engine_of_processes(plane, workers=2, **limits) as merchant:
        page = await page_of(plane, merchant, campaign)
        passed = 0

        async def both_refuse() -> bool:
            nonlocal passed
            answers = [await page.post("/v1/codes/check", {}, Connection="close") for _ in range(8)]
            passed += sum(answer.status != 429 for answer in answers)
            return {answer.status for answer in answers} == {429}

        await wait_until_async(both_refuse)
        assert passed <= 12  # the burst, once in each worker at most


def test_what_is_left_of_a_bucket() -> None:
    table = LimitTable(Limit(per_minute=30, burst=5), 10)
    source = ("key_0", "network", "203.0.113.7")
    assert table.left(source, 100.0) == (5, 0.0)
    table.charge([source], 3, 100.0)
    assert table.left(source, 100.0) == (2, 6.0)
    assert table.left(source, 101.9)[0] == 2
    assert table.left(source, 102.0)[0] == 3
    assert table.left(source, 200.0) == (5, 0.0)


def test_the_defaults_are_those_of_the_documents() -> None:
    assert (Settings().guard_requests_per_min, Settings().guard_requests_burst) == (30, 5)
