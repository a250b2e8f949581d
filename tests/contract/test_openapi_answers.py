"""docs/openapi.json against the running engine: its routes, their scopes, and an answer to every call."""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING, Any, Final

import aiohttp
import pytest

from engine.app import open_app
from engine.control import api_keys
from engine.http import card_form, card_page, dashboard, documents, live_calls, sessions
from engine.http.auth import BROWSER
from engine.store.configuration import SCOPES
from tests.support.guessing import made_up
from tests.support.openapi import Document, engine_and_caller
from tests.support.user_tokens import user_token
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from engine.control.change import ControlPlane
    from engine.settings import Settings
    from tests.support.openapi import Caller, Operation

OPERATIONS: Final = Document().operations
CUT_LINES: Final = 20_000  # of a file: enough that an import has begun


@pytest.fixture
async def caller(plane: ControlPlane) -> AsyncIterator[Caller]:
    async with engine_and_caller(plane) as caller:
        yield caller


async def test_every_route_is_described_and_every_description_is_a_route(
    plane: ControlPlane, settings: Settings
) -> None:
    """Apart from the pages for people, which are no calls of the API."""
    modules = (documents, dashboard, card_form, card_page, sessions, live_calls)
    for_people = [route for module in modules for route in module.routes()]
    pages = {(route.method, re.sub(r":[^}]*}", "}", route.path)) for route in for_people}
    pages |= {("HEAD", path) for method, path in pages if method == "GET" and path != "/admin/live"}
    await api_keys.create(plane, "merchant", SCOPES)
    async with open_app(settings, None) as app:
        served = {(route.method, route.resource.canonical) for route in app.router.routes() if route.resource}
    assert served - pages == {(operation.method, operation.path) for operation in OPERATIONS.values()}


async def test_a_call_needs_the_scope_that_is_described_and_no_other(
    plane: ControlPlane, caller: Caller
) -> None:
    async def status(operation: Operation, key: str) -> int:
        path = operation.path.format(id="0", secret="0")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        url = caller.merchant.url + path
        async with caller.merchant.session.request(operation.method, url, headers=headers) as response:
            return response.status

    described = {operation.scope for operation in OPERATIONS.values() if operation.scope}
    assert described
    for wanted in described:
        scopes = [scope for scope in wanted.split(" or ") if scope != BROWSER]
        only = [(await api_keys.create(plane, "only", (scope,))).value.key for scope in scopes]
        others = [other for other in SCOPES if other not in scopes]
        without = (await api_keys.create(plane, "without", others)).value.key
        for operation in OPERATIONS.values():
            if operation.scope == wanted:
                assert await status(operation, without) == 403, operation.id
                for key in only:
                    assert await status(operation, key) not in {401, 403}, operation.id
    for operation in OPERATIONS.values():
        assert (await status(operation, "") == 401) == (operation.scope is not None), operation.id


async def test_a_key_that_was_revoked_a_moment_ago_is_answered_so(
    plane: ControlPlane, caller: Caller
) -> None:
    """By the script call, which is later than the look at the key."""
    await caller.call("redeem", {"code": "0000-0000-0000-0000", "user": "ann"})
    single, _, _ = await caller.make_campaigns()
    await api_keys.revoke(plane, "key_" + caller.merchant.key.split("_")[1])
    refused = await caller.call("redeem", {"code": single[0], "user": "ann"})
    assert refused["code"] == "unauthenticated"


async def test_every_call_succeeds_as_it_is_described(caller: Caller) -> None:
    single, cards, words = await caller.make_campaigns()
    await redeem(caller, single, cards)
    await hold(caller, single, cards)
    await correct(caller, single, cards, words)
    await administer(caller)
    await import_codes(caller)
    await tell(caller)
    await find(caller, single[0])
    page = {"kind": "browser", "name": "page", "campaigns": ["cmp_1"], "origins": ["https://shop.example"]}
    made = await caller.call("createKey", page)
    of_page = {"Authorization": f"Bearer {made['key']}"}
    assert (await caller.call("showCard", headers=of_page))["campaigns"][0]["id"] == "cmp_1"
    assert (await caller.call("listRedemptionsOfUser", headers=of_page))["code"] == "invalid_user_token"
    of_user = of_page | {"User-Token": user_token(made["id"], made["signing_secret"]["secret"], "ann")}
    assert (await caller.call("listRedemptionsOfUser", query="?limit=1", headers=of_user))["items"]
    assert (await caller.call("showUser", id="ann"))["totals"]
    assert (await caller.call("eraseUser", {"reason": "asked for it"}, id="ann"))["events"]
    assert (await caller.call("showUser", id="ann"))["code"] == "user_not_found"
    for name in ("health", "readiness", "metrics"):
        await caller.call(name)
        await caller.call(f"{name}Head")
    assert caller.answered == OPERATIONS.keys()


