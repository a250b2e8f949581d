"""A page with a browser key gets one answer to every refusal that would help a guesser."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import pytest

from engine.codes.codec import Codec
from engine.control import blocks, campaigns, voids
from engine.control.blocks import NewBlock
from engine.control.campaigns import CampaignChange
from engine.control.voids import VoidDeclaration
from engine.observability.metrics import ATTEMPTS
from engine.redemption.one_answer import NEVER_ISSUED
from tests.support.browsers import FREE, page_of
from tests.support.deployment import engine_in_process, issue, mint_batch
from tests.support.importing import a_campaign, bring, lines_of
from tests.support.lanes import LANES
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from redis.asyncio import Redis

    from engine.control.change import ControlPlane
    from tests.support.browsers import Page, Seen

UNKNOWN: Final = "0000-0000-0000-0000"
MALFORMED: Final = "0000-0000-0000-000U"


async def all_refusals(plane: ControlPlane, page: Page, own: str, codes: list[str]) -> dict[str, Seen]:
    """Make every refusal that says something about a code, in each of the calls that can have it."""
    spent, held, foreign = codes[0], codes[1], (await issue(plane, 1))[1][0]
    batch, (void,) = await mint_batch(plane, own, 1)
    await voids.declare(plane, VoidDeclaration(batch=batch, reason="lost"), void=True, actor="cli")
    seen: dict[str, Seen] = {}

    async def refused(
        name: str,
        code: str,
        *,
        key: str | None = None,
        user: str = "ann",
        checked: bool = True,
        **more: Any,  # noqa: ANN401 - fields
    ) -> None:
        headers = {} if key is None else {"Idempotency_Key": key}
        body = {"code": code, "user": user, **more}
        seen[name] = await page.post("/v1/redemptions", body, **headers)
        seen[f"{name}, held"] = await page.post("/v1/holds", body | {"order": "o-2"}, **headers)
        if checked:
            body = {"code": code, "user": user, **more}
            seen[f"{name}, checked"] = await page.post("/v1/codes/check", body)

    assert (await page.redeem(spent)).status == 200
    assert (await page.post("/v1/holds", {"code": held, "user": "ann", "order": "o-1"})).status == 200
    for name, code in (
        *(("unknown", UNKNOWN), ("malformed", MALFORMED), ("short", "?"), ("empty", ""), ("long", "0" * 300)),
        *(
            ("other letters", "ünknown"),
            ("spent", spent),
            ("held", held),
            ("foreign", foreign),
            ("void", void),
        ),
    ):
        await refused(name, code)
        await refused(f"{name}, with a key", code, key=f"k {name}")
        await refused(f"{name}, with the key again", code, key=f"k {name}")
    await refused("another amount", codes[3], amount=7, checked=False)
    await refused("another currency", codes[3], currency="USD")
    await refused("another campaign", codes[3], campaign="cmp_99")
    await refused("the key of another request", codes[3], key="k spent", checked=False)
    await refused("an issued code as the user", UNKNOWN, user=codes[3])
    await refused("the code as the user", codes[3], user=codes[3])
    await blocks.create(plane, NewBlock(kind="user", subject="mallory", reason="test"), actor="cli")

    async def blocked() -> bool:
        answer = (await page.merchant.redeem(UNKNOWN, "mallory"))[1]
        return str(answer["code"]) == "blocked"

    await wait_until_async(blocked)
    await refused("blocked", codes[3], user="mallory")
    for state in ("paused", "ended"):
        await campaigns.update(plane, own, CampaignChange(state=state), actor="cli")
        await refused(state, codes[3])
        await refused(f"{state}, unknown", UNKNOWN)
    return seen


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("lane", LANES)
async def test_every_refusal_is_the_same_answer(plane: ControlPlane, lane: str) -> None:
    own, codes = await issue(plane, 4, amount=500, currency="EUR")
    async with engine_in_process(plane, lane=lane, **FREE) as merchant:
        page = await page_of(plane, merchant, own)
        seen = await all_refusals(plane, page, own, codes)
        first = seen["unknown"]
        assert (first.status, first.code) == (404, "code_not_found")
        others = {name: answer for name, answer in seen.items() if answer != first}
        assert others == {}


async def test_form_errors_and_successes_are_told(plane: ControlPlane) -> None:
    own, (code,) = await issue(plane, 1)
    async with engine_in_process(plane, **FREE) as merchant:
        page = await page_of(plane, merchant, own)
        wrong = [
            await page.post("/v1/redemptions", body)
            for body in ({}, {"code": code}, {"code": code, "user": ""}, {"code": code, "user": "a", "x": 1})
        ]
        assert {answer.code for answer in wrong} == {"malformed_request"}
        assert b"user" in wrong[1].body
        assert (await page.redeem(code)).status == 200


@pytest.mark.parametrize("kind", ["single", "multi", "balance"])
async def test_what_asks_for_no_code_changes_nothing(plane: ControlPlane, redis: Redis, kind: str) -> None:
    """However the campaign is: the script is asked about a batch that does not exist."""
    needed: dict[str, dict[str, Any]] = {
        "multi": {"max_uses": 3},
        "balance": {"amount": 900, "currency": "EUR"},
    }
    more = needed.get(kind, {})
    own, _ = await issue(plane, 1, kind=kind, per_user_limit=5, stock=9, **more)
    async with engine_in_process(plane, **FREE) as merchant:
        page = await page_of(plane, merchant, own)
        before = await everything(redis)
        for code in (UNKNOWN, MALFORMED, "?"):
            body: dict[str, Any] = {"code": code, "user": "ann"}
            if kind == "balance":
                body["amount"] = 1
            assert (await page.post("/v1/redemptions", body)).code == "code_not_found"
            assert (await page.post("/v1/holds", body | {"order": "o"})).code == "code_not_found"
            assert (await page.post("/v1/codes/check", {"code": code})).code == "code_not_found"
        assert await everything(redis) == before


async def everything(redis: Redis) -> dict[bytes, object]:
    """All keys with their values, without what workers count in each second."""
    reads: dict[bytes | str, Callable[[bytes], Awaitable[object]]] = {
        b"string": redis.get,
        b"hash": redis.hgetall,
        b"zset": lambda name: redis.zrange(name, 0, -1, withscores=True),
        b"stream": redis.xrange,
    }
    names = [name async for name in redis.scan_iter() if b":live:" not in name]
    return {name: await reads[await redis.type(name)](name) for name in names}


async def test_metrics_have_the_true_outcome(plane: ControlPlane) -> None:
    own, (spent,) = await issue(plane, 1)
    _, (foreign,) = await issue(plane, 1)
    async with engine_in_process(plane, **FREE) as merchant:
        page = await page_of(plane, merchant, own)
        wanted = {"redeemed": 1, "already_redeemed": 1, "code_not_found": 2, "code_malformed": 1}
        before = {outcome: counted(outcome) for outcome in wanted}
        for code in (spent, spent, foreign, UNKNOWN, MALFORMED):
            await page.redeem(code)
        await wait_until_async(
            lambda: wanted == {outcome: counted(outcome) - before[outcome] for outcome in wanted}
        )


def counted(outcome: str) -> float:
    return float(ATTEMPTS.labels("redeem", outcome)._value.get())


async def test_the_source_is_where_the_call_comes_from(plane: ControlPlane) -> None:
    """And the limit of the page's own source is told."""
    own, codes = await issue(plane, 4)
    limits: dict[str, Any] = FREE | {"guard_attempts_per_min": 1, "guard_attempts_burst": 2}
    async with engine_in_process(plane, **limits) as merchant:
        page = await page_of(plane, merchant, own)
        answers = [
            await page.redeem(code, f"user-{at}", client={"ip": f"203.0.113.{at}", "device": f"d-{at}"})
            for at, code in enumerate((codes[0], UNKNOWN, codes[1], UNKNOWN))
        ]
        assert [answer.status for answer in answers] == [200, 404, 429, 429]
        assert answers[2].code == "too_many_attempts"
        assert answers[2].header("retry-after")
        other = await page_of(plane, merchant, own)
        assert (await other.redeem(codes[1])).status == 200


