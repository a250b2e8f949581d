"""Builds one script call: its keys and the fields of its attempts (lua/lib/preamble.lua)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from engine.store import keys
from engine.store.link import pack

if TYPE_CHECKING:
    from lua.loader import Script

SIGNATURE: Final = ("shard", "version", "idempotency_epoch", "idempotency_window_s", "packed")
"""The arguments of every script that takes attempts. The bytes that fields point to come after them."""
pack_fields: Final = msgspec.msgpack.Encoder().encode
"""Packs the fields of all attempts into one array: much cheaper than one argument for each field."""


class Call:
    """A call that attempts write their fields into.

    Attributes:
        epoch: the epoch of idempotency records written by this call.
        fields: the fields of the attempts so far: integers and text.
    """

    __slots__ = ("_names", "_positions", "_raw", "epoch", "fields")

    def __init__(self, shard: int, epoch: int) -> None:
        self.epoch = epoch
        self.fields: list[str | int] = []
        self._names = keys.of_every_script(shard)
        self._positions = {name: number for number, name in enumerate(self._names, start=1)}
        self._raw: list[bytes] = []

    def key(self, name: str) -> int:
        """Position of a key in KEYS; adds the key if it is new."""
        position = self._positions.get(name)
        if position is None:
            self._names.append(name)
            position = self._positions[name] = len(self._names)
        return position

    def raw(self, data: bytes) -> int:
        """Add bytes that are not text as an argument, and return its position in ARGV."""
        self._raw.append(data)
        return len(SIGNATURE) + len(self._raw)

    def command(self, script: Script, shard: int, version: int) -> bytes:
        """The EVALSHA command in the Redis protocol."""
        names = self._names
        arguments = (shard, version, self.epoch, keys.IDEMPOTENCY_WINDOW_S, pack_fields(self.fields))
        return pack("EVALSHA", script.sha, len(names), *names, *arguments, *self._raw)
