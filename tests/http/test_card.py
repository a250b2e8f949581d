"""What the customer page shows of a campaign: set by the merchant, read with a browser key."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import orjson
import pytest

from engine.control import campaigns
from engine.control.campaigns import CampaignChange
from engine.store.configuration import SCOPES
from tests.support.browsers import FREE, ORIGIN, Page, page_of
from tests.support.deployment import engine_in_process, issue

if TYPE_CHECKING:
    from engine.control.change import ControlPlane
    from tests.support.browsers import Seen

CARD: Final[dict[str, Any]] = {
    "brand": "Northwind & <Söhne>",
    "accent": "green",
    "scheme": "dark",
    "texts": {
        "en": {
            "title": "A gift for you",
            "good_for": "All teas.\nNo coffee.",
            "how_to_use": "Type it.",
        },
        "zh": {"title": "送您的礼物"},
    },
}


async def read(page: Page, **headers: str) -> Seen:
    return await page.send("GET", "/v1/card", None, headers)


async def test_a_page_reads_the_cards_of_its_campaigns_and_no_others(plane: ControlPlane) -> None:
    async with engine_in_process(plane, scopes=SCOPES, **FREE) as merchant:
        asked = {"name": "internal name", "kind": "balance", "amount": 500, "currency": "EUR", "card": CARD}
        status, made = await merchant.call("POST", "/v1/campaigns", json=asked | {"stock": 3})
        assert (status, made["card"]) == (201, CARD)
        plain, other = (await issue(plane, 1))[0], (await issue(plane, 1))[0]
        page = await page_of(plane, merchant, made["id"], plain)
        answer = await read(page)
        assert (answer.status, answer.header("access-control-allow-origin")) == (200, ORIGIN)
        assert answer.header("cache-control") == "no-store"
        shown = {one["id"]: one for one in orjson.loads(answer.body)["campaigns"]}
        ends = {"ends_at": None}
        assert shown[made["id"]] == {
            "id": made["id"], "kind": "balance", "currency": "EUR", "card": CARD, **ends
        }  # fmt: skip
        assert shown[plain]["card"] is None
        assert other not in shown
        assert b"internal name" not in answer.body
        changed = {"ends_at": "2035-01-01T00:00:00Z", "card": {"brand": "Southwind"}}
        status, changed = await merchant.call("PATCH", f"/v1/campaigns/{made['id']}", json=changed)
        assert (status, changed["card"]) == (200, {"brand": "Southwind"})
        shown = {one["id"]: one for one in orjson.loads((await read(page)).body)["campaigns"]}
        assert shown[made["id"]]["card"] == {"brand": "Southwind"}
        assert shown[made["id"]]["ends_at"] == "2035-01-01T00:00:00.000Z"
        await merchant.call("PATCH", f"/v1/campaigns/{made['id']}", json={"card": None})
        assert (await merchant.call("GET", f"/v1/campaigns/{made['id']}"))[1]["card"] is None
        status, log = await merchant.call("GET", f"/v1/audit-log?subject=campaign:{made['id']}")
        assert log["items"][0]["details"]["card"] == [{"brand": "Southwind"}, None]


async def test_reading_a_card_is_counted_with_the_other_calls(plane: ControlPlane) -> None:
    campaign, (code,) = await issue(plane, 1)
    limited: dict[str, Any] = {"guard_requests_per_min": 1, "guard_requests_burst": 2}
    async with engine_in_process(plane, **limited) as merchant:
        page = await page_of(plane, merchant, campaign)
        assert [(await read(page)).status for _ in range(3)] == [200, 200, 429]
        assert (await page.redeem(code)).status == 429


@pytest.mark.parametrize(
    ("card", "why"),
    [
        ({"brand": "x" * 61}, "card.brand must have 1 to 60 characters"),
        ({"brand": ""}, "card.brand must have 1 to 60 characters"),
        ({"brand": "two\nlines"}, "card.brand has unprintable characters"),
        ({"brand": "\u202egnorw"}, "card.brand has unprintable characters"),
        ({"accent": "pink"}, "card.accent"),
        ({"scheme": "sepia"}, "card.scheme"),
        ({"logo": "https://evil.example/x.svg"}, "logo"),
        ({"texts": {"fr": {"title": "Bonjour"}}}, "fr"),
        ({"texts": {"en": {"title": "x" * 81}}}, "card.texts.en.title must have 1 to 80 characters"),
        ({"texts": {"zh": {"good_for": "x" * 301}}}, "card.texts.zh.good_for must have 1 to 300 characters"),
        ({"texts": {"zh": {"how_to_use": " "}}}, "card.texts.zh.how_to_use must have 1 to 600 characters"),
    ],
)
async def test_a_card_that_cannot_be_shown_is_refused(
    plane: ControlPlane, card: dict[str, object], why: str
) -> None:
    async with engine_in_process(plane, scopes=SCOPES) as merchant:
        status, answer = await merchant.call("POST", "/v1/campaigns", json={"name": "x", "card": card})
        assert (status, answer["code"]) == (400, "malformed_request")
        assert why in answer["detail"]


async def test_a_card_with_a_code_in_it_is_refused(plane: ControlPlane) -> None:
    campaign, (code,) = await issue(plane, 1)
    async with engine_in_process(plane, scopes=SCOPES) as merchant:
        card = {"texts": {"en": {"how_to_use": f"For example {code}."}}}
        status, answer = await merchant.call("PATCH", f"/v1/campaigns/{campaign}", json={"card": card})
        assert (status, answer["detail"]) == (400, "card.texts.en.how_to_use must not contain a code")


async def test_the_card_of_an_ended_campaign_can_still_be_changed(plane: ControlPlane) -> None:
    campaign, _ = await issue(plane, 1)
    await campaigns.update(plane, campaign, CampaignChange(state="ended"))
    async with engine_in_process(plane, scopes=SCOPES) as merchant:
        status, answer = await merchant.call("PATCH", f"/v1/campaigns/{campaign}", json={"card": CARD})
        assert (status, answer["card"]) == (200, CARD)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "{own}"}, 200),
        ({"Origin": "{own}"}, 200),
        ({"Origin": "http://127.0.0.1:1"}, 403),  # another port of the same host
        ({"Origin": "https://{host}"}, 403),  # another scheme, so another port
        ({"Origin": "{own}", "Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Origin": "null"}, 403),
        ({}, 403),
    ],
)
async def test_a_browser_key_works_in_the_engines_own_pages(
    plane: ControlPlane, headers: dict[str, str], status: int
) -> None:
    campaign, (code,) = await issue(plane, 1)
    async with engine_in_process(plane, **FREE) as merchant:
        page = await page_of(plane, merchant, campaign)
        own = Page(merchant, page.key, origin=None)
        host = merchant.url.removeprefix("http://").partition(":")[0]
        sent = {name: value.format(own=merchant.url, host=host) for name, value in headers.items()}
        answer = await own.post("/v1/redemptions", {"code": code, "user": "ann"}, **sent)
        assert answer.status == status
        assert answer.header("access-control-allow-origin") is None
        assert answer.header("vary") == "Origin"
        # A GET of a page's own origin has no Origin; that of another origin always has one.
        assert (await read(own, **sent)).status == (status if headers else 200)
