"""Confirms or releases a hold by its id: reads its record, ends it, and retries if the record has changed."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import RedisError

from engine.api.outcomes import Retry
from engine.errors import Overloaded, Refusal, StoreUnavailable
from engine.redemption.hold import Confirmation, Release
from engine.store import events, keys
from engine.store.hold_record import EXPIRED, PREPARED, HoldRecord

if TYPE_CHECKING:
    from engine.api.outcomes import Outcome
    from engine.redemption.core import Core
    from engine.redemption.hold import HoldEnd
    from engine.store.configuration import CachedKey
    from engine.store.events import EventId

_TRIES: Final = 5  # one retry is nearly always enough: a record changes only if its order renews the hold
_POLL_S: Final = 0.02


async def confirm(
    core: Core, hold: str, *, amount: int | None, key: str | None, api_key: CachedKey, nonce: bytes = b""
) -> Outcome:
    """Turn a hold into a redemption. On a ``balance`` code ``amount`` may be less than the hold's amount.

    ``nonce``: the mark of a signed request's nonce.

    Raises:
        Refusal: ``hold_not_found``: this is not the id of a hold; ``malformed_request``: the key is the code.
        StoreUnavailable: Redis cannot be read.
        Overloaded: the hold changed at every try; nothing was done.
    """
    asked = "" if amount is None else amount
    return await _end(core, hold, Confirmation, amount=asked, key=key, api_key=api_key, nonce=nonce)


async def release(
    core: Core, hold: str, *, key: str | None, api_key: CachedKey, nonce: bytes = b""
) -> Outcome:
    """Release a hold. ``nonce``: as for ``confirm``.

    Raises:
        Refusal, StoreUnavailable, Overloaded: as ``confirm``.
    """
    return await _end(core, hold, Release, amount="", key=key, api_key=api_key, nonce=nonce)


async def _end(
    core: Core,
    hold: str,
    kind: type[HoldEnd],
    *,
    amount: int | str,
    key: str | None,
    api_key: CachedKey,
    nonce: bytes,
) -> Outcome:
    key_reserved = False
    hold_id = events.parse_id(hold)
    if hold_id is None or hold_id.shard >= core.configuration.shards:
        raise Refusal("hold_not_found")
    for _ in range(_TRIES):
        record = await _read_settled(core, hold_id)
        if record is not None and record != EXPIRED:
            held = HoldRecord.parse(record.decode())
            if not (api_key.may_undo(held.actor) and api_key.may_use(held.campaign)):
                raise Refusal("hold_not_found")
            await core.refuse_code_of(held.batch, held.serial, key)
        attempt = kind(core.dispatcher, hold_id, record, api_key=api_key, amount=amount, key=key)
        attempt.sign(nonce)
        attempt.key_reserved = key_reserved  # under this nonce it can be reserved only once
        outcome = await core.answer_bound(attempt)
        if outcome is not Retry.STALE_HOLD:
            return outcome
        key_reserved = attempt.key_reserved
    raise Overloaded("the hold keeps changing")


async def _read_settled(core: Core, hold_id: EventId) -> bytes | None:
    """Read a hold's record. While a combined order uses the hold up, wait for how that ends."""
    deadline = core.dispatcher.deadline()
    while True:
        (record,) = await read_records(core, hold_id.shard, [hold_id.stream_id])
        if record != PREPARED:
            return record
        if asyncio.get_running_loop().time() >= deadline:
            raise Overloaded("a combined order is using up the hold")
        await asyncio.sleep(_POLL_S)


async def read_records(core: Core, shard: int, ids: list[str]) -> list[bytes | None]:
    """Read the records of holds by their stream ids; None for a hold that does not exist.

    Raises:
        StoreUnavailable: Redis cannot be read.
    """
    try:
        records: Any = await core.redis.hmget(keys.holds(shard), ids)
    except (OSError, RedisError) as error:
        raise StoreUnavailable(str(error)) from error
    live = [
        HoldRecord.parse(record.decode()) for record in records if record not in {None, EXPIRED, PREPARED}
    ]
    await core.configuration.know(hold.batch for hold in live)
    return list(records)
