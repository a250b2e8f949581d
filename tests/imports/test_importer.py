from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import pytest

from engine.codes import mint_keys
from engine.codes.codec import Codec
from engine.codes.formats import FORMATS, SERIAL_LIMIT
from engine.control import api_keys, batches, campaigns
from engine.control.batches import NewBatch
from engine.control.campaigns import CampaignChange
from engine.errors import Overloaded, Refusal, StoreUnavailable
from engine.imports import records
from engine.imports.importer import HEAD_BYTES, Importer, Upload
from engine.imports.parser import Form
from tests.support.deployment import issue
from tests.support.dumps import dump_of_database, dump_of_redis
from tests.support.importing import (
    BrokenOff,
    a_campaign,
    bring,
    counts,
    in_pieces,
    lines_of,
    problems_of,
    stored,
)
from tests.support.keyspace import snapshot

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from engine.control.change import ControlPlane

OTHER_KEY: Final = "k2:" + "a5" * 32
CODES: Final = [f"PRINTED{number:05}X" for number in range(200)]
# How they begin does not say how they go on.
MANY: Final = [f"MANY-{number:06}" for number in range(3000)]


@pytest.fixture
def plane(plane: ControlPlane) -> ControlPlane:
    """With chunks so small that every file has several."""
    return replace(plane, settings=replace(plane.settings, import_chunk_lines=7))


async def test_every_line_is_accepted_or_listed_with_its_reason(plane: ControlPlane) -> None:
    _, minted = await issue(plane, 3)
    await bring(plane, await a_campaign(plane), lines_of(["ELSEWHERE-1"]))
    campaign = await a_campaign(plane)
    content = lines_of(
        [
            *CODES[:10],
            CODES[0].lower(),  # 11: the same code, written otherwise
            "elsewhere 1",  # 12: of another import
            minted[2],  # 13: of another campaign's minted batch
            "",  # 14
            "A-B",  # 15
            "NO/CODE",  # 16
            "X" * 65,  # 17
            "A,B",  # 18
            "X" * 5000,  # 19
            "FLASH50",  # 20
            "FL4SH50",
        ]
    )
    content += b"\xff\xfe\n" + b'"never closed'  # 22, 23
    outcome = await bring(plane, campaign, content)
    assert (outcome.published, outcome.replayed, outcome.same_as) == (True, False, None)
    assert counts(outcome) == (23, 12, 3, 8)
    assert await problems_of(plane, outcome) == [
        "11,duplicate_in_file",
        "12,duplicate_in_system",
        "13,duplicate_in_system",
        "14,empty",
        "15,code_too_short",
        "16,not_a_code",
        "17,not_a_code",
        "18,wrong_columns",
        "19,line_too_long",
        "22,not_utf8",
        "23,malformed",
    ]
    batch = await batches.get(plane, outcome.imported.batch or 0)
    assert (batch.campaign, batch.count, batch.format, batch.created_by) == (campaign, 12, "imported", "test")
    with pytest.raises(Refusal, match="imported"):
        batches.codes(batch, plane.settings)
    assert await records.get(plane, outcome.imported.name) == outcome.imported
    assert await records.page(plane, campaign, after=None, limit=10) == [outcome.imported]
    assert await records.page(plane, campaign, after=outcome.imported.name, limit=10) == []


async def test_minted_codes_of_every_format_and_prefix_are_known(plane: ControlPlane) -> None:
    content, campaign = [], await a_campaign(plane)
    codec = Codec(mint_keys.from_settings(plane.settings).by_name)
    for name, prefix in [*((name, None) for name in FORMATS), ("base32-12", "VIP-1")]:
        new = NewBatch(3, name, prefix)
        batch = (await batches.mint(plane, campaign, new, created_by="test")).value.batch
        content += [codec.code("k1", FORMATS[name], prefix or "", batch.id, serial) for serial in (0, 2)]
        unissued = codec.code("k1", FORMATS[name], prefix or "", batch.id, 3)
        content.append(unissued)
    outcome = await bring(plane, campaign, lines_of(content))
    assert counts(outcome) == (18, 6, 12, 0)


