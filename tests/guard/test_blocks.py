"""Blocks over HTTP: a blocked source is refused in every worker and every lane, an honest one is not."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from engine.control import blocks, erasure
from engine.control.blocks import NewBlock
from engine.errors import Refusal
from engine.guard import block_table
from engine.store import keys
from tests.support.deployment import engine_in_process, engine_of_processes, issue
from tests.support.dumps import dump_of_database, dump_of_redis
from tests.support.lanes import LANES
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    from engine.control.change import ControlPlane
    from tests.support.deployment import Merchant

UNKNOWN = "0000-0000-0000-0000"


async def add(plane: ControlPlane, kind: str, subject: str, **more: Any) -> blocks.Block:  # noqa: ANN401 - fields
    new = NewBlock(kind=kind, subject=subject, reason="test", **more)  # type: ignore[arg-type] # of KINDS
    return (await blocks.create(plane, new, actor="cli")).value


async def refusal(merchant: Merchant, user: str = "ann", client: dict[str, str] | None = None) -> str:
    return str((await merchant.redeem(UNKNOWN, user, client=client))[1]["code"])


async def until_refused(merchant: Merchant, expected: str, client: dict[str, str] | None = None) -> None:
    async def refused() -> bool:
        return await refusal(merchant, client=client) == expected

    await wait_until_async(refused)


async def test_a_blocked_source_is_refused_by_every_call_that_tries_a_code(plane: ControlPlane) -> None:
    _, codes = await issue(plane, 4)
    async with engine_in_process(plane) as merchant:
        made = await add(plane, "network", "203.0.113.0/24")
        client = {"ip": "203.0.113.7"}
        await until_refused(merchant, "blocked", client=client)
        asked: dict[str, dict[str, object]] = {
            "/v1/redemptions": {"code": codes[0], "user": "bob"},
            "/v1/holds": {"code": codes[0], "user": "bob", "order": "1"},
            "/v1/codes/check": {"code": codes[0]},
            "/v1/redemptions/combined": {"codes": [{"code": codes[0]}], "user": "bob", "order": "1"},
        }
        for path, body in asked.items():
            status, answer = await merchant.call("POST", path, json=body | {"client": client})
            assert (status, answer["code"]) == (403, "blocked"), path
            assert answer["detail"] == f"The network is blocked: {made.shown_id}."
            assert answer["type"] == "/problems/blocked"
        items = [{"code": codes[0], "user": "bob", "client": client}, {"code": codes[1], "user": "bob"}]
        _, batch = await merchant.call("POST", "/v1/redemptions/batch", json={"items": items})
        assert [result["status"] for result in batch["results"]] == [403, 200]
        status, checked = await merchant.call("POST", "/v1/codes/check", json={"code": codes[0]})
        assert (status, checked["state"]) == (200, "fresh")  # nothing was done


async def test_a_block_is_in_force_in_two_workers_and_its_end_too(plane: ControlPlane) -> None:
    async with engine_of_processes(plane, workers=2) as merchant:

        async def all_say(
            expected: str,
        ) -> bool:  # each call on a connection of its own: both workers get some
            said = await asyncio.gather(*(_on_new_connection(merchant) for _ in range(24)))
            return set(said) == {expected}

        async def refused() -> bool:
            return await all_say("blocked")

        async def free() -> bool:
            return await all_say("code_not_found")

        await wait_until_async(free)
        made = await add(plane, "user", "ann")
        await wait_until_async(refused)
        await blocks.lift(plane, made.shown_id, actor="cli")
        await wait_until_async(free)


async def _on_new_connection(merchant: Merchant) -> str:
    async with merchant.session.post(
        f"{merchant.url}/v1/redemptions",
        json={"code": UNKNOWN, "user": "ann"},
        headers={"Authorization": f"Bearer {merchant.key}", "Connection": "close"},
    ) as response:
        return str((await response.json(content_type=None))["code"])


async def test_all_lanes_block_every_spelling_of_an_address(plane: ControlPlane) -> None:
    await add(plane, "network", "203.0.113.7")
    await add(plane, "network", "2001:db8:1:2::9")
    await add(plane, "network", "not known")
    spellings = (
        "203.0.113.7",
        " 203.0.113.7",
        "203.0.113.7:443",
        "::ffff:203.0.113.7",
        "2001:db8:1:2:ffff::1",
    )
    for lane in LANES:
        async with engine_in_process(plane, lane=lane) as merchant:
            for ip in (*spellings, "[2001:db8:1:2::9]:443", "not known "):
                assert await refusal(merchant, client={"ip": ip}) == "blocked", ip
            for ip in ("203.0.113.8", "2001:db8:1:3::9", "unknown"):
                assert await refusal(merchant, client={"ip": ip}) == "code_not_found", ip


@pytest.mark.parametrize("lane", LANES)
async def test_a_blocked_user_redeems_in_no_lane(plane: ControlPlane, lane: str) -> None:
    _, codes = await issue(plane, 1)
    await add(plane, "user", "ann")
    async with engine_in_process(plane, lane=lane) as merchant:
        assert (await merchant.redeem(codes[0], "ann"))[0] == 403
        assert (await merchant.redeem(codes[0], "bob"))[0] == 200


async def test_a_block_survives_the_loss_of_redis(plane: ControlPlane) -> None:
    await add(plane, "device", "d-1")
    await plane.redis.flushall()
    async with engine_in_process(plane) as merchant:
        assert await refusal(merchant, client={"device": "d-1"}) == "blocked"
        assert await refusal(merchant, client={"device": "d-2"}) == "code_not_found"


async def test_a_block_ends_when_its_time_is_over(
    plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with engine_in_process(plane) as merchant:
        made = await add(plane, "user", "ann", ttl_s=3600)
        await until_refused(merchant, "blocked")
        with monkeypatch.context() as later:  # of the worker, which runs here
            later.setattr(block_table, "_now_ms", lambda: int((time.time() + 3601) * 1000))
            await until_refused(merchant, "code_not_found")
    assert [one.id for one in await blocks.page(plane, state="active", after=None, limit=9)] == [made.id]
    async with plane.database.connection() as connection:
        await connection.execute("UPDATE blocks SET expires_at = now()")
    assert (await blocks.get(plane, made.shown_id)).state == "expired"
    assert [one.id for one in await blocks.page(plane, state="expired", after=None, limit=9)] == [made.id]
    assert not await blocks.page(plane, state="active", after=None, limit=9)


async def test_a_name_is_blocked_in_each_of_its_spellings(plane: ControlPlane) -> None:
    await add(plane, "user", "Jose\u0301")
    async with engine_in_process(plane) as merchant:
        assert await refusal(merchant, user="Jos\u00e9") == "blocked"
    assert await blocks.page(plane, kind="user", subject="Jose\u0301", after=None, limit=9)


async def test_a_blocked_api_key_tries_no_code_but_reads(plane: ControlPlane) -> None:
    async with engine_in_process(plane) as merchant:
        await add(plane, "key", "key_" + merchant.key.split("_")[1])
        await until_refused(merchant, "blocked")
        assert (await merchant.call("GET", "/v1/redemptions?user=ann"))[0] == 200


async def test_what_was_erased_is_neither_blocked_nor_named_any_more(plane: ControlPlane) -> None:
    made = await add(plane, "user", "Ann Erased", evidence={"user": "Ann Erased"})
    await erasure.erase(plane, "Ann Erased", actor="cli")
    kept = await blocks.get(plane, made.shown_id)
    assert kept.state == "lifted"
    assert kept.subject.startswith("erased-")
    assert "Ann Erased" not in await dump_of_database(plane) + await dump_of_redis(plane.redis)
    async with engine_in_process(plane) as merchant:
        assert await refusal(merchant, user="Ann Erased") == "code_not_found"


async def test_an_ended_block_is_forgotten_in_both_stores_after_its_days(plane: ControlPlane) -> None:
    ended, kept = await add(plane, "user", "ann"), await add(plane, "user", "bob")
    await blocks.lift(plane, ended.shown_id, actor="cli")
    await blocks.forget_old(plane)
    assert (await blocks.get(plane, ended.shown_id)).state == "lifted"
    async with plane.database.connection() as connection:
        await connection.execute(
            "UPDATE blocks SET lifted_at = now() - interval '8 days' WHERE id = $1", ended.id
        )
    await blocks.forget_old(plane)
    with pytest.raises(Refusal, match="not_found"):
        await blocks.get(plane, ended.shown_id)
    fields = await plane.redis.hkeys(keys.control())
    assert f"block:{kept.id}".encode() in fields
    assert f"block:{ended.id}".encode() not in fields


async def test_the_audit_log_has_the_block_but_not_who_was_blocked(plane: ControlPlane) -> None:
    async with engine_in_process(plane, scopes=("admin",)) as ops:
        body = {"kind": "user", "subject": "Ann Other", "reason": "ticket 7", "evidence": {"unknown": 12}}
        status, made = await ops.call("POST", "/v1/blocks", json=body)
        assert (status, made["state"], made["evidence"]) == (201, "active", {"unknown": 12})
        status, lifted = await ops.call("DELETE", f"/v1/blocks/{made['id']}")
        assert (status, lifted["state"], lifted["lifted_by"]) == (200, "lifted", made["actor"])
        again = await ops.call("DELETE", f"/v1/blocks/{made['id']}")
        assert again[1]["lifted_at"] == lifted["lifted_at"]
        _, log = await ops.call("GET", f"/v1/audit-log?subject=block:{made['id']}")
    assert [entry["act"] for entry in log["items"]] == ["lift_block", "block"]
    assert "Ann Other" not in str(log)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"kind": "network", "subject": "203.0.113.0/40"}, "subject must be an address or a network"),
        ({"kind": "user", "subject": " ann"}, "subject must not begin"),
        ({"kind": "device", "subject": ""}, "subject must have 1 to"),
        ({"ttl_s": 0}, "ttl_s must be between"),
        ({"reason": ""}, "reason must have"),
        ({"evidence": {"a": "x" * 5000}}, "evidence must have at most"),
        ({"evidence": {"a": "\0"}}, "evidence must have at most"),
    ],
)
async def test_a_malformed_block_is_refused_and_the_field_named(
    plane: ControlPlane, fields: dict[str, Any], says: str
) -> None:
    new = NewBlock(**({"kind": "user", "subject": "ann", "reason": "test"} | fields))
    with pytest.raises(Refusal, match=says):
        await blocks.create(plane, new, actor="cli")
    assert not await blocks.page(plane, after=None, limit=9)


async def test_no_code_is_stored_with_a_block(plane: ControlPlane) -> None:
    _, codes = await issue(plane, 1)
    for fields in ({"reason": codes[0]}, {"subject": codes[0]}, {"evidence": {"typed": [codes[0]]}}):
        new = NewBlock(**({"kind": "user", "subject": "ann", "reason": "test"} | fields))
        with pytest.raises(Refusal, match="must not contain a code"):
            await blocks.create(plane, new, actor="cli")


async def test_more_blocks_than_the_limit_are_refused(plane: ControlPlane) -> None:
    small = replace(plane, settings=replace(plane.settings, blocks_max=2))
    first = await add(small, "user", "ann")
    await add(small, "user", "bob")
    with pytest.raises(Refusal, match="2 blocks are in force"):
        await add(small, "user", "cid")
    await blocks.lift(small, first.shown_id, actor="cli")
    await add(small, "user", "cid")


async def test_an_api_key_that_does_not_exist_cannot_be_blocked(plane: ControlPlane) -> None:
    with pytest.raises(Refusal, match="no such API key"):
        await add(plane, "key", "key_000000000000")
