from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from redis.asyncio import Redis

from engine.codes.mint_keys import check_value
from engine.control import api_keys, batches, campaigns, change, publishing
from engine.control.campaigns import CampaignChange, NewCampaign
from engine.control.publishing import publish
from engine.control.republishing import REPUBLISH_LOCK, Health, keep_republishing, republish
from engine.database import Database, open_database
from engine.errors import StoreBehind, StoreUnavailable
from engine.store import configuration, keys
from engine.store.configuration import ConfigurationCache
from tests.support.deployment import engine_in_process, issue
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from engine.control.campaigns import Campaign
    from engine.control.change import ControlPlane
    from tests.support.servers import Servers


async def create(plane: ControlPlane, **fields: Any) -> Campaign:  # noqa: ANN401 - its fields, by name
    return (await campaigns.create(plane, campaigns.define(NewCampaign(**{"name": "Sale"} | fields)))).value


async def version_in(plane: ControlPlane) -> int:
    async with plane.database.connection() as connection:
        return int(await connection.fetchval("SELECT control_version FROM deployment"))


async def everything(redis: Redis) -> dict[str, Any]:
    return {str(key): await redis.dump(key) async for key in redis.scan_iter()}


@pytest.fixture
async def cut_off(plane: ControlPlane) -> AsyncIterator[ControlPlane]:
    """The control plane of a process that cannot reach Redis."""
    client = Redis.from_url("unix:///nonexistent/valkey.sock")
    yield replace(plane, redis=client)
    await client.aclose()


async def test_a_campaign_is_in_redis_when_the_call_returns(plane: ControlPlane) -> None:
    made = await create(
        plane,
        amount=500,
        currency="EUR",
        stock=3,
        per_user_limit=1,
        starts_at="2030-01-01T00:00:00.123456Z",
        state="active",
    )
    expected = {
        "version": "2",
        "id": made.id,
        "state": "active",
        "kind": "single",
        "starts_at_ms": "1893456000123",
        "ends_at_ms": "",
        "stock": "3",
        "per_user_limit": "1",
        "amount": "500",
        "max_uses": "",
        "budget": "",
        "currency": "EUR",
    }
    stored: dict[Any, Any] = await plane.redis.hgetall(keys.campaign(0, made.id))
    assert {name.decode(): value.decode() for name, value in stored.items()} == expected
    assert await plane.redis.get(keys.version(0)) == b"2"
    await campaigns.update(plane, made.id, CampaignChange(state="paused"))
    assert await plane.redis.hget(keys.campaign(0, made.id), "state") == b"paused"


async def test_a_worker_that_refreshes_knows_keys_campaigns_and_batches(plane: ControlPlane) -> None:
    made = await create(plane, amount=500, currency="EUR", per_user_limit=1)
    issued = (await api_keys.create(plane, "shop", ["redeem", "read"])).value
    batch = (
        await batches.mint(plane, made.id, batches.NewBatch(7, prefix="summer"), created_by="t")
    ).value.batch
    worker = ConfigurationCache(plane.redis)
    await worker.refresh()
    digest = api_keys.digest(issued.key).hex()
    assert worker.api_keys[digest] == configuration.CachedKey(
        issued.api_key.id, "shop", digest, ("redeem", "read"), revoked=False
    )
    assert worker.campaigns[made.id] == configuration.CachedCampaign(
        made.id, "single", 500, "EUR", per_user_limited=True, pinned_shard=0
    )
    assert worker.batches[batch.id] == configuration.CachedBatch(
        *(batch.id, made.id, 7, "base32-16", "SUMMER", "k1"),
        key_check=check_value(bytes.fromhex("5a" * 32)).hex(),
    )
    await api_keys.revoke(plane, issued.api_key.id)
    await worker.refresh()
    assert worker.api_keys[digest].revoked
    assert worker.version == await version_in(plane)