async def test_problems_that_follow_each_other_take_one_row_and_are_listed_all(plane: ControlPlane) -> None:
    plane = replace(plane, settings=replace(plane.settings, import_chunk_lines=50_000))
    outcome = await bring(plane, await a_campaign(plane), b"A\n" * 12_000 + b"FLASH50\n" + b"B\n" * 3)
    assert counts(outcome) == (12_004, 1, 0, 12_003)
    listed = [*range(1, 12_001), *range(12_002, 12_005)]
    assert await problems_of(plane, outcome) == [f"{line},code_too_short" for line in listed]
    async with plane.database.connection() as connection:
        assert await connection.fetchval("SELECT count(*) FROM import_problems") == 2


@pytest.mark.parametrize("key", [None, "monday"])
@pytest.mark.parametrize("form", Form)
async def test_a_file_that_broke_off_is_taken_up_where_it_was_left(
    plane: ControlPlane, key: str | None, form: Form
) -> None:
    campaign = await a_campaign(plane)
    lines = ["note,code", *(f'"n {at}\n",{code}' for at, code in enumerate(CODES)), "x,", f",{CODES[3]}"]
    if form is Form.NDJSON:
        lines = [f'{{"code": "{code}"}}' for code in [*CODES, "", CODES[3]]]
    content = lines_of(lines)
    written = 0
    for broken_at in (1300, 2000, 2001, 2500, len(content) - 1):
        with pytest.raises(BrokenOff):
            await bring(plane, campaign, content, form=form, key=key, broken_at=broken_at)
        (unfinished,) = await records.page(plane, campaign, after=None, limit=10)
        assert (unfinished.name, unfinished.state) == ("imp_1", "running")
        assert written <= unfinished.accepted <= len(CODES)
        written = unfinished.accepted
    assert written > len(CODES) // 2
    outcome = await bring(plane, campaign, content, form=form, key=key)
    assert outcome.imported.name == "imp_1"
    assert counts(outcome) == (202, 200, 1, 1)
    assert await stored(plane) == [(outcome.imported.batch, serial) for serial in range(200)]
    last = 402 if form is Form.CSV else 201
    assert await problems_of(plane, outcome) == [f"{last},empty", f"{last + 1},duplicate_in_file"]


async def refuse_others(plane: ControlPlane, campaign: str, content: bytes, *others: bytes) -> None:
    """Other files, campaigns and forms under the key k."""
    for other in (content[:-20], b"OTHER-CODE\n" + content, content.replace(b"002000", b"992000"), *others):
        with pytest.raises(Refusal, match="idempotency_key_reused"):
            await bring(plane, campaign, other, key="k")
    with pytest.raises(Refusal, match="idempotency_key_reused"):
        await bring(plane, await a_campaign(plane), content, key="k")
    with pytest.raises(Refusal, match="idempotency_key_reused"):
        await bring(plane, campaign, content, key="k", form=Form.NDJSON)


async def test_the_same_key_and_file_is_answered_again_and_another_is_refused(plane: ControlPlane) -> None:
    campaign, content = await a_campaign(plane), lines_of(MANY)
    with pytest.raises(BrokenOff):
        await bring(plane, campaign, content, key="k", broken_at=len(content) - 5)
    await refuse_others(plane, campaign, content)
    first = await bring(plane, campaign, content, key="k")
    await refuse_others(plane, campaign, content, content + b"MORE-CODES\n")
    again = await bring(plane, campaign, content, key="k")
    assert again == replace(first, replayed=True)
    assert (first.replayed, counts(first)) == (False, (len(MANY), len(MANY), 0, 0))
    await campaigns.update(plane, campaign, CampaignChange(state="ended"))
    assert await bring(plane, campaign, content, key="k") == again
    assert len(await stored(plane)) == len(MANY)


