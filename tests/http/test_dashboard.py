"""The pages of the dashboard over HTTP: their headers, their compressed forms, and an engine without them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import pytest

from tests.support.deployment import engine_in_process

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from engine.control.change import ControlPlane
    from tests.support.deployment import Merchant

SCRIPT: Final = "assets/main-1a2b.js"
DIRECTIVES: Final = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self' data:",
    "connect-src": "'self'",
    "font-src": "'self'",
    "base-uri": "'none'",
    "form-action": "'self'",
    "frame-ancestors": "'none'",
}


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of the built pages; empty."""
    directory = tmp_path / "built"
    (directory / "assets").mkdir(parents=True)
    monkeypatch.setattr("engine.pages.built_pages.DIRECTORY", directory)
    return directory


@pytest.fixture
async def visitor(built: Path, plane: ControlPlane) -> AsyncIterator[Merchant]:  # noqa: ARG001 - set before
    async with engine_in_process(plane) as merchant:
        yield merchant


def build(directory: Path) -> None:
    (directory / SCRIPT).write_text("script")
    (directory / f"{SCRIPT}.br").write_bytes(b"br")
    (directory / "index.html").write_text("<!doctype html><title>index</title>")


@pytest.mark.parametrize("path", ["/admin", "/admin/", "/admin/campaigns/cmp_1"])
async def test_every_page_is_the_application_under_a_strict_policy(
    visitor: Merchant, built: Path, path: str
) -> None:
    build(built)
    async with visitor.session.get(visitor.url + path) as response:
        assert (response.status, response.content_type) == (200, "text/html")
        assert "<title>index</title>" in await response.text()
        headers = response.headers
    policy = dict(part.split(" ", 1) for part in headers["Content-Security-Policy"].split("; "))
    assert policy == DIRECTIVES
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert headers["Cache-Control"] == "no-cache"
    asked = {"If-None-Match": headers["ETag"]}
    async with visitor.session.get(visitor.url + path, headers=asked) as response:
        assert response.status == 304


async def test_an_asset_is_kept_for_ever_and_sent_compressed(visitor: Merchant, built: Path) -> None:
    build(built)
    url = f"{visitor.url}/admin/{SCRIPT}"
    for accepted, body, coding in (("br", b"br", "br"), ("identity", b"script", None)):
        async with visitor.session.get(
            url, headers={"Accept-Encoding": accepted}, auto_decompress=False
        ) as response:
            assert (response.status, await response.read()) == (200, body)
            assert response.headers.get("Content-Encoding") == coding
            assert response.headers["Content-Type"] == "text/javascript; charset=utf-8"
            assert response.headers["Cache-Control"] == "public, max-age=31536000, immutable"
            assert response.headers["Vary"] == "Accept-Encoding"
            assert response.headers["X-Content-Type-Options"] == "nosniff"


async def test_an_asset_of_another_build_is_not_the_application(visitor: Merchant, built: Path) -> None:
    """Else a page that was open during an update would run HTML as a script."""
    build(built)
    async with visitor.session.get(f"{visitor.url}/admin/assets/main-0000.js") as response:
        assert response.status == 404
        assert (await response.json(content_type=None))["code"] == "not_found"


async def test_without_built_pages_the_engine_runs_and_admin_says_what_to_type(
    visitor: Merchant, built: Path
) -> None:
    for path in ("/admin", "/admin/campaigns"):
        async with visitor.session.get(visitor.url + path) as response:
            assert (response.status, response.content_type) == (404, "text/html")
            text = await response.text()
            assert "unsafe" not in response.headers["Content-Security-Policy"]
        assert "The dashboard is not built" in text
        assert "<pre>make pages</pre>" in text
        assert not re.findall(r"https?:|src=|<script", text)
    async with visitor.session.get(visitor.url + "/readyz") as response:
        assert response.status == 200
    build(built)
    async with visitor.session.get(visitor.url + "/admin") as response:
        assert response.status == 200
