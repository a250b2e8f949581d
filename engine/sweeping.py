"""Gives back the holds whose time is over, whether or not anybody asks for what they hold."""

from __future__ import annotations

import asyncio
import logging
import secrets
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import RedisError

from engine import keys
from engine.errors import RETRYABLE_STATUS, Fault, StoreUnavailable
from engine.events import EventId
from engine.holds import Expiry, read_records
from engine.spanning import complete_decided

if TYPE_CHECKING:
    from engine.core import Core

_log = logging.getLogger(__name__)
CHUNK: Final = 100
ACTOR: Final = "engine"
OWNER_TTL_MS: Final = 5000
_MILLISECONDS: Final = 1000


async def keep_sweeping(core: Core) -> None:
    """Sweep for ever, if no other worker does."""
    name = secrets.token_hex(8)
    interval_s = core.settings.sweep_interval_ms / _MILLISECONDS
    while True:
        try:
            if await _owns(core, name):
                for shard in range(core.registry.shards):
                    await sweep(core, shard)
        except Fault as fault:
            _log.debug("no sweep", extra={"reason": str(fault)})
        except Exception:  # noqa: BLE001 - it must go on, whatever it was
            _log.exception("expired holds could not be given back")
        await asyncio.sleep(interval_s)


async def _owns(core: Core, name: str) -> bool:
    """Whether this worker is the one that sweeps. Two that do for a moment do no harm, only work."""
    try:
        holder: Any = await core.redis.set(keys.sweeper(), name, nx=True, get=True, px=OWNER_TTL_MS)
        if holder == name.encode():
            await core.redis.pexpire(keys.sweeper(), OWNER_TTL_MS)
    except (OSError, RedisError) as error:
        raise StoreUnavailable(str(error)) from error
    return holder in {None, name.encode()}


async def sweep(core: Core, shard: int) -> None:
    """Give back all holds of a shard whose time is over, and remove the traces of old ones.

    What was decided and left is completed first, as it may rest on holds whose time is over by now.

    Raises:
        StoreUnavailable: Redis cannot be asked.
    """
    for home in range(core.registry.shards if core.registry.shards > 1 else 0):
        await complete_decided(core, home)
    while True:
        try:
            seconds, microseconds = await core.redis.time()
            now_ms = seconds * _MILLISECONDS + microseconds // _MILLISECONDS
            due: Any = await core.redis.zrangebyscore(
                keys.holds_expiry(shard), "-inf", now_ms, start=0, num=CHUNK
            )
        except (OSError, RedisError) as error:
            raise StoreUnavailable(str(error)) from error
        if not due:
            return
        ids = [stream_id.decode() for stream_id in due]
        records = await read_records(core, shard, ids)
        expiries = [
            Expiry(core, EventId(shard, *map(int, stream_id.split("-"))), record, api_key=None, actor=ACTOR)
            for stream_id, record in zip(ids, records, strict=True)
        ]
        answers = await asyncio.gather(*(core.answer(expiry) for expiry in expiries))
        if any(answer.status == RETRYABLE_STATUS for answer in answers):
            raise StoreUnavailable("expired holds could not be given back")
        if len(due) < CHUNK:
            return
