"""Compares Redis with the ledger, beside live traffic and without false alarms.

First it scans all of Redis and notes what differs from a snapshot of the ledger; most of that has only
changed since. Then it reads each of these values again, in one Redis transaction with the last entry of the
stream, and compares it with what the ledger expects at exactly that entry. So it does with each value that an
event has changed meanwhile: it may have seemed equal only because of that.
"""

from __future__ import annotations

from collections import Counter
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from engine.store import keys
from engine.store.stream import parse_stream, read_stream
from persister.ingest.entries import StreamId
from persister.reconcile.catch_up import CatchUp
from persister.reconcile.comparisons import (
    ComparedHold,
    ComparedValue,
    Difference,
    expected_value,
    is_equal,
    parse_reply,
    read_command,
    values_touched,
)
from persister.reconcile.prepared import PreparedValues
from persister.reconcile.redis_scan import RedisScan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from redis.asyncio import Redis

    from engine.postgres_types import Connection
    from persister.reconcile.expected_state import ExpectedState
    from persister.reconcile.report import ReconciliationReport

READ_ITEMS: Final = 500  # in one transaction of Redis

LOOKS_MAX: Final = 10
"""Most attempts to read all users of a campaign at one moment."""


async def reconcile_redis(
    connection: Connection,
    redis: Redis,
    expected: ExpectedState,
    report: ReconciliationReport,
    *,
    wait_s: float,
    progress: Callable[[str, int], None],
) -> None:
    """Compare. Events that happen meanwhile are applied to ``expected``; ``wait_s`` is for a late ledger."""
    different, strays, catch_up = await find_differences(
        connection, redis, expected, report, wait_s=wait_s, progress=progress
    )
    for key in strays:
        report.add("keys", key, "no such key", "there")
    await _report_users(redis, catch_up, report, [item for item, *_ in different if item.check == "users"])
    holds = _without_twins([each for each in different if each[0].check == "holds"])
    others = [each for each in different if each[0].check not in {"users", "holds"}]
    for item, ours, found in others + holds:
        report.add(item.check, str(item), _shown(ours), _shown(found))


class Differences(NamedTuple):
    """What differs, keys of codes that do not exist, and the ledger at the place where it was compared."""

    different: list[Difference]
    strays: list[str]
    catch_up: CatchUp


async def find_differences(
    connection: Connection,
    redis: Redis,
    expected: ExpectedState,
    report: ReconciliationReport,
    *,
    wait_s: float,
    progress: Callable[[str, int], None],
) -> Differences:
    """Compare as ``reconcile_redis`` does, and report only how much was looked at, and shortened streams."""
    scan = RedisScan(redis, expected, report, progress)
    await scan.run()
    catch_up = CatchUp(connection, redis, expected, wait_s)
    for shard in range(expected.shards):
        await catch_up.advance(shard, StreamId.parse((await read_stream(redis, shard)).last))
    await scan.read_strays()
    doubtful = [item for item, found in scan.differing.items() if not _has_come_true(item, found, expected)]
    doubtful += [item for item in values_touched(expected) if item not in scan.differing]
    different: list[Difference] = []
    for shard in range(expected.shards):
        of_shard = [item for item in doubtful if item.shard == shard]
        for number, items in enumerate(_pieces(of_shard)):
            looked = await _look(redis, catch_up, report, shard, items, first=number == 0)
            different += [each for each in looked if not is_equal(*each[1:])]
            progress("differences looked at again", len(items))
    return Differences(different, scan.strays, catch_up)


def _has_come_true(item: ComparedValue, found: Any, expected: ExpectedState) -> bool:  # noqa: ANN401 - a number or a hold
    """Whether the value found is what the ledger expects by now. Not for sums, which may match by chance."""
    return item.check in {"states", "rollbacks", "holds"} and is_equal(expected_value(item, expected), found)


def _pieces(items: Iterable[ComparedValue]) -> Iterator[list[ComparedValue]]:
    """Groups of ``READ_ITEMS``; at least one group, so that every shard's stream is checked."""
    rest = iter(items)
    yield list(islice(rest, READ_ITEMS))
    while piece := list(islice(rest, READ_ITEMS)):
        yield piece


