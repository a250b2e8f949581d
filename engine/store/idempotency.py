"""What is kept of a request under its Idempotency-Key: where, and what two requests must share."""

from __future__ import annotations

import hashlib
import time
from typing import TYPE_CHECKING, Final, cast

from redis.exceptions import RedisError

from engine.encoding import canonical
from engine.store import keys

if TYPE_CHECKING:
    from collections.abc import Sequence

    from redis.asyncio import Redis

# The first half of a fingerprint says what the ledger knows of a request, too. The second is of all of it; in
# a record that was rebuilt from the ledger it is REBUILT, and the first decides (lua/lib/idempotency.lua).
_HALF: Final = 4
REBUILT: Final = bytes(_HALF)
UNKNOWN: Final = bytes(_HALF)
"""First half of a request that does not say which code it is about."""

CodeIdentity = tuple[int, int]
"""Batch and serial."""


def name(actor: str, key: str) -> str:
    """Name of an idempotency record."""
    return f"{actor} {key}"


def bucketed(text: str, buckets: int) -> tuple[int, bytes]:
    """A hash bucket and the field within it: 96 bits of BLAKE2b, so that long texts cost no memory."""
    digest = hashlib.blake2b(text.encode(), digest_size=12).digest()
    return int.from_bytes(digest[:2]) % buckets, digest


def home_shard(idempotency_name: str, shards: int) -> int:
    """The shard that a key belongs to, whatever code it is used with."""
    return bucketed(idempotency_name, keys.IDEMPOTENCY_BUCKETS)[0] % shards


async def is_used(redis: Redis, shards: int, idempotency_name: str) -> bool:
    """Whether something was done to a code under a key, as far as Redis can tell: False while it is away."""
    bucket, digest = bucketed(idempotency_name, keys.IDEMPOTENCY_BUCKETS)
    epoch, field = int(time.time()) // keys.IDEMPOTENCY_WINDOW_S, cast("str", digest)
    home = home_shard(idempotency_name, shards)
    try:
        for then in (epoch, epoch - 1):
            if await redis.hexists(keys.idempotency_records(home, then, bucket), field):
                return True
    except (OSError, RedisError):
        return False
    return False


def known_half(user: str, order: str, codes: Sequence[CodeIdentity]) -> bytes:
    """First half of the fingerprint of a request about these codes: what the events of it say."""
    return _digest([user, order, codes])


def fingerprint(known: bytes, seen: list[object]) -> bytes:
    """What two requests with one idempotency key must share: 64 bits of BLAKE2b."""
    digest = _digest(seen)
    return known + (digest if digest != REBUILT else b"\1" * _HALF)


def _digest(value: object) -> bytes:
    return hashlib.blake2b(canonical(value), digest_size=_HALF).digest()
