from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from engine.codes import mint_keys
from engine.codes.codec import Codec
from engine.codes.formats import FORMATS, normalise
from engine.control import batches, campaigns
from engine.control.batches import NewBatch
from engine.control.campaigns import CampaignChange, NewCampaign
from engine.database import open_database
from engine.errors import Refusal, StoreUnavailable
from tests.support.dumps import dump_of_database, dump_of_redis

if TYPE_CHECKING:
    from pathlib import Path

    from engine.control.batches import Batch
    from engine.control.change import ControlPlane

OTHER_KEY = "k2:" + "a5" * 32


async def a_campaign(plane: ControlPlane) -> str:
    return (await campaigns.create(plane, campaigns.define(NewCampaign(name="Sale")))).value.id


async def mint(plane: ControlPlane, campaign: str, count: int, **fields: Any) -> Batch:  # noqa: ANN401 - by their names
    new = NewBatch(count, **fields)
    return (await batches.mint(plane, campaign, new, created_by="test")).value.batch


async def test_a_batch_says_how_likely_a_guess_is_and_is_read_as_it_was_minted(plane: ControlPlane) -> None:
    campaign = await a_campaign(plane)
    made = await batches.mint(plane, campaign, NewBatch(1024, prefix="Summer"), created_by="key_1")
    assert made.published
    assert made.value.chance == "1 in 2^70.0"
    batch = made.value.batch
    assert await batches.get(plane, batch.id) == batch
    assert (batch.count, batch.prefix, batch.mint_key, batch.created_by) == (1024, "SUMMER", "k1", "key_1")
    assert set(made.value.document()) == {*batches.Batch.__struct_fields__, "guess_chance"}


@pytest.mark.parametrize("format_name", FORMATS)
async def test_an_export_is_what_was_minted_byte_for_byte(plane: ControlPlane, format_name: str) -> None:
    batch = await mint(plane, await a_campaign(plane), 100_000, format=format_name, prefix="VIP-1")
    minted = b"".join(batches.codes(batch, plane.settings))
    assert minted.count(b"\n") == 100_000
    again = await batches.get(plane, batch.id)
    rotated = replace(plane.settings, mint_keys=f"{plane.settings.mint_keys},{OTHER_KEY}")
    assert b"".join(batches.codes(again, rotated)) == minted


async def test_no_code_is_at_rest(plane: ControlPlane) -> None:
    batch = await mint(plane, await a_campaign(plane), 100)
    dump = await dump_of_database(plane) + await dump_of_redis(plane.redis)
    assert f'"mint_key":"{batch.mint_key}"' in dump
    lines = b"".join(batches.codes(batch, plane.settings)).decode().splitlines()
    assert len(lines) >= 100
    for line in lines:
        code = line.partition(",")[0]
        assert code not in dump
        assert code.replace("-", "") not in dump


async def test_the_newest_mint_key_is_used_and_named(plane: ControlPlane, tmp_path: Path) -> None:
    campaign = await a_campaign(plane)
    from_file = replace(plane, settings=replace(plane.settings, mint_keys=""))
    with pytest.raises(StoreUnavailable, match="mint-keys"):
        await mint(from_file, campaign, 1)
    mint_keys.create_file(tmp_path / "mint-keys")
    first = await mint(from_file, campaign, 5)
    assert first.mint_key == "k1"
    codes = list(batches.codes(first, from_file.settings))
    mint_keys.rotate(tmp_path / "mint-keys")
    assert (await mint(from_file, campaign, 5)).mint_key == "k2"
    assert list(batches.codes(first, from_file.settings)) == codes


async def test_a_batch_of_a_key_that_is_not_here_cannot_be_exported(plane: ControlPlane) -> None:
    batch = await mint(plane, await a_campaign(plane), 1)
    with pytest.raises(StoreUnavailable, match="mint key k1"):
        batches.codes(batch, replace(plane.settings, mint_keys=OTHER_KEY))


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"count": 0}, "count"),
        ({"count": -1}, "count"),
        ({"count": 2**28 + 1}, "count"),
        ({"count": 2**70}, "count"),
        ({"format": "base32-15"}, "format"),
        ({"format": ""}, "format"),
        ({"prefix": ""}, "prefix"),
        ({"prefix": "-A"}, "prefix"),
        ({"prefix": "Ä"}, "prefix"),
        ({"prefix": "A,B"}, "prefix"),
        ({"prefix": "A\n"}, "prefix"),
        ({"prefix": "A" * 17}, "prefix"),
    ],
)
async def test_a_malformed_batch_is_refused(plane: ControlPlane, fields: dict[str, Any], word: str) -> None:
    campaign = await a_campaign(plane)
    with pytest.raises(Refusal, match=word) as caught:
        await mint(plane, campaign, **{"count": 1} | fields)
    assert caught.value.code == "malformed_request"
    assert await batches.page(plane, campaign, after=None, limit=10) == []


