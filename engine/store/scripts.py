"""Runs a script through redis-py: for calls off the redeem path, which uses ``link`` and ``batcher``.

Also what both need to load scripts: they are functions of Redis, one in each library.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import ResponseError

from lua import loader
from lua.loader import OF_THE_ENGINE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from redis.asyncio import Redis

    from lua.loader import Script

NOT_FOUND: Final = "Function not found"
"""The end of the error of FCALL for a function that Redis does not have."""
ALREADY_LOADED: Final = "already exists"
"""The end of the error of FUNCTION LOAD for a library that another process has loaded meanwhile."""
NO_LIBRARY: Final = "not found"
"""The end of the error of FUNCTION DELETE for a library that another process has deleted meanwhile."""
LIST_LIBRARIES: Final = ("FUNCTION", "LIST", "LIBRARYNAME", f"{OF_THE_ENGINE}_*")
"""Lists the engine's libraries, of all versions."""


def libraries(listed: Sequence[Any]) -> frozenset[str]:
    """The names in a reply to ``LIST_LIBRARIES``, in RESP2: for each library its attributes and values."""
    return frozenset(
        dict(zip(attributes[::2], attributes[1::2], strict=True))[b"library_name"].decode()
        for attributes in listed
    )


def superseded(script: Script, known: frozenset[str]) -> list[str]:
    """The libraries that other versions have of a script."""
    ours = re.compile(re.escape(loader.prefix(script.name)) + "[0-9a-f]{40}")
    return sorted(library for library in known if ours.fullmatch(library) and library != script.library)


async def run_script(
    redis: Redis, script: Script, names: Sequence[str], arguments: Sequence[str | bytes | int]
) -> Any:  # noqa: ANN401 - the script's answer
    """Call a script with the names of its keys and its arguments. If Redis does not know it, load it first.

    Raises:
        RedisError, OSError: Redis cannot be asked, or the script failed.
    """
    try:
        return await redis.fcall(script.library, len(names), *names, *arguments)
    except ResponseError as error:
        if not str(error).endswith(NOT_FOUND):
            raise
    await load(redis, script)
    return await redis.fcall(script.library, len(names), *names, *arguments)


async def load(redis: Redis, script: Script) -> None:
    """Load a script, unless Redis has it.

    Raises:
        RedisError, OSError: Redis cannot be asked, or does not take the script.
    """
    try:
        await redis.function_load(script.source.decode())
    except ResponseError as error:
        if not str(error).endswith(ALREADY_LOADED):
            raise
