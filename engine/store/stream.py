"""What Redis says of a shard's event stream."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from redis.exceptions import ResponseError

from engine.store import keys

if TYPE_CHECKING:
    from redis.asyncio import Redis

NO_STREAM: Final = "no such key"
"""Part of Redis's error text for a stream that does not exist."""


class StreamFacts(NamedTuple):
    """A stream as ``XINFO STREAM`` shows it. One that does not exist is empty.

    Attributes:
        last: id of the newest entry ever added.
        added: number of entries ever added.
        length: number of entries that are in it now.
    """

    last: bytes = b"0-0"
    added: int = 0
    length: int = 0

    @property
    def removed(self) -> int:
        """Number of entries that were in it and are no longer."""
        return self.added - self.length

    def missing_from(self, persisted: int) -> int:
        """Number of entries that are neither in the stream nor in a ledger that has ``persisted`` of them.

        There are none, unless PostgreSQL came back without its latest transactions: only what is in the
        ledger is trimmed. Ask Redis first and PostgreSQL second: then events that are persisted meanwhile do
        not count.
        """
        return max(0, self.removed - persisted)


def parse_stream(reply: Any) -> StreamFacts:  # noqa: ANN401 - whatever Redis sent
    """Parse the reply to ``XINFO STREAM``: a mapping, or an error.

    Raises:
        Exception: the reply, if it is any other error than that there is no stream.
    """
    if isinstance(reply, ResponseError) and NO_STREAM in str(reply):
        return StreamFacts()
    if isinstance(reply, Exception):
        raise reply
    return StreamFacts(reply["last-generated-id"], int(reply["entries-added"]), int(reply["length"]))


async def read_stream(redis: Redis, shard: int) -> StreamFacts:
    """Read a shard's stream.

    Raises:
        RedisError, OSError: Redis cannot be asked.
    """
    try:
        return parse_stream(await redis.xinfo_stream(keys.events(shard)))
    except ResponseError as error:
        return parse_stream(error)
