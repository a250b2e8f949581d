"""Changes webhook endpoints: create, update, remove, rotate the secret, retry, replay.

Every change is recorded in the audit log. A secret is shown once, in the answer to the call that made it.
"""

from __future__ import annotations

import base64
import secrets
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import urlsplit

import msgspec
from msgspec import UNSET, UnsetType

from engine.api.checks import CAMPAIGN_LENGTH_MAX, check_text
from engine.control import audit_log
from engine.control.alerts import MESSAGE_TYPES
from engine.control.change import Changed, ControlPlane, claim_key, keep_answer
from engine.control.stored_texts import refuse_codes
from engine.errors import Refusal
from engine.ledger.feed import BEGINNING, FROM_BEGINNING, Cursor, newest, parse_cursor
from engine.postgres_types import BIGINT_MAX
from engine.queries import queries
from engine.store.events import EVENT_TYPES
from engine.webhooks.endpoints import ID, Webhook, WebhookWithSecret, read
from engine.webhooks.urls import check_url

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from engine.postgres_types import Connection, Row
    from engine.settings import Settings

DESCRIPTION_LENGTH_MAX: Final = 200
CAMPAIGNS_MAX: Final = 100
SECRETS_MAX: Final = 5
"""Maximum of valid secrets of one endpoint."""
DEAD_LETTERS_MAX: Final = 1000
"""Maximum of dead letters in one replay call."""
TYPES: Final = EVENT_TYPES | MESSAGE_TYPES
"""What a webhook may ask for. Without "types" it gets all events, but no alerts."""
SECRET_BYTES: Final = 32  # Standard Webhooks requires 24 to 64
_SQL: Final = queries(__package__, "webhooks")

T = TypeVar("T")