async def test_keys_of_one_caller_do_not_meet_those_of_another(plane: ControlPlane) -> None:
    campaign = await a_campaign(plane)
    first = await bring(plane, campaign, lines_of(CODES[:5]), key="k", created_by="ann")
    second = await bring(plane, campaign, lines_of(CODES[3:9]), key="k", created_by="bob")
    assert (counts(first), counts(second)) == ((5, 5, 0, 0), (6, 4, 2, 0))


async def test_without_a_key_a_finished_file_brings_nothing_new_and_is_recognised(
    plane: ControlPlane,
) -> None:
    campaign, content = await a_campaign(plane), lines_of(CODES)
    first = await bring(plane, campaign, content)
    again = await bring(plane, campaign, content)
    assert (again.replayed, again.same_as) == (False, first.imported.name)
    assert (counts(again), again.imported.batch) == ((200, 0, 200, 0), None)
    more = await bring(plane, campaign, content + b"ONE-MORE\n")
    assert (more.same_as, counts(more)) == (None, (201, 1, 200, 0))
    assert more.imported.batch == (first.imported.batch or 0) + 1  # only who has codes takes a number


async def test_a_file_that_only_begins_like_an_unfinished_one_is_not_mixed_with_it(
    plane: ControlPlane,
) -> None:
    campaign, content = await a_campaign(plane), lines_of(MANY)
    with pytest.raises(BrokenOff):
        await bring(plane, campaign, content, broken_at=len(content) - 100)
    other = lines_of([*MANY[:-500], *CODES])
    with pytest.raises(Refusal, match="not finished") as caught:
        await bring(plane, campaign, other)
    assert caught.value.code == "import_conflict"
    assert (await bring(plane, campaign, other, key="k")).imported.name != "imp_1"
    elsewhere = await bring(plane, await a_campaign(plane), content)
    assert elsewhere.imported.name != "imp_1"
    finished = await bring(plane, campaign, content)
    assert finished.imported.name == "imp_1"
    assert len(await stored(plane)) == len(MANY) + len(CODES)


async def test_a_key_means_its_own_import_and_none_means_any_that_is_unfinished(plane: ControlPlane) -> None:
    campaign, content = await a_campaign(plane), lines_of(CODES)
    with pytest.raises(BrokenOff):
        await bring(plane, campaign, content, key="a", broken_at=1500)
    other = await bring(plane, campaign, content, key="b")
    finished = await bring(plane, campaign, content)
    again = await bring(plane, campaign, content, key="a")
    assert (finished.imported.name, other.imported.name, again.imported.name) == ("imp_1", "imp_2", "imp_1")
    assert again.replayed
    assert finished.imported.accepted + other.imported.accepted == 200
    assert len(await stored(plane)) == 200


async def test_imports_at_once_accept_each_code_once(plane: ControlPlane) -> None:
    campaigns_of = [await a_campaign(plane) for _ in range(4)]
    files = [lines_of(CODES[at * 30 :] + CODES[: at * 30]) for at in range(4)]
    pairs = zip(campaigns_of, files, strict=True)
    outcomes = await asyncio.gather(*(bring(plane, campaign, file) for campaign, file in pairs))
    assert sum(outcome.imported.accepted for outcome in outcomes) == 200
    assert all(outcome.imported.lines == 200 for outcome in outcomes)
    expected = [(one.imported.batch, serial) for one in outcomes for serial in range(one.imported.accepted)]
    assert await stored(plane) == sorted(expected)


