"""Reads and writes endpoints, their progress and the results of attempts in PostgreSQL.

A cursor moves only from the value that the deliverer read, so a replay requested meanwhile wins.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, NamedTuple

from engine.control.alerts import alert_of_row
from engine.ledger.feed import FeedPage, parse_cursor, read_page
from engine.queries import queries
from persister.webhooks import messages
from persister.webhooks.endpoint import Endpoint, EndpointProgress

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from engine.ledger.feed import Cursor, FeedEvent
    from engine.postgres_types import Connection, Pool
    from persister.webhooks.messages import WebhookMessage
    from persister.webhooks.sender import DeliveryResult

_SQL: Final = queries(__package__, "delivery")
SINGLE_PAGE_EVENTS: Final = 100
"""Events read in one query for an endpoint without batches."""
RANGE_EVENTS: Final = 1000
MOVED: Final = "UPDATE 1"
GONE: Final = "its events are not in the ledger any more, or its alert was deleted"


class PendingReplay(NamedTuple):
    """A dead letter to deliver again. ``message`` None: its events or its alert are there no longer."""

    id: int
    attempts: int
    message: WebhookMessage | None


async def read_endpoints(connection: Connection) -> dict[str, Endpoint]:
    """All enabled endpoints, by id."""
    rows = await connection.fetch(_SQL["endpoints"])
    return {row["id"]: Endpoint.of(row) for row in rows}


async def read_endpoint(connection: Connection, endpoint_id: str) -> Endpoint | None:
    """One endpoint, also if it is disabled. None: there is none."""
    row = await connection.fetchrow(_SQL["one_endpoint"], endpoint_id)
    return None if row is None else Endpoint.of(row)


class DeliveryStore:
    """Queries of the endpoints' tasks. Each takes a connection from the pool only while it runs."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def progress(self, endpoint: Endpoint) -> EndpointProgress | None:
        """Progress of an endpoint. None: the endpoint was removed."""
        async with self._pool.acquire() as connection:
            row = await connection.fetchrow(_SQL["progress"], endpoint.id)
        return None if row is None else EndpointProgress.of(row)

    async def behind(self, endpoint: Endpoint, cursor: Cursor) -> tuple[list[WebhookMessage], Cursor]:
        """Messages after a cursor, and the cursor after the events read for them.

        For an endpoint with batches, at most one message.
        """
        async with self._pool.acquire() as connection:
            limit = endpoint.batch_max or SINGLE_PAGE_EVENTS
            page = await read_page(connection, cursor, limit, endpoint.types, endpoint.campaigns)
        if endpoint.batch_max is None or not page.items:
            return messages.event_messages(cursor, page), page.next
        return [messages.batch_message(cursor, page.items, page.next)], page.next

    async def begin(self, endpoint: Endpoint, written: Cursor, message: WebhookMessage) -> None:
        """Store where the next message begins and its batch ends, so that it is the same after a crash."""
        pending = None if endpoint.batch_max is None else str(message.until)
        async with self._pool.acquire() as connection:
            await connection.execute(_SQL["begin"], endpoint.id, str(written), str(message.after), pending)

    async def begun(self, endpoint: Endpoint, after: Cursor, until: Cursor) -> list[WebhookMessage]:
        """The batch that was begun at this cursor, unchanged."""
        async with self._pool.acquire() as connection:
            items = await _events_between(connection, endpoint, after, until)
        return [messages.batch_message(after, items, until)] if items else []

    async def next_replay(self, endpoint: Endpoint) -> PendingReplay | None:
        """The oldest dead letter to deliver again, if any."""
        async with self._pool.acquire() as connection:
            row = await connection.fetchrow(_SQL["replay"], endpoint.id)
            if row is None:
                return None
            about = messages.parse_alert_message(row["message"])
            if about is not None:
                message = await _about_alert(connection, endpoint, *about)
                return PendingReplay(row["id"], row["attempts"], message)
            after, until = parse_cursor(row["after"]), parse_cursor(row["until"])
            items = [
                item
                for item in await _events_between(connection, None, after, until)
                if str(item.event.id) in row["events"]
            ]
        message = None
        if len(items) == 1 and len(row["events"]) == 1:
            [message] = messages.event_messages(after, FeedPage(items, until))
        elif items:
            message = messages.batch_message(after, items, until)
        return PendingReplay(row["id"], row["attempts"], message)

    async def passed(self, endpoint: Endpoint, after: Cursor, until: Cursor) -> None:
        """Move the cursor past events that this endpoint does not want."""
        async with self._pool.acquire() as connection:
            await connection.execute(_SQL["passed"], endpoint.id, str(after), str(until))

    async def delivered(
        self, endpoint: Endpoint, message: WebhookMessage, attempt: int, result: DeliveryResult
    ) -> bool:
        """Store a success and move the cursor. False: someone moved the cursor meanwhile."""
        places = (str(message.after), str(message.until))
        async with self._noting(endpoint, message, attempt, result) as connection:
            done = await connection.execute(_SQL["delivered"], endpoint.id, *places)
        return bool(done == MOVED)

    async def failed(
        self,
        endpoint: Endpoint,
        message: WebhookMessage,
        attempt: int,
        result: DeliveryResult,
        pause_s: float,
    ) -> None:
        """Store a failure and the time of the next attempt. Disables an endpoint that is gone."""
        async with self._noting(endpoint, message, attempt, result) as connection:
            await connection.execute(_SQL["failed"], endpoint.id, str(message.after), pause_s)
            if result.gone:
                await connection.execute(_SQL["disable"], endpoint.id, result.error)

    async def given_up(
        self, endpoint: Endpoint, message: WebhookMessage, attempt: int, result: DeliveryResult
    ) -> None:
        """Store the last failure, keep the message as a dead letter, and move the cursor."""
        async with self._noting(endpoint, message, attempt, result) as connection:
            await connection.execute(
                _SQL["given_up"],
                endpoint.id,
                str(message.after),
                str(message.until),
                message.id,
                list(message.events),
                attempt,
                result.error,
            )

    async def replayed(
        self, endpoint: Endpoint, letter: PendingReplay, result: DeliveryResult | None
    ) -> None:
        """Store the result of a replay: a delivered dead letter is removed. None: its events are lost."""
        async with self._pool.acquire() as connection, connection.transaction():
            if letter.message is not None and result is not None:
                await note_attempt(connection, endpoint, letter.message, letter.attempts + 1, result)
            error = GONE if result is None else result.error
            if error is None:
                await connection.execute(_SQL["replayed"], letter.id)
            else:
                await connection.execute(_SQL["replay_failed"], letter.id, error)

    @asynccontextmanager
    async def _noting(
        self, endpoint: Endpoint, message: WebhookMessage, attempt: int, result: DeliveryResult
    ) -> AsyncIterator[Connection]:
        """A transaction that stores an attempt and what the block adds."""
        async with self._pool.acquire() as connection, connection.transaction():
            await note_attempt(connection, endpoint, message, attempt, result)
            yield connection


