"""Voids have the same events with one shard and with several; only those of ranges have no ``last4``."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from engine.control.publishing import publish
from persister.rebuild.rebuild import rebuild
from persister.reconcile.reconcile import reconcile
from tests.support.deployment import engine_in_process, issue
from tests.support.feed import whole_feed
from tests.support.importing import a_campaign, bring, lines_of
from tests.support.streams import persisting
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    from engine.control.change import ControlPlane
    from tests.support.deployment import Merchant

SCOPES = ("admin", "redeem", "read", "events")
SHOWN = ("type", "redemption", "batch", "serial", "last4", "user", "key")


async def change(merchant: Merchant, path: str, key: str = "", **body: object) -> dict[str, Any]:
    headers = {"Idempotency-Key": key} if key else {}
    status, answer = await merchant.call("POST", path, json=body | {"reason": "leaked"}, headers=headers)
    assert status == 200, answer
    return dict(answer)


async def told(merchant: Merchant, count: int) -> set[tuple[Any, ...]]:
    """The voids of the feed, in no order: that between shards is not fixed."""

    async def voids() -> list[dict[str, Any]] | None:
        events = [event for event in (await whole_feed(merchant))[0] if event["type"].endswith("voided")]
        return events if len(events) == count else None

    return {tuple(event[name] for name in SHOWN) for event in await wait_until_async(voids) or ()}


@pytest.mark.parametrize("shards", [1, 2])
async def test_voids_of_single_codes_and_of_ranges_have_their_events(plane: ControlPlane) -> None:
    _, codes = await issue(plane, 8)
    last = [code[-4:] for code in codes]
    async with engine_in_process(plane, scopes=SCOPES) as merchant, persisting(plane.settings):
        for code in codes[:2]:
            await change(merchant, "/v1/codes/void", code=code, key=f"void {code[-4:]}")
        await change(merchant, "/v1/codes/unvoid", code=codes[0])
        redeemed = (await merchant.redeem(codes[2]))[1]["id"]
        await change(merchant, f"/v1/redemptions/{redeemed}/rollback", void=True)
        await change(merchant, "/v1/codes/void", batch=0, first_serial=3, last_serial=4, key="range")
        await change(merchant, "/v1/codes/void", batch=0, first_serial=5, last_serial=5)
        await change(merchant, "/v1/codes/unvoid", batch=0)
        assert await told(merchant, 7) == {
            ("voided", "0-0", 0, 0, last[0], "", f"void {last[0]}"),
            ("voided", "1-1", 0, 1, last[1], "", f"void {last[1]}"),
            ("unvoided", "0-0", 0, 0, last[0], "", None),
            ("voided", "2-2", 0, 2, last[2], "ann", None),
            ("voided", "3-4", 0, 3, "", "", "range"),
            ("voided", "5-5", 0, 5, "", "", None),
            ("unvoided", "0-7", 0, 0, "", "", None),
        }


@pytest.mark.parametrize("shards", [1, 2])
async def test_a_short_imported_code_stays_void_by_itself_over_a_rebuild(plane: ControlPlane) -> None:
    """A third of two symbols is none; but an event without ``last4`` would be one of a range."""
    plane = replace(plane, settings=replace(plane.settings, import_code_symbols_min=1))
    await bring(plane, await a_campaign(plane), lines_of(["A1", "B2", "C3"]))
    async with engine_in_process(plane, scopes=SCOPES) as merchant, persisting(plane.settings):
        for code in ("A1", "B2"):
            await change(merchant, "/v1/codes/void", code=code)
        assert (await merchant.redeem("C3"))[1]["code"] == "••••?"
        assert {event[4] for event in await told(merchant, 2)} == {"?"}
    assert (await reconcile(plane.settings, {}, lambda *_: None)).findings == []
    await plane.redis.flushall()
    await rebuild(plane.settings, lambda *_: None)
    await publish(plane.redis, plane.database)
    async with engine_in_process(plane, scopes=SCOPES) as merchant:
        answers = [
            await merchant.redeem_until_definite(code, key=f"k{at}")
            for at, code in enumerate(("A1", "B2", "C3"))
        ]
    assert [answer["code"] for _, answer in answers] == ["code_void", "code_void", "already_redeemed"]
