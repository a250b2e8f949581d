"""Guessers are blocked by what becomes of their codes, in every lane and over several workers."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import zlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from engine.api.checks import Client
from engine.control import automatic_blocks, blocks
from engine.guard.behaviour import Behaviour
from engine.guard.labels import OK, SPENT, UNKNOWN, Labeller, Tried, is_within
from engine.guard.rules import LEAKED_LIST, SCORE, SLOW_DRIP, Rules
from engine.guard.shared_attempts import ENTRIES_MAX, AttemptStream
from engine.guard.suspects import Suspects
from engine.settings import Settings
from engine.store import keys
from tests.support.deployment import Process, engine_in_process, engine_of_processes, issue, worker_pids
from tests.support.guessing import guesses, made_up
from tests.support.lanes import LANES
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    from engine.control.change import ControlPlane
    from engine.guard.suspects import Suspicion
    from tests.support.deployment import Merchant

KEY = "key_000000000000"
ENFORCED: dict[str, Any] = {"guard_score_mode": "enforce", "guard_slow_drip_mode": "enforce"}


def tried(
    number: int, label: int = UNKNOWN, *, user: str = "ann", address: str = "", weight: float = 1.0
) -> Tried:
    return Tried(KEY, user, address, "", label, zlib.crc32(b"%d" % number), weight, "ABCD")


def hear_all(suspects: Suspects, *attempts: Tried, every_s: float = 1.0) -> list[Suspicion]:
    return [finding for at, one in enumerate(attempts) for finding in suspects.hear(one, 1e9 + at * every_s)]


def found_blocks(suspects: Suspects, *attempts: Tried, every_s: float = 1.0) -> list[str]:
    return [one.rule for one in hear_all(suspects, *attempts, every_s=every_s) if one.blocks]


def test_the_eighth_different_made_up_code_is_one_too_many() -> None:
    suspects = Suspects(Settings())
    assert not found_blocks(suspects, *map(tried, range(7)), *[tried(3)] * 20)
    found = found_blocks(suspects, tried(7))
    assert found == [SCORE]
    assert not found_blocks(suspects, tried(8))  # it begins anew


def test_a_success_counts_down_once_a_code() -> None:
    suspects = Suspects(Settings())
    assert not found_blocks(suspects, *map(tried, range(7)), tried(99, OK), *map(tried, range(7, 10)))
    suspects = Suspects(Settings())
    assert not found_blocks(suspects, *map(tried, range(4)), tried(99, OK), *map(tried, range(4, 11)))
    assert found_blocks(suspects, *[tried(99, OK)] * 50, tried(11)) == [SCORE]


def test_who_checks_a_few_good_codes_in_turns_counts_down_no_more() -> None:
    suspects, good = Suspects(Settings()), 30
    guesses = (each for number in range(500) for each in (tried(number), tried(-1 - number % good, OK)))
    assert {SCORE, SLOW_DRIP} <= set(found_blocks(suspects, *guesses))


def test_what_is_typed_again_counts_less_and_scores_fade() -> None:
    suspects = Suspects(Settings())
    assert not found_blocks(suspects, *(tried(number, weight=0.4) for number in range(17)))
    suspects = Suspects(Settings(guard_drip_codes_per_hour=99))
    assert not found_blocks(suspects, *map(tried, range(40)), every_s=300)


def test_a_slow_guesser_is_found_in_an_hour_and_one_with_as_many_successes_is_not() -> None:
    assert found_blocks(Suspects(Settings()), *map(tried, range(20)), every_s=150) == [SLOW_DRIP]
    day = hear_all(Suspects(Settings()), *map(tried, range(100)), every_s=800)
    assert [(one.rule, one.block_s) for one in day if one.blocks] == [(SLOW_DRIP, 86_400)]
    honest = [each for number in range(300) for each in (tried(number), tried(number, OK))]
    assert not found_blocks(Suspects(Settings()), *honest, every_s=60)


def test_a_list_of_used_codes_is_found_but_blocks_nobody() -> None:
    (found,) = hear_all(Suspects(Settings()), *(tried(number, SPENT) for number in range(12)))
    assert (found.rule, found.blocks) == (LEAKED_LIST, False)
    assert not hear_all(Suspects(Settings()), *(tried(number % 9, SPENT) for number in range(99)))


def test_one_guesser_in_a_shop_does_not_block_its_address() -> None:
    suspects = Suspects(Settings())
    found = hear_all(suspects, *(tried(number, user="eve", address="203.0.113.7") for number in range(80)))
    assert {one.source[1] for one in found if one.blocks} == {"user"}
    rotating = (tried(100 + number, user=f"u{number}", address="203.0.113.7") for number in range(8))
    assert {one.source[1] for one in hear_all(suspects, *rotating) if one.blocks} == {"network"}


def test_the_table_of_suspects_stays_bounded_under_an_attack_from_many_addresses() -> None:
    suspects = Suspects(Settings(guard_sources_max=1000))
    for number in range(100_000):
        suspects.hear(tried(number, user="", address=f"address {number}"), 1e9)
    assert 500 <= len(suspects) <= 1000


def test_who_tries_one_key_from_many_addresses_hides_no_slow_guesser_of_another_key() -> None:
    suspects, found = Suspects(Settings(guard_sources_max=1000)), []
    for number in range(8):
        found += found_blocks(suspects, Tried("key_page", "", "203.0.113.7", "", UNKNOWN, number))
        for other in range(3000):
            suspects.hear(tried(other, user="", address=f"address {number} {other}"), 1e9)
    assert found == [SCORE]


@pytest.mark.parametrize("seed", range(3))
def test_codes_are_within_a_distance_as_the_usual_table_says(seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(2000):
        one = bytes(chance.choices(b"ab", k=chance.randrange(7)))
        other = bytes(chance.choices(b"ab", k=chance.randrange(7)))
        assert is_within(one, other, 2) == (_distance(one, other) <= 2), (seed, one, other)


def _distance(one: bytes, other: bytes) -> int:
    row = list(range(len(other) + 1))
    for at, left in enumerate(one, 1):
        before, row[0] = row[0], at
        for to, right in enumerate(other, 1):
            before, row[to] = row[to], min(row[to] + 1, row[to - 1] + 1, before + (left != right))
    return row[-1]


def test_only_unknown_codes_nearly_like_the_latest_weigh_less() -> None:
    labeller = Labeller(Settings())

    def weights(*codes: bytes, now_s: float = 0.0) -> list[float]:
        notes = [(KEY, "ann", None, "code_not_found", code) for code in codes]
        return [one.weight for one in labeller.label(notes, Suspects(Settings()), now_s).tried]

    assert weights(b"AAAABBBBCCCCDDDD", b"AAAABBBBCCCCDDDE", b"0123456789ABCDEF") == [1.0, 0.4, 1.0]
    assert weights(b"AAAABBBCCCCDDDD", now_s=59.0) == [0.4]
    assert weights(b"AAAABBBCCCCDDD", now_s=200.0) == [1.0]
    labeller.forget(1000.0)
    assert not len(labeller)


@pytest.mark.parametrize("lane", LANES)
async def test_a_guesser_is_blocked_in_each_lane(plane: ControlPlane, lane: str) -> None:
    _, codes = await issue(plane, 1)
    async with engine_in_process(plane, lane=lane, **ENFORCED) as merchant:
        assert set(await guesses(merchant, 7, seed=1)) == {"code_not_found"}
        assert (await merchant.redeem(codes[0], "bob"))[0] == 200
        await guesses(merchant, 1, seed=2)
        await until_blocked(merchant)
    (made,) = await blocks.page(plane, after=None, limit=9)
    assert (made.actor, made.kind, made.subject, made.state) == ("guard", "user", "eve", "active")
    assert made.api_key
    assert made.expires_at is not None
    assert 540 <= (made.expires_at - made.created_at).total_seconds() <= 660
    assert made.evidence is not None
    assert made.evidence["unknown"] == 8
    assert len(made.evidence["last4"]) == 4
    assert all(len(text) == 4 for text in made.evidence["last4"])


async def until_blocked(merchant: Merchant, user: str = "eve", client: dict[str, str] | None = None) -> None:
    async def blocked() -> bool:
        return bool((await merchant.redeem(made_up(0), user, client=client))[1]["code"] == "blocked")

    await wait_until_async(blocked)


async def test_guesses_in_batches_combined_orders_and_checks_count(plane: ControlPlane) -> None:
    async with engine_in_process(plane, **ENFORCED) as merchant:
        chance = random.Random(3)
        for path, body in (
            ("/v1/redemptions/batch", {"items": [{"code": made_up(chance), "user": "a"} for _ in range(8)]}),
            (
                "/v1/redemptions/combined",
                {"codes": [{"code": made_up(chance)} for _ in range(8)], "user": "b", "order": "1"},
            ),
        ):
            await merchant.call("POST", path, json=body)
        for _ in range(8):
            await merchant.call("POST", "/v1/codes/check", json={"code": made_up(chance), "user": "c"})
        for user in "abc":
            await until_blocked(merchant, user)


async def test_a_block_is_for_one_api_key_and_the_next_is_longer(plane: ControlPlane) -> None:
    async with (
        engine_in_process(plane, **ENFORCED) as merchant,
        engine_in_process(plane, **ENFORCED) as other,
    ):
        for seed, length_s in ((1, 600), (2, 1200)):
            await guesses(merchant, 8, seed=seed)
            await until_blocked(merchant)
            assert (await other.redeem(made_up(9), "eve"))[1]["code"] == "code_not_found"
            made = (await blocks.page(plane, after=None, limit=1))[0]
            assert made.expires_at is not None
            assert (made.expires_at - made.created_at).total_seconds() == pytest.approx(length_s, rel=0.11)
            await blocks.lift(plane, made.shown_id, actor="cli")

            async def free() -> bool:
                return bool((await merchant.redeem(made_up(9), "eve"))[1]["code"] == "code_not_found")

            await wait_until_async(free)


def test_a_block_lasts_twice_as_long_each_time_and_a_day_at_most() -> None:
    settings = Settings(guard_block_jitter_percent=0)
    lengths = [automatic_blocks.block_s(settings, 0, number) for number in (0, 1, 2, 7, 8, 99)]
    assert lengths == [600, 1200, 2400, 76_800, 86_400, 86_400]
    assert automatic_blocks.block_s(settings, 3600, 0) == 3600


async def test_nothing_is_noted_while_every_rule_is_off_and_observing_blocks_nobody(
    plane: ControlPlane,
) -> None:
    async with engine_in_process(plane) as merchant:
        await guesses(merchant, 12, seed=1)
    assert not await plane.redis.exists(keys.guard_attempts())
    async with engine_in_process(plane, guard_score_mode="observe") as merchant:
        await guesses(merchant, 12, seed=1)

        async def observed() -> bool:
            async with merchant.session.get(f"{merchant.url}/metrics") as response:
                return 'redeem_guard_observed_total{rule="score"} ' in await response.text()

        await wait_until_async(observed)
        assert (await merchant.redeem(made_up(9), "eve"))[1]["code"] == "code_not_found"
    assert not await blocks.page(plane, after=None, limit=9)


async def test_what_an_allow_fits_is_not_blocked(plane: ControlPlane) -> None:
    new = blocks.NewBlock(kind="network", subject="198.51.100.0/24", reason="our shop", action="allow")
    await blocks.create(plane, new, actor="cli")
    async with engine_in_process(plane, **ENFORCED) as merchant:
        await guesses(merchant, 9, seed=1, user=lambda number: f"u{number}", client={"ip": "198.51.100.7"})
        await guesses(merchant, 9, seed=2, user=lambda number: f"v{number}", client={"ip": "198.51.101.7"})
        await until_blocked(merchant, "z", {"ip": "198.51.101.7"})
    made = await blocks.page(plane, after=None, limit=9)
    assert [one.subject for one in made if one.actor == "guard"] == ["198.51.101.7"]


async def test_workers_add_up_what_a_guesser_tries_and_make_one_block(plane: ControlPlane) -> None:
    async with engine_of_processes(plane, workers=2, **ENFORCED) as merchant:
        await guesses(merchant, 8, seed=1, headers={"Connection": "close"})
        await until_blocked(merchant)
        await asyncio.sleep(2 * automatic_blocks.LATER_S)
    assert len(await blocks.page(plane, after=None, limit=9)) == 1


async def test_a_killed_worker_loses_no_block(plane: ControlPlane) -> None:
    """PostgreSQL is stopped from making the block until the only worker that knows of it has been killed."""
    settings = replace(plane.settings, port=0, workers=1, **ENFORCED)
    async with engine_in_process(plane) as merchant:  # for its API key
        with Process(settings, "engine.cli", "serve") as front_end:
            _, _, merchant.url = front_end.line().partition(" ")
            async with plane.database.transaction() as connection:
                await connection.execute("SELECT 1 FROM deployment FOR UPDATE")
                await guesses(merchant, 8, seed=1)

                async def is_told() -> bool:
                    heard = await AttemptStream(plane.redis).exchange(None)
                    return sum(len(told.tried) for _, _, told in heard) == 8

                await wait_until_async(is_told)
                (pid,) = worker_pids(front_end)
                os.kill(pid, signal.SIGKILL)
            assert not await blocks.page(plane, after=None, limit=9)

            async def is_blocked() -> bool:
                return bool(await blocks.page(plane, after=None, limit=9))

            await wait_until_async(is_blocked)
            front_end.stop()
    (made,) = await blocks.page(plane, after=None, limit=9)
    assert made.subject == "eve"


async def test_the_stream_of_attempts_is_bounded_and_names_no_code(plane: ControlPlane) -> None:
    stream = AttemptStream(plane.redis)
    notes = [(KEY, "ann", None, "code_not_found", b"MADEUPCODE123456")]
    labelled = Labeller(Settings()).label(notes, Suspects(Settings()), 0.0)
    for _ in range(ENTRIES_MAX + 50):
        await stream.exchange(labelled)
    entries: Any = await plane.redis.xrange(keys.guard_attempts())
    assert len(entries) == ENTRIES_MAX
    assert 0 < await plane.redis.pttl(keys.guard_attempts()) <= 3_600_000
    assert b"MADEUP" not in b"".join(value for _, fields in entries for value in fields.values())
    late = AttemptStream(plane.redis)
    heard = await late.exchange(None)
    assert len(heard) == ENTRIES_MAX
    assert not any(is_own for _, is_own, _ in heard)


def test_what_cannot_be_told_at_once_is_told_the_next_time() -> None:
    behaviour = Behaviour(Settings(guard_score_mode="enforce"), Rules(Settings(guard_score_mode="enforce")))
    note = behaviour.note
    assert note is not None
    for number in range(25):
        note((KEY, "ann", None, "code_not_found", b"%016d" % number))
    told = [behaviour.take_labelled(10) for _ in range(4)]
    assert [None if one is None else len(one.tried) for one in told] == [10, 10, 5, None]


@pytest.mark.parametrize("seed", range(20))
def test_a_success_is_told_of_a_suspect_and_of_nobody_else(seed: int) -> None:
    chance = random.Random(seed)
    labeller, suspects = Labeller(Settings()), Suspects(Settings())
    suspected: set[tuple[str, str, str]] = set()
    for number in range(chance.randrange(4)):  # how many are suspected before
        one = tried(number, user=f"{number}", address="203.0.113.1" if number == 1 else "")
        suspects.hear(one, 0.0)
        suspected.update(one.sources())
    notes, expected, successes = [], [], 0
    for number in range(300):
        user, address, device = (chance.choice(["", *map(str, range(9))]) for _ in range(3))
        ip = f"203.0.113.{address}" if address else None
        client = chance.choice([None, Client(ip=ip, device=f"d-{device}" if device else None)])
        outcome = chance.choice(
            ["redeemed"] * 8 + ["code_not_found", "already_redeemed", "campaign_inactive"]
        )
        notes.append((KEY, user, client, outcome, b"%016d" % number))
        sources = {(KEY, "user", user)} if user else set()
        if client is not None and client.ip:
            sources.add((KEY, "network", client.ip))
        if client is not None and client.device:
            sources.add((KEY, "device", client.device))
        successes += outcome == "redeemed"
        is_wrong = outcome in {"code_not_found", "already_redeemed"}
        if is_wrong or (outcome == "redeemed" and sources & suspected):
            suspected |= sources  # also the other sources of a success that is told
            expected.append(number)
    labelled = labeller.label(notes, suspects, 0.0)
    told = labeller.label(
        ((KEY, "", None, "code_not_found", b"%016d" % one) for one in expected), suspects, 0.0
    )
    assert [one.digest for one in labelled.tried] == [one.digest for one in told.tried]
    assert labelled.successes == {KEY: successes}


def test_successes_alone_are_told_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    behaviour = Behaviour(Settings(guard_score_mode="enforce"), Rules(Settings(guard_score_mode="enforce")))
    note = behaviour.note
    assert note is not None
    told = []
    for at_ms in (0, 100, 900, 1000, 1100, 1200, 1300, 2200):
        outcome = "code_not_found" if at_ms == 1200 else "redeemed"
        monkeypatch.setattr("engine.guard.behaviour.time.time", lambda at_ms=at_ms: 1e9 + at_ms / 1000)
        note((KEY, "ann" if outcome == "redeemed" else "bob", None, outcome, b"0" * 16))
        labelled = behaviour.take_labelled(10)
        told.append(None if labelled is None else (len(labelled.tried), labelled.successes.get(KEY)))
    assert told == [(0, 1), None, None, (0, 3), None, (1, 1), None, (0, 2)]
