"""Pages for people: whole by themselves, and reached from the answers of the API."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import urljoin

import pytest

from engine.api.problem_pages import ADVICE, page_of
from engine.api.problems import PROBLEMS
from tests.support.deployment import engine_in_process
from tests.support.openapi import Document

if TYPE_CHECKING:
    from engine.control.change import ControlPlane


def test_every_code_has_advice() -> None:
    assert ADVICE.keys() == PROBLEMS.keys()


@pytest.mark.parametrize("code", PROBLEMS)
def test_a_page_says_what_its_code_means_and_needs_nothing_from_elsewhere(code: str) -> None:
    page = page_of(code)
    status, meaning = PROBLEMS[code]
    assert f"<h1><code>{code}</code></h1>" in page
    assert str(status) in page
    assert meaning.split("'")[0] in page
    assert not re.findall(r"https?:|//|src=|<script|@import|url\(", page)


async def test_the_type_of_a_problem_leads_to_its_page(plane: ControlPlane) -> None:
    async with engine_in_process(plane) as merchant:
        asked = merchant.url + "/v1/redemptions/0-1-1"
        headers = {"Authorization": f"Bearer {merchant.key}"}
        async with merchant.session.get(asked, headers=headers) as response:
            problem = await response.json(content_type=None)
        async with merchant.session.get(urljoin(asked, problem["type"])) as response:
            page = await response.text()
            assert (response.status, response.content_type) == (200, "text/html")
            policy = response.headers["Content-Security-Policy"]
        assert "<h1><code>redemption_not_found</code></h1>" in page
        assert "unsafe" not in policy
        async with merchant.session.get(urljoin(asked, "/problems")) as response:
            listed = set(re.findall(r'href="/problems/(\w+)"', await response.text()))
        assert listed == PROBLEMS.keys()
        for path in ("/problems/nothing", "/problems/../readyz%00"):
            async with merchant.session.get(merchant.url + path) as response:
                assert (await response.json(content_type=None))["code"] == "not_found"


async def test_the_reference_has_every_call_and_leads_to_no_other_host(plane: ControlPlane) -> None:
    async with engine_in_process(plane) as merchant:
        async with merchant.session.get(merchant.url + "/openapi.json") as response:
            assert (response.status, response.content_type) == (200, "application/json")
            served = await response.json()
        assert served.pop("servers") == [{"url": "/"}]
        assert served == {name: part for name, part in Document().whole.items() if name != "servers"}
        async with merchant.session.get(merchant.url + "/docs") as response:
            page = await response.text()
            assert (response.status, response.content_type) == (200, "text/html")
            assert "unsafe" not in response.headers["Content-Security-Policy"]
        for operation in Document().operations.values():
            if operation.method != "HEAD":
                assert f'<h3 id="{operation.id}"><code>{operation.method} {operation.path}</code>' in page
        links = set(re.findall(r'(?:href|src)="([^"]+)"', page))
        assert "<script" not in page
        for link in links:
            async with merchant.session.get(urljoin(merchant.url, link)) as response:
                assert response.status == 200, link