async def test_a_request_id_does_not_say_whether_it_is_a_code(plane: ControlPlane) -> None:
    own, (code,) = await issue(plane, 1)
    async with engine_in_process(plane, **FREE) as merchant:
        page = await page_of(plane, merchant, own)
        for headers in ({}, {"Authorization": ""}):
            for path in ("/v1/redemptions", "/healthz"):
                url, sent = merchant.url + path, {}
                for given in (code, UNKNOWN, code.lower(), "0" * 16):
                    sent = {"Authorization": f"Bearer {page.key}", "Request-Id": given} | headers
                    async with merchant.session.get(url, headers=sent) as answer:
                        assert answer.headers["Request-Id"].startswith("req-"), given
                async with merchant.session.get(url, headers=sent | {"Request-Id": "trace-1"}) as answer:
                    assert answer.headers["Request-Id"] == "trace-1"


async def test_imported_and_minted_codes_are_looked_up_alike(plane: ControlPlane) -> None:
    own, (minted,) = await issue(plane, 1)
    words = await a_campaign(plane)
    await bring(plane, words, lines_of(["SUMMER-SALE", "WINTER-SALE"]))
    async with engine_in_process(plane, **FREE) as merchant:
        page = await page_of(plane, merchant, own, words)
        assert [(await page.redeem(code)).status for code in (minted, "SUMMER-SALE", UNKNOWN)] == [
            200,
            200,
            404,
        ]
        only = await page_of(plane, merchant, own)
        refused = [await only.redeem(code) for code in (minted, "WINTER-SALE", "SUMMER-SALE", UNKNOWN, "?")]
        assert len(set(refused)) == 1


async def test_a_batch_of_a_moment_ago_is_known(plane: ControlPlane) -> None:
    own, _ = await issue(plane, 1)
    async with engine_in_process(plane, **FREE) as merchant:
        page = await page_of(plane, merchant, own)
        assert (await page.redeem(UNKNOWN)).status == 404
        batch, codes = await mint_batch(plane, own, 1)
        assert batch < NEVER_ISSUED

        async def redeemed() -> bool:
            return (await page.redeem(codes[0])).status == 200

        await wait_until_async(redeemed)


@pytest.mark.parametrize("typed", [UNKNOWN, MALFORMED, "SUMMER-SALE", "0" * 15 + "U"])
async def test_what_is_no_code_is_decoded_like_one(
    plane: ControlPlane, monkeypatch: pytest.MonkeyPatch, typed: str
) -> None:
    own, _ = await issue(plane, 1)
    decoded: list[list[bytes]] = []
    decode_many = Codec.decode_many

    def spy(codec: Codec, symbols: list[bytes], *more: Any) -> list[tuple[int, int] | None]:  # noqa: ANN401 - passed on
        decoded.append(list(symbols))
        return decode_many(codec, symbols, *more)

    async with engine_in_process(plane, **FREE) as merchant:
        page = await page_of(plane, merchant, own)
        monkeypatch.setattr(Codec, "decode_many", spy)
        assert (await page.redeem(typed)).code == "code_not_found"
    assert [len(symbols) for symbols in decoded] == [1]