async def test_publishing_keeps_the_counters_of_a_campaign(plane: ControlPlane) -> None:
    made = await create(plane, stock=3, state="active")
    await plane.redis.hincrby(keys.campaign(0, made.id), "uses", 2)
    await campaigns.update(plane, made.id, CampaignChange(stock=None))
    assert await plane.redis.hmget(keys.campaign(0, made.id), "uses", "stock") == [b"2", b""]


@pytest.mark.parametrize("shards", [3])
async def test_every_shard_gets_the_version_and_the_campaigns_it_holds(plane: ControlPlane) -> None:
    spread = await create(plane)
    pinned = await create(plane, stock=1)
    assert [await plane.redis.get(keys.version(shard)) for shard in range(3)] == [b"3"] * 3
    for shard in range(3):
        assert await plane.redis.exists(keys.campaign(shard, spread.id))
        assert await plane.redis.exists(keys.campaign(shard, pinned.id)) == (shard == pinned.pinned_shard)
    assert await plane.redis.hlen(keys.control()) == 3  # the two campaigns, and the deployment


async def test_a_change_that_redis_did_not_take_is_committed_and_published_later(
    plane: ControlPlane, cut_off: ControlPlane
) -> None:
    definition = campaigns.define(NewCampaign(name="Sale"))
    made = await campaigns.create(cut_off, definition)
    assert not made.published
    assert await campaigns.get(plane, made.value.id) == made.value
    assert not await plane.redis.exists(keys.campaign(0, made.value.id))
    assert await republish(cut_off) is Health.AWAY
    assert await republish(plane) is Health.REPUBLISHED
    assert await plane.redis.hget(keys.campaign(0, made.value.id), "state") == b"draft"
    assert await republish(plane) is Health.CURRENT


@pytest.mark.parametrize("shards", [2])
async def test_a_shard_left_behind_by_a_publisher_that_died_is_published_again(plane: ControlPlane) -> None:
    made = await create(plane)
    await plane.redis.set(keys.version(1), 1)
    await plane.redis.delete(keys.campaign(1, made.id))
    assert await republish(plane) is Health.REPUBLISHED
    assert await plane.redis.hget(keys.campaign(1, made.id), "version") == b"2"


async def test_an_empty_redis_gets_the_whole_configuration_while_the_ledger_is_empty(
    plane: ControlPlane,
) -> None:
    await create(plane)
    before = await everything(plane.redis)
    await plane.redis.flushdb()
    assert await republish(plane) is Health.REPUBLISHED
    assert await everything(plane.redis) == before


async def test_an_older_publisher_that_comes_late_changes_nothing(
    plane: ControlPlane, cut_off: ControlPlane
) -> None:
    made = await create(plane, state="active")
    await campaigns.update(cut_off, made.id, CampaignChange(name="older"))
    async with plane.database.transaction(snapshot=True) as older:
        await older.fetchval("SELECT 1")
        await campaigns.update(plane, made.id, CampaignChange(state="paused"))
        before = await everything(plane.redis)
        await publishing.publish_from(plane.redis, older)
    assert await everything(plane.redis) == before


async def test_an_older_publisher_between_two_chunks_of_a_newer_one_does_not_win(plane: ControlPlane) -> None:
    def row(version: int, state: str) -> publishing._Row:
        fields = ("cmp_7", state, "single", *[""] * 8)
        return publishing._Row(version, "campaign:cmp_7", state.encode(), fields)

    first = await publishing._call(plane.redis, 0, [row(9, "paused")], "0", "9", "0-0", "")
    older = await publishing._call(plane.redis, 0, [row(8, "active")], "0", "8", "0-0", "1")
    assert await plane.redis.get(keys.version(0)) == b"8"
    last = await publishing._call(plane.redis, 0, [], "0", "9", "0-0", "1")
    assert [first, older, last] == [b"published"] * 3
    assert await plane.redis.get(keys.version(0)) == b"9"
    assert await plane.redis.hget(keys.campaign(0, "cmp_7"), "state") == b"paused"
    assert await plane.redis.hget(keys.control(), "campaign:cmp_7") == b"paused"
    assert await plane.redis.zscore(keys.control_changed(), "campaign:cmp_7") == 9


