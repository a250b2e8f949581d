"""Challenges over HTTP: who is asked, what is a solution, and that to be asked tells nothing about a code."""

from __future__ import annotations

import base64
import functools
import random
import time
from typing import TYPE_CHECKING, Any, Final

import altcha
import orjson
import pytest

from engine.control import alerts, api_keys, blocks, voids
from engine.control.blocks import NewBlock
from engine.control.voids import VoidDeclaration
from engine.guard.asked import KEY, AskedSources
from engine.guard.behaviour import Behaviour
from engine.guard.labels import SPENT, UNKNOWN, Labelled, Tried
from engine.guard.rules import Rules
from engine.observability.metrics import GUARD_CHALLENGES
from engine.settings import Settings
from tests.support.browsers import ORIGIN, Page, page_of
from tests.support.deployment import engine_in_process, issue, mint_batch
from tests.support.guessing import guesses, made_up
from tests.support.importing import a_campaign, bring, lines_of
from tests.support.lanes import LANES
from tests.support.solving import EASY, challenge_of, reason_of, solved
from tests.support.user_tokens import user_token
from tests.support.waiting import wait_until, wait_until_async

if TYPE_CHECKING:
    from engine.control.change import ControlPlane
    from tests.support.browsers import Seen
    from tests.support.deployment import Merchant

PROXIED: Final[dict[str, Any]] = EASY | {
    "trusted_proxies": "127.0.0.0/8",
    "client_address_header": "x-real-ip",
}
SCORE: Final[dict[str, Any]] = PROXIED | {"guard_score_mode": "challenge"}
EVE: Final = "203.0.113.66"


async def redeem(page: Page, code: str, address: str = EVE, solution: str | None = None) -> Seen:
    client = {} if solution is None else {"client": {"challenge": solution}}
    return await page.post("/v1/redemptions", {"code": code, "user": "ann"} | client, X_Real_IP=address)


async def void_codes(plane: ControlPlane, campaign: str, count: int) -> list[str]:
    batch, codes = await mint_batch(plane, campaign, count)
    await voids.declare(plane, VoidDeclaration(batch=batch, reason="lost"), void=True, actor="cli")
    return codes


async def guess_until_asked(page: Page, address: str = EVE, most: int = 9) -> int:
    """Try made-up codes until a challenge is demanded; return how many calls were answered before.

    After ``most`` codes it sends what is no code, which counts for no rule that blocks.
    """
    chance = random.Random(address)
    tried = 0

    async def is_asked() -> bool:
        nonlocal tried
        seen = await redeem(page, made_up(chance) if tried < most else "?", address)
        tried += seen.code == "code_not_found"
        return seen.code == "challenge_required"

    await wait_until_async(is_asked)
    return tried


@pytest.mark.parametrize("lane", LANES)
async def test_who_guesses_must_solve_a_challenge_for_each_code(plane: ControlPlane, lane: str) -> None:
    campaign, codes = await issue(plane, 3)
    async with engine_in_process(plane, lane=lane, **SCORE) as merchant:
        page = await page_of(plane, merchant, campaign)
        await guess_until_asked(page)
        before = GUARD_CHALLENGES.labels("solved")._value.get()
        for code in codes:
            asked = await redeem(page, code)
            assert reason_of(asked) == "missing"
            assert (await redeem(page, code, solution=solved(challenge_of(asked)))).status == 200
        assert GUARD_CHALLENGES.labels("solved")._value.get() == before + 3
        assert (await redeem(page, codes[0], "203.0.113.67")).code == "code_not_found"  # of others: not asked


async def test_every_call_of_a_page_asks_before_the_code_is_looked_at(plane: ControlPlane) -> None:
    campaign, (good, spent) = await issue(plane, 2)
    (void,) = await void_codes(plane, campaign, 1)
    async with engine_in_process(plane, **SCORE) as merchant:
        page = await page_of(plane, merchant, campaign)
        assert (await redeem(page, spent)).status == 200
        await guess_until_asked(page)
        await wait_until_async(lambda: _is_void(merchant, void))
        for path, more in (("redemptions", {}), ("holds", {"order": "o"}), ("codes/check", {})):
            answers = set()
            for code in (good, spent, void, made_up(1), "?", ""):
                seen = await page.post(f"/v1/{path}", {"code": code, "user": "ann", **more}, X_Real_IP=EVE)
                told = orjson.loads(seen.body)
                assert told.pop("challenge")["parameters"]["cost"] == 1
                headers = tuple(one for one in seen.headers if one[0] != "content-length")
                answers.add((seen.status, headers, orjson.dumps(told)))
            assert len(answers) == 1
        solution = solved(challenge_of(await redeem(page, spent)))
        for code in (spent, void, made_up(2), "?"):
            answer = await redeem(page, code, solution=solution)
            assert (answer.status, answer.code) == (404, "code_not_found")
            solution = solved(challenge_of(await redeem(page, spent)))


