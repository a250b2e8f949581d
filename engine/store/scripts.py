"""Runs a script through redis-py: for calls off the redeem path, which uses ``link`` and ``batcher``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from redis.exceptions import NoScriptError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from redis.asyncio import Redis

    from lua.loader import Script


async def run_script(
    redis: Redis, script: Script, names: Sequence[str], arguments: Sequence[str | bytes | int]
) -> Any:  # noqa: ANN401 - the script's answer
    """Call a script with the names of its keys and its arguments. If Redis does not know it, load it first.

    Raises:
        RedisError, OSError: Redis cannot be asked, or the script failed.
    """
    try:
        return await redis.evalsha(script.sha, len(names), *names, *arguments)
    except NoScriptError:
        await redis.script_load(script.source.decode())
        return await redis.evalsha(script.sha, len(names), *names, *arguments)
