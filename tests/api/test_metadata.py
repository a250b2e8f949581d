"""Metadata is kept where the deployment says so, is shown in records, and never holds a code."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import pytest

from engine.control import erasure
from engine.store import keys
from tests.support.deployment import engine_in_process, issue
from tests.support.dumps import dump_of_database, dump_of_redis
from tests.support.lanes import LANES
from tests.support.records import persist

if TYPE_CHECKING:
    from engine.control.change import ControlPlane
    from tests.support.deployment import Merchant

NOTE: Final[dict[str, Any]] = {"till": 7, "note": "Zoë \0 🎁", "lines": [{"sku": None, "size": 1.5}]}


async def kept_of(merchant: Merchant, redemption: str) -> tuple[Any, Any]:
    """The metadata in the record, and in the list of the order."""
    _, record = await merchant.call("GET", f"/v1/redemptions/{redemption}")
    _, page = await merchant.call("GET", "/v1/redemptions?order=o-1")
    return record["metadata"], {item["id"]: item["metadata"] for item in page["items"]}[redemption]


@pytest.mark.parametrize("lane", LANES)
async def test_it_is_in_records_before_and_after_the_ledger_has_it(plane: ControlPlane, *, lane: str) -> None:
    _, codes = await issue(plane, 4)
    async with engine_in_process(plane, metadata_kept=True, lane=lane) as merchant:
        _, with_note = await merchant.redeem(codes[0], order="o-1", metadata=NOTE, key="k")
        _, without = await merchant.redeem(codes[1], order="o-1")
        items = [{"code": codes[2], "user": "ann", "order": "o-1", "metadata": {}}]
        _, batch = await merchant.call("POST", "/v1/redemptions/batch", json={"items": items})
        hold = {"code": codes[3], "user": "ann", "order": "o-1", "metadata": NOTE}
        _, held = await merchant.call("POST", "/v1/holds", json=hold)
        _, confirmed = await merchant.call("POST", f"/v1/holds/{held['id']}/confirm", json={})
        wanted = {
            with_note["id"]: NOTE,
            without["id"]: None,
            batch["results"][0]["body"]["id"]: {},
            confirmed["id"]: NOTE,
        }
        await persist(plane.settings)  # with it, the hold's metadata is known as well
        for redemption, metadata in wanted.items():
            assert await kept_of(merchant, redemption) == (metadata, metadata)
        _, fresh = await issue(plane, 1)
        _, redeemed = await merchant.redeem(fresh[0], order="o-1", metadata=NOTE)
        assert await kept_of(merchant, redeemed["id"]) == (NOTE, NOTE)
        assert (await merchant.redeem(codes[0], order="o-1", metadata=NOTE, key="k"))[1]["replayed"]


@pytest.mark.parametrize("shards", [1, 2])
async def test_an_order_of_several_codes_keeps_it_for_each(plane: ControlPlane) -> None:
    _, codes = await issue(plane, 6)
    async with engine_in_process(plane, metadata_kept=True) as merchant:
        hold = {"code": codes[0], "user": "ann", "order": "o-1"}
        assert (await merchant.call("POST", "/v1/holds", json=hold))[0] == 200
        order = {"user": "ann", "order": "o-1", "codes": [{"code": code} for code in codes], "metadata": NOTE}
        status, answer = await merchant.call("POST", "/v1/redemptions/combined", json=order)
        assert status == 200, answer
        for in_ledger in (False, True):
            if in_ledger:
                await persist(plane.settings)
            for redemption in answer["redemptions"]:
                assert await kept_of(merchant, redemption["id"]) == (NOTE, NOTE)


async def test_it_is_not_kept_unless_asked_for(plane: ControlPlane) -> None:
    _, (code,) = await issue(plane, 1)
    async with engine_in_process(plane) as merchant:
        _, redeemed = await merchant.redeem(code, order="o-1", metadata={"note": "remember-me"})
        assert await kept_of(merchant, redeemed["id"]) == (None, None)
        await persist(plane.settings)
        assert await kept_of(merchant, redeemed["id"]) == (None, None)
    assert "remember-me" not in await dump_of_database(plane) + await dump_of_redis(plane.redis)


async def test_an_erasure_deletes_it(plane: ControlPlane) -> None:
    _, (code, other) = await issue(plane, 2)
    async with engine_in_process(plane, metadata_kept=True) as merchant:
        _, ann = await merchant.redeem(code, "ann", order="o-1", metadata={"note": "forget-me"})
        _, bob = await merchant.redeem(other, "bob", order="o-1", metadata=NOTE)
        await persist(plane.settings)
        await plane.redis.xtrim(keys.events(0), maxlen=0, approximate=False)
        await erasure.erase(plane, "ann", actor="test")
        assert await kept_of(merchant, ann["id"]) == (None, None)
        assert await kept_of(merchant, bob["id"]) == (NOTE, NOTE)
    assert "forget-me" not in await dump_of_database(plane)


async def test_it_must_not_contain_a_code(plane: ControlPlane) -> None:
    _, (code, other) = await issue(plane, 2)
    async with engine_in_process(plane, metadata_kept=True) as merchant:
        for metadata in ({"note": code}, {"a": [{"b": f"is it {other}?"}]}, {other.replace("-", ""): 1}):
            status, refused = await merchant.redeem(code, order="o-1", metadata=metadata)
            assert (status, refused["code"]) == (400, "malformed_request")
            assert "metadata" in refused["detail"]
            hold = {"code": code, "user": "ann", "order": "o-1", "metadata": metadata}
            assert (await merchant.call("POST", "/v1/holds", json=hold))[0] == 400
            order = {"user": "ann", "order": "o-1", "codes": [{"code": code}], "metadata": metadata}
            status, refused = await merchant.call("POST", "/v1/redemptions/combined", json=order)
            assert (status, refused["code"]) == (400, "malformed_request")
        assert (await merchant.redeem(code, order="o-1", metadata={"note": code[-4:]}))[0] == 200
