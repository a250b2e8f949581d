"""The scripts for browser keys decide and write as the plain ones do.

But refusals wait until expired holds have been given back (lua/lib/answer_alike.lua). And only the plain
script has a loop for plain attempts (lua/lib/redeem_plain.lua): this compares it with lua/lib/redeem.
"""

from __future__ import annotations

import random
import re
from typing import TYPE_CHECKING, Any

import pytest

from engine.redemption.check import Check
from engine.redemption.one_answer import OneAnswerCheck, OneAnswerRedemption
from engine.redemption.redeem import Redemption
from engine.store import keys
from tests.support.dumps import dump_of_redis
from tests.support.scripts import FAR_MS, VERSION, Attempt, serial

if TYPE_CHECKING:
    from lua.loader import Script
    from tests.support.scripts import Shard

CODES, ATTEMPTS, ROUNDS = 6, 8, 120
CHECKS = Check.script, OneAnswerCheck.script  # have no keys
FRESH, HELD = 0, 2
AHEAD_S = 20  # the newest event is of the future, so that the next ids do not depend on the clock
LEFT_S = re.compile(r"(?<=held_by_another_order) \d+")  # until the hold expires
SUCCESSES = {"redeemed", "redeemable"}


class World:
    """What Redis has before a call, and the attempts of the call: the same for the same seed."""

    def __init__(self, shard: Shard, seed: int, script: Script) -> None:
        self.shard, self.chance, self.script = shard, random.Random(seed), script
        self.kind = self.chance.choice(["single", "single", "multi", "balance"])
        self.is_plain = self.kind == "single" and self.chance.random() < 0.6  # many attempts in the loop

    async def attempts(self, now_s: int, *, with_expired_hold: bool) -> list[Attempt]:
        """Seed the keys; return the attempts."""
        redis, pick = self.shard.redis, self.chance.choice
        await redis.flushdb()
        await redis.set(keys.version(0), VERSION)
        await redis.xadd(keys.events(0), {"v": "0"}, id=f"{(now_s + AHEAD_S) * 1000}-0")
        await self._add_campaign()
        for offset in range(CODES):
            await self._add_code(offset)
        if with_expired_hold:
            await redis.zadd(keys.holds_expiry(0), {"2-1": 1})
        if pick([True, False]):
            await redis.hset(self.shard.users(Attempt()), mapping={b"\x00digest of ann": pick([0, 1, 2])})
        names = [f"k{number}" for number in range(ATTEMPTS)]  # of idempotency keys
        if not with_expired_hold:  # with it, a refusal is not stored: a key used twice gets another answer
            names = self.chance.choices(["", "k0", "k1"], k=ATTEMPTS)
        return [self._attempt(name) for name in names]

    async def _add_campaign(self) -> None:
        pick = self.chance.choice
        kinds: dict[str, dict[str, Any]] = {
            "multi": {"max_uses": 2},
            "balance": {"amount": 500, "currency": "EUR"},
        }
        more = kinds.get(self.kind, pick([{}, {"amount": 500}]))
        limits = {
            "state": pick(["active"] * 6 + ["paused", "ended"]),
            "starts_at_ms": pick(["", "", "", FAR_MS]),
            "stock": pick(["", "", 0, 2]),
            "budget": pick(["", "", 300, 900]),
            "per_user_limit": pick(["", 1, 2]),
        }
        if self.is_plain and self.chance.random() < 0.8:
            limits |= {"state": "active", "starts_at_ms": "", "per_user_limit": ""}
            limits |= {"stock": pick(["", 2, 4]), "budget": pick(["", 900, 1500]), "spent": pick([0, 1000])}
        await self.shard.add_campaign(kind=self.kind, **more, **limits)

    async def _add_code(self, offset: int) -> None:
        redis, pick = self.shard.redis, self.chance.choice
        code = Attempt(offset=offset, kind=self.kind)
        state = pick([FRESH] * 4 + [1, HELD, 3]) if self.kind == "single" else FRESH
        await self.shard.set_state(code, state)
        if self.kind == "multi":
            await redis.hset(self.shard.used(code), str(serial(code)), pick([0, 1, 2]))
        elif self.kind == "balance":
            bits = redis.bitfield(self.shard.used(code))
            await bits.set("i64", f"#{offset}", pick([0, 250, 500])).execute()
        elif state == HELD and self.chance.random() < 0.8:  # else prepared for a combined order
            order, expires_at_ms = pick(["o-1", "o-2"]), pick([FAR_MS, 1])
            record = f"{expires_at_ms}\n{order}\nann\n{pick(['', '500'])}\ncmp_1\n7\n{offset}\nWXYZ\nkey_1\n"
            await redis.hset(keys.held(0), f"7:{offset}", f"1-{offset}")
            await redis.hset(keys.holds(0), f"1-{offset}", record)

    def _attempt(self, key: str) -> Attempt:
        pick = self.chance.choice
        if self.is_plain and self.chance.random() < 0.8:
            ending = '{"till":1}' if self.script not in CHECKS and self.chance.random() < 0.2 else ""
            return Attempt(
                offset=self.chance.randrange(CODES),
                amount=pick(["", "", "", "500"]),
                order=pick(["", "o-1"]),
                ending=ending,
                is_void=self.chance.random() < 0.1,
            )
        return Attempt(
            offset=self.chance.randrange(CODES),
            kind=self.kind,
            user=pick(["ann", "bob"]),
            counted=pick([True, False]),
            key="" if self.script in CHECKS else key,
            fingerprint=pick([b"\x00\xff body.", b"\x00\xff other"]),
            amount=pick(["", "500", "200", "up_to_balance"] if self.kind == "balance" else ["", "", "500"]),
            order=pick(["", "o-1"]),
        )


