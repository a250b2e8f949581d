"""A background task that fails or ends is started again, and ends with its block."""

from __future__ import annotations

import asyncio
import errno
from typing import TYPE_CHECKING

from engine.processes.background import in_background
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    import pytest


async def test_work_that_fails_or_ends_is_started_again(caplog: pytest.LogCaptureFixture) -> None:
    starts = 0

    async def work() -> None:
        nonlocal starts
        starts += 1
        if starts == 1:
            raise OSError(errno.EMFILE, "Too many open files")
        if starts > 2:
            await asyncio.Event().wait()

    async with in_background(work):
        await wait_until_async(lambda: starts == 3)
    assert [record.getMessage() for record in caplog.records] == [
        "a background task failed; it is started again",
        "a background task has ended; it is started again",
    ]
