"""The customer page over HTTP: who may frame it, what may be kept, and the element that embeds it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.control import api_keys
from tests.support.browsers import ORIGIN, page_of
from tests.support.deployment import engine_in_process, issue
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from engine.control.change import ControlPlane
    from tests.support.deployment import Merchant


def build(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (directory / "assets").mkdir(parents=True)
    (directory / "index.html").write_text("<!doctype html><title>dashboard</title>")
    (directory / "card.html").write_text("<!doctype html><title>card</title>")
    (directory / "redeem-card.js").write_text("element")
    (directory / "assets" / "card-1a2b.js").write_text("script")
    monkeypatch.setattr("engine.pages.built_pages.DIRECTORY", directory)


async def ancestors(merchant: Merchant, query: str) -> tuple[int, str]:
    """Return the status of the customer page, and the pages that may frame it."""
    async with merchant.session.get(f"{merchant.url}/card?{query}") as answer:
        assert answer.content_type == "text/html"
        assert "<title>card</title>" in await answer.text()
        policy = answer.headers["Content-Security-Policy"]
        assert "unsafe" not in policy
        assert answer.headers["Cache-Control"] == "no-store"
        assert "ETag" not in answer.headers
        assert "X-Frame-Options" not in answer.headers
        return answer.status, dict(part.split(" ", 1) for part in policy.split("; "))["frame-ancestors"]


async def test_only_pages_of_the_keys_origins_may_frame_the_page(
    plane: ControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(tmp_path / "built", monkeypatch)
    campaign, _ = await issue(plane, 1)
    async with engine_in_process(plane) as merchant:
        other = "https://shop.example:8443"
        made = await api_keys.create_for_browsers(
            plane, "page", campaigns=(campaign,), origins=(ORIGIN, other)
        )
        key = f"key={made.value.key}"

        async def known() -> bool:
            return await ancestors(merchant, key) == (200, f"'self' {ORIGIN} {other}")

        await wait_until_async(known)
        assert await ancestors(merchant, f"key={merchant.key}") == (404, "'self'")
        assert await ancestors(merchant, "key=pk_unknown") == (404, "'self'")
        assert await ancestors(merchant, "") == (404, "'self'")
        await api_keys.revoke(plane, made.value.api_key.id)

        async def forgotten() -> bool:
            return await ancestors(merchant, key) == (404, "'self'")

        await wait_until_async(forgotten)


async def test_pages_of_any_origin_may_load_the_element_and_keep_it_for_a_while(
    plane: ControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(tmp_path / "built", monkeypatch)
    async with engine_in_process(plane) as merchant:
        url = f"{merchant.url}/card/redeem-card.js"
        async with merchant.session.get(url, headers={"Origin": ORIGIN}) as answer:
            assert (answer.status, await answer.text()) == (200, "element")
            headers = answer.headers
        assert headers["Content-Type"] == "text/javascript; charset=utf-8"
        assert headers["Access-Control-Allow-Origin"] == "*"
        assert headers["Cross-Origin-Resource-Policy"] == "cross-origin"
        assert headers["Cache-Control"] == "public, max-age=3600"
        async with merchant.session.get(url, headers={"If-None-Match": headers["ETag"]}) as answer:
            assert answer.status == 304


async def test_files_of_the_page_are_kept_for_ever_and_others_are_not_there(
    plane: ControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(tmp_path / "built", monkeypatch)
    async with engine_in_process(plane) as merchant:
        async with merchant.session.get(f"{merchant.url}/card/assets/card-1a2b.js") as answer:
            assert (answer.status, await answer.text()) == (200, "script")
            assert answer.headers["Cache-Control"] == "public, max-age=31536000, immutable"
        for path in ("/card/assets/card-0000.js", "/card/index.html", "/card/assets/..%2Fcard.html"):
            async with merchant.session.get(merchant.url + path) as answer:
                assert answer.status == 404


async def test_without_built_pages_the_customer_gets_the_plain_form(
    plane: ControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.pages.built_pages.DIRECTORY", tmp_path)
    campaign, _ = await issue(plane, 1)
    async with engine_in_process(plane) as merchant:
        page = await page_of(plane, merchant, campaign)
        async with merchant.session.get(f"{merchant.url}/card?key={page.key}") as answer:
            assert (answer.status, answer.content_type) == (200, "text/html")
            assert '<form method="post" action="/card">' in await answer.text()
            assert f"frame-ancestors 'self' {ORIGIN}" in answer.headers["Content-Security-Policy"]
        async with merchant.session.get(f"{merchant.url}/card?key=pk_unknown&lang=zh") as answer:
            assert (answer.status, answer.content_type) == (404, "text/html")
            assert "此网址无效" in await answer.text()
        async with merchant.session.get(f"{merchant.url}/card/redeem-card.js") as answer:
            assert answer.status == 404
