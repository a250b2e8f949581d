"""The names of all Redis keys, and the location of a code. No other module builds a key.

``{s<n>}`` is the hash tag of shard ``n``: it keeps all keys of one script call in one slot.
"""

from __future__ import annotations

from typing import Final

import msgspec

from engine.codes.formats import SERIAL_BITS, SERIAL_LIMIT

EVERY_KEY: Final = "{s[0-9]*}:*"
"""Pattern for SCAN: the names of all keys of the engine, and of nothing else."""
SEGMENT_CODES: Final = 1 << 16  # codes of one state string: 2 bits each, 16 KiB
SPENT_SEGMENT_CODES: Final = 1 << 12  # balances of one string: 64 bits each, 32 KiB
USER_BUCKETS: Final = 1 << 16  # hashes over which the per-user counts of a campaign spread
IDEMPOTENCY_WINDOW_S: Final = (
    86_400  # an idempotency record lives one to two windows; its key's name has the number of its window
)
IDEMPOTENCY_BUCKETS: Final = 1 << 16  # hashes over which the idempotency records of one window spread
# Imported codes spread over 65,536 hashes of a shard: small ones (512 fields or fewer) up to 33 million.
_BUCKET_BYTES: Final = 2
_IDENTITY_BYTES: Final = 6

# The state of a code in two bits, as in the scripts (lua/lib/code_state.lua).
FRESH: Final = 0
REDEEMED: Final = 1
HELD: Final = 2
VOID: Final = 3


class CodeLocation(msgspec.Struct, frozen=True, gc=False):
    """Where the state of a code is stored: shard, number of the state string, position in the string."""

    shard: int
    segment: int
    offset: int


def locate_code(serial: int, shards: int, pinned_shard: int | None) -> CodeLocation:
    """Location of a code. All codes of a pinned campaign are on its shard; others take the shards in turn."""
    index = serial // shards if pinned_shard is None else serial
    segment, offset = divmod(index, SEGMENT_CODES)
    return CodeLocation(shard_of(serial, shards, pinned_shard), segment, offset)


def shard_of(serial: int, shards: int, pinned_shard: int | None) -> int:
    """Shard of a code, by its serial."""
    return serial % shards if pinned_shard is None else pinned_shard


def imported_location(digest: bytes, shards: int) -> tuple[int, int]:
    """Shard and bucket of an imported code in the index. Its state may be on another shard."""
    return int.from_bytes(digest[-4:]) % shards, int.from_bytes(digest[:_BUCKET_BYTES])


def imported_field(digest: bytes) -> bytes:
    """Hash field of an imported code: the digest without its bucket prefix."""
    return digest[_BUCKET_BYTES:]


def imported_value(batch: int, serial: int) -> bytes:
    """Hash value of an imported code: batch and serial in 6 bytes, big-endian."""
    return (batch << SERIAL_BITS | serial).to_bytes(_IDENTITY_BYTES)


def imported_identity(value: bytes) -> tuple[int, int]:
    """Batch and serial of an ``imported_value``."""
    number = int.from_bytes(value)
    return number >> SERIAL_BITS, number & (SERIAL_LIMIT - 1)


def version(shard: int) -> str:
    """String: version of the shard's configuration. A script refuses a call with an older version."""
    return f"{{s{shard}}}:version"


def deployment(shard: int) -> str:
    """String: id of the deployment that the shard belongs to (``store.deployment_id``)."""
    return f"{{s{shard}}}:deployment"


def control() -> str:
    """Hash: the configuration, ``key:<id>``, ``campaign:<id>``, ``batch:<id>`` and others -> JSON."""
    return "{s0}:control"


def control_changed() -> str:
    """Sorted set: fields of the control hash -> the version of their last change."""
    return "{s0}:control:changed"


def campaign(shard: int, campaign_id: str) -> str:
    """Hash: a campaign's configuration and counters, as the scripts read them."""
    return f"{{s{shard}}}:campaign:{campaign_id}"


def state(shard: int, batch: int, segment: int) -> str:
    """String, BITFIELD u2: the state of each code of a segment."""
    return f"{{s{shard}}}:state:{batch}:{segment}"


def uses(shard: int, batch: int) -> str:
    """Hash: serial -> number of uses, for codes of kind ``multi``."""
    return f"{{s{shard}}}:uses:{batch}"


def spent(shard: int, batch: int, segment: int) -> str:
    """String, BITFIELD i64: the amount spent of each ``balance`` code. A missing entry reads as 0."""
    return f"{{s{shard}}}:spent:{batch}:{segment}"


