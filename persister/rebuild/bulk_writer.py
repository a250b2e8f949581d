"""Sends commands to Redis by the megabyte: a thread waits for replies while the next commands are made.

Hash fields are collected first, as one HSET with many fields costs little more than one with a single field.
Unflushed commands may be lost, so the caller starts again after an error.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final

import hiredis
from redis import Redis

from persister.servers import REPLY_TIMEOUT_S

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

FIELDS_MAX: Final = 1 << 18  # collected: about 80 MB
SENT_BYTES: Final = 1 << 20  # sent together; at most twice that is in memory

Value = str | bytes | int


@contextlib.asynccontextmanager
async def open_bulk_writer(redis_url: str) -> AsyncIterator[BulkWriter]:
    """Open a writer, and flush it when the block ends.

    Raises:
        RedisError: a command failed or there is no connection. Any call of the writer may raise it.
    """
    redis = Redis.from_url(redis_url, socket_timeout=REPLY_TIMEOUT_S)
    writer = BulkWriter(await asyncio.to_thread(redis.connection_pool.get_connection))
    try:
        yield writer
        await writer.flush()
    finally:
        await writer.settle()
        redis.close()


class BulkWriter:
    """Writes over one connection, in the order of the calls. Only hash fields may be written later."""

    def __init__(self, connection: Any) -> None:  # noqa: ANN401 - redis-py has no one type for its connections
        self._connection = connection
        self._fields: defaultdict[str, list[Value]] = defaultdict(list)
        self._gathered = 0
        self._ends: dict[str, int] = {}  # expiry of hashes that have none yet
        self._ending: set[str] = set()  # hashes that have one
        self._packed: list[bytes] = []
        self._bytes = 0
        self._commands = 0
        self._sending: asyncio.Future[None] | None = None

    def put(self, key: str, field: Value, value: Value, ends_at_s: int = 0) -> None:
        """Set a hash field. ``ends_at_s``: when the hash expires (s since the epoch); 0: never.

        Fields are only collected; call ``make_room`` now and then.
        """
        self._fields[key] += (field, value)
        if ends_at_s and key not in self._ending:
            self._ends[key] = ends_at_s
        self._gathered += 1

    async def make_room(self) -> None:
        """Send the collected fields if there are many."""
        if self._gathered >= FIELDS_MAX:
            await self._add_fields()

    async def add(self, *command: Value) -> None:
        """Send any other command, now or with the next ones."""
        packed = hiredis.pack_command(command)  # type: ignore[arg-type] # its stub forgets numbers and lists
        await self.add_packed(packed, 1)

    async def add_packed(self, packed: bytes, commands: int) -> None:
        """Send so many commands, which are packed already."""
        self._packed.append(packed)
        self._bytes += len(packed)
        self._commands += commands
        if self._bytes >= SENT_BYTES:
            await self._send()

    async def flush(self) -> None:
        """Send everything and wait for the replies."""
        await self._add_fields()
        await self._send()
        await self._sent()

    async def settle(self) -> None:
        """Wait for the commands in progress and ignore their errors."""
        if self._sending is not None:
            await asyncio.wait([self._sending])
            self._sending.exception()  # retrieved, so that asyncio does not log it as unhandled

    async def _add_fields(self) -> None:
        fields, self._fields, self._gathered = self._fields, defaultdict(list), 0
        for key, values in fields.items():
            await self.add("HSET", key, *values)
        ends, self._ends = self._ends, {}
        for key, at_s in ends.items():
            await self.add("EXPIREAT", key, at_s)
        self._ending.update(ends)

    async def _send(self) -> None:
        await self._sent()
        packed, commands = b"".join(self._packed), self._commands
        self._packed, self._bytes, self._commands = [], 0, 0
        if packed:
            self._sending = asyncio.ensure_future(asyncio.to_thread(self._exchange, packed, commands))

    async def _sent(self) -> None:
        await self.settle()
        if self._sending is not None:
            sending, self._sending = self._sending, None
            sending.result()

    def _exchange(self, packed: bytes, commands: int) -> None:
        self._connection.send_packed_command([packed])
        for _ in range(commands):
            self._connection.read_response()