async def test_the_version_of_a_shard_never_goes_back(plane: ControlPlane) -> None:
    await create(plane)
    before = await everything(plane.redis)
    row = publishing._Row(3, "campaign:cmp_7", b"{}", ("cmp_7", *[""] * 8))
    for target in ("1", "2"):
        assert await publishing._call(plane.redis, 0, [row], "0", target, "0-0", "1") == b"current"
    assert await everything(plane.redis) == before


async def test_rows_are_not_sent_to_a_shard_that_lost_the_ones_before_them(plane: ControlPlane) -> None:
    assert await publishing._call(plane.redis, 0, [], "5", "6", "0-0", "1") == b"gap"
    assert not await plane.redis.exists(keys.version(0))


async def test_a_large_configuration_comes_in_chunks_and_the_version_with_the_last(
    plane: ControlPlane, cut_off: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "CHUNK_ROWS", 3)
    for number in range(7):
        await api_keys.create(cut_off, f"{number}", ["read"])
    calls: list[tuple[str, ...]] = []
    call = publishing._call

    async def watch(redis: Redis, shard: int, chunk: list[publishing._Row], *head: str) -> bytes:
        assert not await redis.exists(keys.version(0))
        calls.append((str(len(chunk)), head[3]))
        return await call(redis, shard, chunk, *head)

    monkeypatch.setattr(publishing, "_call", watch)
    await publish(plane.redis, plane.database)
    assert calls == [("3", ""), ("3", ""), ("2", "1")]  # seven keys, and the deployment
    assert await plane.redis.hlen(keys.control()) == 8
    assert await plane.redis.get(keys.version(0)) == b"8"


async def test_nothing_is_published_into_a_redis_that_lost_what_the_ledger_has(plane: ControlPlane) -> None:
    made = await create(plane)
    await plane.redis.xadd(keys.events(0), {"v": "1"}, id="1000-5")
    async with plane.database.connection() as connection:
        await connection.execute("UPDATE ledger_offsets SET stream_ms = 1000, stream_seq = 5")
    assert await republish(plane) is Health.CURRENT
    await plane.redis.flushdb()
    assert await republish(plane) is Health.STORE_BEHIND
    for stream_id in ("999-9", "1000-4"):
        await plane.redis.delete(keys.events(0))
        await plane.redis.xadd(keys.events(0), {"v": "1"}, id=stream_id)
        with pytest.raises(StoreBehind):
            await publish(plane.redis, plane.database)
        changed = await campaigns.update(plane, made.id, CampaignChange(name="Other"))
        assert not changed.published
    assert set(await plane.redis.keys()) == {keys.events(0).encode(), keys.deployment(0).encode()}
    await plane.redis.xadd(keys.events(0), {"v": "1"}, id="1000-5")
    await plane.redis.xtrim(keys.events(0), maxlen=0, approximate=False)  # trimmed is not lost
    assert await republish(plane) is Health.REPUBLISHED


async def test_a_postgresql_that_lost_changes_goes_on_after_them(plane: ControlPlane) -> None:
    await create(plane)
    await plane.redis.set(keys.version(0), 100)
    before = await everything(plane.redis)
    with pytest.raises(StoreUnavailable, match="lost changes"):
        await create(plane)
    assert await republish(plane) is Health.RECOVERED
    assert await everything(plane.redis) == before
    assert await republish(plane) is Health.CURRENT
    await create(plane)
    assert await plane.redis.get(keys.version(0)) == b"101"


async def test_only_one_process_republishes_at_a_time(plane: ControlPlane, cut_off: ControlPlane) -> None:
    await campaigns.create(cut_off, campaigns.define(NewCampaign(name="Sale")))
    async with plane.database.transaction() as other:
        assert await other.fetchval("SELECT pg_try_advisory_xact_lock($1, 0)", REPUBLISH_LOCK)
        assert await republish(plane) is Health.ELSEWHERE
    assert await republish(plane) is Health.REPUBLISHED


