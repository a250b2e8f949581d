from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest

from engine.imports.index import CALL_CODES, ImportIndex, IndexLost
from engine.store import keys
from engine.store.link import pack
from tests.support.keyspace import snapshot

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from redis.asyncio import Redis

    from engine.settings import Settings

ROWS = [(hashlib.sha256(bytes([n & 255, n >> 8])).digest()[:16], n) for n in range(3 * CALL_CODES)]


@pytest.fixture(params=[1, 3])
def shards(request: pytest.FixtureRequest) -> int:
    count: int = request.param
    return count


@pytest.fixture
async def index(settings: Settings, redis: Redis, shards: int) -> AsyncIterator[ImportIndex]:  # noqa: ARG001 - emptied
    async with ImportIndex(settings, shards) as opened:
        yield opened


async def found(redis: Redis, shards: int) -> dict[bytes, tuple[int, int]]:
    there = {}
    for digest, _ in ROWS:
        name = keys.imported(*keys.imported_location(digest, shards))
        value = await redis.hget(name, keys.imported_field(digest))
        if value is not None:
            there[digest] = keys.imported_identity(value)  # type: ignore[arg-type] # and values are
    return there


@pytest.mark.parametrize("identity", [(0, 0), (2**20 - 1, 2**28 - 1), (7, 2**27)])
def test_a_value_holds_batch_and_serial(identity: tuple[int, int]) -> None:
    assert keys.imported_identity(keys.imported_value(*identity)) == identity


def test_bucket_and_field_hold_the_whole_digest() -> None:
    for digest, _ in ROWS:
        shard, bucket = keys.imported_location(digest, 5)
        assert bucket.to_bytes(2) + keys.imported_field(digest) == digest
        assert 0 <= shard < 5
    assert {keys.imported_location(digest, 5)[0] for digest, _ in ROWS} == set(range(5))


async def test_codes_are_written_found_and_removed(index: ImportIndex, redis: Redis, shards: int) -> None:
    assert await index.incomplete([5]) == [5]
    assert not await index.begin(5)
    assert await index.begin(5)
    for _ in range(2):
        await index.add(5, ROWS)
    assert await found(redis, shards) == {digest: (5, serial) for digest, serial in ROWS}
    assert await index.incomplete([5]) == [5]
    await index.complete(5, len(ROWS))
    assert await index.incomplete([4, 5, 6]) == [4, 6]
    await redis.hdel(keys.imports(shards - 1), "5")
    assert await index.incomplete([5]) == [5]
    await index.remove([digest for digest, _ in ROWS])
    assert await found(redis, shards) == {}


async def test_nothing_is_written_of_a_batch_that_is_not_being_written(
    index: ImportIndex, redis: Redis
) -> None:
    empty = await snapshot(redis)
    with pytest.raises(IndexLost):
        await index.add(5, ROWS)
    await index.begin(5)
    await index.end(5)
    with pytest.raises(IndexLost):
        await index.add(5, ROWS)
    assert await snapshot(redis) == empty
    await index.begin(5)
    await index.add(5, ROWS)


async def test_a_batch_that_ends_between_look_and_write_is_not_written(
    index: ImportIndex, redis: Redis
) -> None:
    await index.begin(5)
    over = await index._write(None, [], keys.importing(0, 5))
    await redis.delete(keys.importing(0, 5))
    with pytest.raises(IndexLost):
        await index._write(over, [pack("HSET", keys.imported(0, 1), "field", "value")], None)
    assert not await redis.exists(keys.imported(0, 1))


async def test_a_batch_whose_mark_is_lost_is_not_called_complete(
    index: ImportIndex, redis: Redis, shards: int
) -> None:
    await index.begin(5)
    await redis.delete(keys.importing(shards - 1, 5))
    with pytest.raises(IndexLost):
        await index.complete(5, len(ROWS))
    assert not await redis.exists(keys.imports(shards - 1))
    assert await index.incomplete([5]) == [5]
