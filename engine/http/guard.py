"""HTTP handlers for the guard's rules and alerts."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from engine.control import alerts, guard_rules
from engine.errors import not_a_cursor
from engine.guard.suspect_list import suspect_list
from engine.http.admin_requests import answer, answer_change, listed, plane_of, read_body, read_page
from engine.http.auth import API_KEY
from engine.http.requests import check_parameters, page_limit
from engine.http.routes import Route
from engine.http.services import services_of

if TYPE_CHECKING:
    from aiohttp import web


def routes() -> list[Route]:
    """Return the routes of this module."""
    return [
        Route("GET", "/v1/guard/rules", "admin", show_rules),
        Route("PUT", "/v1/guard/rules", "admin", set_rules),
        Route("GET", "/v1/guard/sources", "admin", list_sources),
        Route("GET", "/v1/alerts", "admin", list_alerts),
        Route("POST", "/v1/alerts/{id}/acknowledge", "admin", acknowledge_alert),
    ]


async def show_rules(request: web.Request) -> web.Response:
    """List the rules with their modes."""
    return answer((await guard_rules.show(plane_of(request))).document())


async def set_rules(request: web.Request) -> web.Response:
    """Set the modes of some rules."""
    new, caller = await read_body(request, guard_rules.NewModes), request[API_KEY].id
    return await answer_change(request, lambda plane: guard_rules.set_modes(plane, new.rules, actor=caller))


async def list_sources(request: web.Request) -> web.Response:
    """List the suspected sources with their evidence, as this worker has scored them."""
    check_parameters(request, ("limit",))
    services = services_of(request)
    limit = page_limit(request.query.get("limit"), services.settings.page_limit_max)
    return answer(suspect_list(services.core.guard, time.time(), limit))


async def list_alerts(request: web.Request) -> web.Response:
    """List alerts, the newest first."""
    after, limit = read_page(request, "state")
    last = None if after is None else alerts.parse_id(after)
    if after is not None and last is None:
        raise not_a_cursor()
    found = await alerts.page(
        plane_of(request), state=request.query.get("state"), after=last, limit=limit + 1
    )
    return listed([alert.document() for alert in found], limit)


async def acknowledge_alert(request: web.Request) -> web.Response:
    """Note that somebody has seen an alert."""
    alert_id, caller = request.match_info["id"], request[API_KEY].id
    return await answer_change(request, lambda plane: alerts.acknowledge(plane, alert_id, actor=caller))
