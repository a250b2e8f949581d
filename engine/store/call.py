"""Builds one script call: its keys and the fields of its attempts (lua/lib/preamble.lua)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

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
_NAMES_MAX: Final = 1024
_WORDS: Final = 3  # FCALL, the function, and how many keys there are
pack_columns: Final = msgspec.msgpack.Encoder().encode
"""Packs all columns into one array: much cheaper than one argument for each field."""


class CallFrame:
    """The parts that all calls of a script on a shard have in common, packed once.

    Attributes:
        positions: of the keys of every script in KEYS.
        own_columns: how many columns only this script has.
        function, keys: the name of the function, and those keys.
        names: keys of earlier calls, packed. Mostly calls are about the same campaigns and batches.
    """

    def __init__(self, script: Script, shard: int) -> None:
        names = keys.of_every_script(shard)
        self.shard = shard
        self.positions = {name: position for position, name in enumerate(names, start=1)}
        self.own_columns = len(script.attempt) - len(COLUMNS)
        self.function = _packed("FCALL", script.library)
        self.keys = _packed(*names)
        self.names: dict[str, bytes] = {}
        self._arguments = b""
        self._arguments_of = (0, 0)

    def packed_name(self, name: str) -> bytes:
        """The name of a key, packed."""
        packed = self.names.get(name)
        if packed is None:
            if len(self.names) >= _NAMES_MAX:
                self.names.clear()
            packed = self.names[name] = _packed(name)
        return packed

    def arguments(self, version: int, epoch: int) -> bytes:
        """The arguments of SIGNATURE before the last."""
        if self._arguments_of != (version, epoch):
            self._arguments = _packed(self.shard, version, epoch, keys.IDEMPOTENCY_WINDOW_S)
            self._arguments_of = version, epoch
        return self._arguments


class Call:
    """A call that attempts write their fields into.

    Attributes:
        shard: of all its keys.
        epoch: the epoch of idempotency records written by this call.
        campaign_at, state_at, offset, about, cause: the fields that each attempt has, in their order.
        amount, used_at, used_field, users_at, user_digest_at, idempotency_at, idempotency_digest_at: the
            fields that some attempts have, by the attempt's number.
        own_fields: the fields that only this script has: those of the first attempt, those of the next, …
        names: its own keys, after those of every script, packed.
        records: positions of idempotency records, by bucket.
        raws: arguments that are not text, packed.
    """

    __slots__ = (
        *("_columns", "_frame", "_positions", "epoch", "names", "own_fields", "raws", "records", "shard"),
        *COLUMNS,
    )
    campaign_at: list[int]
    state_at: list[int]
    offset: list[int]
    about: list[str]
    cause: list[str]
    amount: dict[int, str]
    used_at: dict[int, int]
    used_field: dict[int, int]
    users_at: dict[int, int]
    user_digest_at: dict[int, int]
    idempotency_at: dict[int, int]
    idempotency_digest_at: dict[int, int]

    def __init__(self, frame: CallFrame, epoch: int) -> None:
        self._frame = frame
        self.shard = frame.shard
        self.epoch = epoch
        self.own_fields: list[str | int] = []
        columns: tuple[Any, ...] = ([], [], [], [], [], {}, {}, {}, {}, {}, {}, {})
        (
            self.campaign_at, self.state_at, self.offset, self.about, self.cause,
            self.amount, self.used_at, self.used_field, self.users_at, self.user_digest_at,
            self.idempotency_at, self.idempotency_digest_at,
        ) = self._columns = columns  # fmt: skip
        self.names: list[bytes] = []
        self._positions = frame.positions.copy()
        self.records: dict[int, int] = {}
        self.raws: list[bytes] = []

    def key(self, name: str) -> int:
        """Position of a key in KEYS; adds the key if it is new."""
        position = self._positions.get(name)
        if position is None:
            self.names.append(self._frame.packed_name(name))
            position = self._positions[name] = len(self._frame.positions) + len(self.names)
        return position

    def records_at(self, bucket: int) -> int:
        """Position in KEYS of a bucket of idempotency records; after it is that of the window before."""
        position = self.records.get(bucket)
        if position is None:
            for epoch in (self.epoch, self.epoch - 1):
                self.names.append(_packed(keys.idempotency_records(self.shard, epoch, bucket)))
            position = self.records[bucket] = len(self._frame.positions) + len(self.names) - 1
        return position

    def raw(self, data: bytes) -> int:
        """Add bytes that are not text as an argument, and return its position in ARGV."""
        self.raws.append(_packed(data))
        return len(SIGNATURE) + len(self.raws)

    def command(self, version: int) -> bytes:
        """The FCALL command in the Redis protocol."""
        frame, own = self._frame, self.own_fields
        own_columns = (own[at :: frame.own_columns] for at in range(frame.own_columns))
        columns = pack_columns((*self._columns, *own_columns))
        key_count = len(frame.positions) + len(self.names)
        words = _WORDS + key_count + len(SIGNATURE) + len(self.raws)
        return b"".join(
            (
                b"*%d\r\n%b$%d\r\n%d\r\n" % (words, frame.function, len(str(key_count)), key_count),
                frame.keys,
                *self.names,
                frame.arguments(version, self.epoch),
                b"$%d\r\n%b\r\n" % (len(columns), columns),
                *self.raws,
            )
        )


def _packed(*words: str | bytes | int) -> bytes:
    """Words of a command in the Redis protocol."""
    _, _, packed = pack(*words).partition(b"\r\n")
    return packed
