"""Front ends of two versions redeem side by side: feed, records, audit and rebuild see one history."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from engine.control.publishing import publish
from engine.store import keys
from engine.store.stream import read_stream
from persister.rebuild.rebuild import rebuild
from persister.reconcile.reconcile import reconcile
from tests.support.deployment import engine_in_process, issue
from tests.support.feed import whole_feed
from tests.support.ledger_rows import silent
from tests.support.records import ids, persist, whole_list

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from engine.control.change import ControlPlane


SCOPES: Final = ("redeem", "read", "events", "adjust")


async def redeem_as_version_1(redis: Redis, campaign: str, batch: int, serial: int) -> str:
    """Redeem as the script of the version before did: one entry for the event, with its values as fields."""
    seconds, microseconds = await redis.time()
    last_ms, last_seq = map(int, (await read_stream(redis, 0)).last.split(b"-"))
    at_ms = max(last_ms, seconds * 1000 + microseconds // 1000)
    stream_id = f"{at_ms}-{last_seq + 1 if at_ms == last_ms else 0}"
    fields = {
        "v": "1",
        "type": "redeemed",
        "redemption": f"0-{stream_id}",
        "hold": "",
        "campaign": campaign,
        "batch": str(batch),
        "serial": str(serial),
        "last4": "WXYZ",
        "user": "ann",
        "amount": "500",
        "currency": "EUR",
        "order": "",
        "key": "",
        "actor": "key_1",
        "at": str(at_ms),
    }
    pipeline = redis.pipeline(transaction=True)
    pipeline.execute_command("BITFIELD", keys.state(0, batch, 0), "SET", "u2", f"#{serial}", keys.REDEEMED)
    pipeline.hincrby(keys.campaign(0, campaign), "uses", 1)
    pipeline.hincrby(keys.campaign(0, campaign), "spent", 500)
    pipeline.xadd(keys.events(0), fields, id=stream_id)  # type: ignore[arg-type] # str are fine
    await pipeline.execute()
    return f"0-{stream_id}"


async def clean(plane: ControlPlane) -> None:
    report = await reconcile(plane.settings, {}, silent)
    assert report.findings == []


async def test_two_versions_side_by_side_make_one_history(plane: ControlPlane, redis: Redis) -> None:
    campaign, codes = await issue(plane, 60, amount=500, currency="EUR", stock=70)
    made: list[str] = []
    async with engine_in_process(plane, scopes=SCOPES, tail_scan_max=8) as merchant:
        for serial in range(0, 60, 12):  # those of the older version, then ten of this one together
            made += [await redeem_as_version_1(redis, campaign, 0, serial + at) for at in (0, 1)]
            answers = await asyncio.gather(*(merchant.redeem(codes[serial + at]) for at in range(2, 12)))
            made += [body["id"] for _, body in answers]
            status, back = await merchant.call(
                "POST", f"/v1/redemptions/{made[-12]}/rollback", json={"reason": "x"}
            )
            assert (status, back["status"]) == (200, "rolled_back")
            if serial == 24:
                await persist(plane.settings)
        assert await redis.xlen(keys.events(0)) < 65, "calls had several events"
        for limit in (3, 1000):
            assert sorted(ids(await whole_list(merchant, f"campaign={campaign}", limit))) == sorted(made)
        await clean(plane)  # with the newest events in the stream only
        await persist(plane.settings)
        await clean(plane)
        for limit in (1, 7, 1000):
            events, _ = await whole_feed(merchant, f"limit={limit}")
            assert [event["seq"] for event in events] == list(range(1, 66))
            redeemed = [event["id"] for event in events if event["type"] == "redeemed"]
            assert sorted(redeemed) == sorted(made)
    await rebuild(plane.settings, silent)
    await publish(redis, plane.database)
    await clean(plane)
    async with engine_in_process(plane) as merchant:
        again = [(await merchant.redeem(code))[0] for code in codes]
        assert again == [200 if serial % 12 == 0 else 409 for serial in range(60)]
        await persist(plane.settings)
    await clean(plane)