class NewWebhook(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Body of ``POST /v1/webhooks``. ``after``: a cursor of the feed; without it, new events only."""

    url: str
    description: str | None = None
    types: list[str] | None = None
    campaigns: list[str] | None = None
    batch_max: int | None = None
    after: str | None = None


class WebhookChange(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Body of ``PATCH /v1/webhooks/{id}``: null removes a value, a member that is left out stays."""

    url: str | UnsetType = UNSET
    description: str | UnsetType | None = UNSET
    types: list[str] | UnsetType | None = UNSET
    campaigns: list[str] | UnsetType | None = UNSET
    batch_max: int | UnsetType | None = UNSET
    enabled: bool | UnsetType = UNSET


class SecretRotation(msgspec.Struct, forbid_unknown_fields=True):
    """Body of ``POST /v1/webhooks/{id}/rotate``. ``grace_s``: how long the old secrets stay valid."""

    grace_s: int | None = None


class Replay(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Body of ``POST /v1/webhooks/{id}/replay``: all events after a cursor, or these dead letters."""

    after: str | None = None
    dead_letters: list[int] | None = None


async def create(plane: ControlPlane, new: NewWebhook, *, actor: str) -> Changed[WebhookWithSecret]:
    """Register an endpoint with a new secret. ``actor`` is the id of an API key, or ``cli``.

    Raises:
        Refusal: ``malformed_request``: a value is invalid, or there are ``webhooks_max`` endpoints.
    """
    settings = plane.settings
    _check(msgspec.structs.asdict(new), settings)
    after = None if new.after is None else _cursor(new.after)

    async def write(connection: Connection) -> WebhookWithSecret:
        await refuse_codes(connection, settings, url=new.url, description=new.description)
        await connection.execute(_SQL["lock"])
        if await connection.fetchval(_SQL["count"]) >= settings.webhooks_max:
            raise _malformed(f"there are already {settings.webhooks_max} webhooks, which is the limit")
        cursor = await _reached(connection, after)
        columns = (new.url, new.description, _sorted(new.types), _sorted(new.campaigns), new.batch_max)
        webhook_id: str = await connection.fetchval(_SQL["insert"], *columns, actor)
        await connection.execute(_SQL["insert_progress"], webhook_id, str(cursor))
        secret = await _add_secret(connection, webhook_id)
        details = {"host": urlsplit(new.url).hostname, "types": new.types, "campaigns": new.campaigns}
        await _record(connection, "create_webhook", webhook_id, actor, details)
        return WebhookWithSecret(await read(connection, webhook_id), secret)

    return await _change(plane, write)


async def update(
    plane: ControlPlane, webhook_id: str, changes: WebhookChange, *, actor: str
) -> Changed[Webhook]:
    """Change an endpoint. A message that it failed to take is tried again at once.

    Raises:
        Refusal: ``webhook_not_found``; ``malformed_request``.
    """
    asked = {name: value for name, value in msgspec.structs.asdict(changes).items() if value is not UNSET}
    _check(asked, plane.settings)
    for name in asked.keys() & {"types", "campaigns"}:
        asked[name] = _sorted(asked[name])

    async def write(connection: Connection) -> Webhook:
        texts = {name: asked.get(name) for name in ("url", "description")}
        await refuse_codes(connection, plane.settings, **texts)
        row = await _lock(connection, webhook_id)
        await connection.execute(_SQL["update"], webhook_id, *(dict(row) | asked).values())
        await connection.execute(_SQL["try_again"], webhook_id)
        await connection.execute(_SQL["touch"], webhook_id)
        await _record(connection, "update_webhook", webhook_id, actor, {"changed": sorted(asked)})
        return await read(connection, webhook_id)

    return await _change(plane, write)


async def remove(plane: ControlPlane, webhook_id: str, *, actor: str) -> Changed[Webhook]:
    """Remove an endpoint for good. The result shows it as it was.

    Raises:
        Refusal: ``webhook_not_found``.
    """

    async def write(connection: Connection) -> Webhook:
        await _lock(connection, webhook_id)
        found = await read(connection, webhook_id)
        await connection.execute(_SQL["delete"], webhook_id)
        await _record(connection, "delete_webhook", webhook_id, actor)
        return found

    return await _change(plane, write)


async def rotate(
    plane: ControlPlane, webhook_id: str, rotation: SecretRotation, *, actor: str
) -> Changed[WebhookWithSecret]:
    """Give an endpoint a new secret. The old ones stay valid for ``grace_s``.

    While several secrets are valid, messages have a signature of each.

    Raises:
        Refusal: ``webhook_not_found``; ``malformed_request``: ``grace_s`` is invalid, or ``SECRETS_MAX``
            secrets are valid.
    """
    most_s = plane.settings.webhook_rotation_grace_s
    grace_s = most_s if rotation.grace_s is None else rotation.grace_s
    if not 0 <= grace_s <= most_s:
        raise _malformed(f"grace_s must be between 0 and {most_s}")

    async def write(connection: Connection) -> WebhookWithSecret:
        await _lock(connection, webhook_id)
        await connection.execute(_SQL["expire_secrets"], webhook_id, grace_s)
        await connection.execute(_SQL["forget_secrets"], webhook_id)
        if await connection.fetchval(_SQL["count_secrets"], webhook_id) >= SECRETS_MAX:
            raise _malformed(f"{SECRETS_MAX} secrets are still valid; a grace_s of 0 ends them")
        secret = await _add_secret(connection, webhook_id)
        await connection.execute(_SQL["touch"], webhook_id)
        await _record(connection, "rotate_webhook", webhook_id, actor, {"grace_s": grace_s})
        return WebhookWithSecret(await read(connection, webhook_id), secret)

    return await _change(plane, write)


async def replay(plane: ControlPlane, webhook_id: str, asked: Replay, *, actor: str) -> Changed[Webhook]:
    """Deliver again: all events after a cursor, in order, or single dead letters, while delivery continues.

    Raises:
        Refusal: ``webhook_not_found``; ``malformed_request``: not exactly one of the two is given, or a
            dead letter or the cursor does not exist.
    """
    if (asked.after is None) == (asked.dead_letters is None):
        raise _malformed("give either after or dead_letters")
    if asked.dead_letters is not None and not 0 < len(asked.dead_letters) <= DEAD_LETTERS_MAX:
        raise _malformed(f"dead_letters must have 1 to {DEAD_LETTERS_MAX} ids")
    after = None if asked.after is None else _cursor(asked.after)

    async def write(connection: Connection) -> Webhook:
        await _lock(connection, webhook_id)
        if after is not None:
            await connection.execute(_SQL["move"], webhook_id, str(await _reached(connection, after)))
        else:
            valid_ids = {number for number in asked.dead_letters or () if 0 < number <= BIGINT_MAX}
            rows = await connection.fetch(_SQL["replay_dead_letters"], webhook_id, sorted(valid_ids))
            if len(rows) != len(set(asked.dead_letters or ())):
                raise _malformed("at least one of these dead letters does not exist")
        await connection.execute(_SQL["touch"], webhook_id)
        details = {"after": asked.after, "dead_letters": asked.dead_letters}
        await _record(connection, "replay_webhook", webhook_id, actor, details)
        return await read(connection, webhook_id)

    return await _change(plane, write)


async def retry(plane: ControlPlane, webhook_id: str, *, actor: str) -> Changed[Webhook]:
    """Try the message that an endpoint failed to take again at once. The retry schedule goes on.

    Raises:
        Refusal: ``webhook_not_found``; ``malformed_request``: the endpoint is disabled.
    """

    async def write(connection: Connection) -> Webhook:
        row = await _lock(connection, webhook_id)
        if not row["enabled"]:
            raise _malformed("this webhook is disabled: enable it, then delivery continues at once")
        await connection.execute(_SQL["due_now"], webhook_id)
        await connection.execute(_SQL["touch"], webhook_id)
        await _record(connection, "retry_webhook", webhook_id, actor)
        return await read(connection, webhook_id)

    return await _change(plane, write)


async def _change(plane: ControlPlane, write: Callable[[Any], Awaitable[T]]) -> Changed[T]:
    """Make a change in PostgreSQL only, once per Idempotency-Key."""
    async with plane.database.transaction() as connection:
        await claim_key(plane, connection)
        value = await write(connection)
        await keep_answer(plane, connection, value)
    return Changed(value, published=True)


async def _lock(connection: Connection, webhook_id: str) -> Row:
    """Lock an endpoint until the transaction ends; return the columns that can be changed."""
    if not ID.fullmatch(webhook_id):
        raise Refusal("webhook_not_found")
    row = await connection.fetchrow(_SQL["lock_one"], webhook_id)
    if row is None:
        raise Refusal("webhook_not_found")
    return row


async def _add_secret(connection: Connection, webhook_id: str) -> str:
    secret = "whsec_" + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()
    await connection.execute(_SQL["insert_secret"], webhook_id, secret)
    return secret


async def _reached(connection: Connection, cursor: Cursor | None) -> Cursor:
    """Return the cursor if this ledger has reached it; without a cursor, the end of the ledger."""
    latest = await newest(connection)
    if cursor is not None and not latest.reaches(cursor):
        raise _malformed("after is a cursor of another ledger: it is ahead of this one")
    return latest if cursor is None else cursor


async def _record(
    connection: Connection,
    act: str,
    webhook_id: str,
    actor: str,
    details: Mapping[str, object] | None = None,
) -> None:
    await audit_log.record(connection, act=act, actor=actor, subject=f"webhook:{webhook_id}", details=details)


def _cursor(text: str) -> Cursor:
    return BEGINNING if text == FROM_BEGINNING else parse_cursor(text)


def _check(asked: dict[str, Any], settings: Settings) -> None:
    """Refuse invalid values. Only the members that the request has are checked."""
    if "url" in asked:
        check_url(asked["url"], allow_private=settings.webhooks_allow_private)
    if asked.get("description") is not None:
        check_text("description", asked["description"], DESCRIPTION_LENGTH_MAX)
    types, campaigns, batch_max = (asked.get(name) for name in ("types", "campaigns", "batch_max"))
    if types is not None and (not types or set(types) - TYPES):
        raise _malformed(f"types must be one or more of {', '.join(sorted(TYPES))}")
    if campaigns is not None and not 0 < len(campaigns) <= CAMPAIGNS_MAX:
        raise _malformed(f"campaigns must have 1 to {CAMPAIGNS_MAX} ids")
    for campaign in campaigns or ():
        check_text("campaigns", campaign, CAMPAIGN_LENGTH_MAX)
    if batch_max is not None and not 1 <= batch_max <= settings.webhook_batch_events_max:
        raise _malformed(f"batch_max must be between 1 and {settings.webhook_batch_events_max}")


def _sorted(names: list[str] | None) -> list[str] | None:
    return None if names is None else sorted(set(names))


def _malformed(detail: str) -> Refusal:
    return Refusal("malformed_request", detail)
