"""The names of all Redis keys, and where a code lives. Nobody else builds a key.

``{s<n>}`` is the hash tag of shard ``n``: all that one script call touches is in one slot.
"""

from __future__ import annotations

from typing import Final

import msgspec

from engine.codes.formats import SERIAL_BITS, SERIAL_LIMIT

SEGMENT_CODES: Final = 1 << 16  # codes of one state string: 2 bits each, 16 KiB
SPENT_SEGMENT_CODES: Final = 1 << 12  # balances of one string: 64 bits each, 32 KiB
USER_BUCKETS: Final = 1 << 16  # hashes over which the per-user counts of a campaign spread
IDEMPOTENCY_WINDOW_S: Final = (
    86_400  # an idempotency record is kept for one to two of these; part of its key's name
)
IDEMPOTENCY_BUCKETS: Final = 1 << 16  # hashes over which the idempotency records of one window spread
# Imported codes spread over 65,536 hashes of a shard: small ones (512 fields or fewer) up to 33 million.
_BUCKET_BYTES: Final = 2
_IDENTITY_BYTES: Final = 6

# The two bits of a code, as the scripts write them.
FRESH: Final = 0
REDEEMED: Final = 1
HELD: Final = 2
VOID: Final = 3


class CodeLocation(msgspec.Struct, frozen=True, gc=False):
    """Where a code's state is: the shard, the state string within it, the code's position there."""

    shard: int
    segment: int
    offset: int


def locate_code(serial: int, shards: int, pinned_shard: int | None) -> CodeLocation:
    """The place of a code: a pinned campaign's codes are on its shard, others go round all shards."""
    index = serial // shards if pinned_shard is None else serial
    segment, offset = divmod(index, SEGMENT_CODES)
    return CodeLocation(shard_of(serial, shards, pinned_shard), segment, offset)


def shard_of(serial: int, shards: int, pinned_shard: int | None) -> int:
    """The shard of it alone."""
    return serial % shards if pinned_shard is None else pinned_shard


def imported_location(digest: bytes, shards: int) -> tuple[int, int]:
    """Shard and bucket in which an imported code is looked up by its digest; its state is elsewhere."""
    return int.from_bytes(digest[-4:]) % shards, int.from_bytes(digest[:_BUCKET_BYTES])


def imported_field(digest: bytes) -> bytes:
    """Its field there: what of the digest the bucket's number does not say."""
    return digest[_BUCKET_BYTES:]


def imported_value(batch: int, serial: int) -> bytes:
    """What it leads to."""
    return (batch << SERIAL_BITS | serial).to_bytes(_IDENTITY_BYTES)


def imported_identity(value: bytes) -> tuple[int, int]:
    """Batch and serial of an ``imported_value``."""
    number = int.from_bytes(value)
    return number >> SERIAL_BITS, number & (SERIAL_LIMIT - 1)


def version(shard: int) -> str:
    """The version of the configuration this shard has; a script refuses a caller with an older."""
    return f"{{s{shard}}}:version"


def control() -> str:
    """Hash of the configuration: ``key:<id>``, ``campaign:<id>``, ``batch:<id>`` -> JSON."""
    return "{s0}:control"


def control_changed() -> str:
    """Sorted set over the same fields: the version at which each changed last."""
    return "{s0}:control:changed"


def campaign(shard: int, campaign_id: str) -> str:
    """Hash: a campaign's configuration and counters, as the scripts read them."""
    return f"{{s{shard}}}:campaign:{campaign_id}"


def state(shard: int, batch: int, segment: int) -> str:
    """String, BITFIELD u2: the state of each code of a segment."""
    return f"{{s{shard}}}:state:{batch}:{segment}"


def uses(shard: int, batch: int) -> str:
    """Hash: serial -> successes, of codes that succeed several times."""
    return f"{{s{shard}}}:uses:{batch}"


def spent(shard: int, batch: int, segment: int) -> str:
    """String, BITFIELD i64: the amount spent of each code that holds one; zero needs no loading."""
    return f"{{s{shard}}}:spent:{batch}:{segment}"


def spent_location(spot: CodeLocation) -> tuple[int, int]:
    """The spent string of a code, and its position there."""
    return divmod(spot.segment * SEGMENT_CODES + spot.offset, SPENT_SEGMENT_CODES)


def imported(shard: int, bucket: int) -> str:
    """Hash: imported code (by digest) -> batch and serial. Immutable; PostgreSQL has them all."""
    return f"{{s{shard}}}:imported:{bucket}"


def imports(shard: int) -> str:
    """Hash: batch -> codes, of those batches of which this shard has every imported code that is its own."""
    return f"{{s{shard}}}:imports"


def importing(shard: int, batch: int) -> str:
    """String, there while this shard is being given the imported codes of a batch; lost whenever they are."""
    return f"{{s{shard}}}:importing:{batch}"


def users(shard: int, campaign_id: str, bucket: int) -> str:
    """Hash: successes of each user (by digest) in a campaign that limits them."""
    return f"{{s{shard}}}:users:{campaign_id}:{bucket}"


def idempotency_records(shard: int, epoch: int, bucket: int) -> str:
    """Hash with a TTL: idempotency key (by digest) -> fingerprint of the request and the answer."""
    return f"{{s{shard}}}:receipt:{epoch}:{bucket}"


def events(shard: int) -> str:
    """Stream: what happened, one entry for each change of state."""
    return f"{{s{shard}}}:events"


def holds(shard: int) -> str:
    """Hash: hold id -> its record; of one that has expired, that it has, for a day (lua/lib/holds.lua)."""
    return f"{{s{shard}}}:holds"


def holds_expiry(shard: int) -> str:
    """Sorted set: hold id -> when it expires, or its trace is removed (ms since the epoch)."""
    return f"{{s{shard}}}:holds:expiry"


def held(shard: int) -> str:
    """Hash: what is held -> hold id. A code that is used whole, or one order's part of another."""
    return f"{{s{shard}}}:held"


def rolled_back(shard: int, batch: int) -> str:
    """Hash: redemption (its id) -> how much of it was given back; 0 where it had no amount."""
    return f"{{s{shard}}}:rolled_back:{batch}"


def rebuilding(shard: int) -> str:
    """String, there while the shard is being made again from PostgreSQL: nothing is published to it."""
    return f"{{s{shard}}}:rebuilding"


def commit_records(shard: int) -> str:
    """Hash: combined redemption over several shards -> how far it is (lua/cross_shard.lua)."""
    return f"{{s{shard}}}:spans"


def expiry_owner() -> str:
    """String with a TTL: the worker that gives back expired holds at the moment."""
    return "{s0}:sweeper"


def of_every_script(shard: int) -> list[str]:
    """The keys that every script about codes takes first, in its order."""
    return [events(shard), version(shard), holds(shard), holds_expiry(shard), held(shard)]
