from __future__ import annotations

import asyncio
import gzip
import json
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final, cast

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from engine.api.problems import PROBLEMS
from engine.control import batches
from engine.errors import Fault, Refusal
from engine.http import admin
from engine.http.auth import ADMISSION, API_KEY, Access, Admission
from engine.http.services import SERVICES, Services
from engine.store import configuration

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from engine.control.change import ControlPlane
    from engine.http.routes import Handler

    Client = TestClient[web.Request, web.Application]

CALLER: Final = configuration.CachedKey("key_caller", "ops", "", ("admin",), revoked=False)
BODY_BYTES_MAX: Final = 4096


@web.middleware
async def problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """What the app's own middlewares do: set the caller, map refusals and faults."""
    request[API_KEY], request[ADMISSION] = CALLER, Admission("admin", Access.STORE, for_browsers=False)
    try:
        return await handler(request)
    except (Refusal, Fault) as error:
        detail = error.detail if isinstance(error, Refusal) else str(error)
        status = PROBLEMS[error.code][0]
        return web.json_response({"code": error.code, "detail": detail}, status=status)


async def admitted(_authorization: str | None, _scope: str) -> configuration.CachedKey:
    return CALLER


@pytest.fixture
async def client(plane: ControlPlane) -> AsyncIterator[Client]:
    app = web.Application(middlewares=[problems], client_max_size=BODY_BYTES_MAX)
    settings = replace(plane.settings, page_limit_max=3, admin_body_bytes_max=BODY_BYTES_MAX)
    authenticator = SimpleNamespace(authorize_change=admitted)
    # Administration needs no more.
    services = SimpleNamespace(
        plane=replace(plane, settings=settings), authenticator=authenticator, exports=asyncio.Semaphore(4)
    )
    app[SERVICES] = cast("Services", services)
    for route in admin.routes():
        app.router.add_route(route.method, route.path, route.handler)
    async with TestClient(TestServer(app)) as started:
        yield started


async def call(client: Client, method: str, path: str, body: object = None) -> tuple[int, Any]:
    options: dict[str, Any] = {} if body is None else {"json": body}
    async with client.request(method, path, **options) as response:
        assert response.content_type == "application/json"
        return response.status, await response.json()


async def made(client: Client, path: str, body: object) -> Any:  # noqa: ANN401 - JSON
    status, document = await call(client, "POST", path, body)
    assert status == 201, document
    return document


def test_every_route_of_the_control_plane_needs_admin() -> None:
    assert {route.scope for route in admin.routes()} == {"admin"}


async def test_a_campaign_lives_from_draft_to_its_end(client: Client) -> None:
    async with client.post("/v1/campaigns", json={"name": "Sale", "stock": 5}) as response:
        document = await response.json()
        assert response.status == 201
        assert response.headers["Location"] == f"/v1/campaigns/{document['id']}"
    assert (document.pop("published"), document.pop("replayed")) == (True, False)
    path = f"/v1/campaigns/{document['id']}"
    status, shown = await call(client, "GET", path)
    assert (status, shown.pop("numbers")["stock_left"], shown) == (200, 5, document)
    for state in ("active", "paused", "active", "ended"):
        status, answer = await call(client, "PATCH", path, {"state": state})
        assert (status, answer["state"], answer["published"]) == (200, state, True)
    status, answer = await call(client, "PATCH", path, {"state": "active"})
    assert (status, answer["code"]) == (409, "campaign_ended")


async def test_patch_changes_what_it_names_and_null_removes(client: Client) -> None:
    campaign = await made(
        client, "/v1/campaigns", {"name": "a", "stock": 5, "ends_at": "2030-01-01T00:00:00Z"}
    )
    path = f"/v1/campaigns/{campaign['id']}"
    _, answer = await call(client, "PATCH", path, {"ends_at": None})
    assert answer == campaign | {"ends_at": None}
    _, answer = await call(client, "PATCH", path, {})
    assert answer == campaign | {"ends_at": None}


