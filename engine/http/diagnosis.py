"""HTTP handlers for what `redeem doctor` and `redeem audit` have found."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.http.admin_requests import answer, listed, number_after, plane_of, read_page
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