async def _is_void(merchant: Merchant, code: str) -> bool:
    return bool((await merchant.redeem(code))[1]["code"] == "code_void")


async def test_codes_that_exist_lead_to_a_challenge_as_made_up_ones_do(plane: ControlPlane) -> None:
    """Otherwise a guesser would learn by the challenge whether the fourth code exists."""
    campaign, _ = await issue(plane, 1)
    codes = await void_codes(plane, campaign, 4)
    async with engine_in_process(plane, **SCORE) as merchant:
        page = await page_of(plane, merchant, campaign)
        await wait_until_async(lambda: _is_void(merchant, codes[0]))
        for number, tried in enumerate((codes, [made_up(at) for at in range(4)])):
            address = f"203.0.113.{number}"
            for at in (0, 1, 2, 0, 1, 2):
                assert (await redeem(page, tried[at], address)).code == "code_not_found"
            await redeem(page, tried[3], address)
            await wait_until_async(functools.partial(_is_asked, page, address, tried[0]))


async def _is_asked(page: Page, address: str, code: str = "0000-0000-0000-0000") -> bool:
    return (await redeem(page, code, address)).code == "challenge_required"


async def test_what_is_no_solution_gets_a_new_challenge_and_the_reason(plane: ControlPlane) -> None:
    campaign, codes = await issue(plane, 1)
    async with engine_in_process(plane, **SCORE) as merchant:
        page = await page_of(plane, merchant, campaign)
        other = await page_of(plane, merchant, campaign)
        mallory = "198.51.100.1"
        for one, address in ((page, EVE), (page, mallory), (other, EVE)):
            await guess_until_asked(one, address)

        async def fresh(one: Page = page, address: str = EVE) -> altcha.Challenge:
            return challenge_of(await redeem(one, codes[0], address))

        async def says(solution: str, one: Page = page) -> str:
            seen = await redeem(one, codes[0], EVE, solution)
            assert str(challenge_of(seen).signature) not in solution
            return reason_of(seen)

        assert await says(solved(await fresh(page, mallory))) == "foreign"
        assert await says(solved(await fresh()), other) == "foreign"
        mine = await fresh()
        easier = altcha.Challenge.from_dict(orjson.loads(orjson.dumps(mine.to_dict())))
        easier.parameters.key_prefix = ""
        assert await says(solved(easier)) == "foreign"
        for broken in (b"?", b"[]", b'{"challenge":1}', b"\xff", b"[" * 900):
            assert await says(base64.b64encode(broken).decode()) == "malformed"
        wrong = altcha.Payload(mine, altcha.Solution(1, "00" * 32)).to_base64()
        assert await says(wrong) == "wrong"
        assert await says(solved(mine)) == "used"  # the wrong solution has used it up
        mine = await fresh()
        assert (await redeem(page, "?", EVE, solved(mine))).code == "code_not_found"
        assert await says(solved(mine)) == "used"
        assert await says(solved(mine, counter_start=1000)) == "used"  # there are several
        last = await fresh()
        later = altcha.Challenge.from_dict(orjson.loads(orjson.dumps(last.to_dict())))
        later.parameters.expires_at = (last.parameters.expires_at or 0) + 1000
        assert await says(solved(later)) == "foreign"
        assert (await redeem(page, codes[0], EVE, solved(last))).status == 200


async def test_an_expired_solution_is_none(plane: ControlPlane) -> None:
    campaign, (code,) = await issue(plane, 1)
    async with engine_in_process(plane, **SCORE | {"guard_challenge_s": 1}) as merchant:
        page = await page_of(plane, merchant, campaign)
        await guess_until_asked(page)
        challenge = challenge_of(await redeem(page, "?"))
        solution = solved(challenge)
        expires_at = challenge.parameters.expires_at or 0
        wait_until(lambda: time.time() > expires_at)
        assert reason_of(await redeem(page, code, solution=solution)) == "expired"


async def test_a_solution_is_good_once_in_all_workers(plane: ControlPlane) -> None:
    campaign, codes = await issue(plane, 2)
    async with engine_in_process(plane, **SCORE) as one, engine_in_process(plane, **SCORE) as two:
        first, second = await page_of(plane, one, campaign), None
        second = Page(two, first.key)
        await guess_until_asked(first)
        await wait_until_async(lambda: _is_asked(second, EVE))  # it was found by what the first worker told
        solution = solved(challenge_of(await redeem(first, codes[0])))
        assert (await redeem(second, codes[0], solution=solution)).status == 200  # asked here, solved there
        for page in (first, second):
            assert reason_of(await redeem(page, codes[1], solution=solution)) == "used"