async def test_the_limit_of_the_settings_holds_below_that_of_the_format(plane: ControlPlane) -> None:
    small = replace(plane, settings=replace(plane.settings, mint_count_max=10))
    campaign = await a_campaign(plane)
    assert (await mint(small, campaign, 10)).count == 10
    with pytest.raises(Refusal, match="between 1 and 10"):
        await mint(small, campaign, 11)


async def test_a_format_is_refused_once_its_codes_could_be_guessed(plane: ControlPlane) -> None:
    """digits-15 has room for 2^-30 of 10^15 codes: 931,322, over all campaigns."""
    await mint(plane, await a_campaign(plane), 900_000, format="digits-15")
    campaign = await a_campaign(plane)
    with pytest.raises(Refusal, match="choose a longer format") as caught:
        await mint(plane, campaign, 31_323, format="digits-15")
    assert caught.value.code == "malformed_request"
    await mint(plane, campaign, 31_322, format="digits-15")
    await mint(plane, campaign, 31_323, format="digits-18")


async def test_minting_at_the_same_instant_cannot_pass_the_gate_together(plane: ControlPlane) -> None:
    campaign = await a_campaign(plane)
    attempts = [mint(plane, campaign, 200_000, format="digits-15") for _ in range(8)]
    results = await asyncio.gather(*attempts, return_exceptions=True)
    assert sum(not isinstance(result, BaseException) for result in results) == 4
    assert all(isinstance(result, Refusal | batches.Batch) for result in results)


async def test_minting_from_two_pools_at_once_never_overlaps(plane: ControlPlane, database_url: str) -> None:
    campaign = await a_campaign(plane)
    async with open_database(plane.settings, database_url) as database:
        other = replace(plane, database=database)
        minted = await asyncio.gather(*(mint(each, campaign, 50) for each in (plane, other) * 10))
    assert len({batch.id for batch in minted}) == 20
    lines = b"".join(chunk for batch in minted for chunk in batches.codes(batch, plane.settings)).split()
    assert len({line.partition(b",")[0] for line in lines}) == 20 * 50


async def test_an_ended_or_unknown_campaign_gets_no_codes(plane: ControlPlane) -> None:
    campaign = await a_campaign(plane)
    await campaigns.update(plane, campaign, CampaignChange(state="ended"))
    with pytest.raises(Refusal, match="campaign_ended"):
        await mint(plane, campaign, 1)
    with pytest.raises(Refusal, match="campaign_not_found"):
        await mint(plane, "cmp_999", 1)


async def test_batch_numbers_that_are_used_up_are_a_refusal(plane: ControlPlane) -> None:
    campaign = await a_campaign(plane)
    async with plane.database.connection() as connection:
        await connection.execute("SELECT setval('batch_ids', 1048574)")
    batch = await mint(plane, campaign, 2)
    assert batch.id == 2**20 - 1
    code = next(batches.codes(batch, plane.settings)).partition(b",")[0].decode()
    codec = Codec(batches.load_mint_keys(plane.settings).by_name)
    assert codec.decode(normalise(code) or b"", FORMATS[batch.format], "k1") == (batch.id, 0)
    with pytest.raises(Refusal, match="all batch numbers"):
        await mint(plane, campaign, 1)


async def test_pages_join_to_all_batches_of_the_campaign(plane: ControlPlane) -> None:
    campaign, other = await a_campaign(plane), await a_campaign(plane)
    made = []
    for _ in range(3):
        made.append(await mint(plane, campaign, 1))
        await mint(plane, other, 1)
    first = await batches.page(plane, campaign, after=None, limit=2)
    assert first + await batches.page(plane, campaign, after=first[-1].id, limit=2) == made
    with pytest.raises(Refusal, match="campaign_not_found"):
        await batches.page(plane, "cmp_999", after=None, limit=2)
    with pytest.raises(Refusal, match="batch_not_found"):
        await batches.get(plane, 999)
    with pytest.raises(Refusal, match="batch_not_found"):
        await batches.get(plane, 2**40)
