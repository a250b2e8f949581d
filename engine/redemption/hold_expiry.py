"""The hold expiry: a background task that ends expired holds, even if no attempt needs them.

It also settles cross-shard transactions whose worker is gone.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import RedisError

from engine.api.outcomes import Refused
from engine.errors import RETRYABLE_FAULTS, Fault, StoreUnavailable
from engine.redemption.cross_shard import settle_abandoned
from engine.redemption.hold import Expiry
from engine.redemption.hold_calls import read_records
from engine.store import keys
from engine.store.events import EventId

if TYPE_CHECKING:
    from engine.redemption.core import Core

_log = logging.getLogger(__name__)
CHUNK: Final = 100
ACTOR: Final = "engine"
OWNER_TTL_MS: Final = 5000
_MILLISECONDS: Final = 1000


async def keep_expiring(core: Core) -> None:
    """End expired holds for ever, unless another worker does."""
    name = secrets.token_hex(8)
    interval_s = core.settings.hold_expiry_interval_ms / _MILLISECONDS
    while True:
        try:
            if await _owns(core, name):
                if core.configuration.shards > 1:
                    await settle_abandoned(core)
                for shard in range(core.configuration.shards):
                    await expire_holds(core, shard)
        except Fault as fault:
            _log.debug("cannot end expired holds now", extra={"reason": str(fault)})
        except Exception:  # noqa: BLE001 - the task must go on after any error
            _log.exception("cannot end expired holds")
        await asyncio.sleep(interval_s)


async def _owns(core: Core, name: str) -> bool:
    """Whether this worker is the one that ends expired holds. It is harmless if two do so for a moment."""
    try:
        holder: Any = await core.redis.set(keys.expiry_owner(), name, nx=True, get=True, px=OWNER_TTL_MS)
        if holder == name.encode():
            await core.redis.pexpire(keys.expiry_owner(), OWNER_TTL_MS)
    except (OSError, RedisError) as error:
        raise StoreUnavailable(str(error)) from error
    return holder in {None, name.encode()}


async def expire_holds(core: Core, shard: int) -> None:
    """End all expired holds of a shard, and remove the marks of holds that expired a day ago.

    Raises:
        StoreUnavailable: Redis cannot be read, or not all holds could be ended.
    """
    while True:
        try:
            seconds, microseconds = await core.redis.time()
            now_ms = seconds * _MILLISECONDS + microseconds // _MILLISECONDS
            expired: Any = await core.redis.zrangebyscore(
                keys.holds_expiry(shard), "-inf", now_ms, start=0, num=CHUNK
            )
        except (OSError, RedisError) as error:
            raise StoreUnavailable(str(error)) from error
        stream_ids = [stream_id.decode() for stream_id in expired]
        if stream_ids:
            await _expire(core, shard, stream_ids)
        if len(expired) < CHUNK:
            return


async def _expire(core: Core, shard: int, ids: list[str]) -> None:
    records = await read_records(core, shard, ids)
    expiries = [
        Expiry(
            core.dispatcher,
            EventId(shard, *map(int, stream_id.split("-"))),
            record,
            api_key=None,
            actor=ACTOR,
        )
        for stream_id, record in zip(ids, records, strict=True)
    ]
    outcomes = await asyncio.gather(*(core.answer_bound(expiry) for expiry in expiries))
    if any(isinstance(outcome, Refused) and outcome.code in RETRYABLE_FAULTS for outcome in outcomes):
        raise StoreUnavailable("not all expired holds could be ended")
