"""Runs the deliverer with the settings' retry schedule."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from persister.metrics import serve_metrics
from persister.program import stop_on_signals
from persister.webhooks.deliverer import Deliverer
from persister.webhooks.retry_schedule import parse_retry_schedule

if TYPE_CHECKING:
    from engine.settings import Settings


async def run_deliverer(settings: Settings, database_url: str, stop: asyncio.Event | None = None) -> None:
    """Deliver webhooks until ``stop`` is set; without ``stop``, until SIGTERM or SIGINT.

    Calls in progress then have ``stop_timeout_s`` to end. Undelivered messages wait for the next start.

    Raises:
        SettingsError: ``webhook_retry_s`` is not a list of seconds.
    """
    if stop is None:
        stop = asyncio.Event()
        with stop_on_signals(stop):
            await run_deliverer(settings, database_url, stop)
        return
    schedule = parse_retry_schedule(settings.webhook_retry_s)
    with serve_metrics(settings.host, settings.deliverer_metrics_port):
        await Deliverer(settings, database_url, schedule, stop).run()