async def redeem(caller: Caller, single: list[str], cards: list[str]) -> None:
    call = caller.call
    body = {"code": single[0], "user": "ann", "order": "4711"}
    redeemed = await call("redeem", body, key="k")
    assert (await call("redeem", body, key="k"))["replayed"]
    assert (await call("redeem", body | {"user": "bob"}, key="k"))["code"] == "idempotency_key_reused"
    assert (await call("redeem", body | {"user": "bob"}))["code"] == "already_redeemed"
    card = await call("redeem", {"code": cards[0], "user": "ann", "amount": "up_to_balance"})
    items = [
        {"code": single[1], "user": "ann", "idempotency_key": "a"},
        {"code": single[0], "user": "bob"},
        7,
    ]
    assert [item["status"] for item in (await call("redeemBatch", {"items": items}))["results"]] == [
        200,
        409,
        400,
    ]
    combined: dict[str, Any] = {"codes": [{"code": single[2]}], "user": "ann", "order": "4712"}
    combined["codes"].append({"code": cards[1], "amount": 100})
    await call("redeemCombined", combined, key="c")
    refused = await call("redeemCombined", combined)
    assert refused["refusals"] == [{"item": 0, "code": "already_redeemed"}]
    await call("rollBack", {"reason": "returned", "amount": 1000}, id=card["id"])
    await call("rollBack", {"reason": "returned"}, id=card["id"])
    assert (await call("rollBack", {"reason": "again"}, id=card["id"]))["code"] == "already_rolled_back"
    await call("rollBack", {"reason": "stolen", "void": True}, id=redeemed["id"])
    assert (await call("showRedemption", id=card["id"]))["history"]
    page = await call("listEvents", query="?limit=1&wait_s=1&type=redeemed,confirmed&campaign=cmp_1")
    assert (await call("listEvents", query=f"?after={page['next']}"))["next"]
    for name in ("listEvents", "listRedemptions"):
        assert (await call(name, query="?campaign=cmp_99"))["code"] == "campaign_not_found"
    page = await call("listRedemptions", query="?user=ann&limit=1")
    assert (await call("listRedemptions", query=f"?user=ann&after={page['next']}"))["items"]


async def find(caller: Caller, code: str) -> None:
    call = caller.call
    for text in (code, "4711", "4715", "ann", code[-4:]):
        assert (await call("search", {"text": text}))["items"], text
    (redeemed, *_) = (await call("tellStory", {"code": code}))["events"]
    for named in ({"redemption": redeemed["redemption"]}, {"order": "4711"}):
        assert (await call("tellStory", named))["events"]
    for identifier in (
        redeemed["redemption"],
        (await call("listHolds", query="?order=4715"))["items"][0]["id"],
    ):
        assert (await call("search", {"text": identifier}))["items"]
    assert (await call("tellStory", {"redemption": "0-1-1"}))["code"] == "redemption_not_found"


async def hold(caller: Caller, single: list[str], cards: list[str]) -> None:
    call = caller.call
    body = {"code": single[3], "user": "ann", "order": "4713", "ttl_s": 60}
    held = await call("hold", body)
    refused = await call("hold", body | {"order": "4714"})
    assert refused["code"] == "held_by_another_order"
    assert not (await call("checkCode", {"code": single[3]}))["redeemable"]
    await call("releaseHold", id=held["id"])
    part = await call("hold", {"code": cards[2], "user": "ann", "order": "4715", "amount": 300})
    assert (await call("confirmHold", {"amount": 200}, id=part["id"]))["balance"] == 4800
    for name in ("confirmHold", "releaseHold"):
        assert (await call(name, id=part["id"]))["code"] == "already_redeemed"
    assert (await call("showHold", id=part["id"]))["status"] == "confirmed"
    assert (await call("showHold", id="0-1-1"))["code"] == "hold_not_found"
    for state in ("held", "confirmed"):
        assert (await call("listHolds", query=f"?order=4715&state={state}"))["next"] is None


async def correct(caller: Caller, single: list[str], cards: list[str], words: list[str]) -> None:
    call = caller.call
    for code in (single[4], cards[3], words[0]):
        assert (await call("checkCode", {"code": code, "user": "ann"}))["redeemable"]
    await call("adjustCode", {"code": cards[3], "amount": 500, "reason": "goodwill"})
    refused = await call("adjustCode", {"code": single[4], "amount": 500, "reason": "goodwill"})
    assert refused["code"] == "invalid_amount"
    for name in ("voidCodes", "unvoidCodes"):
        await call(name, {"code": single[4], "reason": "lost"})
        await call(name, {"batch": 2, "first_serial": 1, "last_serial": 2, "reason": "published"})
    assert len((await call("listVoids", id=2))["items"]) == 2


