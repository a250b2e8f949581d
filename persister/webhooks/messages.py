"""Messages: one event or a batch. The same events always give the same message id."""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import orjson

from engine.control.alerts import MESSAGE_TYPES
from engine.ledger.feed import BEGINNING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.control.alerts import Alert
    from engine.ledger.feed import Cursor, FeedEvent, FeedPage

BATCH_ID_BYTES: Final = 16
PING_ID_BYTES: Final = 8
PING: Final = "ping"
"""The type in a message that is about no event."""


_ALERT: Final = re.compile(r"alr_([0-9]{1,18})-([a-z]+)")
_ALERT_TYPES: Final = {name.partition(".")[2]: name for name in MESSAGE_TYPES}


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


def alert_message(alert: Alert, message_type: str, *, as_batch: bool) -> WebhookMessage:
    """One message about an alert, as the alert is now. It has no place in the feed."""
    document = {"type": message_type} | alert.document()
    body = orjson.dumps({"events": [document]} if as_batch else document)
    message_id = f"{alert.shown_id}-{message_type.partition('.')[2]}"
    return WebhookMessage(message_id, (alert.shown_id,), body, BEGINNING, BEGINNING)


def parse_alert_message(message_id: str) -> tuple[int, str] | None:
    """The number of the alert and the type of a message about one. None: it is about events."""
    match = _ALERT.fullmatch(message_id)
    return (int(match[1]), _ALERT_TYPES[match[2]]) if match and match[2] in _ALERT_TYPES else None
