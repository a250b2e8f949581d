"""Imported codes on the redeem path: they are found, and nothing else is taken for one."""

from __future__ import annotations

import asyncio
import functools
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import pytest

from engine.control import campaigns
from engine.control.campaigns import CampaignChange
from engine.imports import records
from engine.imports.importer import Importer, Upload
from engine.imports.parser import Form
from engine.imports.repair import repair_index
from engine.redemption.core import _repeats_code
from engine.store import keys
from tests.support.deployment import Merchant, engine_in_process, issue, mint
from tests.support.dumps import dump_of_database, dump_of_redis
from tests.support.importing import BrokenOff, a_campaign, bring, in_pieces, lines_of
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from engine.control.change import ControlPlane

CODES: Final = [f"PRINTED-{number:05}-X" for number in range(100)]


async def outcome_of(merchant: Merchant, code: str, **fields: Any) -> str:  # noqa: ANN401 - by their names
    status, body = await merchant.redeem(code, **fields)
    return "redeemed" if status == 200 else str(body["code"])


class TestSeveralShards:
    @pytest.fixture(params=[1, 2, 3])
    def shards(self, request: pytest.FixtureRequest) -> int:
        count: int = request.param
        return count

    @pytest.mark.parametrize("limits", [{}, {"stock": 1000}])
    async def test_every_imported_code_is_good_once_however_it_is_typed(
        self, plane: ControlPlane, merchant: Merchant, limits: dict[str, int]
    ) -> None:
        campaign = await a_campaign(plane, **limits)
        outcome = await bring(plane, campaign, lines_of(CODES))
        ways = (str, str.lower, lambda code: code.replace("-", " "), lambda code: f"  {code}\t")
        typed = [ways[at % len(ways)](code) for at, code in enumerate(CODES)]
        answers = await asyncio.gather(*(merchant.redeem(code) for code in typed))
        assert {status for status, _ in answers} == {200}
        assert {body["campaign"] for _, body in answers} == {campaign}
        assert await asyncio.gather(*(outcome_of(merchant, code) for code in CODES)) == [
            "already_redeemed"
        ] * len(CODES)
        status, record = await merchant.call("GET", f"/v1/redemptions/{answers[7][1]['id']}")
        assert (status, record["batch"], record["serial"]) == (200, outcome.imported.batch, 7)
        assert record["last4"] == "007X"


async def test_a_shared_word_is_good_as_often_as_it_may_be_used(
    plane: ControlPlane, merchant: Merchant
) -> None:
    await bring(plane, await a_campaign(plane, kind="multi", max_uses=5), b"FLASH50\n")
    outcomes = await asyncio.gather(*(outcome_of(merchant, "flash-50", user=f"u{n}") for n in range(9)))
    assert sorted(outcomes) == ["redeemed"] * 5 + ["uses_exceeded"] * 4
    # It is remembered where it leads, so a sale of one word asks Redis for it once.
    await plane.redis.delete(*[key async for key in plane.redis.scan_iter("*:imported:*")])
    assert await outcome_of(merchant, "FLASH50") == "uses_exceeded"


async def test_an_imported_card_holds_an_amount(plane: ControlPlane, merchant: Merchant) -> None:
    await bring(
        plane, await a_campaign(plane, kind="balance", amount=1000, currency="EUR"), lines_of(CODES[:2])
    )
    _, body = await merchant.redeem(CODES[1], amount=400)
    assert (body["status"], body["balance"]) == ("redeemed", 600)
    assert await outcome_of(merchant, CODES[1], amount=700) == "insufficient_balance"


async def test_minted_and_imported_codes_live_side_by_side(plane: ControlPlane, merchant: Merchant) -> None:
    campaign, minted = await issue(plane, 3)
    assert await outcome_of(merchant, "GHOST-CODE-001") == "code_not_found"
    assert await outcome_of(merchant, "GHOST-CODE-1") == "code_malformed"
    await bring(plane, campaign, lines_of(CODES))
    minted += await mint(plane, campaign, 2, prefix="VIP")
    for code in (*minted, *CODES[:3]):
        assert await outcome_of(merchant, code) == "redeemed"
    # Of what was printed elsewhere, nobody can tell by its look that it is no code.
    for unknown in ("GHOST-CODE-001", "GHOST-CODE-1", "ABCD", "A" * 64):
        assert await outcome_of(merchant, unknown) == "code_not_found"
    for malformed in ("ABC", "A-B-C-", "NO/CODE", "", "A" * 65):
        assert await outcome_of(merchant, malformed) == "code_malformed"


