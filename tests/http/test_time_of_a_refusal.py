"""What a page waits for a refusal does not say which refusal it is (docs/browser-keys.md, One answer)."""

from __future__ import annotations

import contextlib
import random
from collections import defaultdict
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any, Final

import pytest

from engine.control import campaigns, voids
from engine.control.campaigns import CampaignChange
from engine.control.voids import VoidDeclaration
from engine.redemption.one_answer import OneAnswerCheck, OneAnswerHold, OneAnswerRedemption
from engine.store import keys
from tests.support.browsers import FREE, page_of
from tests.support.deployment import engine_in_process, engine_of_processes, issue, mint, mint_batch
from tests.support.lanes import LANES
from tests.support.rank_test import rank_difference
from tests.support.timed_calls import MORE_FIELDS, TimedCalls
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from redis.asyncio import Redis

    from engine.control.change import ControlPlane
    from lua.loader import Script
    from tests.support.deployment import Merchant

CODES: Final = 100  # of each kind
CALLS: Final = 2000  # of each kind
DIFFERENCE_MAX: Final = 5.0  # standard deviations; chance alone gives more in one of 50,000 runs
SYMBOLS: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
CHECK: Final = "/v1/codes/check"
SCRIPTS: Final = {
    "/v1/redemptions": OneAnswerRedemption.script,
    "/v1/holds": OneAnswerHold.script,
    CHECK: OneAnswerCheck.script,
}
UNKNOWN: Final = "0000-0000-0000-0000"
WRITES: Final = {"HSET", "HDEL", "HINCRBY", "EXPIREAT", "BITFIELD", "XADD", "ZADD", "ZREM"}
CHANGES: Final = {
    "": CampaignChange(),
    "sold out": CampaignChange(stock=1),
    "over its budget": CampaignChange(stock=99, budget=1),
    "over the customer's limit": CampaignChange(budget=99_999, per_user_limit=1),
    "not started": CampaignChange(per_user_limit=99, starts_at="2200-01-01T00:00:00Z"),
    "over": CampaignChange(starts_at=None, ends_at="2001-01-01T00:00:00Z"),
    "paused": CampaignChange(ends_at=None, state="paused"),
    "ended": CampaignChange(state="ended"),
}
"""What is done to a campaign, one after the other: then fresh codes are refused, too."""
LIMITS: Final[dict[str, Any]] = {
    "amount": 500,
    "currency": "EUR",
    "stock": 99,
    "budget": 99_999,
    "per_user_limit": 99,
}
KINDS: Final[dict[str, dict[str, Any]]] = {
    "single": {"kind": "single"},
    "multi": {"kind": "multi", "max_uses": 1},
    "balance": {"kind": "balance"},
}


def made_up(chance: random.Random, last: str = "") -> str:
    text = "".join(chance.choices(SYMBOLS, k=16 - len(last))) + last
    return "-".join(text[at : at + 4] for at in range(0, 16, 4))


@pytest.mark.timeout(300)  # 22,000 calls, perhaps on a busy machine
@pytest.mark.parametrize("lane", LANES)
async def test_it_takes_the_same_time(plane: ControlPlane, lane: str) -> None:
    """2,000 calls of each kind, in random order, on one connection to one worker: a rank test.

    There are as many codes of each kind, because what was asked before is known faster.
    """
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # noqa: T201 - shown when the test fails
    chance = random.Random(seed)
    own, codes = await issue(plane, 2 * CODES)
    spent, held = codes[:CODES], codes[CODES:]
    _, foreign = await issue(plane, CODES)
    async with engine_of_processes(plane, workers=1, lane=lane, **FREE) as merchant:
        page = await page_of(plane, merchant, own)
        for code in spent:
            assert (await page.redeem(code)).status == 200
        for code in held:
            assert (await page.post("/v1/holds", {"code": code, "user": "ann", "order": "o-1"})).status == 200
        unknown = [made_up(chance) for _ in range(CODES)]
        malformed = [made_up(chance, "U") for _ in range(CODES)]
        some = {"unknown": unknown, "spent": spent, "held": held}
        every = some | {"malformed": malformed, "of another campaign": foreign}
        by_path = dict.fromkeys(SCRIPTS, some) | {"/v1/redemptions": every}
        seconds = TimedCalls(page).run(by_path, CALLS, chance)
    differences = {
        (path, *pair): rank_difference(kinds[pair[0]], kinds[pair[1]])
        for path, kinds in seconds.items()
        for pair in combinations(kinds, 2)
    }
    assert max(map(abs, differences.values())) < DIFFERENCE_MAX, differences


