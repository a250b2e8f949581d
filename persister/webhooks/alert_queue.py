"""The alerts that endpoints are to be told of: each a message of its own, beside the events.

An alert waits for no event, and no event for an alert.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from engine.control.alerts import alert_of_row
from engine.queries import queries
from persister.webhooks.messages import alert_message
from persister.webhooks.store import note_attempt

if TYPE_CHECKING:
    from engine.postgres_types import Connection, Pool
    from persister.webhooks.endpoint import Endpoint
    from persister.webhooks.messages import WebhookMessage
    from persister.webhooks.sender import DeliveryResult

_SQL: Final = queries(__package__, "delivery")


class QueuedAlert(NamedTuple):
    """A message about an alert. ``failures``: failed attempts of it."""

    alert: int
    type: str
    failures: int
    message: WebhookMessage


async def webhooks_with_alerts(connection: Connection) -> set[str]:
    """The enabled endpoints that have an alert to send now."""
    return {row["webhook"] for row in await connection.fetch(_SQL["due_alerts"])}


class AlertQueue:
    """Queries about the alerts of endpoints. Each takes a connection from the pool only while it runs."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def next(self, endpoint: Endpoint) -> QueuedAlert | None:
        """The alert that is due for the longest time, if any."""
        async with self._pool.acquire() as connection:
            row = await connection.fetchrow(_SQL["next_alert"], endpoint.id)
        if row is None:
            return None
        as_batch = endpoint.batch_max is not None
        message = alert_message(alert_of_row(row), row["type"], as_batch=as_batch)
        return QueuedAlert(row["id"], row["type"], row["failures"], message)

    async def note(
        self, endpoint: Endpoint, queued: QueuedAlert, result: DeliveryResult, pause_s: float | None
    ) -> None:
        """Store the result of an attempt.

        ``pause_s``: how long a failed message waits. None: it becomes a dead letter.
        """
        key = (endpoint.id, queued.alert, queued.type)
        attempt = queued.failures + 1
        async with self._pool.acquire() as connection, connection.transaction():
            await note_attempt(connection, endpoint, queued.message, attempt, result)
            if result.error is None:
                await connection.execute(_SQL["alert_done"], *key)
            elif pause_s is None:
                letter = (queued.message.id, list(queued.message.events), attempt, result.error)
                await connection.execute(_SQL["alert_given_up"], *key, *letter)
            else:
                await connection.execute(_SQL["alert_failed"], *key, pause_s)
            if result.gone:
                await connection.execute(_SQL["disable"], endpoint.id, result.error)
