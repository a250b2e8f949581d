"""Checks the keys that a test leaves in Redis: each must be the engine's, and a temporary key must expire.

The name patterns come from the functions of ``engine.store.keys``, called with placeholders. So a new kind of
key is known here as soon as it has a function there.
"""

from __future__ import annotations

import inspect
import itertools
import re
import typing
from typing import TYPE_CHECKING, Any, Final

from engine.store import keys

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis.asyncio import Redis

# The kinds of keys that expire, within two idempotency record windows; all others must have no TTL.
TEMPORARY: Final[frozenset[Callable[..., str]]] = frozenset(
    (
        *(keys.idempotency_records, keys.expiry_owner, keys.guard_limit, keys.guard_attempts),
        *(keys.guard_used_challenge, keys.used_link, keys.ended_session, keys.live_second),
    )
)
_NO_EXPIRY: Final = -1
SCAN_COUNT: Final = 1000
_FIRST_NUMBER: Final = 7_000_001  # placeholders start here: no real name contains such a number


def _pattern(function: Callable[..., str]) -> str:
    """Return a regular expression for the names that a key function builds."""
    hints = typing.get_type_hints(function)
    numbers = itertools.count(_FIRST_NUMBER)
    placeholders: dict[str, Any] = {
        name: next(numbers) if hints[name] is int else f"text{next(numbers)}"
        for name in inspect.signature(function).parameters
    }
    name = re.escape(function(**placeholders))
    for placeholder in placeholders.values():
        name = name.replace(str(placeholder), r"\d+" if isinstance(placeholder, int) else r"[^:{}]+")
    return name


_FUNCTIONS: Final[list[Callable[..., str]]] = [
    function
    for _, function in inspect.getmembers(keys, inspect.isfunction)
    if typing.get_type_hints(function).get("return") is str
]
ENDING: Final = re.compile("|".join(_pattern(function) for function in TEMPORARY))
STAYING: Final = re.compile(
    "|".join(_pattern(function) for function in _FUNCTIONS if function not in TEMPORARY)
)


async def complaints(redis: Redis, *, idempotency_window_s: int) -> list[str]:
    """Return what is wrong with the keys: unknown names, and wrong or missing expiry."""
    names: list[bytes] = [name async for name in redis.scan_iter(count=SCAN_COUNT)]
    found = []
    for start in range(0, len(names), SCAN_COUNT):
        some = names[start : start + SCAN_COUNT]
        async with redis.pipeline(transaction=False) as pipeline:
            for raw in some:
                pipeline.pttl(raw)
            ttls: list[int] = await pipeline.execute()
        for raw, ttl_ms in zip(some, ttls, strict=True):
            found += _complaints(
                raw.decode(errors="backslashreplace"), ttl_ms, 2 * idempotency_window_s * 1000
            )
    return found


def _complaints(name: str, ttl_ms: int, ttl_ms_max: int) -> list[str]:
    if STAYING.fullmatch(name):
        return [f"{name}: ends in {ttl_ms} ms, and must stay"] if ttl_ms >= 0 else []
    if not ENDING.fullmatch(name):
        return [f"{name}: no function of engine.store.keys makes this name"]
    if ttl_ms == _NO_EXPIRY or ttl_ms > ttl_ms_max:
        return [f"{name}: has a TTL of {ttl_ms} ms, at most two windows are allowed"]
    return []


async def snapshot(redis: Redis) -> dict[bytes, tuple[bytes | None, int]]:
    """Return every key with its content and its expiry time, for comparison."""
    return {name: (await redis.dump(name), await redis.pexpiretime(name)) async for name in redis.scan_iter()}
