"""Gives back the holds whose time is over, whether or not anybody asks for what they hold.

And completes what was decided for codes of several shards together, and left.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import RedisError

from engine.api.outcomes import Refused
from engine.errors import RETRYABLE_FAULTS, Fault, StoreUnavailable
from engine.redemption.cross_shard import complete_decided
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
    """End expired holds for ever, where no other worker does."""
    name = secrets.token_hex(8)
    interval_s = core.settings.hold_expiry_interval_ms / _MILLISECONDS
    while True:
        try:
            if await _owns(core, name):
                needed = await _complete_all(core)
                for shard in range(core.configuration.shards):
                    await _give_back(core, shard, needed)
        except Fault as fault:
            _log.debug("expired holds were not ended", extra={"reason": str(fault)})
        except Exception:  # noqa: BLE001 - it must go on, whatever it was
            _log.exception("expired holds could not be given back")
        await asyncio.sleep(interval_s)


async def _owns(core: Core, name: str) -> bool:
    """Whether this worker ends expired holds. Two that do for a moment do no harm."""
    try:
        holder: Any = await core.redis.set(keys.expiry_owner(), name, nx=True, get=True, px=OWNER_TTL_MS)
        if holder == name.encode():
            await core.redis.pexpire(keys.expiry_owner(), OWNER_TTL_MS)
    except (OSError, RedisError) as error:
        raise StoreUnavailable(str(error)) from error
    return holder in {None, name.encode()}


async def expire_holds(core: Core, shard: int) -> None:
    """Give back all holds of a shard whose time is over, and remove the traces of old ones.

    What was decided and left is completed first, as it may rest on holds whose time is over by now.

    Raises:
        StoreUnavailable: Redis cannot be asked.
    """
    await _give_back(core, shard, await _complete_all(core))


async def _complete_all(core: Core) -> frozenset[str]:
    """Complete what was decided on any shard and left; answers the holds that it still needs."""
    if core.configuration.shards == 1:
        return frozenset()
    needed = [await complete_decided(core, home) for home in range(core.configuration.shards)]
    return frozenset().union(*needed)


async def _give_back(core: Core, shard: int, needed: frozenset[str]) -> None:
    spared = 0
    while True:
        try:
            seconds, microseconds = await core.redis.time()
            now_ms = seconds * _MILLISECONDS + microseconds // _MILLISECONDS
            due: Any = await core.redis.zrangebyscore(
                keys.holds_expiry(shard), "-inf", now_ms, start=spared, num=CHUNK
            )
        except (OSError, RedisError) as error:
            raise StoreUnavailable(str(error)) from error
        found = [stream_id.decode() for stream_id in due]
        ids = [stream_id for stream_id in found if f"{shard}-{stream_id}" not in needed]
        spared += len(due) - len(ids)
        if ids:
            await _expire(core, shard, ids)
        if len(due) < CHUNK:
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
        raise StoreUnavailable("expired holds could not be given back")
