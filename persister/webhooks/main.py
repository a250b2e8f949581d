"""Runs the deliverer until told to stop."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from persister.program import stop_on_signals
from persister.webhooks import retry_schedule
from persister.webhooks.deliverer import Deliverer

if TYPE_CHECKING:
    from engine.settings import Settings


async def run(settings: Settings, database_url: str, stop: asyncio.Event | None = None) -> None:
    """Deliver webhooks until ``stop`` is set, or without one until SIGTERM or SIGINT.

    Calls that are under way then have ``stop_timeout_s`` to end. What is not delivered is for the next start.

    Raises:
        SettingsError: ``webhook_retry_s`` is none.
    """
    if stop is None:
        stop = asyncio.Event()
        with stop_on_signals(stop):
            await run(settings, database_url, stop)
        return
    await Deliverer(settings, database_url, retry_schedule.parse(settings.webhook_retry_s), stop).run()
