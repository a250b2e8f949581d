"""Brings what sources have tried together: each worker tells the others, and scores what all have told.

A stream in Redis holds the latest attempts that are worth telling. Each worker appends its own every
``guard_share_ms`` and reads on, in one round trip that no redemption waits for. So all workers score the same
attempts in the same order, and one that starts again reads what it has missed. While Redis is away, a worker
scores its own.
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import TYPE_CHECKING, Any, Final

import msgspec
from redis.exceptions import RedisError

from engine.guard.labels import Labelled, Tried
from engine.store import keys

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from engine.guard.behaviour import Behaviour
    from engine.guard.not_shared import NotShared

ENTRIES_MAX: Final = 1000  # of the stream
KEPT_MS: Final = 3_600_000
TRIED_MAX: Final = 500  # in one entry
_READ_MAX: Final = 100
_FIRST: Final = b"0-0"
_FIELD: Final = b"p"
_SHARED: Final = "attempts"
_MS: Final = 1000


class _Packet(msgspec.Struct, array_like=True):
    worker: bytes
    tried: list[Tried]
    successes: dict[str, int]


class AttemptStream:
    """One worker's place in the stream."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._worker = os.urandom(8)
        self._last = _FIRST

    async def exchange(self, labelled: Labelled | None) -> list[tuple[float, bool, Labelled]]:
        """Append what this worker has seen, and return what is new: time in s, whether it is its own, what.

        Raises:
            RedisError, OSError: Redis cannot be used. What was to be told may be in the stream.
        """
        pipe: Any
        async with self._redis.pipeline(transaction=False) as pipe:
            if labelled is not None:
                told = msgspec.msgpack.encode(_Packet(self._worker, *labelled))
                pipe.xadd(keys.guard_attempts(), {_FIELD: told}, maxlen=ENTRIES_MAX, approximate=False)
                pipe.pexpire(keys.guard_attempts(), KEPT_MS)
            pipe.xrange(keys.guard_attempts(), b"(" + self._last, b"+", count=_READ_MAX)
            entries = (await pipe.execute())[-1]
        heard = []
        for number, fields in entries:
            self._last = number
            try:
                packet = msgspec.msgpack.decode(fields[_FIELD], type=_Packet)
            except (KeyError, msgspec.MsgspecError):
                continue  # of another version
            at_s = int(number.partition(b"-")[0]) / _MS
            heard.append((at_s, packet.worker == self._worker, Labelled(packet.tried, packet.successes)))
        if len(entries) == _READ_MAX:
            heard += await self.exchange(None)
        return heard


async def keep_sharing_attempts(
    redis: Redis, behaviour: Behaviour, not_shared: NotShared, *, interval_s: float, timeout_s: float
) -> None:
    """Label, share and score the attempts of a worker, until cancelled.

    ``not_shared`` is told while they are not.
    """
    stream = AttemptStream(redis)
    while True:
        await asyncio.sleep(interval_s)
        if not (behaviour.watches or behaviour.observed):
            continue
        labelled = behaviour.take_labelled(TRIED_MAX)
        try:
            async with asyncio.timeout(timeout_s):
                heard = await stream.exchange(labelled)
                await _count_observed(redis, behaviour)
            not_shared.ends(_SHARED)
        except (OSError, RedisError, TimeoutError) as error:
            not_shared.begins(_SHARED, error)
            heard = [] if labelled is None else [(time.time(), True, labelled)]
        for at_s, is_own, told in heard:
            behaviour.hear(told, at_s, is_own=is_own)


async def _count_observed(redis: Redis, behaviour: Behaviour) -> None:
    for rule in list(behaviour.observed):
        await redis.hincrby(keys.guard_observed(), rule, behaviour.observed.pop(rule))
