"""What a text names, and every event of a code or of an order, whether or not the ledger has it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from engine.control import api_keys
from engine.store.configuration import SCOPES
from tests.support.deployment import Merchant, engine_in_process, issue
from tests.support.records import persist

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from engine.control.change import ControlPlane
    from engine.settings import Settings


@pytest.fixture
async def merchant(plane: ControlPlane) -> AsyncIterator[Merchant]:
    async with engine_in_process(plane, scopes=SCOPES) as merchant:
        yield merchant


async def search(merchant: Merchant, text: str) -> list[dict[str, Any]]:
    status, body = await merchant.call("POST", "/v1/search", json={"text": text})
    assert status == 200, body
    return list(body["items"])


async def story(merchant: Merchant, **named: str) -> dict[str, Any]:
    status, body = await merchant.call("POST", "/v1/stories", json=named)
    assert status == 200, body
    return dict(body)


def types(told: dict[str, Any]) -> list[str]:
    return [event["type"] for event in told["events"]]


@pytest.mark.parametrize("persisted", ["nothing", "a part", "all"])
async def test_a_story_has_every_event_wherever_it_is(
    settings: Settings, plane: ControlPlane, merchant: Merchant, persisted: str
) -> None:
    campaign, codes = await issue(plane, 2, kind="balance", amount=2500, currency="EUR")
    _, redeemed = await merchant.redeem(codes[0], amount=500, order="4711")
    _, other = await merchant.redeem(codes[1], amount=100, order="4712")
    if persisted != "nothing":
        await persist(settings)
    undo = f"/v1/redemptions/{redeemed['id']}/rollback"
    await merchant.call("POST", undo, json={"amount": 200, "reason": "one returned"})
    body = {"code": codes[0], "user": "ann", "order": "4711", "amount": 300}
    _, held = await merchant.call("POST", "/v1/holds", json=body)
    await merchant.call("POST", f"/v1/holds/{held['id']}/confirm", json={})
    body = {"code": codes[0], "amount": 50, "reason": "goodwill"}
    await merchant.call("POST", "/v1/codes/adjust", json=body)
    if persisted == "all":
        await persist(settings)

    told = await story(merchant, code=codes[0])
    assert types(told) == ["redeemed", "rolled_back", "held", "confirmed", "adjusted"]
    assert told["code"] == {
        "campaign": campaign,
        "batch": 0,
        "serial": 0,
        "last4": codes[0][-4:],
        "void": False,
    }
    assert told["complete"]
    assert codes[0] not in str(told)
    assert [event["order"] for event in told["events"]][:1] == ["4711"]
    for identifier in (redeemed["id"], held["id"]):
        assert await story(merchant, redemption=identifier) == told

    of_order = await story(merchant, order="4711")
    assert types(of_order) == ["redeemed", "rolled_back", "held", "confirmed"]
    assert (of_order["order"], of_order["code"]) == ("4711", None)
    assert types(await story(merchant, redemption=other["id"])) == ["redeemed"]
    assert types(await story(merchant, order="none")) == []


async def test_one_box_finds_what_a_text_names(
    settings: Settings, plane: ControlPlane, merchant: Merchant
) -> None:
    campaign, codes = await issue(plane, 3)
    _, redeemed = await merchant.redeem(codes[0], user="ann", order="4711")
    _, held = await merchant.call(
        "POST", "/v1/holds", json={"code": codes[1], "user": "bob", "order": "4712"}
    )
    code = {"campaign": campaign, "batch": 0, "serial": 0, "last4": codes[0][-4:]}
    assert await search(merchant, f"  {codes[0].lower()} ") == [{"kind": "code", "code": code}]
    (found,) = await search(merchant, redeemed["id"])
    assert (found["kind"], found["redemption"]["order"]) == ("redemption", "4711")
    (found,) = await search(merchant, held["id"])
    assert (found["kind"], found["hold"]["user"]) == ("hold", "bob")
    assert {"kind": "order", "order": "4711", "events": 1} in await search(merchant, "4711")
    assert await search(merchant, "ann") == [{"kind": "user", "user": "ann"}]
    assert await search(merchant, "bob") == [{"kind": "user", "user": "bob"}]
    assert await search(merchant, "nobody") == []
    await persist(settings)
    (found,) = [hit for hit in await search(merchant, codes[0][-4:].lower()) if hit["kind"] == "last4"]
    assert found["code"] | code == found["code"]
    assert found["code"]["events"] == 1


async def test_a_limited_key_finds_nothing_of_other_campaigns(
    plane: ControlPlane, merchant: Merchant
) -> None:
    own, own_codes = await issue(plane, 1)
    _, codes = await issue(plane, 1)
    partner = (await api_keys.create(plane, "partner", ["read", "adjust"], campaigns=[own])).value.key
    limited = Merchant(merchant.session, merchant.url, partner)
    _, redeemed = await merchant.redeem(codes[0], user="ann", order="4711")
    await merchant.redeem(own_codes[0], user="cho", order="4712")
    for text in (codes[0], redeemed["id"], "ann", "4711", codes[0][-4:]):
        assert await search(limited, text) == [], text
    assert await search(limited, own_codes[0])
    assert types(await story(limited, order="4711")) == []
    assert types(await story(limited, order="4712")) == ["redeemed"]
    for named in ({"code": codes[0]}, {"redemption": redeemed["id"]}):
        assert (await limited.call("POST", "/v1/stories", json=named))[0] == 404


@pytest.mark.parametrize("body", [{}, {"code": "a", "order": "b"}, {"order": 1}, {"text": "a"}])
async def test_a_story_of_nothing_or_of_two_things_is_malformed(merchant: Merchant, body: object) -> None:
    status, refused = await merchant.call("POST", "/v1/stories", json=body)
    assert (status, refused["code"]) == (400, "malformed_request")


async def test_a_text_is_neither_logged_nor_quoted(
    plane: ControlPlane, merchant: Merchant, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    _, codes = await issue(plane, 1)
    await search(merchant, codes[0])
    status, refused = await merchant.call("POST", "/v1/stories", json={"code": codes[0] + "0"})
    assert status == 404
    assert codes[0] not in str(refused) + " ".join(str(record.__dict__) for record in caplog.records)