async def test_codes_are_good_once_all_are_in_and_not_before(plane: ControlPlane, merchant: Merchant) -> None:
    campaign = await a_campaign(plane)
    content = lines_of([f"MANY-{number:06}" for number in range(12_000)])
    await bring(plane, campaign, lines_of(CODES[:1]))
    with pytest.raises(BrokenOff):
        await bring(plane, campaign, content, broken_at=len(content) - 1)
    assert await plane.redis.exists(keys.importing(0, 1))
    for code in ("MANY-000000", "MANY-009000"):
        assert await outcome_of(merchant, code) == "code_not_found"
    await bring(plane, campaign, content)
    for code in ("MANY-000000", "MANY-009000", "MANY-011999"):
        assert await outcome_of(merchant, code) == "redeemed"
    assert not await plane.redis.exists(keys.importing(0, 1))


async def test_a_paused_campaign_pauses_its_imported_codes(plane: ControlPlane, merchant: Merchant) -> None:
    campaign = await a_campaign(plane)
    await bring(plane, campaign, lines_of(CODES))
    await campaigns.update(plane, campaign, CampaignChange(state="paused"))
    assert await outcome_of(merchant, CODES[0]) == "campaign_inactive"


async def test_a_retry_gets_the_same_answer(plane: ControlPlane, merchant: Merchant) -> None:
    await bring(plane, await a_campaign(plane), lines_of(CODES))
    first = await merchant.redeem(CODES[0], key="k")
    again = await merchant.redeem(CODES[0].lower(), key="k")
    assert again == (200, first[1] | {"replayed": True})
    assert await outcome_of(merchant, CODES[1], key="k") == "idempotency_key_reused"


@pytest.mark.parametrize(
    ("code", "shown"),
    [
        ("ABCD", "••••D"),
        ("FLASH50", "••••50"),
        ("ABCDEFGH", "••••GH"),
        ("ABC-DEF-GHJ-KMN", "••••JKMN"),
        ("A" * 30, "••••AAAA"),
    ],
)
async def test_of_an_imported_code_at_most_a_third_is_shown(
    plane: ControlPlane, merchant: Merchant, code: str, shown: str
) -> None:
    await bring(plane, await a_campaign(plane), lines_of([code]))
    _, body = await merchant.redeem(code)
    assert body["code"] == shown
    _, record = await merchant.call("GET", f"/v1/redemptions/{body['id']}")
    assert record["last4"] == shown.strip("•")


async def test_redeeming_an_imported_code_leaves_it_nowhere(plane: ControlPlane, merchant: Merchant) -> None:
    await bring(plane, await a_campaign(plane), lines_of(["FLASH50", *CODES]))
    for fields in ({"user": "Flash-50"}, {"order": "flash 50"}, {"key": "F.L.A.S.H.5.0"}):
        assert await outcome_of(merchant, "FLASH50", **fields) == "malformed_request"
    for fields in ({"user": f"x{CODES[0]}"}, {"order": CODES[0].lower()}, {"key": f"order/{CODES[0]}"}):
        assert await outcome_of(merchant, CODES[0], **fields) == "malformed_request"
    assert await outcome_of(merchant, "FLASH50", user="flash50-fan", order="4711") == "redeemed"
    for code in CODES[:10]:
        assert await outcome_of(merchant, code, key=code[::-1]) == "redeemed"
        assert await outcome_of(merchant, code) == "already_redeemed"
    events = str(await plane.redis.xrange(keys.events(0)))
    await plane.redis.delete(keys.events(0))
    dump = events + await dump_of_database(plane) + await dump_of_redis(plane.redis)
    assert "flash50-fan" in dump
    for code in CODES[:10]:
        assert code not in dump
        assert code.replace("-", "") not in dump


@pytest.mark.parametrize(
    ("code", "text", "repeated"),
    [
        (b"1234", "1234", True),
        (b"1234", "12-34", True),
        (b"1234", "12345", False),
        (b"ANN1", "ann-i", True),
        (b"F1ASH50", "flash50-fan", False),
        (b"F1ASH50", "ﬂash50", True),
        (b"F1ASH50", "f/l/a/s/h/5/0", True),
        (b"ABCDEFGHJKM", "xABCDEFGHJKM", False),
        (b"ABCDEFGHJKMN", "xABCDEFGHJKMNx", True),
        (b"ZZABCDEFGHJKMN", "xABCDEFGHJKMNx", True),
        (b"ABCD", "", False),
        (b"ABCD", "!!!!", False),
    ],
)
def test_a_field_that_repeats_a_code_is_known_and_one_that_has_it_by_chance_is_not(
    code: bytes, text: str, *, repeated: bool
) -> None:
    assert _repeats_code(code, None, text) is repeated