async def administer(caller: Caller) -> None:
    call = caller.call
    page = await call("listCampaigns", query="?limit=2")
    assert (await call("listCampaigns", query=f"?after={page['next']}"))["next"] is None
    await call("updateCampaign", {"state": "paused"}, id="cmp_1", key="p")
    assert (await call("updateCampaign", {"state": "paused"}, id="cmp_1", key="p"))["replayed"]
    await call("showCampaign", id="cmp_1")
    await call("showBatch", id=0)
    await call("listBatches", id="cmp_1")
    await call("exportCodes", id=0, headers={"Accept": "application/x-ndjson"})
    key = await call("createKey", {"name": "shop", "scopes": ["redeem"]})
    assert len((await call("listKeys"))["items"]) == 2
    signing = await call("createKey", {"name": "shop", "scopes": ["redeem"], "signing": "required"})
    first = signing["signing_secret"]["id"]
    refused = await call("retireSigningSecret", id=signing["id"], secret=first)
    assert refused["code"] == "signing_secret_limit"
    second = await call("addSigningSecret", id=signing["id"])
    assert (await call("retireSigningSecret", id=signing["id"], secret=first))["id"] == first
    assert (await call("listKeys"))["items"][-1]["signing_secrets"] == [second["id"]]
    block = await call("createBlock", {"kind": "device", "subject": "d-1", "reason": "guessing"}, key="b")
    assert (await call("listBlocks", query="?kind=device&state=active"))["items"]
    await call("liftBlock", id=block["id"])
    assert (await call("showBlock", id=block["id"]))["state"] == "lifted"
    await guard(caller)
    await call("updateKey", {"name": "till"}, id=key["id"])
    await call("revokeKey", id=key["id"])
    assert (await call("listAuditLog", query="?act=revoke_key"))["items"]
    assert (await call("listConflicts"))["items"] == []
    assert (await call("listAudits"))["items"] == []
    assert (await call("showFindings"))["checks"]
    report = OPERATIONS["addCapacityReport"].request["application/json"]["example"]
    made = await call("addCapacityReport", report)
    assert [one["id"] for one in (await call("listCapacityReports"))["items"]] == [made["id"]]


async def guard(caller: Caller) -> None:
    call = caller.call
    await call("setGuardRules", {"rules": {"score": "enforce"}})
    assert any(rule["mode"] == "enforce" for rule in (await call("listGuardRules"))["items"])
    items: list[Any] = []

    async def has_alert() -> bool:
        code = made_up(len(items))
        items.append(await call("redeem", {"code": code, "user": "eve"}))
        return bool((await call("listAlerts", query="?state=open"))["items"])

    await wait_until_async(has_alert)
    assert (await call("listSources"))["items"][0]["subject"] == "eve"
    (alert,) = (await call("listAlerts"))["items"]
    assert (await call("acknowledgeAlert", id=alert["id"], key="seen"))["acknowledged_at"]
    await call("setGuardRules", {"rules": {"score": None}})


async def tell(caller: Caller) -> None:
    call = caller.call
    asked = {
        "url": "https://shop.example/hook",
        "types": ["redeemed"],
        "campaigns": ["cmp_1"],
        "batch_max": 5,
    }
    made = await call("createWebhook", asked, key="w")
    assert (await call("createWebhook", asked, key="w"))["secret"] == made["secret"]
    refused = await call("createWebhook", {"url": "https://127.0.0.1/"})
    assert refused["code"] == "malformed_request"
    await call("updateWebhook", {"types": None, "description": "shop"}, id=made["id"])
    assert (await call("rotateWebhookSecret", id=made["id"]))["secret"] != made["secret"]
    assert (await call("retryWebhook", id=made["id"]))["next_at"] is None
    await call("replayWebhook", {"after": "beginning"}, id=made["id"])
    assert (await call("listWebhooks"))["items"] == [await call("showWebhook", id=made["id"])]
    for name in ("listWebhookAttempts", "listWebhookDeadLetters"):
        assert (await call(name, id=made["id"]))["items"] == []
    await call("deleteWebhook", id=made["id"])
    assert (await call("showWebhook", id=made["id"]))["code"] == "webhook_not_found"


async def import_codes(caller: Caller) -> None:
    call = caller.call
    csv = {"Content-Type": "text/csv"}
    made = await call("importCodes", b"code\nFLASH50\nflash-50\n", headers=csv, id="cmp_3")
    assert (made["accepted"], made["duplicates"]) == (1, 1)
    ndjson = {"Content-Type": "application/x-ndjson"}
    await call("importCodes", b'{"code": "FLASH51"}\n', headers=ndjson, id="cmp_3")
    assert "duplicate_in_file" in await call("listImportProblems", id=made["id"])
    await call("showImport", id=made["id"])
    assert (await call("discardImport", id=made["id"]))["code"] == "import_conflict"
    assert (await call("exportCodes", id=made["batch"]))["code"] == "malformed_request"

    async def unfinished() -> list[dict[str, Any]]:
        imports = (await call("listImports", id="cmp_3"))["items"]
        return [one for one in imports if one["state"] == "running"]

    async def cut_off() -> AsyncIterator[bytes]:
        yield b"".join(b"CUT%06d\n" % number for number in range(CUT_LINES))
        await wait_until_async(unfinished)
        raise ConnectionError

    url = caller.merchant.url + "/v1/campaigns/cmp_3/imports"
    headers = {"Authorization": f"Bearer {caller.merchant.key}", **csv}
    with contextlib.suppress(aiohttp.ClientError):
        await caller.merchant.session.post(url, headers=headers, data=cut_off())
    (one,) = await unfinished()
    assert (await call("discardImport", id=one["id"]))["state"] == "discarded"
