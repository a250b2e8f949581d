"""HTTP handlers for what `redeem doctor`, `redeem audit` and `redeem loadtest capacity` have found."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.control import capacity_reports
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
from engine.http.requests import check_parameters
from engine.http.routes import Route
from engine.http.services import services_of
from engine.ledger import audits

if TYPE_CHECKING:
    from aiohttp import web


def routes() -> list[Route]:
    """Return the routes of this module."""
    return [
        Route("GET", "/v1/doctor", "admin", show_findings, endless=True),
        Route("GET", "/v1/audits", "admin", list_audits),
        Route("POST", "/v1/capacity-reports", "admin", add_capacity_report),
        Route("GET", "/v1/capacity-reports", "admin", list_capacity_reports),
    ]


async def show_findings(request: web.Request) -> web.Response:
    """Examine the deployment, and answer with all findings."""
    check_parameters(request, ())
    return answer(await services_of(request).doctor.examine())


async def list_audits(request: web.Request) -> web.Response:
    """List the results of ``redeem audit``, the newest first."""
    after, limit = read_page(request)
    found = await audits.page(plane_of(request).database, after=number_after(after), limit=limit + 1)
    return listed([audit.document() for audit in found], limit)


async def add_capacity_report(request: web.Request) -> web.Response:
    """Store the result of ``redeem loadtest capacity``."""
    new, caller = await read_body(request, capacity_reports.NewCapacityReport), request[API_KEY].id
    return await answer_change(
        request, lambda plane: capacity_reports.add(plane, new, actor=caller), status=201
    )


async def list_capacity_reports(request: web.Request) -> web.Response:
    """List the results of ``redeem loadtest capacity``, the newest first."""
    after, limit = read_page(request)
    found = await capacity_reports.page(
        plane_of(request).database, after=number_after(after), limit=limit + 1
    )
    return listed([report.document() for report in found], limit)
