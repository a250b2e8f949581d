"""Dumps PostgreSQL and Redis as text: everything that a thief of both would have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Collection

    from redis.asyncio import Redis

    from engine.control.change import ControlPlane


async def dump_of_database(plane: ControlPlane, *, but: Collection[str] = ()) -> str:
    """Return every row of every table as JSON, but for some tables; bytes are hex."""
    async with plane.database.connection() as connection:
        tables = await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        rows = [
            await connection.fetch(f'SELECT to_json(t) FROM "{name}" t')  # noqa: S608 - from the catalogue
            for (name,) in tables
            if name not in but
        ]
    return str(rows)


async def dump_of_redis(redis: Redis) -> str:
    """Return every key and its value in order, uncompressed (DUMP would compress them)."""
    found: list[Any] = []
    async for key in redis.scan_iter():
        kind: Any = await redis.type(key)
        if kind == b"hash":
            found.append((key, sorted((await redis.hgetall(key)).items())))
        elif kind == b"zset":
            found.append((key, await redis.zrange(key, 0, -1, withscores=True)))
        elif kind == b"stream":
            found.append((key, await redis.xrange(key)))
        else:
            assert kind == b"string"
            found.append((key, await redis.get(key)))
    return str(sorted(found))