async def test_of_calls_with_the_same_file_at_once_none_writes_a_line_twice(plane: ControlPlane) -> None:
    campaign, content = await a_campaign(plane), lines_of([*CODES, CODES[0]])
    for key in ("k", None):
        calls = [bring(plane, campaign, content, key=key) for _ in range(5)]
        results = await asyncio.gather(*calls, return_exceptions=True)
        refused = [result for result in results if isinstance(result, BaseException)]
        assert all(isinstance(one, Refusal) and one.code == "import_conflict" for one in refused)
        assert len(refused) < len(calls)
    outcome = await bring(plane, campaign, content, key="k")
    assert counts(outcome) == (201, 200, 1, 0)
    assert await stored(plane) == [(outcome.imported.batch, serial) for serial in range(200)]


async def test_codes_are_known_under_every_mint_key_and_an_import_keeps_its_own(plane: ControlPlane) -> None:
    campaign, content = await a_campaign(plane), lines_of(CODES)
    await bring(plane, campaign, lines_of(CODES[:50]))
    with pytest.raises(BrokenOff):
        await bring(plane, campaign, content, broken_at=1500)
    rotated = replace(
        plane, settings=replace(plane.settings, mint_keys=f"{plane.settings.mint_keys},{OTHER_KEY}")
    )
    outcome = await bring(rotated, campaign, content)
    assert (outcome.imported.name, outcome.imported.mint_key) == ("imp_2", "k1")
    assert counts(outcome) == (200, 150, 50, 0)
    new = await bring(rotated, campaign, lines_of([*CODES, "NEW-CODE", "new code"]))
    assert (new.imported.mint_key, counts(new)) == ("k2", (202, 1, 201, 0))
    under_both = await bring(rotated, campaign, lines_of(["NEWCODE", CODES[7], "NEWER-CODE"]))
    assert counts(under_both) == (3, 1, 2, 0)
    without = replace(plane, settings=replace(plane.settings, mint_keys=OTHER_KEY))
    with pytest.raises(StoreUnavailable, match="mint keys k1 are missing"):
        await bring(without, campaign, lines_of(["UNHEARD-OF"]))


async def test_a_campaign_that_ended_or_is_unknown_gets_no_codes(plane: ControlPlane) -> None:
    campaign = await a_campaign(plane)
    with pytest.raises(BrokenOff):
        await bring(plane, campaign, lines_of(CODES), broken_at=1500)
    await campaigns.update(plane, campaign, CampaignChange(state="ended"))
    for content in (lines_of(CODES), b"FLASH50\n"):
        with pytest.raises(Refusal, match="campaign_ended"):
            await bring(plane, campaign, content)
    with pytest.raises(Refusal, match="campaign_not_found"):
        await bring(plane, "cmp_999", b"FLASH50\n")


@pytest.mark.parametrize("content", [b"", b"code\n", b"\xef\xbb\xbf", b"a,b\n1,2\n"])
async def test_a_file_without_codes_is_refused_and_a_better_one_taken(
    plane: ControlPlane, content: bytes
) -> None:
    campaign = await a_campaign(plane)
    with pytest.raises(Refusal) as caught:
        await bring(plane, campaign, content, key="k")
    assert caught.value.code == "malformed_request"
    assert await stored(plane) == []


async def test_what_is_discarded_can_be_imported_again(plane: ControlPlane) -> None:
    campaign, content = await a_campaign(plane), lines_of(CODES)
    await bring(plane, campaign, lines_of(CODES[:20]))
    before = await snapshot(plane.redis)
    with pytest.raises(BrokenOff):
        await bring(plane, campaign, content, key="k", broken_at=2500)
    assert len(await stored(plane)) > 100
    for _ in range(2):
        discarded = await records.discard(plane, "imp_2", actor="ann")
        assert (discarded.name, discarded.state) == ("imp_2", "discarded")
        assert len(await stored(plane)) == 20
        left = await snapshot(plane.redis)
        (of_key,) = left.keys() - before.keys()
        assert b":receipt:" in of_key  # the key still belongs to imports
        assert {name: left[name] for name in before} == before
    again = await bring(plane, await a_campaign(plane), content, key="k")
    assert counts(again) == (200, 180, 20, 0)
    for finished in ("imp_1", again.imported.name):
        with pytest.raises(Refusal, match="import_conflict"):
            await records.discard(plane, finished, actor="ann")
    with pytest.raises(Refusal, match="import_not_found"):
        await records.discard(plane, "imp_99", actor="ann")