async def note_attempt(
    connection: Connection,
    endpoint: Endpoint,
    message: WebhookMessage,
    attempt: int,
    result: DeliveryResult,
) -> None:
    """Store one attempt. ``attempt``: 1, 2, 3 … of this message."""
    await connection.execute(
        _SQL["attempt"],
        endpoint.id,
        message.id,
        len(message.events),
        attempt,
        result.at,
        result.duration_ms,
        result.status,
        result.error,
        result.response,
    )


async def _about_alert(
    connection: Connection, endpoint: Endpoint, number: int, message_type: str
) -> WebhookMessage | None:
    """The message about an alert. None: the alert was deleted."""
    row = await connection.fetchrow(_SQL["alert"], number)
    if row is None:
        return None
    as_batch = endpoint.batch_max is not None
    return messages.alert_message(alert_of_row(row), message_type, as_batch=as_batch)


async def _events_between(
    connection: Connection,
    endpoint: Endpoint | None,
    after: Cursor,
    until: Cursor,
) -> list[FeedEvent]:
    """Events between two cursors: all, or those that an endpoint wants."""
    types, campaigns = (endpoint.types, endpoint.campaigns) if endpoint is not None else (None, None)
    found: list[FeedEvent] = []
    while not after.reaches(until):
        page = await read_page(connection, after, RANGE_EVENTS, types, campaigns)
        found += [item for item in page.items if item.seq <= until.of(item.event.id.shard)]
        if page.next == after:
            break
        after = page.next
    return found
