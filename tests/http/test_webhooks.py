"""Webhooks over HTTP: what is registered and shown, what is refused, and that a secret is shown once."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import pytest

from engine.ledger.feed import BEGINNING, Cursor
from tests.support.deployment import Merchant, engine_in_process

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from engine.control.change import ControlPlane

URL: Final = "https://shop.example/hooks/redeem?token=t"
SCOPES: Final = ("admin", "events", "redeem")
REFUSED: Final = (400, "malformed_request")


@pytest.fixture
async def ops(plane: ControlPlane) -> AsyncIterator[Merchant]:
    async with engine_in_process(plane, scopes=SCOPES, webhooks_max=3, webhook_batch_events_max=50) as caller:
        yield caller


async def create(ops: Merchant, **fields: object) -> Any:  # noqa: ANN401 - JSON
    status, made = await ops.call("POST", "/v1/webhooks", json={"url": URL, **fields})
    assert status == 201, made
    return made


async def refused(ops: Merchant, method: str, path: str, json: object = None) -> tuple[int, str]:
    status, body = await ops.call(method, path, json=json)
    return status, body["code"]


async def test_an_endpoint_is_registered_shown_changed_and_removed(ops: Merchant) -> None:
    made = await create(ops, types=["redeemed", "held", "held"], campaigns=["cmp_1"], batch_max=50)
    secret = made.pop("secret")
    assert len(secret) == len("whsec_") + 44
    assert (made["url"], made["types"], made["campaigns"]) == (URL, ["held", "redeemed"], ["cmp_1"])
    assert (made["enabled"], made["failures"], made["dead_letters"]) == (True, 0, 0)
    assert made["cursor"] == str(BEGINNING)
    for told in ("published", "replayed"):
        made.pop(told)
    path = f"/v1/webhooks/{made['id']}"
    assert await ops.call("GET", path) == (200, made)
    _, page = await ops.call("GET", "/v1/webhooks")
    assert page == {"items": [made], "next": None}
    assert secret not in str(page)

    _, changed = await ops.call("PATCH", path, json={"types": None, "enabled": False})
    assert (changed["types"], changed["campaigns"], changed["enabled"]) == (None, ["cmp_1"], False)
    _, changed = await ops.call("PATCH", path, json={"url": "https://other.example/", "batch_max": None})
    assert (changed["url"], changed["batch_max"], changed["enabled"]) == (
        "https://other.example/",
        None,
        False,
    )
    status, removed = await ops.call("DELETE", path)
    assert (status, removed["url"]) == (200, "https://other.example/")
    for call in (
        ("GET", path),
        ("DELETE", path),
        ("GET", f"{path}/attempts"),
        ("GET", f"{path}/dead-letters"),
    ):
        assert await refused(ops, *call) == (404, "webhook_not_found")
    assert await refused(ops, "PATCH", path, {"enabled": True}) == (404, "webhook_not_found")
    assert await refused(ops, "POST", f"{path}/rotate", {}) == (404, "webhook_not_found")
    assert await refused(ops, "POST", f"{path}/replay", {"after": "beginning"}) == (404, "webhook_not_found")


async def test_a_secret_is_shown_once_and_to_who_repeats_the_call(ops: Merchant) -> None:
    async def keyed(path: str, body: object) -> Any:  # noqa: ANN401 - JSON
        return (await ops.call("POST", path, json=body, headers={"Idempotency-Key": path}))[1]

    made = await keyed("/v1/webhooks", {"url": URL})
    again = await keyed("/v1/webhooks", {"url": URL})
    assert again == made | {"replayed": True}
    path = f"/v1/webhooks/{made['id']}/rotate"
    rotated = await keyed(path, {"grace_s": 60})
    assert (await keyed(path, {"grace_s": 60}))["secret"] == rotated["secret"] != made["secret"]
    assert [secret["expires_at"] is None for secret in rotated["secrets"]] == [True, False]
    _, page = await ops.call("GET", "/v1/webhooks")
    assert len(page["items"]) == 1
    for act in (await ops.call("GET", "/v1/audit-log"))[1]["items"]:
        for kept in (made["secret"], rotated["secret"], "token"):
            assert kept not in str(act)


async def test_old_secrets_end_and_there_are_never_many(ops: Merchant) -> None:
    path = f"/v1/webhooks/{(await create(ops))['id']}/rotate"
    for count in range(2, 6):
        _, rotated = await ops.call("POST", path)
        assert len(rotated["secrets"]) == count
    assert await refused(ops, "POST", path) == REFUSED
    _, rotated = await ops.call("POST", path, json={"grace_s": 0})
    assert len(rotated["secrets"]) == 1
    for grace_s in (-1, 86_401, "1", 1.5):
        assert await refused(ops, "POST", path, {"grace_s": grace_s}) == REFUSED


@pytest.mark.parametrize(
    "url",
    [
        *("http://shop.example/", "ftp://shop.example/", "HTTPS://shop.example/", "https://", "shop.example"),
        *("https://u:p@shop.example/", "https://u@shop.example/", "https://shop.example/#f", ""),
        *(
            "https://shop.example:0/",
            "https://shop.example:x/",
            "https://-shop.example/",
            "https://a..example/",
        ),
        *(
            "https://shop%20.example/",
            "https://sh\\op.example/",
            "https://(shop).example/",
            "https://@shop.example/",
        ),
        *(
            "https://1.2.3/",
            "https://8.8.8.0x8/",
            "https://134744072/",
            "https://shop.invalid/",
            "https://intranet/",
        ),
        *("https://:443/", f"https://{'a' * 64}.example/", f"https://{'a.' * 130}example/"),
        *("https://shop.example:99999/", "https://[::1", "https://shop example/", "https://shöp.example/"),
        *("https://127.0.0.1/", "https://10.1.2.3/", "https://[::1]/", "https://[::ffff:10.0.0.1]/"),
        *(
            "https://169.254.169.254/latest",
            "https://localhost/",
            "https://x.localhost./",
            "https://" + "a" * 2048,
        ),
    ],
)
async def test_an_endpoint_that_may_not_be_called_is_refused(ops: Merchant, url: str) -> None:
    assert await refused(ops, "POST", "/v1/webhooks", {"url": url}) == REFUSED
    _, body = await ops.call("POST", "/v1/webhooks", json={"url": url})
    assert body["detail"].startswith("url ")


@pytest.mark.parametrize(
    "host", ["shop.example", "shop.example.", "a-b.c_d.example:8443", "8.8.8.8", "[2a00::1]:443"]
)
async def test_usual_hosts_may_be_called(ops: Merchant, host: str) -> None:
    await create(ops, url=f"https://{host}/hook?of=1")


async def test_with_the_setting_private_endpoints_may_be_registered(plane: ControlPlane) -> None:
    async with engine_in_process(plane, scopes=SCOPES, webhooks_allow_private=True) as ops:
        await create(ops, url="http://127.0.0.1:8090/")
        await create(ops, url="http://intranet:8090/")
        assert await refused(ops, "POST", "/v1/webhooks", {"url": "ftp://127.0.0.1/"}) == REFUSED


@pytest.mark.parametrize(
    "fields",
    [
        *({"types": []}, {"types": ["redeem"]}, {"campaigns": []}, {"campaigns": [""]}, {"batch_max": 0}),
        *(
            {"batch_max": 51},
            {"description": ""},
            {"description": "\n"},
            {"after": "x"},
            {"secret": "whsec_"},
        ),
        *({"after": str(Cursor((1,)))}, {"campaigns": ["c"] * 101}, {"enabled": False}),
    ],
    ids=str,
)
async def test_what_an_endpoint_cannot_be_is_refused(ops: Merchant, fields: dict[str, object]) -> None:
    assert await refused(ops, "POST", "/v1/webhooks", {"url": URL, **fields}) == REFUSED


async def test_there_are_no_more_than_may_be_however_they_come(ops: Merchant) -> None:
    answers = await asyncio.gather(
        *(ops.call("POST", "/v1/webhooks", json={"url": URL}) for _ in range(8)), return_exceptions=False
    )
    assert sorted(status for status, _ in answers) == [201] * 3 + [400] * 5


async def test_lists_come_in_pages(ops: Merchant, plane: ControlPlane) -> None:
    made = [await create(ops) for _ in range(3)]
    _, page = await ops.call("GET", "/v1/webhooks?limit=2")
    assert ([item["id"] for item in page["items"]], page["next"]) == (["wh_1", "wh_2"], "wh_2")
    _, page = await ops.call("GET", "/v1/webhooks?limit=2&after=wh_2")
    assert ([item["id"] for item in page["items"]], page["next"]) == (["wh_3"], None)
    async with plane.database.connection() as connection:
        await connection.executemany(
            """INSERT INTO webhook_attempts (webhook, message, events, attempt, at, duration_ms, status)
               VALUES ('wh_1', $1, 1, 1, now(), 1, 200)""",
            [(f"0-{number}-0",) for number in range(1, 6)],
        )
        await connection.executemany(
            """INSERT INTO webhook_dead_letters (webhook, message, events, after, until, attempts, error)
               VALUES ($1, 'm', '{0-1-0}', $2, $2, 1, 'answered 500')""",
            [("wh_1", str(BEGINNING)), ("wh_1", str(BEGINNING)), ("wh_2", str(BEGINNING))],
        )
    path = f"/v1/webhooks/{made[0]['id']}"
    _, page = await ops.call("GET", f"{path}/attempts?limit=2")
    assert [item["message"] for item in page["items"]] == ["0-5-0", "0-4-0"]
    _, page = await ops.call("GET", f"{path}/attempts?limit=4&after={page['next']}")
    assert ([item["message"] for item in page["items"]], page["next"]) == (["0-3-0", "0-2-0", "0-1-0"], None)
    _, page = await ops.call("GET", f"{path}/attempts?message=0-2-0")
    assert [item["message"] for item in page["items"]] == ["0-2-0"]
    _, page = await ops.call("GET", f"{path}/dead-letters")
    assert [item["id"] for item in page["items"]] == [2, 1]
    assert (await ops.call("GET", path))[1]["dead_letters"] == 2
    for query in ("after=x", "limit=0", "message=", "x=1"):
        assert await refused(ops, "GET", f"{path}/attempts?{query}") == REFUSED


async def test_a_replay_moves_the_cursor_and_names_one_of_two(ops: Merchant, plane: ControlPlane) -> None:
    async with plane.database.connection() as connection:
        await connection.execute("UPDATE ledger_offsets SET seq = 7")
    made = await create(ops)
    latest = str(BEGINNING.moved(0, 7))
    assert made["cursor"] == latest
    path = f"/v1/webhooks/{made['id']}/replay"
    for after in (str(BEGINNING.moved(0, 3)), latest):
        assert (await ops.call("POST", path, json={"after": after}))[1]["cursor"] == after
    assert (await ops.call("POST", path, json={"after": "beginning"}))[1]["cursor"] == str(BEGINNING)
    bodies: tuple[dict[str, Any], ...] = (
        *({}, {"after": None}, {"after": "x"}, {"after": str(BEGINNING.moved(0, 8))}, {"dead_letters": []}),
        *({"dead_letters": [1]}, {"dead_letters": [2**70]}, {"after": latest, "dead_letters": [1]}),
    )
    for body in bodies:
        assert await refused(ops, "POST", path, body) == REFUSED
    assert (await ops.call("GET", f"/v1/webhooks/{made['id']}"))[1]["cursor"] == str(BEGINNING)
