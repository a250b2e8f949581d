"""Messages: one event or a batch. The same events always give the same message id."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import orjson

from engine.ledger.feed import BEGINNING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.ledger.feed import Cursor, FeedEvent, FeedPage

BATCH_ID_BYTES: Final = 16
PING_ID_BYTES: Final = 8
PING: Final = "ping"
"""The type in a message that is about no event."""


@dataclass(frozen=True, slots=True)
class WebhookMessage:
    """One message.

    Attributes:
        id: its ``webhook-id``, by which the endpoint drops repeats.
        events: the ids of its events.
        body: JSON.
        after: the cursor before its events.
        until: the cursor after its events.
    """

    id: str
    events: tuple[str, ...]
    body: bytes
    after: Cursor
    until: Cursor


def ping_message(endpoint_id: str) -> WebhookMessage:
    """A message about no event, to see whether an endpoint takes messages."""
    body = orjson.dumps({"type": PING, "webhook": endpoint_id})
    return WebhookMessage(f"ping_{secrets.token_hex(PING_ID_BYTES)}", (), body, BEGINNING, BEGINNING)


def event_messages(after: Cursor, page: FeedPage) -> list[WebhookMessage]:
    """One message for each event of a page. Its id is the event's id."""
    found = []
    for number, item in enumerate(page.items, 1):
        last = number == len(page.items)
        until = page.next if last else after.moved(item.event.id.shard, item.seq)
        event_id = str(item.event.id)
        found.append(WebhookMessage(event_id, (event_id,), orjson.dumps(item.document()), after, until))
        after = until
    return found


def batch_message(after: Cursor, items: Sequence[FeedEvent], until: Cursor) -> WebhookMessage:
    """One message of several events. The same events give the same message, in whatever order they come."""
    ordered = sorted(items, key=lambda item: (item.event.id.stream_ms, item.event.id.shard, item.seq))
    ids = tuple(str(item.event.id) for item in ordered)
    digest = hashlib.blake2b(",".join(ids).encode(), digest_size=BATCH_ID_BYTES).hexdigest()
    body = orjson.dumps({"events": [item.document() for item in ordered]})
    return WebhookMessage(f"batch_{digest}", ids, body, after, until)