async def test_a_redis_that_lost_the_index_calls_no_code_unknown_and_gets_it_again(
    plane: ControlPlane, merchant: Merchant
) -> None:
    await bring(plane, await a_campaign(plane), lines_of(CODES))
    assert await outcome_of(merchant, CODES[0]) == "redeemed"
    lost = [key async for key in plane.redis.scan_iter("*:import*")]
    assert len(lost) > 50
    await plane.redis.delete(*lost)
    assert await outcome_of(merchant, CODES[1]) == "store_unavailable"
    assert await outcome_of(merchant, "NEVER-ISSUED") == "store_unavailable"
    assert await repair_index(plane) == [0]
    assert await repair_index(plane) == []
    assert sorted([key async for key in plane.redis.scan_iter("*:import*")]) == sorted(lost)
    assert await outcome_of(merchant, CODES[1]) == "redeemed"
    assert await outcome_of(merchant, "NEVER-ISSUED") == "code_not_found"


async def test_a_running_engine_repairs_the_index_by_itself(plane: ControlPlane) -> None:
    await bring(plane, await a_campaign(plane), lines_of(CODES))
    async with engine_in_process(plane, republish_interval_s=1) as merchant:
        await plane.redis.delete(*[key async for key in plane.redis.scan_iter("*:import*")])

        async def redeemed() -> bool:
            return await outcome_of(merchant, CODES[0]) == "redeemed"

        await wait_until_async(redeemed)


async def test_an_import_whose_index_is_lost_on_the_way_is_whole_at_its_end(
    plane: ControlPlane, merchant: Merchant
) -> None:
    plane = replace(plane, settings=replace(plane.settings, import_chunk_lines=500))
    campaign = await a_campaign(plane)
    content = lines_of([f"MANY-{number:06}" for number in range(6000)])
    with pytest.raises(BrokenOff):
        await bring(plane, campaign, content, broken_at=len(content) // 2)
    (unfinished,) = await records.page(plane, campaign, after=None, limit=1)
    assert unfinished.indexed > 0
    await plane.redis.delete(*[key async for key in plane.redis.scan_iter("*:import*")])
    await bring(plane, campaign, content)
    count = 0
    async for key in plane.redis.scan_iter("*:imported:*", count=1000):
        count += await plane.redis.hlen(key)
    assert count == 6000
    assert await outcome_of(merchant, "MANY-000000") == "redeemed"


async def test_an_index_lost_while_it_is_written_is_whole_at_the_end(
    plane: ControlPlane, merchant: Merchant
) -> None:
    plane = replace(plane, settings=replace(plane.settings, import_chunk_lines=500))
    campaign = await a_campaign(plane)
    content = lines_of([f"MANY-{number:06}" for number in range(6000)])

    async def losing() -> AsyncIterator[bytes]:
        async for piece in in_pieces(content, size=20_000):
            yield piece
            await plane.redis.delete(*[key async for key in plane.redis.scan_iter("*:import*")], "none")

    outcome = await Importer(plane).run(Upload(campaign, Form.CSV, losing(), created_by="test"))
    assert outcome.imported.accepted == 6000
    for number in range(0, 6000, 250):
        assert await outcome_of(merchant, f"MANY-{number:06}") == "redeemed"


async def test_a_redis_that_is_slow_answers_nobody_late_and_no_code_is_lost(plane: ControlPlane) -> None:
    campaign = await a_campaign(plane)
    await bring(plane, campaign, lines_of(CODES))
    async with engine_in_process(plane, attempt_deadline_ms=1000) as merchant:
        assert await outcome_of(merchant, CODES[0]) == "redeemed"
        await plane.redis.client_pause(2000)
        outcomes = await asyncio.gather(*(outcome_of(merchant, code) for code in CODES[1:]))
        assert set(outcomes) <= {"store_unavailable", "overloaded"}

        async def redeemed(code: str) -> bool:
            return await outcome_of(merchant, code) == "redeemed"

        for code in CODES[1:3]:
            await wait_until_async(functools.partial(redeemed, code))


async def test_more_look_ups_than_may_wait_are_refused_at_once(plane: ControlPlane) -> None:
    codes = [f"MANY-{number:06}" for number in range(300)]
    await bring(plane, await a_campaign(plane), lines_of(codes))
    async with engine_in_process(plane, queue_max=50, attempt_deadline_ms=30_000) as merchant:
        outcomes = await asyncio.gather(
            *(outcome_of(merchant, code, key=code[:1] + code[-3:]) for code in codes)
        )
        assert set(outcomes) == {"redeemed", "overloaded"}
        again = [await outcome_of(merchant, code, key=code[:1] + code[-3:]) for code in codes]
        assert set(again) == {"redeemed"}