async def test_a_retry_with_another_solution_is_the_same_request(plane: ControlPlane) -> None:
    campaign, (code,) = await issue(plane, 1)
    async with engine_in_process(plane, **SCORE) as merchant:
        page = await page_of(plane, merchant, campaign)

        async def sent(**client: str) -> Seen:
            body = {"code": code, "user": "ann"} | ({"client": client} if client else {})
            return await page.post("/v1/redemptions", body, X_Real_IP=EVE, Idempotency_Key="k")

        first = await sent()
        assert first.status == 200
        await guess_until_asked(page)
        for _ in range(2):
            again = await sent(challenge=solved(challenge_of(await sent())))
            assert again.body == first.body.replace(b'"replayed":false', b'"replayed":true')


async def test_an_allow_is_not_asked(plane: ControlPlane) -> None:
    campaign, _ = await issue(plane, 1)
    async with engine_in_process(plane, **SCORE) as merchant:
        page = await page_of(plane, merchant, campaign)
        await guess_until_asked(page)
        await blocks.create(
            plane, NewBlock(kind="network", subject=EVE, action="allow", reason="shop"), actor="cli"
        )

        async def is_free() -> bool:
            return (await redeem(page, "?")).code == "code_not_found"

        await wait_until_async(is_free)


async def test_enforce_asks_first_and_blocks_later(plane: ControlPlane) -> None:
    campaign, _ = await issue(plane, 1)
    async with engine_in_process(plane, **SCORE | {"guard_score_mode": "enforce"}) as merchant:
        page = await page_of(plane, merchant, campaign)
        assert await guess_until_asked(page, most=7) >= 4
        assert not await blocks.page(plane, after=None, limit=9)
        chance = random.Random(7)

        async def is_blocked() -> bool:
            solution = solved(challenge_of(await redeem(page, "?")))
            await redeem(page, made_up(chance), solution=solution)
            return bool(await blocks.page(plane, after=None, limit=9))

        await wait_until_async(is_blocked)


async def test_a_server_key_is_never_asked_and_raises_an_alert(plane: ControlPlane) -> None:
    async with engine_in_process(plane, **SCORE) as merchant:
        answers = await guesses(merchant, 12, seed=1, client={"ip": EVE, "challenge": "anything"})
        assert set(answers) == {"code_not_found"}

        async def is_told() -> bool:
            return [one.rule for one in await alerts.page(plane, state=None, after=None, limit=9)] == [
                "score"
            ]

        await wait_until_async(is_told)
        assert set(await guesses(merchant, 3, seed=2, client={"ip": EVE})) == {"code_not_found"}
    assert not await blocks.page(plane, after=None, limit=9)


async def test_who_tries_a_leaked_list_is_asked(plane: ControlPlane) -> None:
    campaign, codes = await issue(plane, 12)
    settings = PROXIED | {"guard_leaked_list_mode": "challenge"}
    async with engine_in_process(plane, **settings) as merchant:
        page = await page_of(plane, merchant, campaign)
        for code in codes:
            assert (await merchant.redeem(code))[0] == 200
        for code in codes:
            if (await redeem(page, code)).code == "challenge_required":
                break
        await wait_until_async(lambda: _is_asked(page, EVE))
        assert not await _is_asked(page, "203.0.113.1")


async def test_a_flood_has_every_page_of_the_key_asked(plane: ControlPlane) -> None:
    """A botnet with one code from each address: the real rule, from other addresses than those asked."""
    campaign, (code,) = await issue(plane, 1)
    settings = PROXIED | {"guard_flood_mode": "challenge"}
    async with engine_in_process(plane, **settings) as merchant:
        page = await page_of(plane, merchant, campaign)
        bystander = await page_of(plane, merchant, campaign)
        for number in range(160):  # 151 within 30 s are a flood
            await redeem(page, made_up(number), f"10.9.{number >> 8}.{number & 255}")
        await wait_until_async(lambda: _is_asked(page, "203.0.113.1"))
        assert (await redeem(bystander, "?", "203.0.113.1")).code == "code_not_found"
        asked = await redeem(page, code, "203.0.113.1")
        answer = await redeem(page, code, "203.0.113.1", solved(challenge_of(asked)))
        assert answer.status == 200


