"""HTTP handlers for webhooks: endpoints, secrets, delivery attempts, dead letters, replays."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.http.admin_requests import (
    answer,
    answer_change,
    listed,
    number_after,
    plane_of,
    read_body,
    read_page,
)
from engine.http.auth import API_KEY
from engine.http.routes import Route
from engine.webhooks import changes, endpoints
from engine.webhooks.changes import NewWebhook, Replay, SecretRotation, WebhookChange

if TYPE_CHECKING:
    from aiohttp import web


def routes() -> list[Route]:
    """Return the routes of this module."""
    return [
        Route("POST", "/v1/webhooks", "admin", create_webhook),
        Route("GET", "/v1/webhooks", "admin", list_webhooks),
        Route("GET", "/v1/webhooks/{id}", "admin", show_webhook),
        Route("PATCH", "/v1/webhooks/{id}", "admin", update_webhook),
        Route("DELETE", "/v1/webhooks/{id}", "admin", delete_webhook),
        Route("POST", "/v1/webhooks/{id}/rotate", "admin", rotate_secret),
        Route("POST", "/v1/webhooks/{id}/retry", "admin", retry_message),
        Route("POST", "/v1/webhooks/{id}/replay", "admin", replay_events),
        Route("GET", "/v1/webhooks/{id}/attempts", "admin", list_attempts),
        Route("GET", "/v1/webhooks/{id}/dead-letters", "admin", list_dead_letters),
    ]


async def create_webhook(request: web.Request) -> web.Response:
    """Register an endpoint. Only this answer, and its repetition for the same caller, shows the secret."""
    new, caller = await read_body(request, NewWebhook), request[API_KEY].id
    return await answer_change(
        request,
        lambda plane: changes.create(plane, new, actor=caller),
        status=201,
        location="/v1/webhooks/{id}",
    )


async def list_webhooks(request: web.Request) -> web.Response:
    """List endpoints, the oldest first."""
    after, limit = read_page(request)
    found = await endpoints.page(plane_of(request), after=after, limit=limit + 1)
    return listed([webhook.document() for webhook in found], limit)


async def show_webhook(request: web.Request) -> web.Response:
    """Show one endpoint and its progress."""
    return answer((await endpoints.get(plane_of(request), request.match_info["id"])).document())


async def update_webhook(request: web.Request) -> web.Response:
    """Change the members of an endpoint that the body names. A failing message is tried again at once."""
    change = await read_body(request, WebhookChange)
    webhook_id, caller = request.match_info["id"], request[API_KEY].id
    return await answer_change(request, lambda plane: changes.update(plane, webhook_id, change, actor=caller))


async def delete_webhook(request: web.Request) -> web.Response:
    """Remove an endpoint for good."""
    webhook_id, caller = request.match_info["id"], request[API_KEY].id
    return await answer_change(request, lambda plane: changes.remove(plane, webhook_id, actor=caller))


async def rotate_secret(request: web.Request) -> web.Response:
    """Give an endpoint a new secret, which only this answer shows. The old secrets stay valid for a time."""
    asked = await read_body(request, SecretRotation) if request.can_read_body else SecretRotation()
    webhook_id, caller = request.match_info["id"], request[API_KEY].id
    return await answer_change(request, lambda plane: changes.rotate(plane, webhook_id, asked, actor=caller))


async def retry_message(request: web.Request) -> web.Response:
    """Try the message that an endpoint failed to take again at once."""
    webhook_id, caller = request.match_info["id"], request[API_KEY].id
    return await answer_change(request, lambda plane: changes.retry(plane, webhook_id, actor=caller))


async def replay_events(request: web.Request) -> web.Response:
    """Deliver again: all events after a cursor, or single dead letters."""
    asked = await read_body(request, Replay)
    webhook_id, caller = request.match_info["id"], request[API_KEY].id
    return await answer_change(request, lambda plane: changes.replay(plane, webhook_id, asked, actor=caller))


async def list_attempts(request: web.Request) -> web.Response:
    """List delivery attempts, the newest first."""
    after, limit = read_page(request, "message")
    found = await endpoints.attempts(
        plane_of(request),
        request.match_info["id"],
        message=request.query.get("message"),
        after=number_after(after),
        limit=limit + 1,
    )
    return listed([attempt.document() for attempt in found], limit)


async def list_dead_letters(request: web.Request) -> web.Response:
    """List dead letters, the newest first."""
    after, limit = read_page(request)
    found = await endpoints.dead_letters(
        plane_of(request), request.match_info["id"], after=number_after(after), limit=limit + 1
    )
    return listed([letter.document() for letter in found], limit)
