"""The list of suspected sources: with their evidence, the highest score first, and never a code."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from engine.guard.block_table import BlockTable
from engine.guard.guard import Guard
from engine.guard.labels import ALIKE, SPENT, UNKNOWN, Labelled, Tried
from engine.guard.suspect_list import LOOKED_AT_MAX, suspect_list
from engine.guard.suspects import TRAIL, TRAIL_MAX
from engine.settings import Settings
from tests.support.deployment import engine_in_process, issue
from tests.support.guessing import guesses
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    from engine.control.change import ControlPlane

KEY = "key_000000000000"
NOW_S = 1_795_900_000.0


def tried(user: str, digest: int, label: int = UNKNOWN) -> Tried:
    return Tried(KEY, user, "", "", label, digest, 1.0, "ABCD" if label == UNKNOWN else "")


def guard_that_heard(*attempts: Tried) -> Guard:
    guard = Guard(Settings(guard_score_mode="observe"), BlockTable())
    for number, one in enumerate(attempts):
        guard.behaviour.hear(Labelled([one], {}), NOW_S + number, is_own=True)
    return guard


def listed(guard: Guard, limit: int = 10) -> list[dict[str, Any]]:
    items: Any = suspect_list(guard, NOW_S + 60, limit)["items"]
    return list(items)


def test_the_highest_score_is_first_and_a_score_fades() -> None:
    guard = guard_that_heard(tried("ann", 1), tried("eve", 2), tried("eve", 3), tried("eve", 4, SPENT))
    eve, ann = listed(guard)
    assert (eve["subject"], eve["unknown"], eve["spent"], eve["last4"]) == ("eve", 2, 1, ["ABCD", "ABCD"])
    assert [step["label"] for step in eve["trail"]] == ["unknown", "unknown", "spent"]
    assert [step["score"] for step in eve["trail"]] == pytest.approx([1.61, 3.22, 3.21], abs=0.01)
    assert eve["since"] < eve["last_at"] == eve["trail"][-1]["at"]
    assert 0 < ann["score"] < 1.61
    assert listed(guard, 1) == [eve]


def test_a_page_that_was_refused_without_a_label_is_not_listed() -> None:
    guard = guard_that_heard(tried("ann", 1), tried("bob", 2, ALIKE))
    assert [one["subject"] for one in listed(guard)] == ["ann"]


def test_a_list_looks_at_the_latest_and_keeps_little_of_each() -> None:
    many = [tried(f"user {number}", number) for number in range(LOOKED_AT_MAX + 5)]
    guard = guard_that_heard(*many, *(tried("eve", number) for number in range(100)))
    assert len(listed(guard, LOOKED_AT_MAX * 2)) == LOOKED_AT_MAX
    suspects = dict(guard.behaviour.suspects.latest(1))
    assert {len(suspect.trail) for suspect in suspects.values()} == {TRAIL_MAX * TRAIL.size}


async def test_sources_are_listed_over_http_with_what_is_in_force_for_them(plane: ControlPlane) -> None:
    _, (code, *_) = await issue(plane, 1)
    async with engine_in_process(plane, scopes=("redeem", "admin"), guard_score_mode="observe") as merchant:
        await guesses(merchant, 4, seed=1, user=lambda _: "eve")
        await merchant.redeem(code, "eve")

        async def sources() -> list[dict[str, Any]]:
            status, answer = await merchant.call("GET", "/v1/guard/sources?limit=5")
            assert status == 200
            assert code not in json.dumps(answer)
            return list(answer["items"])

        async def scored() -> bool:
            return [len(one["trail"]) for one in await sources()] == [5]

        await wait_until_async(scored)
        (eve,) = await sources()
        assert (eve["kind"], eve["subject"], eve["block"]) == ("user", "eve", None)
        assert [step["label"] for step in eve["trail"]] == ["unknown"] * 4 + ["ok"]
        body = {"kind": "user", "subject": "eve", "reason": "guesses", "ttl_s": 60, "api_key": eve["api_key"]}
        _, block = await merchant.call("POST", "/v1/blocks", json=body)

        async def blocked() -> bool:
            (one,) = await sources()
            return (one["block"], one["action"]) == (block["id"], "block")

        await wait_until_async(blocked)
        assert (await merchant.call("GET", "/v1/guard/sources?after=1"))[0] == 400
