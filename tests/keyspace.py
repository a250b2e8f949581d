"""Every key that a test leaves in Redis must be one of ours, and a temporary one must end.

The names are those that ``engine.keys`` builds: its functions are called with placeholders,
so a new kind of key is known here as soon as it has a function there.
"""

from __future__ import annotations

import inspect
import itertools
import re
import typing
from typing import TYPE_CHECKING, Any, Final

from engine import keys

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis.asyncio import Redis

# The kinds of keys that end by themselves, within two receipt windows; all others must stay.
TEMPORARY: Final = frozenset((keys.receipts, keys.sweeper))
_NO_EXPIRY: Final = -1
_FIRST_NUMBER: Final = 7_000_001  # of the placeholders: no name has such a number of its own


def _pattern(function: Callable[..., str]) -> re.Pattern[str]:
    """What the names of a key function look like."""
    hints = typing.get_type_hints(function)
    numbers = itertools.count(_FIRST_NUMBER)
    placeholders: dict[str, Any] = {
        name: next(numbers) if hints[name] is int else f"text{next(numbers)}"
        for name in inspect.signature(function).parameters
    }
    name = re.escape(function(**placeholders))
    for placeholder in placeholders.values():
        name = name.replace(str(placeholder), r"\d+" if isinstance(placeholder, int) else r"[^:{}]+")
    return re.compile(name)


PATTERNS: Final = {
    function: _pattern(function)
    for _, function in inspect.getmembers(keys, inspect.isfunction)
    if typing.get_type_hints(function).get("return") is str
}


async def complaints(redis: Redis, *, receipt_window_s: int) -> list[str]:
    """What is wrong with the keys there are: strangers, and those that end too late, or at all."""
    found = []
    async for raw in redis.scan_iter(count=1000):
        name = raw.decode(errors="backslashreplace")
        kinds = [function for function, pattern in PATTERNS.items() if pattern.fullmatch(name)]
        ttl_ms = await redis.pttl(raw)
        if not kinds:
            found.append(f"{name}: no function of engine.keys makes this name")
        elif TEMPORARY.isdisjoint(kinds):
            if ttl_ms >= 0:
                found.append(f"{name}: ends in {ttl_ms} ms, and must stay")
        elif ttl_ms == _NO_EXPIRY or ttl_ms > 2 * receipt_window_s * 1000:
            found.append(f"{name}: has a TTL of {ttl_ms} ms, at most two windows are allowed")
    return found


async def snapshot(redis: Redis) -> dict[bytes, tuple[bytes | None, int]]:
    """Every key with its content and the time it ends at, to compare."""
    return {name: (await redis.dump(name), await redis.pexpiretime(name)) async for name in redis.scan_iter()}
