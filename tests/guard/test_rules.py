"""The modes of rules, changed while workers run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from engine.control import audit_log, guard_rules
from engine.control.configuration_recovery import recover_configuration
from engine.errors import Refusal
from engine.guard.rules import NAMES
from tests.support.deployment import engine_in_process
from tests.support.guessing import guesses, made_up
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    from engine.control.change import ControlPlane


async def modes(plane: ControlPlane) -> dict[str, str]:
    return {rule.name: rule.mode for rule in (await guard_rules.show(plane)).rules}


async def test_a_mode_is_changed_in_running_workers_over_http(plane: ControlPlane) -> None:
    async with engine_in_process(plane, scopes=("redeem", "admin")) as merchant:
        assert await modes(plane) == dict.fromkeys(NAMES, "off") | {"requests": "enforce"}
        await guesses(merchant, 9, seed=1)

        async def set_score(mode: str | None) -> int:
            status, answer = await merchant.call("PUT", "/v1/guard/rules", json={"rules": {"score": mode}})
            assert answer["published"]
            return status

        async def would_have() -> int | None:
            _, answer = await merchant.call("GET", "/v1/guard/rules")
            (found,) = (rule["would_have"] for rule in answer["items"] if rule["name"] == "score")
            return int(found)

        assert await set_score("observe") == 200

        async def observed() -> bool:
            await guesses(merchant, 8, seed=2, user=lambda _: "bob")
            return await would_have() == 1

        await wait_until_async(observed)
        await set_score("enforce")
        assert await would_have() == 0

        async def is_blocked() -> bool:
            return "blocked" in await guesses(merchant, 1, seed=await _next(seeds))

        seeds = iter(range(100, 10_000))
        await wait_until_async(is_blocked)
        await set_score(None)
    assert (await modes(plane))["score"] == "off"
    acts = await audit_log.page(
        plane.database, act="set_guard_rule", subject="rule:score", after=None, limit=9
    )
    assert [act.details for act in acts] == [{"mode": None}, {"mode": "enforce"}, {"mode": "observe"}]


async def _next(seeds: object) -> int:
    return int(next(seeds))  # type: ignore[call-overload] # an iterator of numbers


async def test_a_mode_outlives_a_restart_and_the_loss_of_either_store(plane: ControlPlane) -> None:
    await guard_rules.set_modes(plane, {"score": "enforce"}, actor="cli")
    await plane.redis.flushall()
    async with engine_in_process(plane) as merchant:
        await guesses(merchant, 8, seed=1)

        async def is_blocked() -> bool:
            return bool((await merchant.redeem(made_up(1), "eve"))[1]["code"] == "blocked")

        await wait_until_async(is_blocked)
    async with plane.database.transaction() as connection:
        await connection.execute("DELETE FROM guard_rules")
        await connection.execute("UPDATE deployment SET control_version = 1")
    assert "rule:score" in await recover_configuration(plane)
    assert (await modes(plane))["score"] == "enforce"


async def test_a_rule_that_cannot_hold_is_refused(plane: ControlPlane) -> None:
    for new in ({"score": "enforce", "other": "off"}, {"attempts": "enforce"}):
        with pytest.raises(Refusal) as refused:
            await guard_rules.set_modes(plane, new, actor="cli")  # type: ignore[arg-type] # one has no such name
        assert refused.value.code == "malformed_request"
    await guard_rules.set_modes(plane, {"attempts": "off"}, actor="cli")
    assert set((await modes(plane)).values()) == {"off", "enforce"}
    assert await modes(plane) == dict.fromkeys(NAMES, "off") | {"requests": "enforce"}


async def test_a_limit_is_turned_off_and_on_while_running(plane: ControlPlane) -> None:
    limits = {"guard_attempts_per_min": 1, "guard_attempts_burst": 1}
    async with engine_in_process(plane, scopes=("redeem", "admin"), **limits) as merchant:

        async def says(expected: str) -> bool:
            return (await guesses(merchant, 3, seed=1))[-1] == expected

        assert await says("too_many_attempts")
        for mode, expected in (("off", "code_not_found"), ("enforce", "too_many_attempts")):
            await merchant.call("PUT", "/v1/guard/rules", json={"rules": {"attempts": mode}})
            await wait_until_async(lambda expected=expected: says(expected))  # type: ignore[misc] # bound now