async def test_a_flood_that_is_spread_over_many_keys_has_every_page_asked(plane: ControlPlane) -> None:
    """No key has a flood of its own; nobody is blocked, and server keys are not asked."""
    campaign, codes = await issue(plane, 2)
    settings = PROXIED | {"guard_flood_mode": "enforce"}
    async with engine_in_process(plane, **settings) as merchant:
        pages = [await page_of(plane, merchant, campaign) for _ in range(8)]
        bystander = await page_of(plane, merchant, campaign)
        for number in range(160):  # 20 a key; 151 within 30 s are a flood
            await redeem(pages[number % 8], made_up(number), f"10.9.{number >> 8}.{number & 255}")
        await wait_until_async(lambda: _is_asked(bystander, "203.0.113.1"))
        asked = await redeem(bystander, codes[0], "203.0.113.1")
        answer = await redeem(bystander, codes[0], "203.0.113.1", solved(challenge_of(asked)))
        assert answer.status == 200
        assert (await merchant.redeem(codes[1]))[0] == 200

        async def causes() -> set[str]:
            return {one.cause for one in await alerts.page(plane, state=None, after=None, limit=9)}

        async def are_raised() -> bool:
            return await causes() == {"flood:all", "flood:pages"}

        await wait_until_async(are_raised)
    assert not await blocks.page(plane, after=None, limit=9)


def test_the_table_is_bounded_and_forgets_who_was_asked_longest_ago() -> None:
    later = 1e12
    asked = AskedSources(100)
    for number in range(200):
        asked.ask(("key_1", "network", str(number)), later)
        asked.ask(("key_1", "network", "0"), later)
    assert len(asked) == 100
    assert asked.is_asked("key_1", "", "0")
    assert asked.is_asked("key_1", "", "199")
    assert not asked.is_asked("key_1", "", "1")
    assert not asked.is_asked("key_2", "", "0")
    asked.ask(("key_2", KEY, "key_2"), later)
    assert asked.is_asked("key_2", "", "anywhere")
    asked.ask(("key_3", "network", "0"), 1.0)  # long ago: read from the stream by a worker that starts
    assert not asked.is_asked("key_3", "", "0")


async def test_codes_that_can_be_guessed_need_a_challenge_from_the_first_try(plane: ControlPlane) -> None:
    weak, other = await a_campaign(plane), await a_campaign(plane)
    assert (await bring(plane, weak, lines_of(f"WORD{number:04}" for number in range(50)))).imported.guessable
    _, (strong,) = await mint_batch(plane, other, 1)
    async with engine_in_process(plane, **PROXIED) as merchant:
        page = await page_of(plane, merchant, weak, other)
        free = await page_of(plane, merchant, other)
        for code in ("WORD0001", "WORD9999", strong):
            assert reason_of(await redeem(page, code)) == "missing"
        assert (await redeem(free, strong, solution="not looked at")).status == 200
        solution = solved(challenge_of(await redeem(page, "WORD0001")))
        assert (await redeem(page, "WORD0001", solution=solution)).status == 200
        assert (await merchant.redeem("WORD0002"))[0] == 200  # a server key is not asked


async def test_a_user_token_is_enough_for_codes_that_can_be_guessed(plane: ControlPlane) -> None:
    weak = await a_campaign(plane)
    await bring(plane, weak, lines_of(f"WORD{number:04}" for number in range(50)))
    async with engine_in_process(plane, **PROXIED) as merchant:
        made = (await api_keys.create_for_browsers(plane, "page", campaigns=[weak], origins=[ORIGIN])).value
        assert made.signing_secret
        page, secret = Page(merchant, made.key), made.signing_secret.secret
        assert reason_of(await redeem(page, "WORD0003")) == "missing"
        token = user_token(made.api_key.id, secret, "ann")
        assert (await page.post("/v1/redemptions", {"code": "WORD0003"}, User_Token=token)).status == 200


def test_sources_and_floods_of_server_keys_take_no_place_in_the_table() -> None:
    settings = Settings(guard_leaked_list_mode="challenge", guard_flood_mode="challenge")
    behaviour = Behaviour(settings, Rules(settings), browser_keys={"key_page"})
    now_s = time.time()
    for key, expected in (("key_server", 0), ("key_page", 2)):
        spent = [Tried(key, "", EVE, "", SPENT, number) for number in range(10)]
        unknown = [Tried(key, "", str(number), "", UNKNOWN, number) for number in range(200)]
        behaviour.hear(Labelled(spent + unknown, {}), now_s, is_own=True)
        assert len(behaviour.asked) == expected
    assert behaviour.asked.is_asked("key_page", "", "anywhere")
    long_ago = [Tried("key_page", "", "198.51.100.1", "", SPENT, number) for number in range(10)]
    behaviour.hear(Labelled(long_ago, {}), now_s - settings.guard_asked_s, is_own=True)
    assert len(behaviour.asked) == 2  # a worker that starts reads of what is over
