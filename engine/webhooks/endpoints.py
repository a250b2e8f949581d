"""Reads webhook endpoints from PostgreSQL: their progress, delivery attempts and dead letters.

``changes`` changes them. The deliverer (``persister.webhooks``) calls the endpoints; the front end does not.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import TYPE_CHECKING, Final

import msgspec

from engine.errors import Refusal, not_a_cursor
from engine.postgres_types import BIGINT_MAX
from engine.queries import queries
from engine.times import shown_instant

if TYPE_CHECKING:
    from engine.control.change import ControlPlane
    from engine.postgres_types import Connection, Row

ID: Final = re.compile(r"wh_[1-9][0-9]{0,17}")
_SQL: Final = queries(__package__, "webhooks")


class Secret(msgspec.Struct, frozen=True):
    """The times of a secret, without the secret itself."""

    created_at: datetime
    expires_at: datetime | None


class Webhook(msgspec.Struct, frozen=True, kw_only=True):
    """An endpoint and its progress, without secrets."""

    id: str
    url: str
    description: str | None
    types: list[str] | None
    campaigns: list[str] | None
    batch_max: int | None
    enabled: bool
    disabled_reason: str | None
    created_at: datetime
    secrets: list[Secret]
    cursor: str
    failures: int
    failing_since: datetime | None
    next_at: datetime | None
    last_delivered_at: datetime | None
    dead_letters: int

    def document(self) -> dict[str, object]:
        """Return the JSON object of the API. Times are ISO 8601 in UTC."""
        return _shown(self) | {"secrets": [_shown(secret) for secret in self.secrets]}


class WebhookWithSecret(msgspec.Struct, frozen=True):
    """An endpoint with its new secret: show it once, then forget it."""

    webhook: Webhook
    secret: str

    def __repr__(self) -> str:
        return f"WebhookWithSecret({self.webhook.id})"

    def document(self) -> dict[str, object]:
        """Return the JSON object of the API, with the secret."""
        return self.webhook.document() | {"secret": self.secret}


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """A message that was given up. ``after`` and ``until``: the cursors before and after its events."""

    id: int
    message: str
    events: list[str]
    after: str
    until: str
    attempts: int
    error: str
    at: datetime
    replay_at: datetime | None

    def document(self) -> dict[str, object]:
        """Return the JSON object of the API."""
        return _shown(self)


class DeliveryAttempt(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt to deliver a message. ``error`` is None if it was delivered."""

    id: int
    message: str
    events: int
    attempt: int
    at: datetime
    duration_ms: int
    status: int | None
    error: str | None
    response: str | None

    def document(self) -> dict[str, object]:
        """Return the JSON object of the API."""
        return _shown(self)


async def get(plane: ControlPlane, webhook_id: str) -> Webhook:
    """Return one endpoint.

    Raises:
        Refusal: ``webhook_not_found``.
    """
    async with plane.database.connection() as connection:
        return await read(connection, webhook_id)


async def page(plane: ControlPlane, *, after: str | None, limit: int) -> list[Webhook]:
    """Return at most ``limit`` endpoints, the oldest first, starting after the one with the id ``after``.

    Raises:
        Refusal: ``malformed_request``: ``after`` is not an id.
    """
    if after is not None and not ID.fullmatch(after):
        raise not_a_cursor()
    number = 0 if after is None else int(after.removeprefix("wh_"))
    async with plane.database.connection() as connection:
        return [_webhook(row) for row in await connection.fetch(_SQL["page"], number, None, limit)]


async def attempts(
    plane: ControlPlane, webhook_id: str, *, message: str | None, after: int | None, limit: int
) -> list[DeliveryAttempt]:
    """Return at most ``limit`` attempts, the newest first, starting after the id ``after``.

    ``message``: only the attempts of this message.

    Raises:
        Refusal: ``webhook_not_found``.
    """
    before = BIGINT_MAX if after is None else after
    async with plane.database.connection() as connection:
        await read(connection, webhook_id)
        rows = await connection.fetch(_SQL["attempts"], webhook_id, before, limit, message)
    return [DeliveryAttempt(**dict(row)) for row in rows]


async def dead_letters(
    plane: ControlPlane, webhook_id: str, *, after: int | None, limit: int
) -> list[DeadLetter]:
    """Return at most ``limit`` dead letters, the newest first, starting after the one with the id ``after``.

    Raises:
        Refusal: ``webhook_not_found``.
    """
    before = BIGINT_MAX if after is None else after
    async with plane.database.connection() as connection:
        await read(connection, webhook_id)
        rows = await connection.fetch(_SQL["dead_letters"], webhook_id, before, limit)
    return [DeadLetter(**dict(row)) for row in rows]


async def read(connection: Connection, webhook_id: str) -> Webhook:
    """Return one endpoint as ``get`` does, read over a given connection."""
    if not ID.fullmatch(webhook_id):
        raise Refusal("webhook_not_found")
    row = await connection.fetchrow(_SQL["page"], 0, webhook_id, 1)
    if row is None:
        raise Refusal("webhook_not_found")
    return _webhook(row)


def _webhook(row: Row) -> Webhook:
    values = dict(row)
    made, expire = values.pop("made") or (), values.pop("expire") or ()
    return Webhook(**values, secrets=[Secret(*each) for each in zip(made, expire, strict=True)])


def _shown(value: msgspec.Struct) -> dict[str, object]:
    return {
        name: shown_instant(value) if isinstance(value, datetime) else value
        for name, value in msgspec.structs.asdict(value).items()
    }