async def said_and_left(world: World, now_s: int, *, with_expired_hold: bool) -> tuple[list[str], str]:
    """The answers to a call, made twice, and what is in Redis then."""
    attempts = await world.attempts(now_s, with_expired_hold=with_expired_hold)
    said = [await world.shard.call(*attempts, script=world.script) for _ in range(2)]
    answers = [LEFT_S.sub("", answer.decode()) for _, *answers in said for answer in answers]
    return answers, await dump_of_redis(world.shard.redis)


@pytest.mark.parametrize(
    ("plain", "alike"),
    [(Redemption.script, OneAnswerRedemption.script), CHECKS],
    ids=["redeem", "check"],
)
async def test_without_expired_holds_they_answer_and_write_the_same(
    shard: Shard, plain: Script, alike: Script
) -> None:
    now_s, _ = await shard.redis.time()
    seeds = [random.randrange(2**32) for _ in range(ROUNDS)]
    words = set()
    for seed in seeds:
        one = await said_and_left(World(shard, seed, plain), now_s, with_expired_hold=False)
        two = await said_and_left(World(shard, seed, alike), now_s, with_expired_hold=False)
        assert one == two, seed
        words |= {answer.split()[0] for answer in one[0]}
    assert words & SUCCESSES
    assert {"already_redeemed", "held_by_another_order", "code_void"} <= words


async def test_with_an_expired_hold_they_have_the_same_successes(shard: Shard) -> None:
    now_s, _ = await shard.redis.time()
    for seed in [random.randrange(2**32) for _ in range(ROUNDS)]:
        plain, _ = await said_and_left(World(shard, seed, Redemption.script), now_s, with_expired_hold=True)
        world = World(shard, seed, OneAnswerRedemption.script)
        alike, left = await said_and_left(world, now_s, with_expired_hold=True)
        pairs = list(zip(plain, alike, strict=True))
        assert all(two in {one, "holds_expired"} for one, two in pairs), (seed, pairs)
        waiting = [one for one, two in pairs if two == "holds_expired"]
        assert not [one for one in waiting if one.removeprefix("replayed ").startswith("redeemed ")], seed
        assert "already_redeemed" not in left, seed  # no refusal that waits is stored
