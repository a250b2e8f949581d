"""The append-only file is cut off anywhere in its tail: a code is consumed if and only if its event is there.

Scripts write all or nothing into that file, so whatever is left of it is a state that the engine was in.
"""

from __future__ import annotations

import random
import shutil
from typing import TYPE_CHECKING, Any, Final

import pytest
from redis.asyncio import Redis

from engine.ledger.stream_tail import decode_entries
from engine.store import keys
from tests.support.deployment import engine_in_process, issue
from tests.support.killing import marked_as_redeemed
from tests.support.servers import ValkeyProcess

if TYPE_CHECKING:
    from pathlib import Path

    from engine.control.change import ControlPlane

CODES: Final = 60
TAKES: Final = frozenset({"redeemed", "confirmed"})


@pytest.mark.parametrize(
    "cuts", [pytest.param(12), pytest.param(400, marks=[pytest.mark.long, pytest.mark.timeout(1800)])]
)
async def test_a_code_is_consumed_if_and_only_if_its_event_is_there(
    plane: ControlPlane, valkey: ValkeyProcess, own_directory: Path, cuts: int
) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # noqa: T201 - shown when the test fails
    chance = random.Random(seed)
    campaign, codes = await issue(plane, CODES, stock=CODES, per_user_limit=CODES)
    (file,) = (own_directory / "data" / "valkey").rglob("*.incr.aof")
    async with engine_in_process(plane) as merchant:
        untouched = (
            file.stat().st_size
        )  # it has the scripts by now, which are much larger than all that follows
        for code in codes:
            await use(merchant, code, chance)
    valkey.kill()
    kept = own_directory / "kept"
    shutil.copytree(own_directory / "data" / "valkey", kept)
    valkey.spawn()
    await valkey.wait_ready()
    whole = (kept / file.relative_to(own_directory / "data" / "valkey")).read_bytes()
    redeemed = set()
    for number in range(cuts):
        copy = own_directory / f"cut-{number}"
        shutil.copytree(kept, copy / "valkey")
        (cut,) = (copy / "valkey").rglob("*.incr.aof")
        cut.write_bytes(whole[: chance.randrange(untouched, len(whole))])
        redeemed.add(await compare(ValkeyProcess(copy), campaign))
    assert len(redeemed) > min(cuts, CODES) // 3  # they were cut at different places


async def use(merchant: Any, code: str, chance: random.Random) -> None:  # noqa: ANN401 - a merchant
    """Redeem it, or more than that."""
    if chance.random() < 1 / 3:
        hold = {"code": code, "user": "ann", "order": "o"}
        _, held = await merchant.call("POST", "/v1/holds", json=hold)
        end = chance.choice(("confirm", "release"))
        assert (await merchant.call("POST", f"/v1/holds/{held['id']}/{end}", json={}))[0] == 200
        if end == "confirm":
            return
    _, body = await merchant.redeem(code, key=f"key {code[-4:]}")
    if chance.random() < 1 / 3:
        path = f"/v1/redemptions/{body['id']}/rollback"
        assert (await merchant.call("POST", path, json={"reason": "x"}))[0] == 200


async def compare(valkey: ValkeyProcess, campaign: str) -> int:
    """What is left of it, once it runs again; answers how many codes are redeemed."""
    valkey.spawn()
    try:
        await valkey.wait_ready()
        async with Redis.from_url(valkey.url) as redis:
            entries: Any = await redis.xrange(keys.events(0))
            redeemed: set[int] = set()
            held = 0
            for event in decode_entries(0, entries):
                if event.type in TAKES:
                    redeemed.add(event.serial)
                redeemed -= {event.serial} if event.type == "rolled_back" else set()
                held += {"held": 1, "confirmed": -1, "released": -1}.get(event.type, 0)
            assert await marked_as_redeemed(redis) == redeemed
            assert int(await redis.hget(keys.campaign(0, campaign), "uses") or 0) == len(redeemed) + held
            assert await redis.hlen(keys.held(0)) == held
            return len(redeemed)
    finally:
        valkey.stop()
