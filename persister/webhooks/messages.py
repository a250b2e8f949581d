"""What is sent: an event, or a batch of them, with an id that is the same whenever the same is sent again."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import orjson

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.ledger.feed import Cursor, FeedEvent, Page

BATCH_ID_BYTES: Final = 16


@dataclass(frozen=True, slots=True)
class WebhookMessage:
    """One message.

    Attributes:
        id: its ``webhook-id``, by which the endpoint drops what it has already.
        events: the ids of its events.
        body: JSON.
        after: the cursor before it.
        until: the cursor behind it.
    """

    id: str
    events: tuple[str, ...]
    body: bytes
    after: Cursor
    until: Cursor


def event_messages(after: Cursor, page: Page) -> list[WebhookMessage]:
    """A message for each event of a page, whose id is the event's."""
    found = []
    for number, item in enumerate(page.items, 1):
        last = number == len(page.items)
        until = page.next if last else after.moved(item.event.id.shard, item.seq)
        event_id = str(item.event.id)
        found.append(WebhookMessage(event_id, (event_id,), orjson.dumps(item.document()), after, until))
        after = until
    return found


def batch_message(after: Cursor, items: Sequence[FeedEvent], until: Cursor) -> WebhookMessage:
    """One message of several events; the same events make the same message, however they were read."""
    ordered = sorted(items, key=lambda item: (item.event.id.stream_ms, item.event.id.shard, item.seq))
    ids = tuple(str(item.event.id) for item in ordered)
    digest = hashlib.blake2b(",".join(ids).encode(), digest_size=BATCH_ID_BYTES).hexdigest()
    body = orjson.dumps({"events": [item.document() for item in ordered]})
    return WebhookMessage(f"batch_{digest}", ids, body, after, until)