WRONG_FIELDS: list[dict[str, object]] = [
    {"name": 5},
    {"name": None},
    {"name": ""},
    {"name": "\0"},
    {"name": "x" * 201},
    {"kind": "multi"},
    {"kind": None},
    {"state": "ended"},
    {"state": True},
    {"amount": True, "currency": "EUR"},
    {"amount": 1.0, "currency": "EUR"},
    {"amount": 1e2, "currency": "EUR"},
    {"amount": "1", "currency": "EUR"},
    {"amount": -1, "currency": "EUR"},
    {"amount": 2**53, "currency": "EUR"},
    {"amount": 2**64, "currency": "EUR"},
    {"amount": 1, "currency": 978},
    {"amount": 1, "currency": "XXX"},
    {"amount": 1},
    {"stock": 1.5},
    {"stock": []},
    {"per_user_limit": 0},
    {"per_user_limit": {}},
    {"starts_at": 1893456000},
    {"starts_at": "2030-01-01T00:00:00"},
    {"ends_at": "2030-13-01T00:00:00Z"},
    {"starts_at": "2030-01-02T00:00:00Z", "ends_at": "2030-01-01T00:00:00Z"},
    {"budget": 5},
    {"id": "cmp_1"},
    {"pinned_shard": 0},
]
MALFORMED: list[tuple[str, str, object]] = [
    *(("POST", "/v1/campaigns", {"name": "a"} | fields) for fields in WRONG_FIELDS),
    ("POST", "/v1/campaigns", {}),
    ("POST", "/v1/campaigns", []),
    ("POST", "/v1/campaigns", "name"),
    ("POST", "/v1/campaigns", 0),
    ("PATCH", "/v1/campaigns/cmp_1", {"state": None}),
    ("PATCH", "/v1/campaigns/cmp_1", {"name": None}),
    ("PATCH", "/v1/campaigns/cmp_1", {"state": "open"}),
    ("PATCH", "/v1/campaigns/cmp_1", {"state": "paused"}),
    ("PATCH", "/v1/campaigns/cmp_1", {"kind": "multi"}),
    ("PATCH", "/v1/campaigns/cmp_1", {"stock": -1}),
    ("PATCH", "/v1/campaigns/cmp_1", {"created_at": "2030-01-01T00:00:00Z"}),
    ("POST", "/v1/campaigns/cmp_1/batches", {}),
    ("POST", "/v1/campaigns/cmp_1/batches", {"count": 0}),
    ("POST", "/v1/campaigns/cmp_1/batches", {"count": True}),
    ("POST", "/v1/campaigns/cmp_1/batches", {"count": 1.0}),
    ("POST", "/v1/campaigns/cmp_1/batches", {"count": 2**28 + 1}),
    ("POST", "/v1/campaigns/cmp_1/batches", {"count": 1, "format": "hex"}),
    ("POST", "/v1/campaigns/cmp_1/batches", {"count": 1, "prefix": "!"}),
    ("POST", "/v1/campaigns/cmp_1/batches", {"count": 1, "mint_key": "k1"}),
    ("POST", "/v1/campaigns/cmp_1/batches", {"count": 2**28, "format": "digits-15"}),
    ("POST", "/v1/keys", {}),
    ("POST", "/v1/keys", {"name": "a"}),
    ("POST", "/v1/keys", {"name": "a", "scopes": []}),
    ("POST", "/v1/keys", {"name": "a", "scopes": "admin"}),
    ("POST", "/v1/keys", {"name": "a", "scopes": ["root"]}),
    ("POST", "/v1/keys", {"name": "a", "scopes": [1]}),
    ("POST", "/v1/keys", {"name": "\n", "scopes": ["read"]}),
    ("GET", "/v1/campaigns?limit=0", None),
    ("GET", "/v1/campaigns?limit=4", None),
    ("GET", "/v1/campaigns?limit=x", None),
    ("GET", "/v1/campaigns?limit=%D9%A1", None),
    ("GET", "/v1/campaigns?after=", None),
    ("GET", "/v1/campaigns?after=cmp_1%00", None),
    ("GET", "/v1/campaigns?page=2", None),
    ("GET", "/v1/campaigns/cmp_1/batches?after=x", None),
    ("GET", "/v1/campaigns/cmp_1/batches?after=9999999999", None),
    ("GET", "/v1/keys?after=%ff", None),
    ("GET", "/v1/batches/0/codes?format=xml", None),
    ("GET", "/v1/batches/0/voids?after=1", None),
    ("GET", "/v1/batches/0/voids?after=void_0", None),
    ("GET", "/v1/audit-log?after=x", None),
    ("GET", "/v1/audit-log?act=", None),
    ("GET", "/v1/audit-log?act=a&act=b", None),
    ("GET", "/v1/audit-log?subject=%00", None),
    ("GET", "/v1/audit-log?actor=cli", None),
    ("POST", "/v1/codes/void", {}),
    ("POST", "/v1/codes/void", {"batch": 0}),
    ("POST", "/v1/codes/void", {"reason": "leaked"}),
    ("POST", "/v1/codes/void", {"batch": "0", "reason": "leaked"}),
    ("POST", "/v1/codes/void", {"batch": 0, "code": "0000-0000-0000-0000", "reason": "leaked"}),
    ("POST", "/v1/codes/void", {"code": "0000-0000-0000-0000", "first_serial": 0, "reason": "leaked"}),
    ("POST", "/v1/codes/void", {"first_serial": 0, "last_serial": 0, "reason": "leaked"}),
    ("POST", "/v1/codes/void", {"batch": 0, "serial": 0, "reason": "leaked"}),
    ("POST", "/v1/codes/unvoid", {"batch": 0, "reason": ""}),
    ("POST", "/v1/codes/unvoid", {"code": "0000-0000-0000-0000", "reason": ""}),
]


