"""Idempotency records: where they are stored, and the fingerprint that two equal requests share."""

from __future__ import annotations

import hashlib
import time
from typing import TYPE_CHECKING, Final

from engine.encoding import canonical
from engine.store import keys
from engine.store.event_lines import FINGERPRINT_HALF
from engine.store.scripts import run_script
from lua import loader

if TYPE_CHECKING:
    from collections.abc import Sequence

    from redis.asyncio import Redis

# The first half of a fingerprint is a digest of the fields that the ledger has as well. The second half is a
# digest of the whole request; events have it as a number. A record that was rebuilt from an event without it
# has REBUILT as its second half. Then only the first half is compared (lua/lib/idempotency.lua).
_HALF: Final = FINGERPRINT_HALF
REBUILT: Final = bytes(_HALF)
UNKNOWN: Final = bytes(_HALF)
"""First half of the fingerprint of a request that does not name its code."""

_RESERVE: Final = loader.load(
    "reserve_key",
    keys=("records_key", "before_key", "events_key"),
    arguments=("digest", "fingerprint", "idempotency_epoch", "idempotency_window_s"),
)

NONCE_MARK: Final = b"\1"  # "one nonce follows"; no answer begins with it
_NONCE_BYTES: Final = 8

CodeIdentity = tuple[int, int]
"""Batch and serial."""


def name(actor: str, key: str) -> str:
    """Name of an idempotency record: each actor has its own keys."""
    return f"{actor} {key}"


def bucketed(text: str, buckets: int) -> tuple[int, bytes]:
    """Hash bucket and field of a text: 96 bits of BLAKE2b (RFC 7693), so that long texts cost no memory."""
    digest = hashlib.blake2b(text.encode(), digest_size=12).digest()
    return int.from_bytes(digest[:2]) % buckets, digest


def home_shard(idempotency_name: str, shards: int) -> int:
    """The home shard of an idempotency key. It does not depend on the code."""
    return bucketed(idempotency_name, keys.IDEMPOTENCY_BUCKETS)[0] % shards


async def reserve(redis: Redis, shards: int, idempotency_name: str, change: bytes) -> bool:
    """Reserve a key for a change that is made in PostgreSQL. Return False if another request has used it.

    From then on the scripts refuse every operation on a code with this key: they read the record anyway.
    ``change`` is equal for two requests that are the same.

    Raises:
        RedisError, OSError: Redis cannot be asked.
    """
    bucket, digest = bucketed(idempotency_name, keys.IDEMPOTENCY_BUCKETS)
    home = home_shard(idempotency_name, shards)
    epoch = int(time.time()) // keys.IDEMPOTENCY_WINDOW_S
    seen = _of_change(change)
    while True:
        names = (
            keys.idempotency_records(home, epoch, bucket),
            keys.idempotency_records(home, epoch - 1, bucket),
            keys.events(home),
        )
        arguments = (digest, seen, epoch, keys.IDEMPOTENCY_WINDOW_S)
        answer = await run_script(redis, _RESERVE, names, arguments)
        if answer[0] != b"epoch":
            return bool(answer[0] == b"claimed")
        epoch = int(answer[1])


async def is_used_otherwise(redis: Redis, shards: int, idempotency_name: str, change: bytes) -> bool:
    """Whether a key was used for another request than this change. Nothing is reserved.

    Raises:
        RedisError, OSError: Redis cannot be asked.
    """
    bucket, digest = bucketed(idempotency_name, keys.IDEMPOTENCY_BUCKETS)
    home = home_shard(idempotency_name, shards)
    epoch = int(time.time()) // keys.IDEMPOTENCY_WINDOW_S
    async with redis.pipeline(transaction=False) as pipe:
        for each in (epoch + 1, epoch, epoch - 1):  # of Redis's clock, which may be another
            pipe.hget(keys.idempotency_records(home, each, bucket), digest)
        records = [record for record in await pipe.execute() if record]
    return bool(records) and not records[0].startswith(_of_change(change))


def _of_change(change: bytes) -> bytes:
    return fingerprint(_digest("change"), [change.hex()])


def known_half(user: str, order: str, codes: Sequence[CodeIdentity]) -> bytes:
    """First half of a fingerprint: from the fields of a request that its events have as well."""
    return _digest([user, order, codes])


def fingerprint(known: bytes, fields: list[object]) -> bytes:
    """The fingerprint of a request: two requests with one idempotency key must have the same.

    Both halves are 32 bits of BLAKE2b: ``known`` comes from ``known_half``, the other is the digest of
    ``fields``.
    """
    digest = _digest(fields)
    return known + (digest if digest != REBUILT else b"\1" * _HALF)


def nonce_mark(nonce: str) -> bytes:
    """Return what follows the fingerprint of a signed request: 8 bytes of its nonce's hash, behind a mark.

    The record keeps it. So the same signed request, sent again, is ``request_replayed``; the same request
    under a new nonce is an honest retry, and gets the stored answer (lua/lib/idempotency.lua).
    """
    return _mark(nonce.encode())


def nonce_of_item(nonce: bytes, position: int) -> bytes:
    """Return the mark for one item of a signed batch; empty if the batch is not signed.

    Two equal items of a batch have different marks: the second is an honest retry of the first.
    """
    return nonce and _mark(nonce + position.to_bytes(4))


def _mark(nonce: bytes) -> bytes:
    return NONCE_MARK + hashlib.blake2b(nonce, digest_size=_NONCE_BYTES).digest()


def rebuilt_fingerprint(known: bytes, of_event: int | None) -> bytes:
    """The fingerprint of a record that is rebuilt; ``of_event`` is what the event has of it, if anything."""
    return known + (REBUILT if of_event is None else of_event.to_bytes(_HALF, signed=True))


def _digest(value: object) -> bytes:
    return hashlib.blake2b(canonical(value), digest_size=_HALF).digest()
