"""Imports over HTTP, through a worker with all its middlewares."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import psutil  # type: ignore[import-untyped] # it has no types
import pytest

from tests.support.deployment import Merchant, engine_in_process, engine_of_processes
from tests.support.importing import a_campaign, lines_of, stored
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from engine.control.change import ControlPlane

CODES: Final = [f"PRINTED-{number:05}-X" for number in range(200)]
SCOPES: Final = ("admin", "redeem", "read")


@pytest.fixture
async def ops(plane: ControlPlane) -> AsyncIterator[Merchant]:
    async with engine_in_process(plane, scopes=SCOPES, import_chunk_lines=7, imports_max=1) as caller:
        yield caller


async def send(
    caller: Merchant,
    campaign: str,
    content: bytes | AsyncIterator[bytes],
    *,
    type_: str = "text/csv",
    **headers: str,
) -> tuple[int, Any, dict[str, str]]:
    async with caller.session.post(
        f"{caller.url}/v1/campaigns/{campaign}/imports",
        data=content,
        headers={"Authorization": f"Bearer {caller.key}", "Content-Type": type_} | headers,
    ) as response:
        return response.status, await response.json(content_type=None), dict(response.headers)


async def problems_of(caller: Merchant, import_id: str) -> list[str]:
    async with caller.session.get(
        f"{caller.url}/v1/imports/{import_id}/problems", headers={"Authorization": f"Bearer {caller.key}"}
    ) as response:
        assert (response.status, response.content_type) == (200, "text/csv")
        return (await response.text()).splitlines()


async def test_a_file_is_imported_shown_listed_and_redeemed(plane: ControlPlane, ops: Merchant) -> None:
    campaign = await a_campaign(plane)
    status, body, headers = await send(ops, campaign, lines_of(["code", *CODES, CODES[3], "?"]))
    expected = {"id": "imp_1", "campaign": campaign, "batch": 0, "state": "finished"}
    expected |= {"lines": 202, "accepted": 200, "duplicates": 1, "unusable": 1, "guessable": True}
    assert (status, headers["Location"]) == (201, "/v1/imports/imp_1")
    assert body == expected | {"same_as": None, "replayed": False, "published": True}
    status, shown = await ops.call("GET", "/v1/imports/imp_1")
    assert status == 200
    assert shown.items() >= expected.items()
    assert shown["started_at"] <= shown["updated_at"] == shown["finished_at"]
    assert await ops.call("GET", f"/v1/campaigns/{campaign}/imports") == (
        200,
        {"items": [shown], "next": None},
    )
    assert await problems_of(ops, "imp_1") == ["line,reason", "202,duplicate_in_file", "203,not_a_code"]
    assert (await ops.redeem(CODES[9]))[0] == 200
    status, body = await ops.call("GET", "/v1/batches/0/codes")
    assert (status, "imported" in body["detail"]) == (400, True)


async def test_lists_of_imports_go_by_pages(plane: ControlPlane, ops: Merchant) -> None:
    campaign = await a_campaign(plane)
    for code in CODES[:3]:
        await send(ops, campaign, lines_of([code]))
    path = f"/v1/campaigns/{campaign}/imports?limit=2"
    _, first = await ops.call("GET", path)
    _, second = await ops.call("GET", f"{path}&after={first['next']}")
    assert [item["id"] for item in first["items"] + second["items"]] == ["imp_1", "imp_2", "imp_3"]
    assert (first["next"], second["next"]) == ("imp_2", None)
    for query in ("?after=3", "?limit=0", "?user=x"):
        assert (await ops.call("GET", f"/v1/campaigns/{campaign}/imports{query}"))[0] == 400


async def test_ndjson_is_read_by_its_type(plane: ControlPlane, ops: Merchant) -> None:
    content = lines_of(f'{{"code": "{code}", "serial": 1}}' for code in CODES)
    status, body, _ = await send(ops, await a_campaign(plane), content, type_="application/x-ndjson")
    assert (status, body["accepted"], body["unusable"]) == (201, 200, 0)


@pytest.mark.parametrize(
    "headers",
    [
        {"type_": "application/json"},
        {"type_": "text/plain"},
        {"type_": "text/csv; charset=utf-16"},
        {"Content-Encoding": "gzip"},
    ],
)
async def test_other_types_are_refused(plane: ControlPlane, ops: Merchant, headers: dict[str, str]) -> None:
    status, body, _ = await send(ops, await a_campaign(plane), b"FLASH50\n", **headers)
    assert (status, body["code"]) == (415, "unsupported_media_type")
    assert "text/csv" in body["detail"]


async def test_the_same_key_is_answered_again_and_its_answer_says_so(
    plane: ControlPlane, ops: Merchant
) -> None:
    campaign, content = await a_campaign(plane), lines_of(CODES)
    first = await send(ops, campaign, content, **{"Idempotency-Key": "monday"})
    again = await send(ops, campaign, content, **{"Idempotency-Key": "monday"})
    assert (again[0], again[1]) == (201, first[1] | {"replayed": True})
    status, body, _ = await send(ops, campaign, content + b"X\n", **{"Idempotency-Key": "monday"})
    assert (status, body["code"]) == (422, "idempotency_key_reused")
    assert (await send(ops, campaign, content, **{"Idempotency-Key": "a\tb"}))[0] == 400


async def test_a_refused_import_without_a_line_ends_and_says_why(plane: ControlPlane, ops: Merchant) -> None:
    campaign = await a_campaign(plane)
    for content in (b"code\n", b"code\r\n"):
        status, refused, _ = await send(ops, campaign, content, **{"Idempotency-Key": "monday"})
        assert (status, refused["code"]) == (400, "malformed_request")
    client = await begun(ops, campaign, b"code," + b"x" * 1100 + b"\n")

    async def states() -> list[tuple[str, str | None, int]]:
        _, page = await ops.call("GET", f"/v1/campaigns/{campaign}/imports")
        return [(item["state"], item["reason"], item["lines"]) for item in page["items"]]

    await wait_until_async(lambda: _has(states, ("running", None, 0)))
    client.close()
    empty = ("refused", "The file has no lines of codes.", 0)
    cut = "The body is incomplete. Send the same request again: it continues where this one ended."
    await wait_until_async(lambda: _has(states, ("refused", cut, 0)))
    assert (await states())[:2] == [empty, empty]
    status, body, _ = await send(ops, campaign, lines_of(CODES), **{"Idempotency-Key": "monday"})
    assert (status, body["state"], body["id"]) == (201, "finished", "imp_4")
    _, shown = await ops.call("GET", "/v1/imports/imp_4")
    assert shown["reason"] is None


async def _has(states: Callable[[], Awaitable[list[Any]]], one: Any) -> bool:  # noqa: ANN401 - of any type
    return one in await states()


async def test_the_key_of_an_import_belongs_to_no_other_request(plane: ControlPlane, ops: Merchant) -> None:
    campaign = await a_campaign(plane)
    assert (await send(ops, campaign, lines_of(CODES), **{"Idempotency-Key": "a"}))[0] == 201
    status, body = await ops.redeem(CODES[0], key="a")
    assert (status, body["code"]) == (422, "idempotency_key_reused")
    new = {"name": "Another", "kind": "single"}
    status, body = await ops.call("POST", "/v1/campaigns", json=new, headers={"Idempotency-Key": "a"})
    assert (status, body["code"]) == (422, "idempotency_key_reused")
    await plane.redis.delete(*await plane.redis.keys("{s0}:receipt:*"))
    status, body = await ops.call("POST", "/v1/campaigns", json=new, headers={"Idempotency-Key": "a"})
    assert (status, body["code"]) == (422, "idempotency_key_reused")
    assert (await ops.redeem(CODES[0], key="b"))[0] == 200
    assert (await ops.call("POST", "/v1/campaigns", json=new, headers={"Idempotency-Key": "c"}))[0] == 201
    for key in ("b", "c"):
        status, body, _ = await send(ops, campaign, b"FLASH50\n", **{"Idempotency-Key": key})
        assert (status, body["code"]) == (422, "idempotency_key_reused")
    _, page = await ops.call("GET", f"/v1/campaigns/{campaign}/imports")
    assert [item["id"] for item in page["items"]] == ["imp_1"]
    assert (await send(ops, campaign, lines_of(CODES), **{"Idempotency-Key": "a"}))[1]["replayed"] is True


async def test_only_who_may_administer_imports(plane: ControlPlane) -> None:
    async with engine_in_process(plane) as merchant:
        campaign = await a_campaign(plane)
        assert (await send(merchant, campaign, b"FLASH50\n"))[0] == 403
        for method, path in (
            ("GET", f"/v1/campaigns/{campaign}/imports"),
            ("GET", "/v1/imports/imp_1"),
            ("GET", "/v1/imports/imp_1/problems"),
            ("DELETE", "/v1/imports/imp_1"),
        ):
            assert (await merchant.call(method, path))[0] == 403


@pytest.mark.parametrize("name", ["imp_1", "imp_0", "1", "imp_99999999999", "imp_x", "FLASH50"])
async def test_an_import_that_is_none_is_not_found(ops: Merchant, name: str) -> None:
    for method, path in (("GET", ""), ("GET", "/problems"), ("DELETE", "")):
        status, body = await ops.call(method, f"/v1/imports/{name}{path}")
        assert (status, body["code"]) == (404, "import_not_found")
        assert "FLASH50" not in str(body)


async def begun(ops: Merchant, campaign: str, content: bytes) -> asyncio.StreamWriter:
    """A connection on which the head of a request was sent, and a part of its body."""
    host, _, port = ops.url.removeprefix("http://").partition(":")
    _, writer = await asyncio.open_connection(host, int(port))
    head = (
        f"POST /v1/campaigns/{campaign}/imports HTTP/1.1\r\nHost: x\r\nContent-Type: text/csv\r\n"
        f"Authorization: Bearer {ops.key}\r\nContent-Length: 1000000\r\n\r\n"
    )
    writer.write(head.encode() + content)
    return writer


async def test_a_client_that_vanishes_leaves_what_it_sent_and_goes_on_there(
    plane: ControlPlane, ops: Merchant
) -> None:
    campaign, content = await a_campaign(plane), lines_of(CODES)
    client = await begun(ops, campaign, content[:2000])

    async def left() -> bool:
        _, page = await ops.call("GET", f"/v1/campaigns/{campaign}/imports")
        return [item["state"] for item in page["items"]] == ["running"] and page["items"][0]["lines"] > 50

    await wait_until_async(left)
    client.close()

    async def sent_again() -> bool:  # the worker may not have noticed yet that the other has gone
        status, body, _ = await send(ops, campaign, content)
        return status == 201 and (body["id"], body["accepted"], body["duplicates"]) == ("imp_1", 200, 0)

    await wait_until_async(sent_again)
    assert await stored(plane) == [(0, serial) for serial in range(200)]


async def slowly(stalled: asyncio.Event) -> AsyncIterator[bytes]:
    yield lines_of(CODES)
    await stalled.wait()


async def test_an_upload_that_stands_still_is_given_up_and_leaves_its_place(plane: ControlPlane) -> None:
    async with engine_in_process(plane, scopes=SCOPES, imports_max=1, request_timeout_s=1) as ops:
        campaign, stalled = await a_campaign(plane), asyncio.Event()
        status, body, _ = await send(ops, campaign, slowly(stalled))
        assert (status, body["code"]) == (400, "malformed_request")
        assert "continues where" in body["detail"]
        assert (await send(ops, campaign, b"FLASH60\n"))[0] == 201


async def test_more_uploads_than_may_run_are_answered_to_come_again(
    plane: ControlPlane, ops: Merchant
) -> None:
    campaign, stalled = await a_campaign(plane), asyncio.Event()
    slow = asyncio.create_task(send(ops, campaign, slowly(stalled)))

    async def runs() -> bool:
        return bool((await ops.call("GET", f"/v1/campaigns/{campaign}/imports"))[1]["items"])

    await wait_until_async(runs)
    status, body, headers = await send(ops, campaign, b"FLASH50\n")
    assert (status, body["code"], "Retry-After" in headers) == (503, "overloaded", True)
    stalled.set()
    assert (await slow)[0] == 201
    assert (await send(ops, campaign, b"FLASH50\n"))[0] == 201


async def test_a_worker_killed_in_the_middle_costs_nothing_but_sending_the_file_again(
    plane: ControlPlane,
) -> None:
    campaign = await a_campaign(plane)
    codes = [f"MANY-{number:06}" for number in range(30_000)]
    content = lines_of([*codes, codes[0], "?"])
    async with engine_of_processes(plane, workers=1, scopes=SCOPES, import_chunk_lines=500) as ops:

        async def accepted() -> int:
            async with plane.database.connection() as connection:
                return await connection.fetchval("SELECT coalesce(max(accepted), 0) FROM imports") or 0

        for least in (1000, 10_000, 20_000):
            upload = asyncio.create_task(send(ops, campaign, content, **{"Idempotency-Key": "k"}))

            async def far_enough(least: int = least) -> bool:
                return await accepted() >= least

            await wait_until_async(far_enough)
            for worker in workers_of(plane):
                worker.kill()
            with pytest.raises(Exception, match=r"."):
                await upload
            assert await accepted() < len(codes)

            async def answers() -> bool:
                try:
                    return (await ops.call("GET", "/v1/campaigns"))[0] == 200
                except OSError:
                    return False

            await wait_until_async(answers)
        status, body, _ = await send(ops, campaign, content, **{"Idempotency-Key": "k"})
        assert (status, body["accepted"], body["duplicates"], body["unusable"]) == (201, 30_000, 1, 1)
        assert await stored(plane) == [(0, serial) for serial in range(30_000)]
        for code in (*codes[:20], *codes[::1500], codes[-1]):
            expected = "redeemed"
            status, answer = await ops.redeem(code, key=f"key of {codes.index(code)}")
            assert answer.get("status") == expected
        assert (await ops.redeem(codes[0]))[1]["code"] == "already_redeemed"


def workers_of(plane: ControlPlane) -> list[psutil.Process]:
    """The workers of this test's front end; its settings are in their environment."""
    return [
        process
        for process in psutil.Process().children(recursive=True)
        if "engine.worker" in process.cmdline()
        and process.environ().get("REDEEM_DATABASE_URL") == plane.settings.database_url
    ]
