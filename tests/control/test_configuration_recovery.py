"""Configuration that PostgreSQL has lost comes back from Redis, and no number is used again (P8)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from engine.api.cards import Card, CardTexts, TextsByLanguage
from engine.control import api_keys, blocks, campaigns
from engine.control.blocks import NewBlock
from engine.control.campaigns import CampaignChange
from engine.control.configuration_recovery import recover_configuration
from engine.control.republishing import Health, republish
from engine.errors import StoreUnavailable
from engine.store import keys
from engine.store.deployment_id import ForeignStore
from tests.support.cli import Cli
from tests.support.deployment import engine_in_process, issue, mint_batch
from tests.support.importing import a_campaign, age_imports, bring, lines_of

if TYPE_CHECKING:
    from engine.control.change import ControlPlane
    from tests.support.backups import Backups

SCOPES = ("redeem", "read", "admin")


@pytest.fixture
def database_url(fresh_database_url: str) -> str:
    """One that may be replaced."""
    return fresh_database_url


async def configuration(plane: ControlPlane) -> dict[str, Any]:
    """What Redis has: nothing of it may change by a recovery."""
    control: Any = await plane.redis.hgetall(keys.control())
    return {field.decode(): value for field, value in control.items()}


async def test_all_kinds_of_changes_come_back(plane: ControlPlane, backups: Backups) -> None:
    old, (first, *_) = await issue(plane, 3)
    backup = await backups.take()
    new, codes = await issue(
        plane, 5, kind="balance", amount=1000, currency="EUR", budget=9000, ends_at="2099-01-01T00:00:00Z"
    )
    batch, more = await mint_batch(plane, new, 5)
    async with engine_in_process(plane, scopes=SCOPES) as merchant:
        body = {"batch": batch, "first_serial": 2, "last_serial": 3, "reason": "leaked"}
        assert (await merchant.call("POST", "/v1/codes/void", json=body))[0] == 200
        other = (await api_keys.create(plane, "other", ("read",))).value.api_key.id
        await api_keys.revoke(plane, other)
        card = Card(brand="Northwind", texts=TextsByLanguage(zh=CardTexts(title="礼物")))
        await campaigns.update(plane, old, CampaignChange(state="paused", card=card))
        for name in ("ann", "bob"):
            await blocks.create(
                plane, NewBlock(kind="user", subject=name, reason="test", ttl_s=60), actor="cli"
            )
        await blocks.lift(plane, "blk_1", actor="cli")
        before = await configuration(plane)
        await backups.restore(backup)
        with pytest.raises(StoreUnavailable, match="lost changes"):
            await issue(plane, 1)
        assert await republish(plane) is Health.RECOVERED
        assert await republish(plane) is Health.CURRENT
        assert await configuration(plane) == before
        recovered = await campaigns.get(plane, old)
        assert (recovered.state, recovered.card) == ("paused", card)
        kept = [(one.subject, one.state) for one in await blocks.page(plane, after=None, limit=9)]
        assert kept == [("bob", "active"), ("ann", "lifted")]
        third = NewBlock(kind="user", subject="cid", reason="test")
        assert (await blocks.create(plane, third, actor="cli")).value.shown_id == "blk_3"
        restored = await campaigns.get(plane, new)
        assert (restored.name, restored.kind, restored.budget) == (new, "balance", 9000)
        assert str(restored.ends_at) == "2099-01-01 00:00:00+00:00"
        status, page = await merchant.call("GET", "/v1/audit-log?act=recover_configuration")
        assert status == 200
        assert f"campaign:{new}" in page["items"][0]["details"]["restored"]
        assert (await merchant.redeem(first))[1]["code"] == "campaign_inactive"
        assert (await merchant.redeem(more[2], amount=5))[1]["code"] == "code_void"
        assert (await merchant.redeem(codes[0], amount=5))[0] == 200
    later, made = await mint_batch(plane, new, 2)
    assert later == batch + 1
    assert not set(made) & {*codes, *more}
    another, _ = await issue(plane, 1)
    assert another not in {old, new}


@pytest.mark.parametrize("known", [False, True])
async def test_that_codes_can_be_guessed_comes_back(
    plane: ControlPlane, backups: Backups, *, known: bool
) -> None:
    """Whether or not the backup has the batch: it may have been measured since."""
    campaign = await a_campaign(plane)
    codes = lines_of(f"{number:08}" for number in range(0, 20_000, 97))
    if known:
        await bring(plane, campaign, codes)
        await age_imports(plane)
    backup = await backups.take()
    await bring(plane, campaign, codes)
    await backups.restore(backup)
    assert await republish(plane) is Health.RECOVERED
    async with plane.database.connection() as connection:
        rows = await connection.fetch("SELECT campaign, guessable FROM batches")
    assert [(row["campaign"], row["guessable"]) for row in rows] == [(campaign, True)]


async def test_a_rebuild_does_not_lose_it(plane: ControlPlane, backups: Backups) -> None:
    backup = await backups.take()
    campaign, codes = await issue(plane, 2)
    await backups.restore(backup)
    await Cli(plane.settings).done("rebuild", "--force")
    async with engine_in_process(plane) as merchant:
        assert (await merchant.redeem(codes[0]))[0] == 200
    assert (await campaigns.get(plane, campaign)).kind == "single"


async def test_another_deployments_configuration_is_not_taken(plane: ControlPlane) -> None:
    await issue(plane, 1)
    await plane.redis.set(keys.version(0), 100)
    await plane.redis.set(keys.deployment(0), "another")
    with pytest.raises(ForeignStore, match="deployment another"):
        await recover_configuration(plane)
    assert await republish(plane) is Health.FOREIGN
