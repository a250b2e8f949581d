"""HTTP handlers for documents about the API, most of them for people. They need no API key."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from aiohttp import web

from engine.api.html import CONTENT_SECURITY_POLICY
from engine.api.problem_pages import index_page, page_of
from engine.api.problems import PROBLEMS
from engine.api.reference_page import openapi_document, reference_page
from engine.encoding import JSON_TYPE
from engine.errors import Refusal
from engine.http.routes import Route

if TYPE_CHECKING:
    from collections.abc import Mapping

_HEADERS: Final = {"X-Content-Type-Options": "nosniff", "Cache-Control": "public, max-age=3600"}


def routes() -> list[Route]:
    """Return the routes of this module."""
    return [
        Route("GET", "/docs", None, show_reference),
        Route("GET", "/openapi.json", None, show_openapi),
        Route("GET", "/problems", None, list_problems),
        Route("GET", "/problems/{code}", None, show_problem),
    ]


async def show_reference(_: web.Request) -> web.Response:
    """``GET /docs``: every call of the API."""
    return _html(reference_page(), CONTENT_SECURITY_POLICY)


async def show_openapi(_: web.Request) -> web.Response:
    """``GET /openapi.json``: the same for machines."""
    return web.Response(body=openapi_document(), content_type=JSON_TYPE, headers=_HEADERS)


async def list_problems(_: web.Request) -> web.Response:
    """``GET /problems``: all problem codes."""
    return _html(index_page(), CONTENT_SECURITY_POLICY)


async def show_problem(request: web.Request) -> web.Response:
    """``GET /problems/{code}``: the page to which ``type`` of a problem document points."""
    code = request.match_info["code"]
    if code not in PROBLEMS:
        raise Refusal("not_found")
    return _html(page_of(code), CONTENT_SECURITY_POLICY)


def _html(page: str, policy: str) -> web.Response:
    headers: Mapping[str, str] = {**_HEADERS, "Content-Security-Policy": policy}
    return web.Response(text=page, content_type="text/html", headers=headers)
