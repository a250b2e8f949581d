"""Calls a composed script as it is, and nothing around it: seed raw keys, run, look at raw keys.

That no stray key is left is checked by the ``redis`` fixture, here as everywhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from redis.asyncio import Redis

    from lua.loader import Script


async def evaluate(
    redis: Redis, script: Script, names: Sequence[str], arguments: Sequence[str | bytes | int]
) -> Any:  # noqa: ANN401 - whatever the script answers
    """EVALSHA with the hash that the loader computed."""
    await redis.script_load(script.source.decode())
    return await redis.evalsha(script.sha, len(names), *names, *arguments)
