"""Calls on a hold by its id: read its record, then confirm or release it; again if it changed meanwhile."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import RedisError

from engine.api.outcomes import Retry
from engine.errors import Overloaded, Refusal, StoreUnavailable
from engine.redemption.hold import EXPIRED, Confirmation, Release, parse_record
from engine.store import events, keys
from engine.store.events import ORDER_MARK

if TYPE_CHECKING:
    from engine.api.outcomes import Outcome
    from engine.redemption.core import Core
    from engine.redemption.hold import HoldEnd
    from engine.store.configuration import CachedKey

_TRIES: Final = 5  # a record changes while it is confirmed only if its order renews it at that moment


async def confirm(
    core: Core, hold: str, *, amount: int | None, key: str | None, api_key: CachedKey
) -> Outcome:
    """Turn a hold into a redemption, of a balance also into one of less.

    Raises:
        Refusal: ``hold_not_found``: this is not the id of a hold; ``malformed_request``: the key is its code.
        StoreUnavailable: Redis cannot be asked.
    """
    return await _end(
        core, hold, Confirmation, amount="" if amount is None else amount, key=key, api_key=api_key
    )


async def release(
    core: Core, hold: str, *, key: str | None, api_key: CachedKey, internal: bool = False
) -> Outcome:
    """Give a hold back. ``internal``: it belongs to a cross-shard transaction, which alone may.

    Raises:
        Refusal, StoreUnavailable: as ``confirm``.
    """
    return await _end(core, hold, Release, amount="", key=key, api_key=api_key, internal=internal)


async def _end(
    core: Core,
    hold: str,
    kind: type[HoldEnd],
    *,
    amount: int | str,
    key: str | None,
    api_key: CachedKey,
    internal: bool = False,
) -> Outcome:
    hold_id = events.parse_id(hold)
    if hold_id is None or hold_id.shard >= core.configuration.shards:
        raise Refusal("hold_not_found")
    for _ in range(_TRIES):
        (record,) = await read_records(core, hold_id.shard, [hold_id.stream_id])
        if record is not None and record != EXPIRED:
            held = parse_record(record.decode())
            if (ORDER_MARK in held.order) is not internal:
                raise Refusal("hold_not_found")
            await core.refuse_code_of(held.batch, held.serial, key)
        outcome = await core.answer_bound(
            kind(core.dispatcher, hold_id, record, api_key=api_key, amount=amount, key=key)
        )
        if outcome is not Retry.STALE_HOLD:
            return outcome
    raise Overloaded("the hold keeps changing")


async def read_records(core: Core, shard: int, ids: list[str]) -> list[bytes | None]:
    """The records of holds, by their stream ids; None for each that is not there.

    Raises:
        StoreUnavailable: Redis cannot be asked.
    """
    try:
        records: Any = await core.redis.hmget(keys.holds(shard), ids)
    except (OSError, RedisError) as error:
        raise StoreUnavailable(str(error)) from error
    live = [parse_record(record.decode()) for record in records if record and record != EXPIRED]
    if any(hold.batch not in core.configuration.batches for hold in live):
        await core.configuration.refresh()  # held through another worker, whose configuration is newer
    return list(records)
