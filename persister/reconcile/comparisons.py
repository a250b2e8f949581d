"""The single things in Redis that an audit compares: how each is read, and what the ledger says of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from engine.store import keys

if TYPE_CHECKING:
    from persister.reconcile.expected import Expected

MARK: Final = "\x1f"
"""In an order: what stands behind it nobody is told (lua/lib/add_event.lua)."""
EXPIRED: Final = "expired"

Command = tuple[str | bytes | int, ...]


class Item(NamedTuple):
    """One thing. ``name`` says which one, by what its kind (``check``) is named by."""

    check: str
    shard: int
    name: tuple[Any, ...]

    def __str__(self) -> str:
        if self.check == "users":
            return f"{self.name[0]}, user {self.name[1].hex()}"
        if self.check in {"states", "balances", "uses"}:
            return f"batch {self.name[0]}, serial {self.name[1]}"
        return ", ".join(["shard " + str(self.shard), *map(str, self.name)])


class Hold(NamedTuple):
    """A hold, as far as both sides know it. ``user`` is None where a name was erased."""

    batch: int
    serial: int
    order: str
    amount: int
    user: str | None


def command(item: Item, expected: Expected) -> Command:
    """How one thing is read."""
    check, shard, name = item
    if check in {"states", "balances"}:
        batch_id, serial = name
        spot = expected.batches[batch_id].place(serial, expected.shards)
        if check == "states":
            key = keys.state(shard, batch_id, spot.segment)
            return "BITFIELD_RO", key, "GET", "u2", f"#{spot.offset}"
        segment, offset = keys.spent_place(spot)
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


def user_bucket(digest: bytes) -> int:
    """The bucket that a user's digest is in (engine/store/idempotency.py)."""
    return int.from_bytes(digest[:2]) % keys.USER_BUCKETS


def parse(check: str, reply: Any) -> Any:  # noqa: ANN401 - a number or a hold
    """What was read, comparable to ``wanted``."""
    if check in {"states", "balances"}:
        return reply[0]
    if check == "holds":
        return parse_hold(reply)
    if check == "rollbacks":
        return None if reply is None else int(reply)
    return int(reply or 0)


def parse_hold(reply: bytes | None) -> Hold | None:
    """A hold's record (lua/lib/holds.lua); None of one that has expired."""
    if reply is None or reply.decode() == EXPIRED:
        return None
    _, order, user, amount, _, batch, serial, *_ = reply.decode().split("\n")
    return Hold(int(batch), int(serial), order.partition(MARK)[0], int(amount or 0), user)


def agree(ours: Any, found: Any) -> bool:  # noqa: ANN401 - numbers or holds
    """Whether what was read is what was wanted."""
    if isinstance(ours, Hold) and isinstance(found, Hold) and ours.user is None:
        return ours == found._replace(user=None)
    return bool(ours == found)


def wanted(item: Item, expected: Expected) -> Any:  # noqa: ANN401 - a number or a hold
    """What the ledger says of one thing."""
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
    return wanted_hold(f"{shard}-{name[0]}", expected)


def wanted_hold(hold_id: str, expected: Expected) -> Hold | None:
    """A hold as the ledger has it."""
    hold = expected.holds.get(hold_id)
    if hold is None:
        return None
    user = None if hold.held.user in expected.pseudonyms else hold.held.user
    return Hold(hold.batch, hold.serial, hold.held.order, hold.held.amount, user)
