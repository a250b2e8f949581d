"""Redis can be lost (P8): it is refused while it is behind, and made again from PostgreSQL."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import pytest

from engine.control import erasure
from engine.control.publishing import publish
from engine.errors import StoreBehind
from engine.store import keys
from persister import ownership
from persister.ownership import ShardOwned
from persister.rebuild import rebuild as rebuilding
from persister.rebuild.rebuild import RebuildRefused, rebuild
from persister.reconcile.reconcile import reconcile
from tests.support.browsers import page_of
from tests.support.deployment import Merchant, Process, engine_in_process, engine_of_processes, issue
from tests.support.importing import a_campaign, bring, lines_of
from tests.support.records import persist
from tests.support.solving import EASY
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from engine.control.change import ControlPlane


def silent(*_: object) -> None:
    """No progress."""


async def rebuilt(plane: ControlPlane, shards: int | None = None) -> int:
    settings = plane.settings if shards is None else replace(plane.settings, shards=shards)
    events = await rebuild(settings, silent)
    await publish(plane.redis, plane.database)
    return events


async def test_what_was_redeemed_stays_so_and_a_retry_gets_its_answer(plane: ControlPlane) -> None:
    _, codes = await issue(plane, 4, amount=500, currency="EUR", stock=3)
    async with engine_in_process(plane) as merchant:
        first = await merchant.redeem(codes[0], order="o1", key="k1")
        assert first[0] == 200
        assert await rebuilt(plane) == 1
        again = await merchant.redeem(codes[0], order="o1", key="k1")
        assert again == (200, first[1] | {"replayed": True})
        assert (await merchant.redeem(codes[1], order="o1", key="k1"))[1]["code"] == "idempotency_key_reused"
        assert (await merchant.redeem(codes[0], key="k2"))[1]["code"] == "already_redeemed"
        assert [(await merchant.redeem(code))[0] for code in codes[1:]] == [200, 200, 409]  # of a stock of 3


async def test_after_a_flush_pages_are_still_asked_for_codes_that_can_be_guessed(plane: ControlPlane) -> None:
    weak, strong = await a_campaign(plane), await a_campaign(plane)
    await bring(plane, weak, lines_of(f"{number:08}" for number in range(0, 20_000, 97)))
    await bring(plane, strong, lines_of(sha256(bytes([number])).hexdigest()[:20] for number in range(99)))
    await plane.redis.flushall()
    await rebuilt(plane)
    async with engine_in_process(plane, **EASY) as merchant:
        pages = [await page_of(plane, merchant, campaign) for campaign in (weak, strong)]
        asked = [(await page.redeem("0000-0000")).code == "challenge_required" for page in pages]
    assert asked == [True, False]


CHANGES: dict[str, dict[str, Any]] = {
    "amount": {"amount": 400},
    "user": {"user": "bob"},
    "order": {"order": "o2"},
    "client": {"client": {"ip": "192.0.2.1"}},
    "metadata": {"metadata": {"till": 8}},
    "currency": {"currency": "EUR"},
}


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.usefixtures("shards")
async def test_after_a_flush_an_old_key_with_another_request_is_refused_and_the_same_is_replayed(
    plane: ControlPlane,
) -> None:
    _, codes = await issue(plane, 8, kind="balance", amount=500, currency="EUR")
    async with engine_in_process(plane, scopes=("redeem", "admin"), metadata_kept=True) as merchant:
        paths = {
            "redeem": "/v1/redemptions",
            "hold": "/v1/holds",
            "combined": "/v1/redemptions/combined",
        }
        common = {"user": "ann", "order": "o1", "metadata": {"till": 7}}
        bodies: dict[str, dict[str, Any]] = {
            "redeem": common | {"code": codes[0], "amount": 300},
            "hold": common | {"code": codes[1], "amount": 300},
            "combined": common | {"codes": [{"code": codes[2], "amount": 1}]},
            "adjust": {"code": codes[3], "amount": 5, "reason": "goodwill"},
        }

        async def send(name: str, path: str, body: dict[str, Any]) -> tuple[int, Any]:
            return await merchant.call("POST", path, json=body, headers={"Idempotency-Key": name})

        first = {name: await send(name, path, bodies[name]) for name, path in paths.items()}
        paths["adjust"] = "/v1/codes/adjust"
        first["adjust"] = await send("adjust", paths["adjust"], bodies["adjust"])
        redeemed, held = first["redeem"][1]["id"], first["hold"][1]["id"]
        paths |= {"rollback": f"/v1/redemptions/{redeemed}/rollback", "confirm": f"/v1/holds/{held}/confirm"}
        bodies |= {"rollback": {"amount": 100, "reason": "returned"}, "confirm": {"amount": 200}}
        first |= {name: await send(name, paths[name], bodies[name]) for name in ("rollback", "confirm")}
        assert {status for status, _ in first.values()} == {200}, first

        await persist(plane.settings)
        await plane.redis.flushall()
        await rebuilt(plane)
        for name, (_, answer) in first.items():
            status, again = await send(name, paths[name], bodies[name])
            assert (status, json.dumps(again)) == (200, json.dumps(answer).replace("false", "true")), name
        others = [("redeem", change) for change in CHANGES.values()] + [
            ("hold", {"amount": 400}),
            ("hold", {"metadata": None}),
            ("combined", {"client": {"ip": "192.0.2.1"}}),
            ("combined", {"codes": [{"code": codes[2], "amount": 2}]}),
            ("adjust", {"amount": 6}),
            ("adjust", {"reason": "another"}),
            ("rollback", {"amount": 200}),
            ("rollback", {"reason": "another"}),
            ("confirm", {"amount": 300}),
        ]
        for name, change in others:
            status, answer = await send(name, paths[name], bodies[name] | change)
            assert (status, answer["code"]) == (422, "idempotency_key_reused"), (name, change)


async def test_a_key_of_an_event_without_a_fingerprint_is_replayed_as_before(plane: ControlPlane) -> None:
    _, (code, other) = await issue(plane, 2, kind="balance", amount=500, currency="EUR")
    async with engine_in_process(plane) as merchant:
        status, first = await merchant.redeem(code, amount=300, key="k")
        assert status == 200
        await persist(plane.settings)
        async with plane.database.connection() as connection:
            await connection.execute("UPDATE ledger SET fingerprint = NULL")
        await plane.redis.flushall()
        await rebuilt(plane)
        for amount in (300, 200):
            again = await merchant.redeem(code, amount=amount, key="k")
            assert again == (200, first | {"replayed": True})
        assert (await merchant.redeem(other, amount=300, key="k"))[0] == 422


async def test_an_erasure_deletes_what_tells_whose_request_it_was(plane: ControlPlane) -> None:
    _, codes = await issue(plane, 2)
    async with engine_in_process(plane) as merchant:
        await merchant.redeem(codes[0], "ann", key="k1")
        await merchant.redeem(codes[1], "bob", key="k2")
        await persist(plane.settings)
        await erasure.erase(plane, "ann", actor="cli")
    async with plane.database.connection() as connection:
        found = await connection.fetch("SELECT user_id, fingerprint FROM ledger ORDER BY seq")
    assert [row["fingerprint"] is None for row in found] == [True, False]
    assert found[1]["user_id"] == "bob"


async def test_an_interrupted_rebuild_lets_nobody_redeem_and_is_begun_again(
    plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, (code, other) = await issue(plane, 2)
    async with engine_in_process(plane) as merchant:
        assert (await merchant.redeem(code))[0] == 200
        for name in ("_remove_everything", "_write_redis", "_begin_stream"):

            async def fail(*_: object) -> None:
                raise OSError("interrupted")

            with monkeypatch.context() as patched:
                patched.setattr(rebuilding, name, fail)
                with pytest.raises(OSError, match="interrupted"):
                    await rebuild(plane.settings, silent)
            with pytest.raises(StoreBehind):
                await publish(plane.redis, plane.database)
            assert (await merchant.redeem(other))[0] == 503
        assert await rebuilt(plane) == 1
        assert (await merchant.redeem(code))[1]["code"] == "already_redeemed"
        assert (await merchant.redeem(other))[0] == 200


async def test_nothing_is_rebuilt_while_a_persister_writes(
    plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ownership, "OWN_TIMEOUT_S", 0.5)
    _, (code,) = await issue(plane, 1)
    with Process(plane.settings, "persister"):

        async def owned() -> bool:
            async with plane.database.connection() as connection:
                return bool(
                    await connection.fetchval("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'")
                )

        await wait_until_async(owned)
        with pytest.raises(ShardOwned):
            await rebuild(plane.settings, silent)
    async with engine_in_process(plane) as merchant:
        assert (await merchant.redeem(code))[0] == 200


async def test_the_number_of_shards_changes_and_every_code_stays_what_it_is(plane: ControlPlane) -> None:
    spread, codes = await issue(plane, 12)
    pinned, limited = await issue(plane, 4, per_user_limit=2)
    async with engine_in_process(plane) as merchant:
        ids = [(await merchant.redeem(code, key=f"k{at}"))[1]["id"] for at, code in enumerate(codes[:6])]
        assert [(await merchant.redeem(code, "bob"))[0] for code in limited[:2]] == [200, 200]
        status, _ = await merchant.call("POST", f"/v1/redemptions/{ids[0]}/rollback", json={"reason": "x"})
        assert status == 200
    for shards in (3, 2, 1):
        assert await rebuilt(plane, shards) > 8
        changed = replace(plane, settings=replace(plane.settings, shards=shards))
        async with engine_in_process(changed) as another:
            merchant = Merchant(another.session, another.url, merchant.key)
            answers = [await merchant.redeem(code, key=f"k{at}") for at, code in enumerate(codes[1:6], 1)]
            assert [(status, body.get("id", body), body.get("replayed")) for status, body in answers] == [
                (200, id_, True) for id_ in ids[1:]
            ]
            assert (await merchant.redeem(codes[1]))[1]["code"] == "already_redeemed"
            assert (await merchant.redeem(limited[2], "bob"))[1]["code"] == "customer_limit_exceeded"
            new = codes[6 + shards]
            status, body = await merchant.redeem(new)
            assert status == 200, body
            again = await merchant.call(
                "POST", f"/v1/redemptions/{body['id']}/rollback", json={"reason": "x"}
            )
            assert again[0] == 200
            twice = await merchant.call("POST", f"/v1/redemptions/{ids[0]}/rollback", json={"reason": "x"})
            assert twice[1]["code"] == "already_rolled_back"
    async with plane.database.connection() as connection:
        rows = await connection.fetch("SELECT id, pinned_shard FROM campaigns")
        assert {row["id"]: row["pinned_shard"] for row in rows} == {spread: None, pinned: 0}


async def test_a_hold_of_a_user_whose_name_was_erased_is_not_live_once_it_was_confirmed(
    plane: ControlPlane,
) -> None:
    _, codes = await issue(plane, 2, amount=500, currency="EUR", stock=9)
    async with engine_in_process(plane) as merchant:
        holds = [
            (await merchant.call("POST", "/v1/holds", json={"code": code, "user": "ann", "order": "o"}))[1][
                "id"
            ]
            for code in codes
        ]
        await persist(plane.settings)
        await erasure.erase(plane, "ann", actor="cli")
        assert (await merchant.call("POST", f"/v1/holds/{holds[0]}/confirm", json={}))[0] == 200
        assert await rebuilt(plane) == 1
        assert not (await reconcile(plane.settings, {}, silent)).findings
        assert (await merchant.redeem(codes[0]))[1]["code"] == "already_redeemed"
        assert (await merchant.call("POST", f"/v1/holds/{holds[1]}/confirm", json={}))[0] == 200


async def test_live_holds_keep_the_number_of_shards(plane: ControlPlane) -> None:
    _, (code, other) = await issue(plane, 2)
    async with engine_in_process(plane) as merchant:
        held = await merchant.call(
            "POST", "/v1/holds", json={"code": code, "user": "ann", "order": "o", "ttl_s": 60}
        )
        assert held[0] == 200
        with pytest.raises(RebuildRefused, match="holds are live"):
            await rebuild(replace(plane.settings, shards=2), silent)
        await rebuilt(plane)
        assert (await merchant.redeem(code))[1]["code"] == "held_by_another_order"
        assert (await merchant.call("POST", f"/v1/holds/{held[1]['id']}/confirm", json={}))[0] == 200
        assert (await merchant.redeem(other))[0] == 200


async def test_a_redis_that_lost_events_takes_nothing_until_it_is_rebuilt(plane: ControlPlane) -> None:
    """Real workers, whose connections end when the data goes, as when Redis starts without it."""
    _, codes = await issue(plane, 6)
    with Process(plane.settings, "persister") as persister:
        async with engine_of_processes(plane, workers=2) as merchant:
            assert [(await merchant.redeem(code))[0] for code in codes[:3]] == [200] * 3

            async def persisted() -> bool:
                async with plane.database.connection() as connection:
                    return bool(await connection.fetchval("SELECT sum(seq) = 3 FROM ledger_offsets"))

            await wait_until_async(persisted)
            await lose(plane.redis)
            for code in codes[:3]:  # whoever asks first, and however soon
                status, body = await merchant.redeem(code)
                assert (status, body["code"]) in {(503, "store_behind"), (503, "store_unavailable")}

            async def told() -> bool:
                return "store_behind" in str(await merchant.redeem(codes[0]))

            await wait_until_async(told)
            persister.stop()
            await rebuilt(plane)

            async def back() -> bool:
                return (await merchant.redeem(codes[5]))[0] == 200

            await wait_until_async(back)
            for code in codes[:3]:
                assert (await merchant.redeem(code))[1]["code"] == "already_redeemed"


async def lose(redis: Redis) -> None:
    """All data, and every connection but this one, at one instant: as a server that starts without it."""
    version: Any = await redis.get(keys.version(0))
    control: Any = await redis.hgetall(keys.control())
    changed: Any = await redis.zrange(keys.control_changed(), 0, -1, withscores=True)
    campaigns: Any = {key: await redis.hgetall(key) async for key in redis.scan_iter(match="{s0}:campaign:*")}
    async with redis.pipeline(transaction=True) as pipe:
        for name in [key async for key in redis.scan_iter(match="{s*")]:
            pipe.delete(name)
        # What it comes back with is older: a configuration, and no redemption.
        pipe.set(keys.version(0), version)
        pipe.hset(keys.control(), mapping=control)
        pipe.zadd(keys.control_changed(), dict(changed))
        for name, fields in campaigns.items():
            pipe.hset(name, mapping=fields | {b"uses": b"0", b"spent": b"0"})
        pipe.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        await pipe.execute()


@pytest.mark.long
@pytest.mark.timeout(900)
async def test_a_million_redemptions_are_restored(plane: ControlPlane) -> None:
    """Prints the rate; a redemption is an event of a code of its own, one in ten under a key."""
    campaign, _ = await issue(plane, 1)
    count = 1_000_000
    async with plane.database.connection() as connection:
        batch = await connection.fetchval("SELECT id FROM batches WHERE campaign = $1", campaign)
        await connection.execute("UPDATE batches SET count = $1 WHERE id = $2", count, batch)
        now_ms = int(time.time() * 1000) - 3_600_000
        await connection.execute(
            "INSERT INTO ledger (shard, stream_ms, stream_seq, seq, type, redemption, campaign, batch,"
            " serial, last4, user_id, actor, at_ms, idempotency_key)"
            " SELECT 0, $1 + n / 100, n % 100, n + 1, 'redeemed', '0-' || ($1 + n / 100) || '-' || (n % 100),"
            " $2, $3, n, 'ABCD', 'u' || n, 'key_1', $1 + n / 100, CASE WHEN n % 10 = 0 THEN 'k' || n END"
            " FROM generate_series(0::bigint, $4 - 1) AS n",
            now_ms,
            campaign,
            batch,
            count,
            timeout=300,
        )
        await connection.execute(
            "UPDATE ledger_offsets SET stream_ms = $1, stream_seq = 99, seq = $2, chain_after = $2",
            now_ms + count // 100,
            count,
        )
        total = "INSERT INTO campaign_totals VALUES ($1, 0, 'redeemed', $2, 0)"
        await connection.execute(total, campaign, count)
    began = time.perf_counter()
    assert await rebuilt(plane) == count
    seconds = time.perf_counter() - began
    print(f"{count / seconds:,.0f} redemptions/s, {seconds:.2f} s")  # noqa: T201 - what it is for
    states = await plane.redis.get(keys.state(0, batch, 3))
    assert states == b"\x55" * (keys.SEGMENT_CODES // 4)
    assert await plane.redis.hget(keys.campaign(0, campaign), "uses") == str(count).encode()
    began = time.perf_counter()
    report = await reconcile(plane.settings, {}, silent)
    print(f"the audit took {time.perf_counter() - began:.1f} s")  # noqa: T201 - what it is for
    assert report.findings == []
    assert report.looked_at["states"] == count
