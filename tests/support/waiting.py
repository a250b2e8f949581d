"""Waits for what a test expects, instead of sleeping and hoping.

The time-out is only there so that a broken test ends: it is generous, and nothing measures it.
It holds for all the asking together and for each single answer, so a wait takes twice as long at most.
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
    """Ask again and again, blocking the thread; returns the first true answer."""
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
    """Ask again and again while the event loop runs; the predicate may be async or not."""
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
    """An answer; the complaint where none comes."""
    limit = asyncio.timeout(timeout_s)
    try:
        async with limit:
            return await asked
    except TimeoutError:
        if limit.expired():
            raise _complaint(predicate, timeout_s, "none, it is still being asked") from None
        raise


def _complaint(predicate: Callable[[], object], timeout_s: float, last: object) -> AssertionError:
    try:
        what = inspect.getsource(predicate).strip()
    except (OSError, TypeError):
        what = repr(predicate)
    return AssertionError(f"not so after {timeout_s:g} s: {what}\nlast answer: {last!r}")