async def _look(
    redis: Redis,
    catch_up: CatchUp,
    report: ReconciliationReport,
    shard: int,
    items: list[ComparedValue],
    *,
    first: bool,
) -> list[Difference]:
    """Read values of one shard at one moment, and what the ledger expects at that moment."""
    expected = catch_up.expected
    pipeline = redis.pipeline(transaction=True)
    pipeline.xinfo_stream(keys.events(shard))
    pipeline.execute_command("HVALS", keys.prepared(shard))
    for item in items:
        pipeline.execute_command(*read_command(item, expected))
    reply_of_stream, records, *replies = await pipeline.execute(raise_on_error=False)
    stream = parse_stream(reply_of_stream)
    prepared = PreparedValues(shard, records)
    last = StreamId.parse(stream.last)
    if first:
        report.look("streams")
    if last < expected.at[shard]:
        if first:
            report.add(
                "streams", f"shard {shard}", f"at least as far as {expected.at[shard]}", f"ends at {last}"
            )
    else:
        await catch_up.advance(shard, last)
        counts = await catch_up.count_entries(shard) if first else None
        if counts is not None and counts.given != counts.known:
            report.add("streams", f"shard {shard}", f"{counts.known} entries so far", f"{counts.given}")
    looked = []
    for item, reply in zip(items, replies, strict=True):
        if isinstance(reply, Exception):
            raise reply
        found = prepared.without(item, parse_reply(item.check, reply))
        looked.append((item, expected_value(item, expected), found))
    return looked


async def _report_users(
    redis: Redis, catch_up: CatchUp, report: ReconciliationReport, different: list[ComparedValue]
) -> None:
    """Report users whose counts differ."""
    expected = catch_up.expected
    for campaign in {item.name[0] for item in different}:
        items = {item for item in different if item.name[0] == campaign}
        if any(of == campaign and user in expected.pseudonyms for of, user in expected.users):
            await _report_erased(redis, catch_up, report, campaign, items)
            continue
        for item, ours, found in await _look(
            redis, catch_up, report, expected.limited[campaign], list(items), first=False
        ):
            if ours != found:
                report.add("users", str(item), ours, found)


async def _report_erased(
    redis: Redis, catch_up: CatchUp, report: ReconciliationReport, campaign: str, items: set[ComparedValue]
) -> None:
    """Compare the totals of a campaign that has erased users.

    Redis keeps counting the name, the ledger the pseudonym. A rollback for the pseudonym is not taken from
    the name in Redis, so Redis may count that much more.
    """
    expected, shard = catch_up.expected, catch_up.expected.limited[campaign]
    looked: list[Difference] = []
    for _ in range(LOOKS_MAX):
        # A user erased a moment ago may have been counted under both names.
        items |= {
            ComparedValue("users", shard, name) for name in expected.touched.users if name[0] == campaign
        }
        looked = await _look(redis, catch_up, report, shard, list(items), first=False)
        if all(
            ComparedValue("users", shard, name) in items
            for name in expected.touched.users
            if name[0] == campaign
        ):
            break
    more = -sum(min(0, uses) for (of, _), uses in expected.users.items() if of == campaign)
    for item, ours, found in looked:
        is_name = expected.names.get(item.name, "") not in expected.pseudonyms
        if is_name and found < ours and not catch_up.erased_meanwhile:
            report.add("users", str(item), ours, found)
        else:
            more += found - ours
    most = expected.lost_uses[campaign]
    if not 0 <= more <= most:
        report.add("users", f"{campaign}, erased names", f"0 to {most} more than in the ledger", more)


def _without_twins(different: list[Difference]) -> list[Difference]:
    """Drop pairs of equal holds of one order on one code: no event says which of them was confirmed."""
    missing = Counter(ours._replace(user=None) for _, ours, found in different if found is None)
    surplus = Counter(found._replace(user=None) for _, ours, found in different if ours is None)
    twins = missing & surplus
    left = {"missing": twins.copy(), "surplus": twins.copy()}
    kept = []
    for item, ours, found in different:
        side, hold = ("missing", ours) if found is None else ("surplus", found)
        nameless = hold._replace(user=None)
        if (ours is None or found is None) and left[side][nameless] > 0:
            left[side][nameless] -= 1
        else:
            kept.append((item, ours, found))
    return kept


def _shown(value: Any) -> str:  # noqa: ANN401 - a number or a hold
    if value is None:
        return "none"
    if isinstance(value, ComparedHold):
        return f"{value.amount} of batch {value.batch}, serial {value.serial}"
    return str(value)