async def test_every_malformed_request_is_a_400_that_says_what_is_wrong(client: Client) -> None:
    campaign = await made(client, "/v1/campaigns", {"name": "a"})
    assert campaign["id"] == "cmp_1"
    wrong = []
    for method, path, body in MALFORMED:
        status, answer = await call(client, method, path, body)
        if (status, answer.get("code")) != (400, "malformed_request") or not answer.get("detail"):
            wrong.append((method, path, body, status, answer))
    assert wrong == []
    _, answer = await call(client, "GET", "/v1/campaigns")
    assert len(answer["items"]) == 1


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff",
        b'{"name":"\\ud800"}',
        b'{"name":"a","amount":NaN}',
        b"[" * 4000,
        b'{"name":"a","amount":' + b"9" * 4000 + b"}",
        b'{"name":' + b"[" * 4000,
    ],
)
async def test_a_body_that_is_not_json_is_a_400(client: Client, body: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    async with client.post("/v1/campaigns", data=body, headers=headers) as response:
        assert (response.status, (await response.json())["code"]) == (400, "malformed_request")


async def test_other_media_types_and_large_bodies_are_refused(client: Client) -> None:
    async with client.post("/v1/campaigns", data=b'{"name":"a"}') as response:
        assert (response.status, (await response.json())["code"]) == (415, "unsupported_media_type")
    large = json.dumps({"name": "x" * BODY_BYTES_MAX}).encode()
    json_type = {"Content-Type": "application/json"}
    async with client.post("/v1/campaigns", data=large, headers=json_type) as response:
        assert (response.status, (await response.json())["code"]) == (413, "body_too_large")
    bomb, zipped = gzip.compress(b" " * 10_000_000), json_type | {"Content-Encoding": "gzip"}
    async with client.post("/v1/campaigns", data=bomb, headers=zipped) as response:
        assert response.status == 415


@pytest.mark.parametrize(
    ("method", "path", "code"),
    [
        ("GET", "/v1/campaigns/cmp_9", "campaign_not_found"),
        ("GET", "/v1/campaigns/%00", "campaign_not_found"),
        ("GET", "/v1/campaigns/cmp_9/batches", "campaign_not_found"),
        ("GET", "/v1/batches/9", "batch_not_found"),
        ("GET", "/v1/batches/-1", "batch_not_found"),
        ("GET", "/v1/batches/99999999999999999999", "batch_not_found"),
        ("GET", "/v1/batches/9/codes", "batch_not_found"),
        ("GET", "/v1/batches/x/codes", "batch_not_found"),
        ("GET", "/v1/batches/9/voids", "batch_not_found"),
        ("DELETE", "/v1/keys/key_000000000000", "not_found"),
        ("DELETE", "/v1/keys/%00", "not_found"),
    ],
)
async def test_what_does_not_exist_is_a_404(client: Client, method: str, path: str, code: str) -> None:
    status, answer = await call(client, method, path)
    assert (status, answer["code"]) == (404, code)


async def test_lists_go_on_from_their_cursor_to_the_end(client: Client) -> None:
    campaign = await made(client, "/v1/campaigns", {"name": "0"})
    for number in range(1, 5):
        await made(client, "/v1/campaigns", {"name": f"{number}"})
        await made(client, "/v1/keys", {"name": f"{number}", "scopes": ["read"]})
        await made(client, f"/v1/campaigns/{campaign['id']}/batches", {"count": 1})
    for path, total in (("campaigns", 5), ("keys", 4), (f"campaigns/{campaign['id']}/batches", 4)):
        seen: list[Any] = []
        query = "?limit=2"
        while True:
            status, answer = await call(client, "GET", f"/v1/{path}{query}")
            assert status == 200
            assert set(answer) == {"items", "next"}
            seen += answer["items"]
            if answer["next"] is None:
                break
            query = f"?limit=2&after={answer['next']}"
        assert len({item["id"] for item in seen}) == len(seen) == total


async def test_a_key_is_shown_once_and_revoked(client: Client) -> None:
    issued = await made(client, "/v1/keys", {"name": "shop", "scopes": ["redeem"]})
    assert issued.pop("key").startswith("rk_")
    assert (issued.pop("published"), issued.pop("replayed")) == (True, False)
    assert (await call(client, "GET", "/v1/keys"))[1] == {"items": [issued], "next": None}
    status, revoked = await call(client, "DELETE", f"/v1/keys/{issued['id']}")
    assert (status, revoked["published"]) == (200, True)
    assert revoked["revoked_at"].endswith("Z")


async def test_codes_are_streamed_as_csv_and_as_ndjson(client: Client, plane: ControlPlane) -> None:
    campaign = await made(client, "/v1/campaigns", {"name": "a"})
    batch = await made(client, f"/v1/campaigns/{campaign['id']}/batches", {"count": 70_000, "prefix": "vip"})
    assert batch["created_by"] == CALLER.id
    assert batch["guess_chance"].startswith("1 in 2^")
    status, shown = await call(client, "GET", f"/v1/batches/{batch['id']}")
    assert (status, shown["count"]) == (200, 70_000)

    path = f"/v1/batches/{batch['id']}/codes"
    minted = b"".join(batches.codes(await batches.get(plane, batch["id"]), plane.settings))
    async with client.get(path) as response:
        assert (response.status, response.content_type) == (200, "text/csv")
        assert response.headers["Cache-Control"] == "no-store"
        assert await response.read() == b"code,serial\n" + minted
    expected = [
        {"code": line.partition(",")[0], "serial": serial}
        for serial, line in enumerate(minted.decode().splitlines())
    ]
    accept = {"Accept": "application/x-ndjson"}
    for asked in (client.get(path, headers=accept), client.get(f"{path}?format=ndjson")):
        async with asked as response:
            assert response.content_type == "application/x-ndjson"
            assert [json.loads(line) for line in (await response.text()).splitlines()] == expected


async def test_a_reader_that_goes_away_stops_the_stream_and_harms_nobody(client: Client) -> None:
    campaign = await made(client, "/v1/campaigns", {"name": "a"})
    batch = await made(client, f"/v1/campaigns/{campaign['id']}/batches", {"count": 2_000_000})
    async with client.get(f"/v1/batches/{batch['id']}/codes") as response:
        await response.content.readline()
        response.close()
    assert (await call(client, "GET", f"/v1/batches/{batch['id']}"))[0] == 200


async def test_an_export_without_its_mint_key_is_a_clear_503(client: Client, plane: ControlPlane) -> None:
    campaign = await made(client, "/v1/campaigns", {"name": "a"})
    batch = await made(client, f"/v1/campaigns/{campaign['id']}/batches", {"count": 1})
    async with plane.database.connection() as connection:
        await connection.execute("UPDATE batches SET mint_key = 'lost'")
    status, answer = await call(client, "GET", f"/v1/batches/{batch['id']}/codes")
    assert (status, answer["code"]) == (503, "store_unavailable")
    assert "lost" in answer["detail"]
