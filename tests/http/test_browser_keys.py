"""A browser key redeems, holds and checks codes of its campaigns, in pages of its origins, and no more."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from engine.control import api_keys
from engine.errors import Refusal
from engine.http.origins import CALLS
from tests.support.browsers import FREE, ORIGIN, Page, page_of
from tests.support.deployment import engine_in_process, issue
from tests.support.lanes import LANES
from tests.support.openapi import Document
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    from engine.control.change import ControlPlane

ASKING = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}


@pytest.mark.parametrize("lane", LANES)
async def test_it_redeems_holds_and_checks_codes_of_its_campaigns(plane: ControlPlane, lane: str) -> None:
    campaign, codes = await issue(plane, 3)
    async with engine_in_process(plane, lane=lane, **FREE) as merchant:
        page = await page_of(plane, merchant, campaign)
        checked = await page.post("/v1/codes/check", {"code": codes[0]})
        assert (checked.status, b'"redeemable":true' in checked.body) == (200, True)
        assert (await page.post("/v1/holds", {"code": codes[1], "user": "ann", "order": "o"})).status == 200
        for _ in range(2):  # on one connection, between calls with a server key
            assert (await merchant.redeem("0000-0000-0000-0000"))[0] == 404
            done = await page.redeem(codes[0])
            assert done.status in {200, 404}
        assert (await merchant.redeem(codes[0]))[1]["code"] == "already_redeemed"
        sent = {"code": codes[2], "user": "ann"}
        first = await page.post("/v1/redemptions", sent, Idempotency_Key="k")
        again = await page.post("/v1/redemptions", sent, Idempotency_Key="k")
        assert first.status == again.status == 200
        assert again.body == first.body.replace(b'"replayed":false', b'"replayed":true')


async def test_it_can_do_nothing_else(plane: ControlPlane) -> None:
    campaign, _ = await issue(plane, 1)
    async with engine_in_process(plane, **FREE) as merchant:
        page = await page_of(plane, merchant, campaign)
        seen = set()
        for operation in Document().operations.values():
            if operation.scope is None:
                continue
            answer = await page.send(operation.method, operation.path.format(id="0", secret="0"), None, {})
            may = CALLS.get(operation.path) == operation.method
            assert (answer.code == "forbidden") != may, operation.id
            seen.add(may)
        assert seen == {True, False}


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize(
    "origin", [None, "https://shop.example.evil.example", "null", "http://shop.example", ""]
)
async def test_a_page_of_another_origin_is_refused_and_learns_nothing(
    plane: ControlPlane, lane: str, origin: str | None
) -> None:
    campaign, (code,) = await issue(plane, 1)
    async with engine_in_process(plane, lane=lane, **FREE) as merchant:
        page = await page_of(plane, merchant, campaign)
        other = replace(page, origin=origin)
        answers = [await other.redeem(one) for one in (code, "0000-0000-0000-0000", "?")]
        assert {answer.code for answer in answers} == {"forbidden"}
        assert len(set(answers)) == 1
        for answer in answers:
            assert answer.header("access-control-allow-origin") is None
            assert answer.header("vary") == "Origin"
        assert (await page.redeem(code)).status == 200  # nothing was done


async def test_two_origins_in_one_request_are_none(plane: ControlPlane) -> None:
    campaign, (code,) = await issue(plane, 1)
    async with engine_in_process(plane, **FREE) as merchant:
        page = await page_of(plane, merchant, campaign)
        headers = [("Authorization", f"Bearer {page.key}"), ("Origin", ORIGIN), ("Origin", ORIGIN)]
        sent = {"code": code, "user": "ann"}
        async with merchant.session.post(
            merchant.url + "/v1/redemptions", json=sent, headers=headers
        ) as answer:
            assert answer.status == 403


async def test_a_page_may_read_every_answer_that_it_gets(plane: ControlPlane) -> None:
    campaign, (code, *_) = await issue(plane, 2)
    async with engine_in_process(plane, **FREE) as merchant:
        page = await page_of(plane, merchant, campaign, origins=(ORIGIN, "https://b.example"))
        other = replace(page, origin="https://b.example")
        for answer, origin in (
            (await page.redeem(code), ORIGIN),
            (await other.redeem(code), "https://b.example"),
            (await page.post("/v1/redemptions", {}), ORIGIN),
            (await page.post("/v1/redemptions/batch", {"items": []}), None),
        ):
            assert answer.header("access-control-allow-origin") == origin
            assert answer.header("access-control-allow-credentials") is None
        server = Page(merchant, merchant.key)
        answer = await server.redeem(code)
        assert answer.status == 409
        assert answer.header("access-control-allow-origin") is answer.header("vary") is None


async def test_browsers_are_told_which_origins_may_call(plane: ControlPlane) -> None:
    campaign, _ = await issue(plane, 1)
    async with engine_in_process(plane, **FREE) as merchant:
        page = await page_of(plane, merchant, campaign)
        for path, method in CALLS.items():
            answer = await page.send("OPTIONS", path, None, ASKING | {"Authorization": ""})
            assert (answer.status, answer.body) == (204, b"")
            assert answer.header("access-control-allow-origin") == ORIGIN
            assert answer.header("access-control-allow-methods") == method
            assert "Authorization" in (answer.header("access-control-allow-headers") or "")
            assert answer.header("vary") == "Origin"
            other = replace(page, origin="https://other.example")
            answer = await other.send("OPTIONS", path, None, ASKING)
            assert (answer.status, answer.header("access-control-allow-origin")) == (403, None)
        assert (await page.send("OPTIONS", "/v1/keys", None, ASKING)).status == 405
        assert (await page.send("OPTIONS", "/v1/holds", None, {})).status == 405  # no question of a browser
        await api_keys.revoke(plane, "key_" + page.key.split("_")[1])

        async def told_so_no_more() -> bool:
            return (await page.send("OPTIONS", "/v1/holds", None, ASKING)).status == 403

        await wait_until_async(told_so_no_more)
        assert (await page.redeem("0000-0000-0000-0000")).code == "unauthenticated"


async def test_a_key_has_what_its_kind_needs_and_nothing_else(plane: ControlPlane) -> None:
    campaign, _ = await issue(plane, 1)
    made = await api_keys.create_for_browsers(
        plane, "page", campaigns=[campaign], origins=["HTTPS://Shop.example:443", "http://localhost:8080"]
    )
    assert made.value.key.startswith("pk_")
    shown = made.value.api_key
    assert (shown.kind, shown.scopes) == ("browser", ())
    assert shown.origins == ("http://localhost:8080", ORIGIN)
    assert (await api_keys.page(plane, after=None, limit=9))[-1] == shown
    origin = [ORIGIN]
    for kind, scopes, campaigns, origins, code in (
        ("browser", None, None, origin, "malformed_request"),
        ("browser", None, [], origin, "malformed_request"),
        ("browser", None, [campaign], None, "malformed_request"),
        ("browser", None, [campaign], [], "malformed_request"),
        ("browser", ["redeem"], [campaign], origin, "malformed_request"),
        ("browser", None, ["cmp_99"], origin, "campaign_not_found"),
        ("server", ["redeem"], None, origin, "malformed_request"),
        ("server", None, None, None, "malformed_request"),
        *(
            ("browser", None, [campaign], [wrong], "malformed_request")
            for wrong in (
                *("*", "null", "shop.example", "https://shop.example/", "https://shop.example/a", "https://"),
                *(
                    "http://shop.example",
                    "ftp://shop.example",
                    "https://*.example",
                    "https://a b",
                    "https://a:0",
                ),
                *(
                    "https://user@shop.example",
                    "https://shop.example:99999",
                    "https://-a.example",
                    "https://ü.example",
                ),
            )
        ),
    ):
        new = api_keys.NewApiKey("key", scopes, campaigns, kind, origins)  # type: ignore[arg-type] # of the two
        with pytest.raises(Refusal, match=code):
            await api_keys.create_as_asked(plane, new, actor="cli")
    assert len(await api_keys.page(plane, after=None, limit=9)) == 1
