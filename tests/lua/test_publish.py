"""The script alone; what the control plane does with it is in tests/control/test_publishing.py."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import pytest
from redis.exceptions import ResponseError

from engine.store import keys
from engine.store.event_lines import about_json, cause_json
from lua import loader
from tests.support.keyspace import snapshot
from tests.support.scripts import evaluate

if TYPE_CHECKING:
    from redis.asyncio import Redis

SCRIPT: Final = loader.load("publish")
FIELDS: Final = (
    *("version", "id", "state", "kind", "starts_at_ms", "ends_at_ms"),
    *("max_uses", "stock", "per_user_limit", "budget", "amount", "currency"),
)
EVENT: Final = {
    "type": "voided",
    "redemption": "0-9",
    "campaign": "cmp_1",
    "about": about_json(3, 0, "", ""),
    "cause": cause_json(None, None, "cli"),
}
Row = tuple[int, str, str] | tuple[int, str, str, str]


def row(version: int, campaign: str = "cmp_1", **fields: str) -> dict[str, str]:
    plain = dict.fromkeys(FIELDS, "") | {"id": campaign, "state": "active", "kind": "single"}
    return plain | {"version": str(version)} | fields


async def publish(
    redis: Redis,
    base: int,
    target: int,
    *,
    offset: str = "0-0",
    last: bool = True,
    records: tuple[Row, ...] = (),
    campaigns: tuple[dict[str, str], ...] = (),
) -> str:
    names = [keys.version(0), keys.events(0), keys.rebuilding(0)]
    arguments: list[str | int] = [base, target, offset, "1" if last else "", len(records)]
    if records:
        names += [keys.control(), keys.control_changed()]
    for version, field, record, *event in records:
        arguments += (version, field, record, *(event or [""]))
    for campaign in campaigns:
        names.append(keys.campaign(0, campaign["id"]))
        arguments += [len(names), *(campaign[name] for name in FIELDS)]
    (status,) = await evaluate(redis, SCRIPT, names, arguments)
    return str(status.decode())


async def hash_of(redis: Redis, name: str) -> dict[str, str]:
    content: dict[Any, Any] = await redis.hgetall(name)
    return {field.decode(): value.decode() for field, value in content.items()}


async def test_what_is_published_is_in_the_keys_that_are_read(redis: Redis) -> None:
    campaigns = (row(4, stock="7", state="draft"), row(5, "cmp_2", amount="500", currency="EUR"))
    records = ((4, "campaign:cmp_1", "{one}"), (3, "key:k", "{two}"))
    assert await publish(redis, 0, 5, records=records, campaigns=campaigns) == "published"
    assert await redis.get(keys.version(0)) == b"5"
    for campaign in campaigns:
        assert await hash_of(redis, keys.campaign(0, campaign["id"])) == campaign
    assert await hash_of(redis, keys.control()) == {"campaign:cmp_1": "{one}", "key:k": "{two}"}
    changed: list[Any] = await redis.zrange(keys.control_changed(), 0, -1, withscores=True)
    assert [(name, float(score)) for name, score in changed] == [(b"key:k", 3), (b"campaign:cmp_1", 4)]
    assert await redis.exists(keys.events(0)) == 0


async def test_the_version_moves_with_the_last_call_only(redis: Redis) -> None:
    assert await publish(redis, 0, 9, last=False, records=((9, "key:k", "new"),)) == "published"
    assert await redis.get(keys.version(0)) is None
    assert await publish(redis, 0, 9) == "published"
    assert await redis.get(keys.version(0)) == b"9"


async def test_a_row_never_replaces_a_later_one_and_counters_stay(redis: Redis) -> None:
    records = ((10, "key:k", "ten"),)
    assert await publish(redis, 0, 10, records=records, campaigns=(row(10, state="paused"),)) == "published"
    await redis.hset(keys.campaign(0, "cmp_1"), "uses", "6")
    older = (9, "key:k", "nine"), (11, "key:l", "eleven")
    assert await publish(redis, 9, 11, records=older, campaigns=(row(9, state="active"),)) == "published"
    assert await hash_of(redis, keys.control()) == {"key:k": "ten", "key:l": "eleven"}
    assert (await hash_of(redis, keys.campaign(0, "cmp_1")))["state"] == "paused"
    newer = ((12, "key:k", "twelve"),)
    assert await publish(redis, 11, 12, records=newer, campaigns=(row(12, stock="4"),)) == "published"
    assert (await hash_of(redis, keys.control()))["key:k"] == "twelve"
    assert await hash_of(redis, keys.campaign(0, "cmp_1")) == row(12, stock="4") | {"uses": "6"}


@pytest.mark.parametrize(
    ("shard_version", "last_id", "base", "target", "offset", "expected"),
    [
        (10, None, 8, 10, "0-0", "current"),
        (10, None, 8, 9, "0-0", "current"),
        (10, None, 9, 9, "5-5", "current"),
        (9, None, 10, 11, "0-0", "gap"),
        (None, None, 1, 2, "0-0", "gap"),
        (9, None, 9, 10, "0-1", "behind"),
        (9, "1000-5", 9, 10, "1000-6", "behind"),
        (9, "999-9", 9, 10, "1000-0", "behind"),
    ],
)
async def test_nothing_is_written_where_it_may_not_be_published(
    *,
    redis: Redis,
    shard_version: int | None,
    last_id: str | None,
    base: int,
    target: int,
    offset: str,
    expected: str,
) -> None:
    if shard_version is not None:
        await redis.set(keys.version(0), shard_version)
    if last_id is not None:
        await redis.xadd(keys.events(0), {"v": "1"}, id=last_id)
    before = await snapshot(redis)
    records, campaigns = ((target, "key:k", "new"),), (row(target),)
    answer = await publish(redis, base, target, offset=offset, records=records, campaigns=campaigns)
    assert answer == expected
    assert await snapshot(redis) == before


async def test_the_event_of_a_record_is_appended_by_the_call_that_takes_the_record_over(redis: Redis) -> None:
    later = EVENT | {"type": "unvoided", "redemption": "7-7"}
    later |= {"about": about_json(3, 7, "", ""), "cause": cause_json(None, "k", "key_1")}
    await redis.xadd(keys.events(0), {"v": "1"}, id="9999999999999-5")  # of a clock that went backwards since
    records = ((2, "void:1", "{}", json.dumps(EVENT)), (3, "void:2", "{}", json.dumps(later)))
    for _ in range(2):  # the first publisher dies before the version moves, the second repeats it
        assert await publish(redis, 0, 3, last=False, records=records) == "published"
    assert await publish(redis, 0, 3, records=records) == "published"
    entries: Any = await redis.xrange(keys.events(0))
    ((stream_id, values),) = entries[1:]
    assert stream_id == b"9999999999999-7"
    assert [json.loads(line) for line in values[b"events"].split(b"\n")] == [
        _voided("voided", "0-9999999999999-6", "0-9", 0, None, "cli"),
        _voided("unvoided", "0-9999999999999-7", "7-7", 7, "k", "key_1"),
    ]


def _voided(*what: str | int | None) -> list[str | int | None]:
    kind, event_id, serials, serial, key, actor = what
    head: list[str | int | None] = [kind, event_id, serials, None, "cmp_1", 3, serial, "", ""]
    return [*head, None, None, None, key, actor, 9_999_999_999_999]


async def test_an_event_that_cannot_be_read_fails_the_call_and_nothing_is_written(redis: Redis) -> None:
    before = await snapshot(redis)
    with pytest.raises(ResponseError):
        await publish(redis, 0, 2, records=((1, "key:k", "new"), (2, "void:1", "{}", "{")))
    assert await snapshot(redis) == before


@pytest.mark.parametrize("offset", ["1000-5", "1000-4", "999-9", "0-0"])
@pytest.mark.parametrize("trimmed", [False, True])
async def test_a_stream_that_reaches_the_ledger_is_published_to_trimmed_or_not(
    redis: Redis, offset: str, trimmed: bool
) -> None:
    await redis.xadd(keys.events(0), {"v": "1"}, id="1000-5")
    if trimmed:
        await redis.xtrim(keys.events(0), maxlen=0, approximate=False)
    assert await publish(redis, 0, 1, offset=offset) == "published"


@pytest.mark.parametrize("spoilt", ["version", "events", "changed", "control", "campaign"])
async def test_a_key_of_another_type_fails_the_call_and_nothing_is_written(redis: Redis, spoilt: str) -> None:
    name = {
        "version": keys.version(0),
        "events": keys.events(0),
        "changed": keys.control_changed(),
        "control": keys.control(),
        "campaign": keys.campaign(0, "cmp_2"),
    }[spoilt]
    await redis.lpush(name, "not of this type")
    before = await snapshot(redis)
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        await publish(redis, 0, 1, records=((1, "key:k", "new"),), campaigns=(row(1), row(1, "cmp_2")))
    assert await snapshot(redis) == before
