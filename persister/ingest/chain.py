"""The hash chain over a shard's ledger: a change to any row changes every digest after it.

A link covers the rows of one transaction of the persister, ``first_seq`` to ``last_seq``:

    digest = SHA-256("redeem ledger 1" ‖ digest before ‖ column ‖ column ‖ …)

For the first link, the digest before is 32 zero bytes. The columns are ``entries.CHAINED_COLUMNS`` in order,
without ``user_seal``, and without ``hold`` if it is null in all rows. Each column is its length in bytes
(8 bytes, big-endian), then the values of all rows:

* ``shard``, ``stream_ms``, ``stream_seq``, ``seq``, ``batch``, ``serial``, ``at_ms``: 8 bytes each, signed,
  big-endian;
* ``user_id``: 32 bytes each, SHA-256(seal ‖ UTF-8 of the user), the seal being 16 random bytes in the row;
* all others: UTF-8, with NUL between two values; numbers in decimal. Null is empty. In a column that may be
  null, an empty text is one NUL.

An erasure replaces the user with a pseudonym and the seal with that SHA-256, which is 32 bytes. The chain
stays valid. Without the 16 bytes, nobody can test whether a name was the erased one.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from engine.queries import queries
from persister.ingest.entries import CHAINED_COLUMNS, SALT_BYTES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.postgres_types import Connection

_SQL: Final = queries(__package__, "ledger")
CHAIN_BEGINNING: Final = bytes(32)
"""The digest before the first link."""

REMAINING_LINK_ROWS: Final = 5000
_HEAD: Final = b"redeem ledger 1"
_INTEGERS: Final = frozenset({"shard", "stream_ms", "stream_seq", "seq", "batch", "serial", "at_ms"})
_NULLABLE: Final = frozenset({"amount", "currency", "order_ref", "idempotency_key", "hold"})


def link_digest(before: bytes, columns: Sequence[Sequence[Any]]) -> bytes:
    """The digest of a link. ``columns``: all rows' values of ``CHAINED_COLUMNS``, and perhaps others."""
    named = dict(zip(CHAINED_COLUMNS, columns, strict=False))
    digest = hashlib.sha256(_HEAD + before)
    for name in CHAINED_COLUMNS[:-1]:
        if name == "hold" and all(hold is None for hold in named[name]):
            continue  # links that are older than the column have the same digest as before
        if name == "user_id":
            content = seal_users(named[name], named["user_seal"])
        elif name in _INTEGERS:
            content = np.array(named[name], ">i8").tobytes()
        else:
            content = _texts(named[name], nullable=name in _NULLABLE)
        digest.update(len(content).to_bytes(8))
        digest.update(content)
    return digest.digest()


async def digest_remaining_rows(
    connection: Connection,
    shard: int,
    until_seq: int,
    until_ms: int = 0,
    campaigns: Sequence[str] = (),
) -> tuple[int, bytes]:
    """Count and digest the rows up to ``until_seq``, as they are once ``campaigns`` were archived.

    Leaves out the rows of these campaigns before ``until_ms`` (ms since the epoch).

    The digest is the last one of a chain over them, in links of ``REMAINING_LINK_ROWS`` rows.
    """
    digest, count = CHAIN_BEGINNING, 0
    rows: list[Any] = []
    async for row in connection.cursor(
        _SQL["remaining_rows"], shard, until_seq, until_ms, list(campaigns), prefetch=REMAINING_LINK_ROWS
    ):
        rows.append(row)
        if len(rows) == REMAINING_LINK_ROWS:
            digest, count, rows = link_digest(digest, list(zip(*rows, strict=True))), count + len(rows), []
    if rows:
        digest, count = link_digest(digest, list(zip(*rows, strict=True))), count + len(rows)
    return count, digest


def seal_users(users: Sequence[str], seals: Sequence[bytes]) -> bytes:
    """What the chain holds of each user: 32 bytes, in the order of the rows."""
    sha256 = hashlib.sha256
    return b"".join(
        [
            sha256(seal + user.encode()).digest() if len(seal) == SALT_BYTES else seal
            for user, seal in zip(users, seals, strict=True)
        ]
    )


def _texts(values: Sequence[Any], *, nullable: bool) -> bytes:
    if nullable:
        values = ["" if value is None else str(value) or "\0" for value in values]
    return "\0".join(values).encode()
