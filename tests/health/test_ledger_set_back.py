"""PostgreSQL comes back older: what the stream still has is persisted again, and a hole is said at once."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from engine.cli.diagnosis import examine
from engine.health.redis_checks import Verdict
from engine.store import keys
from persister.reconcile.reconcile import reconcile
from tests.support.deployment import engine_in_process, issue
from tests.support.ledger_rows import persisted, silent
from tests.support.monitoring import metrics
from tests.support.streams import persisting
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    from engine.control.change import ControlPlane
    from engine.settings import Settings
    from tests.support.backups import Backups
    from tests.support.deployment import Merchant

SOON: dict[str, Any] = {"republish_interval_s": 1}


@pytest.fixture
def database_url(fresh_database_url: str) -> str:
    """One that may be replaced."""
    return fresh_database_url


async def redeem_all(merchant: Merchant, codes: list[str]) -> None:
    for code in codes:
        assert (await merchant.redeem(code))[0] == 200


async def trimmed(plane: ControlPlane) -> None:
    """Wait until the stream is empty: the ledger has all of it."""

    async def empty() -> bool:
        return await plane.redis.xlen(keys.events(0)) == 0

    await wait_until_async(empty)


async def missing(merchant: Merchant) -> float | None:
    return (await metrics(merchant)).get('redeem_ledger_missing_events{shard="0"}')


async def ledger_findings(settings: Settings) -> list[tuple[Verdict, str, str]]:
    return [
        (found.verdict, found.says, found.do)
        for found in await examine(settings)
        if found.check == "shard 0 ledger"
    ]


async def test_what_the_stream_kept_is_persisted_again(plane: ControlPlane, backups: Backups) -> None:
    _, codes = await issue(plane, 40)
    kept = replace(plane.settings, stream_kept_min=100)
    async with engine_in_process(plane, **SOON) as merchant:
        async with persisting(kept):
            await redeem_all(merchant, codes[:10])
            await persisted(plane)
        backup = await backups.take()
        async with persisting(kept):
            await redeem_all(merchant, codes[10:])
            await persisted(plane)
            await backups.restore(backup)
            await persisted(plane)
        assert await missing(merchant) == 0
        assert (await merchant.redeem(codes[-1]))[1]["code"] == "already_redeemed"
    assert (await reconcile(plane.settings, {}, silent)).findings == []


async def test_a_hole_is_said_at_once_and_nothing_is_redeemed(
    plane: ControlPlane, backups: Backups, caplog: pytest.LogCaptureFixture
) -> None:
    _, codes = await issue(plane, 40)
    async with engine_in_process(plane, **SOON) as merchant:
        async with persisting(plane.settings):
            await redeem_all(merchant, codes[:10])
            await persisted(plane)
            backup = await backups.take()
            await redeem_all(merchant, codes[10:39])
            await trimmed(plane)
            await backups.restore(backup)

            async def refused() -> bool:
                return (await merchant.call("GET", "/readyz"))[0] == 503

            await wait_until_async(refused)

            async def missed() -> bool:
                return await missing(merchant) == 29

            await wait_until_async(missed)
            _, body = await merchant.call("GET", "/readyz")
            assert "29 stream entries" in body["parts"]["redis"]
            assert "redeem recover" in body["parts"]["redis"]
            status, body = await merchant.redeem(codes[39])
            assert (status, body["code"]) == (503, "store_unavailable")
        (found,) = await ledger_findings(plane.settings)
        assert found == (
            Verdict.WRONG,
            "the ledger has lost 29 stream entries that Redis had: redemptions are refused",
            "redeem recover",
        )
    said = [
        record for record in caplog.records if "the ledger has lost stream entries" in record.getMessage()
    ]
    assert [record.levelname for record in said] == ["ERROR"]
