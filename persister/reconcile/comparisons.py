"""The values in Redis that a reconciliation compares: how to read each, and what the ledger expects."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from engine.store import keys

if TYPE_CHECKING:
    from collections.abc import Iterator

    from persister.reconcile.expected_state import ExpectedState

NO_RECORDS: Final = frozenset((b"expired", b"prepared"))
"""What stands in place of a hold's record: it has expired, or a combined order is using it up."""

RedisCommand = tuple[str | bytes | int, ...]


class ComparedValue(NamedTuple):
    """One value in Redis. ``name`` identifies it within its ``check``, e.g. (batch, serial)."""

    check: str
    shard: int
    name: tuple[Any, ...]

    def __str__(self) -> str:
        if self.check == "users":
            return f"{self.name[0]}, user {self.name[1].hex()}"
        if self.check in {"states", "balances", "uses"}:
            return f"batch {self.name[0]}, serial {self.name[1]}"
        return ", ".join(["shard " + str(self.shard), *map(str, self.name)])


class ComparedHold(NamedTuple):
    """What ledger and Redis both know of a hold. ``user`` None: the name was erased."""

    batch: int
    serial: int
    order: str
    amount: int
    user: str | None


Difference = tuple[ComparedValue, Any, Any]
"""A value, what the ledger expects, and what Redis has."""


def read_command(item: ComparedValue, expected: ExpectedState) -> RedisCommand:
    """The Redis command that reads a value."""
    check, shard, name = item
    if check in {"states", "balances"}:
        batch_id, serial = name
        spot = expected.batches[batch_id].location(serial, expected.shards)
        if check == "states":
            key = keys.state(shard, batch_id, spot.segment)
            return "BITFIELD_RO", key, "GET", "u2", f"#{spot.offset}"
        segment, offset = keys.spent_location(spot)
        return "BITFIELD_RO", keys.spent(shard, batch_id, segment), "GET", "i64", f"#{offset}"
    if check == "uses":
        return "HGET", keys.uses(shard, name[0]), name[1]
    if check == "users":
        return "HGET", keys.users(shard, name[0], user_bucket(name[1])), name[1]
    if check == "campaigns":
        return "HGET", keys.campaign(shard, name[0]), name[1]
    if check == "rollbacks":
        return "HGET", keys.rolled_back(shard, name[0]), name[1]
    return "HGET", keys.holds(shard), name[0]


def values_touched(expected: ExpectedState) -> Iterator[ComparedValue]:
    """The values that events after the snapshot have changed."""
    touched = expected.touched
    campaigns: set[tuple[int, str]] = set()
    for batch_id, serial in touched.codes:
        batch = expected.batches[batch_id]
        shard = batch.location(serial, expected.shards).shard
        campaigns.add((shard, batch.campaign))
        yield ComparedValue("states", shard, (batch_id, serial))
        if batch.rules.kind != "single":
            check = "balances" if batch.rules.kind == "balance" else "uses"
            yield ComparedValue(check, shard, (batch_id, serial))
    for shard, campaign in campaigns:
        yield ComparedValue("campaigns", shard, (campaign, "uses"))
        yield ComparedValue("campaigns", shard, (campaign, "spent"))
    for batch_id, redemption in touched.rollbacks:
        shard, _ = expected.rolled_back[batch_id, redemption]
        yield ComparedValue("rollbacks", shard, (batch_id, redemption))
    for hold_id in touched.holds:
        shard_text, _, stream_id = hold_id.partition("-")
        yield ComparedValue("holds", int(shard_text), (stream_id,))
    for campaign, digest in touched.users:
        if campaign in expected.limited:
            yield ComparedValue("users", expected.limited[campaign], (campaign, digest))


def user_bucket(digest: bytes) -> int:
    """The bucket of a user's digest (engine/store/idempotency.py)."""
    return int.from_bytes(digest[:2]) % keys.USER_BUCKETS


def parse_reply(check: str, reply: Any) -> Any:  # noqa: ANN401 - a number or a hold
    """Convert a reply for comparison with ``expected_value``."""
    if check in {"states", "balances"}:
        return reply[0]
    if check == "holds":
        return parse_hold_record(reply)
    if check == "rollbacks":
        return None if reply is None else int(reply)
    return int(reply or 0)


def parse_hold_record(reply: bytes | None) -> ComparedHold | None:
    """Parse a hold's record (lua/lib/holds.lua). None: there is none."""
    if reply is None or reply in NO_RECORDS:
        return None
    _, order, user, amount, _, batch, serial, *_ = reply.decode().split("\n")
    return ComparedHold(int(batch), int(serial), order, int(amount or 0), user)


def is_equal(ours: Any, found: Any) -> bool:  # noqa: ANN401 - numbers or holds
    """Compare. An expected hold of an erased user matches a hold of any user."""
    if isinstance(ours, ComparedHold) and isinstance(found, ComparedHold) and ours.user is None:
        return ours == found._replace(user=None)
    return bool(ours == found)


def expected_value(item: ComparedValue, expected: ExpectedState) -> Any:  # noqa: ANN401 - a number or a hold
    """The value that the ledger expects."""
    check, shard, name = item
    if check == "states":
        return int(expected.batches[name[0]].states[name[1]])
    if check in {"balances", "uses"}:
        return int(expected.batches[name[0]].used[name[1]])
    if check == "users":
        return max(0, expected.users.get((name[0], expected.names.get(name, "")), 0))
    if check == "campaigns":
        counter = expected.uses if name[1] == "uses" else expected.spent
        return counter.get((shard, name[0]), 0)
    if check == "rollbacks":
        return expected.rolled_back[name][1] if name in expected.rolled_back else None
    return expected_hold(f"{shard}-{name[0]}", expected)


def expected_hold(hold_id: str, expected: ExpectedState) -> ComparedHold | None:
    """The hold that the ledger expects. None: no live hold."""
    hold = expected.holds.get(hold_id)
    if hold is None:
        return None
    user = None if hold.held.user in expected.pseudonyms else hold.held.user
    return ComparedHold(hold.batch, hold.serial, hold.held.order, hold.held.amount, user)