async def test_nobody_goes_on_with_what_was_discarded(plane: ControlPlane) -> None:
    campaign, source = await a_campaign(plane), in_pieces(lines_of(CODES), size=HEAD_BYTES)

    async def pieces() -> AsyncIterator[bytes]:
        yield await anext(source)
        yield await anext(source)
        await records.discard(plane, "imp_1", actor="ann")
        async for piece in source:
            yield piece

    with pytest.raises(Refusal, match="import_conflict"):
        await Importer(plane).run(Upload(campaign, Form.CSV, pieces(), created_by="test"))
    assert await stored(plane) == []
    assert counts(await bring(plane, campaign, lines_of(CODES))) == (200, 200, 0, 0)


async def test_a_key_that_was_revoked_imports_no_further(plane: ControlPlane) -> None:
    campaign = await a_campaign(plane)
    made = (await api_keys.create(plane, "ops", ("admin",))).value
    with pytest.raises(BrokenOff):
        await bring(plane, campaign, lines_of(CODES), created_by=made.api_key.id, broken_at=1500)
    await api_keys.revoke(plane, made.api_key.id)
    written = await stored(plane)
    with pytest.raises(Refusal, match="unauthenticated"):
        await bring(plane, campaign, lines_of(CODES), created_by=made.api_key.id)
    assert await stored(plane) == written


async def test_more_imports_than_may_run_are_refused_at_once(plane: ControlPlane) -> None:
    plane = replace(plane, settings=replace(plane.settings, imports_max=1))
    importer, campaign = Importer(plane), await a_campaign(plane)
    waiting = asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield b"FLASH50\n"
        await waiting.wait()

    first = asyncio.create_task(importer.run(Upload(campaign, Form.CSV, slow(), created_by="test")))
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await importer.run(Upload(campaign, Form.CSV, in_pieces(b"FLASH60\n"), created_by="test"))
    waiting.set()
    assert counts(await first) == (1, 1, 0, 0)
    assert counts(
        await importer.run(Upload(campaign, Form.CSV, in_pieces(b"FLASH60\n"), created_by="test"))
    ) == (1, 1, 0, 0)


async def test_a_batch_takes_no_more_codes_than_there_are_serials(plane: ControlPlane) -> None:
    campaign, content = await a_campaign(plane), lines_of(CODES)
    with pytest.raises(BrokenOff):
        await bring(plane, campaign, content, broken_at=1500)
    async with plane.database.connection() as connection:
        await connection.execute("UPDATE imports SET accepted = $1::int, lines = $1::int", SERIAL_LIMIT - 20)
    with pytest.raises(Refusal, match="divide the file"):
        await bring(plane, campaign, content)


async def test_no_code_is_at_rest(plane: ControlPlane) -> None:
    campaign = await a_campaign(plane)
    bad = ["FLASH50", "SH0RT-BAD/CODE", "WR0NG,C0LUMN", '"UNCL0SED', "T00L0NG" * 30]
    content = lines_of([*CODES, *CODES[:3], *bad])
    with pytest.raises(BrokenOff):
        await bring(plane, campaign, content, broken_at=1500)
    await bring(plane, campaign, content, key="PRINTED00000X")
    dump = (await dump_of_database(plane) + await dump_of_redis(plane.redis)).upper()
    for code in [*CODES, *bad, "FLASH50", "SH0RT", "WR0NG", "C0LUMN", "UNCL0SED", "T00L0NG"]:
        assert code not in dump
        assert code.encode().hex().upper() not in dump
