"""Real servers and two workers beside the lifecycle model, and the comparison of both at the end."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from redis.asyncio import Redis

from engine.control.publishing import publish
from engine.database import open_database
from engine.store import keys
from engine.store.events import EventId
from engine.store.idempotency import bucketed
from persister.rebuild.rebuild import rebuild
from tests.support.streams import read_events
from tests.support.two_workers import TwoWorkers

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from engine.settings import Settings
    from loadtest.lifecycle import Lifecycle, ModelCampaign, ModelCode
    from tests.support.servers import ValkeyProcess

BITS: Final = {"fresh": keys.FRESH, "held": keys.HELD, "redeemed": keys.REDEEMED, "void": keys.VOID}


class World:
    """The servers of one test, two workers, and a counter for unique names."""

    def __init__(self, settings: Settings, valkey: ValkeyProcess) -> None:
        self.settings = settings
        self.valkey = valkey
        self.runner = asyncio.Runner()
        self.numbers = itertools.count(1)
        self.redis = Redis.from_url(settings.redis_url)
        self._open_database = open_database(settings, settings.database_url)

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:  # noqa: ANN401 - the result of any coroutine
        return self.runner.run(work)

    def open(self) -> None:
        self.run(self._open())

    async def _open(self) -> None:
        database = await self._open_database.__aenter__()
        self.both = TwoWorkers(self.settings, self.redis, database)
        self.plane = self.both.plane
        await publish(self.redis, database)
        await self.both.start()

    def crash(self) -> None:
        """Kill Valkey and restart it; it must still have everything that was acknowledged."""
        self.run(self.both.close())
        self.valkey.kill()
        self.valkey.start()
        self.run(self.redis.connection_pool.disconnect())
        self.run(self.both.open_workers())

    def lose(self) -> None:
        """Persist the streams, delete everything in Redis, and rebuild it from PostgreSQL."""
        self.run(self.both.close())
        self.run(rebuild(self.settings, lambda *_: None))
        self.run(publish(self.redis, self.plane.database))
        self.run(self.both.open_workers())

    def close(self) -> None:
        self.run(self.both.close())
        self.run(self.redis.aclose())
        self.run(self._open_database.__aexit__(None, None, None))
        self.runner.close()

    async def end_hold(self, shard: int, hold: str) -> None:
        """Let a hold expire."""
        stream_id = hold.partition("-")[2]
        record: Any = await self.redis.hget(keys.holds(shard), stream_id)
        await self.redis.hset(keys.holds(shard), stream_id, b"1\n" + record.partition(b"\n")[2])
        await self.redis.zadd(keys.holds_expiry(shard), {stream_id: 1})

    # what Redis and ledger must have

    async def compare(self, model: Lifecycle, campaign: ModelCampaign) -> None:
        """Check that counters, codes and events of a campaign match the model."""
        await self.both.workers[0].configuration.refresh()
        await self._compare_counters(campaign)
        for code in campaign.codes:
            await self._compare_code(code)
        found = await self._in_ledger(campaign) + await self._in_streams(campaign)
        assert found == Counter(
            (event.type, event.code.serial, event.amount)
            for event in model.events
            if event.code.campaign is campaign
        )

    async def _compare_counters(self, campaign: ModelCampaign) -> None:
        shards = range(self.settings.shards)
        counted = [
            await self.redis.hmget(keys.campaign(shard, campaign.id), "uses", "spent") for shard in shards
        ]
        totals = [sum(int(values[at] or 0) for values in counted) for at in (0, 1)]
        assert totals == [campaign.uses, campaign.spent]
        for user, count in campaign.users.items():
            bucket, digest = bucketed(user, keys.USER_BUCKETS)
            field: Any = digest  # redis-py's stub knows text only
            found = [await self.redis.hget(keys.users(shard, campaign.id, bucket), field) for shard in shards]
            assert sum(int(value or 0) for value in found) == count

    async def _compare_code(self, code: ModelCode) -> None:
        redis, kind = self.redis, code.campaign.kind
        campaign = self.both.workers[0].configuration.campaigns[code.campaign.id]
        place = keys.locate_code(code.serial, self.settings.shards, campaign.pinned_shard)
        bits = redis.bitfield(keys.state(place.shard, code.batch, place.segment))
        assert await bits.get("u2", f"#{place.offset}").execute() == [BITS[code.state]]
        if kind == "multi":
            used = await redis.hget(keys.uses(place.shard, code.batch), str(code.serial))
            assert int(used or 0) == code.used
        elif kind == "balance":
            segment, offset = keys.spent_location(place)
            spent = redis.bitfield(keys.spent(place.shard, code.batch, segment))
            assert await spent.get("i64", f"#{offset}").execute() == [code.used]
        for hold in code.holds.values():
            field = f"{code.batch}:{code.serial}" + ("" if kind == "single" else f":{hold.order}")
            stream_id: Any = await redis.hget(keys.held(place.shard), field)
            assert str(EventId(place.shard, *map(int, stream_id.decode().split("-")))) == hold.id

    async def _in_ledger(self, campaign: ModelCampaign) -> Counter[tuple[str, int, int]]:
        async with self.plane.database.connection() as connection:
            rows = await connection.fetch(
                "SELECT type, serial, coalesce(amount, 0) FROM ledger WHERE campaign = $1 AND last4 <> ''",
                campaign.id,
            )
        return Counter((type_, serial, amount) for type_, serial, amount in rows)

    async def _in_streams(self, campaign: ModelCampaign) -> Counter[tuple[str, int, int]]:
        found: Counter[tuple[str, int, int]] = Counter()
        for shard in range(self.settings.shards):
            entries = await read_events(self.redis, shard)
            for _, event in entries:
                by_range = event[b"type"] in {b"voided", b"unvoided"} and not event[b"last4"]
                if event[b"campaign"].decode() == campaign.id and not by_range:
                    amount = int(event[b"amount"] or 0)
                    found[event[b"type"].decode(), int(event[b"serial"]), amount] += 1
        return found