def spent_location(spot: CodeLocation) -> tuple[int, int]:
    """Number of a code's spent string, and its position in the string."""
    return divmod(spot.segment * SEGMENT_CODES + spot.offset, SPENT_SEGMENT_CODES)


def imported(shard: int, bucket: int) -> str:
    """Hash: digest of an imported code -> batch and serial. Entries never change. PostgreSQL has a copy."""
    return f"{{s{shard}}}:imported:{bucket}"


def imports(shard: int) -> str:
    """Hash: batch -> number of codes, for batches whose imported codes of this shard are all in the index."""
    return f"{{s{shard}}}:imports"


def importing(shard: int, batch: int) -> str:
    """String: exists while a batch is being imported. If Redis loses the codes, it loses this key too."""
    return f"{{s{shard}}}:importing:{batch}"


def users(shard: int, campaign_id: str, bucket: int) -> str:
    """Hash: digest of a user -> successes, for a campaign with a limit per user."""
    return f"{{s{shard}}}:users:{campaign_id}:{bucket}"


def idempotency_records(shard: int, epoch: int, bucket: int) -> str:
    """Hash with a TTL: digest of an idempotency key -> fingerprint of the request and its answer."""
    return f"{{s{shard}}}:receipt:{epoch}:{bucket}"


def events(shard: int) -> str:
    """Stream: the events of the shard, one entry for each change of state."""
    return f"{{s{shard}}}:events"


def holds(shard: int) -> str:
    """Hash: hold id -> its record. For a day after expiry, a mark replaces the record (lua/lib/holds.lua)."""
    return f"{{s{shard}}}:holds"


def holds_expiry(shard: int) -> str:
    """Sorted set: hold id -> when it expires, or when its mark is removed (ms since the epoch)."""
    return f"{{s{shard}}}:holds:expiry"


def held(shard: int) -> str:
    """Hash: held code -> hold id. For codes other than ``single`` the field also names the order.

    Of a code that is prepared for a cross-shard transaction another field has how many times it is.
    """
    return f"{{s{shard}}}:held"


def rolled_back(shard: int, batch: int) -> str:
    """Hash: redemption id -> amount given back so far; 0 if the redemption has no amount."""
    return f"{{s{shard}}}:rolled_back:{batch}"


def rebuilding(shard: int) -> str:
    """String: exists while the shard is rebuilt from PostgreSQL. Nothing is published to the shard then."""
    return f"{{s{shard}}}:rebuilding"


def commit_records(shard: int) -> str:
    """Hash: cross-shard transaction -> its commit record (lua/cross_shard.lua)."""
    return f"{{s{shard}}}:spans"


def prepared(shard: int) -> str:
    """Hash: nonce -> the codes of this shard that are prepared for a transaction (lua/lib/prepared.lua)."""
    return f"{{s{shard}}}:prepared"


def expiry_owner() -> str:
    """String with a TTL: the worker that currently ends expired holds."""
    return "{s0}:sweeper"


def used_link(nonce: str) -> str:
    """String with a TTL: exists once a sign-in link with this nonce was used (engine/pages/sessions.py)."""
    return f"{{s0}}:used_link:{nonce}"


def ended_session(nonce: str) -> str:
    """String with a TTL: exists once somebody has signed out of this session (engine/pages/sessions.py)."""
    return f"{{s0}}:ended_session:{nonce}"


def live_second(second: int) -> str:
    """Hash with a TTL: what all workers counted in a second since the epoch (engine/pages/live_counts.py)."""
    return f"{{s0}}:live:{second}"


def guard_limit(limit: str, source: str) -> str:
    """String with a TTL: when the bucket of a source is full again, in microseconds (lua/guard.lua)."""
    return f"{{s0}}:guard:{limit}:{source}"


def guard_used_challenge(nonce: str) -> str:
    """String with a TTL: exists once a solution of this challenge was given (engine/guard/challenges.py)."""
    return f"{{s0}}:guard:used_challenge:{nonce}"


def guard_observed() -> str:
    """Hash: rule of the guard -> what it would have done if it had been enforced."""
    return "{s0}:guard:observed"


def guard_attempts() -> str:
    """Stream with a TTL: the latest attempts that workers tell each other (``guard.shared_attempts``)."""
    return "{s0}:guard:attempts"


def of_every_script(shard: int) -> list[str]:
    """The keys that every script about codes takes first, in this order."""
    return [events(shard), version(shard), holds(shard), holds_expiry(shard), held(shard)]