@pytest.mark.parametrize("with_key", [False, True])
@pytest.mark.parametrize("kind", KINDS)
async def test_redis_does_as_much_for_it(
    plane: ControlPlane, redis: Redis, kind: str, *, with_key: bool
) -> None:
    """For every kind of code and every reason, its script makes as many reads, and the same writes."""
    whole: dict[str, Any] = {"amount": 500} if kind == "balance" else {}
    own, (fresh,) = await issue(plane, 1, **LIMITS, **KINDS[kind])
    done: defaultdict[str, dict[str, Done]] = defaultdict(dict)
    async with engine_in_process(plane, scopes=("redeem", "admin"), **FREE) as merchant:
        codes = await codes_of_every_refusal(plane, merchant, own, whole)
        page = await page_of(plane, merchant, own)

        async def refuse(reason: str, code: str, **amount: int) -> None:
            for path, script in SCRIPTS.items():
                if path == CHECK and amount not in ({}, whole):
                    continue
                fields = {} if path == CHECK else MORE_FIELDS.get(path, {}) | amount
                headers = {"Idempotency_Key": f"{path} {reason}"} if with_key else {}
                for again in ("", ", again") if with_key and path != CHECK else ("",):
                    async with commands(redis, script) as made:
                        answer = await page.post(path, {"code": code, "user": "ann", **fields}, **headers)
                    assert (answer.status, answer.code) == (404, "code_not_found"), reason
                    done[path + again][reason] = Done.of(made)

        await refuse("another amount", fresh, amount=501)
        for state, change in CHANGES.items():
            await campaigns.update(plane, own, change, actor="cli")
            await page.redeem(UNKNOWN)  # after it the worker knows of the change
            for reason, code in (codes | ({"fresh": fresh} if state else {})).items():
                await refuse(f"{reason} {state}", code, **whole)
    assert len(done) == (5 if with_key else 3)
    for path, by_reason in done.items():
        assert set(by_reason.values()) == {by_reason["unknown "]}, (path, by_reason)
        assert by_reason["unknown "].commands > 0


@pytest.mark.parametrize("code", ["unknown", "spent", "fresh"])
async def test_every_refusal_waits_for_expired_holds(plane: ControlPlane, redis: Redis, code: str) -> None:
    """A fresh code of a sold-out campaign must wait, so a made-up code waits too."""
    own, (held, spent, fresh) = await issue(plane, 3, stock=2)
    codes = {"unknown": UNKNOWN, "spent": spent, "fresh": fresh}
    seldom = FREE | {"hold_expiry_interval_ms": 3_600_000}

    async def expired() -> int:
        seconds, _ = await redis.time()
        return int(await redis.zcount(keys.holds_expiry(0), "-inf", seconds * 1000))

    async with engine_in_process(plane, **seldom) as merchant:
        page = await page_of(plane, merchant, own)
        assert (await page.redeem(spent)).status == 200
        body = {"code": held, "user": "ann", "order": "o-1", "ttl_s": 1}
        assert (await page.post("/v1/holds", body)).status == 200
        await wait_until_async(expired)
        found = await page.redeem(codes[code])
        assert await expired() == 0
    assert found.status == (200 if code == "fresh" else 404)  # what was held can be sold again


@dataclass(frozen=True)
class Done:
    """How many commands a script has made, and which of them were writes."""

    commands: int
    writes: tuple[str, ...]

    @classmethod
    def of(cls, made: list[str]) -> Done:
        return cls(len(made), tuple(command for command in made if command in WRITES))


@contextlib.asynccontextmanager
async def commands(redis: Redis, script: Script) -> AsyncIterator[list[str]]:
    """Collect the commands that a script makes meanwhile."""
    made: list[str] = []
    async with redis.monitor() as monitor:
        yield made
        await redis.echo("end")
        is_running = False
        async for seen in monitor.listen():
            command, *arguments = seen["command"].split(" ")
            if seen["client_type"] != "lua":
                is_running = (command, arguments[:1]) == ("FCALL", [script.library])
            if is_running:
                made.append(command)
            if (command, arguments) == ("ECHO", ["end"]):
                return


async def codes_of_every_refusal(
    plane: ControlPlane, merchant: Merchant, campaign: str, amount: dict[str, int]
) -> dict[str, str]:
    """Return a code for each refusal that has its reason in the code."""
    spent, held, void = await mint(plane, campaign, 3)
    for path, fields in (
        ("/v1/redemptions", {"code": spent, "user": "ann", **amount}),
        ("/v1/holds", {"code": held, "user": "ann", "order": "o-1", **amount}),
        ("/v1/codes/void", {"code": void, "reason": "lost"}),
    ):
        assert (await merchant.call("POST", path, json=fields))[0] == 200
    batch, (void_by_batch,) = await mint_batch(plane, campaign, 1)
    await voids.declare(plane, VoidDeclaration(batch=batch, reason="lost"), void=True, actor="cli")
    _, (foreign,) = await issue(plane, 1)
    return {
        "unknown": UNKNOWN,
        "malformed": "0000-0000-0000-000U",
        "empty": "",
        "spent": spent,
        "held": held,
        "void": void,
        "void by its batch": void_by_batch,
        "of another campaign": foreign,
    }