async def test_the_republishing_outlives_both_servers_being_away(
    plane: ControlPlane, cut_off: ControlPlane
) -> None:
    await campaigns.create(cut_off, campaigns.define(NewCampaign(name="Sale")))
    found: list[str] = []

    class Flaky:
        """First without PostgreSQL, then without Redis, then failing oddly, then well."""

        settings = replace(plane.settings, republish_interval_s=0)

        @property
        def database(self) -> Database:
            found.append("look")
            if len(found) < 2:
                raise StoreUnavailable("PostgreSQL is away")
            if len(found) == 4:
                raise RuntimeError("odd")
            return plane.database

        @property
        def redis(self) -> Redis:
            return cut_off.redis if len(found) < 6 else plane.redis

    republishing = asyncio.create_task(keep_republishing(Flaky(), lambda _: None))  # type: ignore[arg-type] # only what republishing calls
    await wait_until_async(lambda: plane.redis.exists(keys.version(0)))
    assert not republishing.done()
    while not republishing.done():  # a client library may take a cancellation for a fault of the server
        republishing.cancel()
        await asyncio.wait({republishing}, timeout=0.1)


async def test_changes_at_the_same_time_get_versions_of_their_own(plane: ControlPlane) -> None:
    made = await asyncio.gather(*(create(plane, name=str(number)) for number in range(20)))
    assert len({item.id for item in made}) == 20
    assert await plane.redis.get(keys.version(0)) == b"21"
    scores: list[Any] = await plane.redis.zrange(keys.control_changed(), 0, -1, withscores=True)
    assert sorted(score for _, score in scores) == list(range(1, 22))  # the deployment came first


async def test_a_failed_change_publishes_nothing_and_takes_no_version(plane: ControlPlane) -> None:
    async def write(_: change.Change) -> None:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        await change.change(plane, write)
    assert await version_in(plane) == 1
    assert await plane.redis.keys() == []


async def test_a_connection_that_breaks_inside_a_change_means_not_done(plane: ControlPlane) -> None:
    async def write(under: change.Change) -> None:
        await under.connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")

    with pytest.raises(StoreUnavailable):
        await change.change(plane, write)
    assert await version_in(plane) == 1


async def test_without_postgresql_the_pool_opens_and_only_its_use_fails(plane: ControlPlane) -> None:
    url = "postgresql://postgres@/redeem?host=/nonexistent"
    async with open_database(plane.settings, url) as database:
        with pytest.raises(StoreUnavailable, match="PostgreSQL cannot be reached"):
            await create(replace(plane, database=database))


async def test_a_database_without_the_schema_is_reported_as_that(
    plane: ControlPlane, servers: Servers
) -> None:
    async with open_database(plane.settings, servers.admin_database_url) as database:
        with pytest.raises(StoreUnavailable, match="not initialised"):
            await create(replace(plane, database=database))
    async with plane.database.connection() as connection:
        await connection.execute("DELETE FROM deployment")
    with pytest.raises(StoreUnavailable, match="not initialised"):
        await create(plane)


async def test_the_script_answers_the_same_after_redis_forgot_it(plane: ControlPlane) -> None:
    await create(plane)
    await plane.redis.function_flush()
    await create(plane)
    assert await plane.redis.get(keys.version(0)) == b"3"


async def test_a_redis_that_lost_events_redeems_nothing_even_when_later_ones_hide_it(
    plane: ControlPlane,
) -> None:
    """It came back without its latest events, and went on; the versions are those of PostgreSQL."""
    _, codes = await issue(plane, 3)
    async with engine_in_process(plane, republish_interval_s=1) as merchant:
        assert (await merchant.redeem(codes[0]))[0] == 200
        assert await republish(plane) is Health.CURRENT
        async with plane.database.connection() as connection:
            await connection.execute("UPDATE ledger_offsets SET stream_ms = 1, seq = 2")
        assert await republish(plane) is Health.STORE_BEHIND
        status, body = await merchant.redeem(codes[1])
        assert (status, body["code"]) == (503, "store_unavailable")
        with pytest.raises(StoreBehind):
            await publish(plane.redis, plane.database)
        assert await plane.redis.get(keys.version(0)) is None
