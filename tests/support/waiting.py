"""Waits until a condition holds, instead of sleeping for a fixed time.

The generous time-out only ends a broken test. It limits the whole wait and also each single call of the
predicate, so a wait takes at most twice as long.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from typing import TYPE_CHECKING, Final, TypeVar, overload

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

POLL_S: Final = 0.01
TIMEOUT_S: Final = 30.0

T = TypeVar("T")


def wait_until(predicate: Callable[[], T], timeout_s: float = TIMEOUT_S) -> T:
    """Call the predicate until it returns a true value, and return that value; blocks the thread."""
    deadline = time.monotonic() + timeout_s
    while not (answer := predicate()):
        if time.monotonic() > deadline:
            raise _complaint(predicate, timeout_s, answer)
        time.sleep(POLL_S)
    return answer


@overload
async def wait_until_async(predicate: Callable[[], Awaitable[T]], timeout_s: float = ...) -> T: ...
@overload
async def wait_until_async(predicate: Callable[[], T], timeout_s: float = ...) -> T: ...
async def wait_until_async(
    predicate: Callable[[], Awaitable[object]] | Callable[[], object], timeout_s: float = TIMEOUT_S
) -> object:
    """Call the predicate until it returns a true value, while the event loop runs; it may be async or not."""
    deadline = time.monotonic() + timeout_s
    while True:
        asked = predicate()
        answer = await _in_time(asked, predicate, timeout_s) if inspect.isawaitable(asked) else asked
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise _complaint(predicate, timeout_s, answer)
        await asyncio.sleep(POLL_S)


async def _in_time(asked: Awaitable[object], predicate: Callable[[], object], timeout_s: float) -> object:
    """Await one result of the predicate; raise the complaint if it takes too long."""
    limit = asyncio.timeout(timeout_s)
    try:
        async with limit:
            return await asked
    except TimeoutError:
        if limit.expired():
            raise _complaint(predicate, timeout_s, "none, the call has not returned") from None
        raise


def _complaint(predicate: Callable[[], object], timeout_s: float, last: object) -> AssertionError:
    try:
        what = inspect.getsource(predicate).strip()
    except (OSError, TypeError):
        what = repr(predicate)
    return AssertionError(f"not true after {timeout_s:g} s: {what}\nlast result: {last!r}")
