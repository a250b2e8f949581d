"""Builds one script call: its keys and the fields of its attempts (lua/lib/preamble.lua)."""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING, Final

import msgspec

from engine.store import keys
from engine.store.link import pack

if TYPE_CHECKING:
    from lua.loader import Script

SIGNATURE: Final = ("shard", "version", "idempotency_epoch", "idempotency_window_s", "packed")
"""The arguments of every script that takes attempts. The bytes that fields point to come after them."""
COLUMNS: Final = (
    *("campaign_at", "state_at", "offset", "about", "cause"),
    *("amount", "used_at", "used_field", "users_at", "user_digest_at"),
    *("idempotency_at", "idempotency_digest_at"),
)
"""The fields of an attempt in every script: each is a column (lua/lib/attempt.lua)."""
_COLUMNS_OF: Final = attrgetter(*COLUMNS)
pack_columns: Final = msgspec.msgpack.Encoder().encode
"""Packs all columns into one array: much cheaper than one argument for each field."""


class Call:
    """A call that attempts write their fields into.

    Attributes:
        shard: of all its keys.
        epoch: the epoch of idempotency records written by this call.
        campaign_at, state_at, offset, about, cause: the fields that each attempt has, in their order.
        amount, used_at, used_field, users_at, user_digest_at, idempotency_at, idempotency_digest_at: the
            fields that some attempts have, by the attempt's number.
        own_fields: the fields that only this script has: those of the first attempt, those of the next, …
        names: KEYS.
        records: positions of idempotency records, by bucket.
        raws: arguments that are not text.
    """

    __slots__ = ("_positions", "epoch", "names", "own_fields", "raws", "records", "shard", *COLUMNS)

    def __init__(self, shard: int, epoch: int) -> None:
        self.shard = shard
        self.epoch = epoch
        self.campaign_at: list[int] = []
        self.state_at: list[int] = []
        self.offset: list[int] = []
        self.about: list[str] = []
        self.cause: list[str] = []
        self.amount: dict[int, str] = {}
        self.used_at: dict[int, int] = {}
        self.used_field: dict[int, int] = {}
        self.users_at: dict[int, int] = {}
        self.user_digest_at: dict[int, int] = {}
        self.idempotency_at: dict[int, int] = {}
        self.idempotency_digest_at: dict[int, int] = {}
        self.own_fields: list[str | int] = []
        self.names = keys.of_every_script(shard)
        self._positions = {name: number for number, name in enumerate(self.names, start=1)}
        self.records: dict[int, int] = {}
        self.raws: list[bytes] = []

    def key(self, name: str) -> int:
        """Position of a key in KEYS; adds the key if it is new."""
        position = self._positions.get(name)
        if position is None:
            self.names.append(name)
            position = self._positions[name] = len(self.names)
        return position

    def records_at(self, bucket: int) -> int:
        """Position in KEYS of a bucket of idempotency records; after it is that of the window before."""
        position = self.records.get(bucket)
        if position is None:
            self.names += (
                keys.idempotency_records(self.shard, each, bucket) for each in (self.epoch, self.epoch - 1)
            )
            position = self.records[bucket] = len(self.names) - 1
        return position

    def raw(self, data: bytes) -> int:
        """Add bytes that are not text as an argument, and return its position in ARGV."""
        self.raws.append(data)
        return len(SIGNATURE) + len(self.raws)

    def command(self, script: Script, shard: int, version: int) -> bytes:
        """The FCALL command in the Redis protocol."""
        names = self.names
        width = len(script.attempt) - len(COLUMNS)
        columns = (*_COLUMNS_OF(self), *(self.own_fields[own::width] for own in range(width)))
        arguments = (shard, version, self.epoch, keys.IDEMPOTENCY_WINDOW_S, pack_columns(columns))
        return pack("FCALL", script.library, len(names), *names, *arguments, *self.raws)
