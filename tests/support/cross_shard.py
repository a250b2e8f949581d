"""Combined redemptions over three shards."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engine.store import keys

if TYPE_CHECKING:
    from collections.abc import Sequence

    from redis.asyncio import Redis

    from tests.support.deployment import Merchant


async def combined(
    merchant: Merchant, codes: Sequence[str | tuple[str, object]], *, key: str = "", order: str = "o1"
) -> tuple[int, Any]:
    items = [
        {"code": item} if isinstance(item, str) else {"code": item[0], "amount": item[1]} for item in codes
    ]
    headers = {"Idempotency-Key": key} if key else {}
    body = {"codes": items, "user": "ann", "order": order}
    return await merchant.call("POST", "/v1/redemptions/combined", json=body, headers=headers)


async def types(redis: Redis) -> list[str]:
    """Return the types of all events on all shards, sorted."""
    found = []
    for shard in range(3):
        entries: Any = await redis.xrange(keys.events(shard))
        found += [fields[b"type"].decode() for _, fields in entries]
    return sorted(found)


async def nothing_is_left(redis: Redis) -> bool:
    kinds = (keys.commit_records, keys.prepared, keys.holds, keys.held)
    names = [name(shard) for shard in range(3) for name in kinds]
    return not await redis.exists(*names)
