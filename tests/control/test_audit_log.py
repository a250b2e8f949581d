"""The audit log, and that no export escapes it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from engine.control import api_keys, audit_log, batches
from engine.errors import StoreUnavailable
from tests.support.deployment import engine_in_process, issue
from tests.support.locks import until_waits_for_lock
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    from engine.control.audit_log import Act
    from engine.control.change import ControlPlane


async def record(plane: ControlPlane, act: str, subject: str, **more: Any) -> int:  # noqa: ANN401 - by their names
    async with plane.database.transaction() as connection:
        return await audit_log.record(connection, act=act, actor="key_1", subject=subject, **more)


async def recorded(plane: ControlPlane, act: str | None = None, subject: str | None = None) -> list[Act]:
    return await audit_log.page(plane.database, act=act, subject=subject, after=None, limit=10)


async def test_a_change_is_recorded_with_all_its_fields(plane: ControlPlane) -> None:
    number = await record(plane, "export", "batch:3", reason="für", details={"count": 5, "format": "csv"})
    await record(plane, "void", "batch:4")
    later, first = await recorded(plane)
    assert (first.id, first.actor, first.act, first.subject) == (number, "key_1", "export", "batch:3")
    assert (first.reason, first.details, first.outcome) == ("für", {"count": 5, "format": "csv"}, None)
    assert (later.reason, later.details) == (None, None)
    async with plane.database.connection() as connection:
        await audit_log.finish(connection, number, "complete")
    assert [act.outcome for act in await recorded(plane)] == [None, "complete"]


async def test_an_act_is_recorded_with_its_change_or_not_at_all(plane: ControlPlane) -> None:
    async def fails() -> None:
        async with plane.database.transaction() as connection:
            await audit_log.record(connection, act="void", actor="cli", subject="batch:0")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await fails()
    assert await recorded(plane) == []


async def test_who_paused_a_campaign_is_recorded(plane: ControlPlane) -> None:
    async with engine_in_process(plane, scopes=("admin",)) as ops:
        body = {"name": "Sale", "kind": "single", "state": "active", "stock": 5}
        _, campaign = await ops.call("POST", "/v1/campaigns", json=body)
        path = f"/v1/campaigns/{campaign['id']}"
        assert (await ops.call("PATCH", path, json={"state": "paused", "stock": 4}))[0] == 200
        assert (await ops.call("PATCH", path, json={"state": "draft"}))[0] == 400
    paused, created = await recorded(plane, subject=f"campaign:{campaign['id']}")
    assert (created.act, created.details) == (
        "create_campaign",
        {"name": "Sale", "kind": "single", "state": "active"},
    )
    assert (paused.act, paused.details) == (
        "update_campaign",
        {"state": ["active", "paused"], "stock": [5, 4]},
    )
    assert paused.actor == created.actor
    assert paused.actor.startswith("key_")


async def test_acts_are_listed_newest_first_and_filtered(plane: ControlPlane) -> None:
    numbers = [await record(plane, ("export", "void")[n % 2], f"batch:{n // 2}") for n in range(6)]
    async with engine_in_process(plane, scopes=("admin",)) as ops:
        seen, query = [], "?limit=2"
        while True:
            status, answer = await ops.call("GET", f"/v1/audit-log{query}")
            assert status == 200
            seen += answer["items"]
            if answer["next"] is None:
                break
            query = f"?limit=2&after={answer['next']}"
        assert [act["id"] for act in seen] == [seen[0]["id"], *reversed(numbers)]
        assert (seen[0]["act"], seen[0]["actor"]) == ("create_key", "cli")  # of the caller
        _, answer = await ops.call("GET", "/v1/audit-log?act=void&subject=batch:1")
        assert [act["id"] for act in answer["items"]] == [numbers[3]]
        assert (await ops.call("GET", "/v1/audit-log?act=nothing"))[1] == {"items": [], "next": None}


async def test_making_and_revoking_a_key_are_acts_of_whoever_asked(plane: ControlPlane) -> None:
    async with engine_in_process(plane, scopes=("admin",)) as ops:
        _, made = await ops.call("POST", "/v1/keys", json={"name": "shop", "scopes": ["read"]})
        for _ in range(2):  # the second changes nothing
            assert (await ops.call("DELETE", f"/v1/keys/{made['id']}"))[0] == 200
    found = await recorded(plane, subject=f"key:{made['id']}")
    assert [act.act for act in found] == ["revoke_key", "create_key"]
    assert found[1].details == {"name": "shop", "scopes": ["read"], "campaigns": None}
    async with plane.database.connection() as connection:
        caller = await connection.fetchval(
            "SELECT id FROM api_keys WHERE digest = $1", api_keys.digest(ops.key)
        )
    assert {act.actor for act in found} == {caller}


async def test_an_export_is_on_record_before_its_first_byte_and_with_its_end(plane: ControlPlane) -> None:
    campaign, _ = await issue(plane, 10)
    new = batches.NewBatch(3_000_000)
    await batches.mint(plane, campaign, new, created_by="test")
    async with engine_in_process(plane, scopes=("admin",)) as ops:
        headers = {"Authorization": f"Bearer {ops.key}"}
        url = ops.url + "/v1/batches/{}/codes?format=ndjson"
        async with ops.session.get(url.format(1), headers=headers) as response:
            await response.content.readany()
            (act,) = await recorded(plane, "export")
            assert (act.subject, act.outcome) == ("batch:1", None)
            assert act.details == {"count": 3_000_000, "format": "ndjson"}
            assert act.actor.startswith("key_")
            response.close()  # the client goes away
        await wait_until_async(lambda: ended(plane, act.id, "aborted"))
        async with ops.session.get(url.format(0), headers=headers) as response:
            assert (await response.text()).count("\n") == 10
        await wait_until_async(lambda: ended(plane, act.id + 1, "complete"))


async def ended(plane: ControlPlane, number: int, outcome: str) -> bool:
    async with plane.database.connection() as connection:
        return bool(await connection.fetchval("SELECT outcome = $2 FROM acts WHERE id = $1", number, outcome))


async def test_what_cannot_be_recorded_is_not_exported(plane: ControlPlane, fresh_database_url: str) -> None:
    del fresh_database_url
    await issue(plane, 10)
    async with (
        engine_in_process(plane, scopes=("admin",)) as ops,
        plane.database.connection() as watching,
        plane.database.transaction() as connection,
    ):
        await connection.execute("LOCK TABLE acts IN EXCLUSIVE MODE")
        pending = asyncio.create_task(ops.call("GET", "/v1/batches/0/codes"))
        await until_waits_for_lock(watching, "INSERT INTO acts%")
        assert not pending.done()
        await connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE wait_event_type = 'Lock' AND query LIKE 'INSERT INTO acts%'"
        )
        status, answer = await pending
        assert (status, answer["code"]) == (503, "store_unavailable")
    assert await recorded(plane, "export") == []


async def test_an_export_whose_end_cannot_be_recorded_is_no_failure(
    plane: ControlPlane, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await issue(plane, 1)
    batch = await batches.get(plane, 0)

    async def away(*_: object) -> None:
        raise StoreUnavailable("PostgreSQL went away")

    monkeypatch.setattr(audit_log, "finish", away)
    async with batches.exporting(plane, batch, actor="cli", details={}):
        pass
    assert "cannot record how an export ended" in caplog.text
    assert [act.outcome for act in await recorded(plane, "export")] == [None]
