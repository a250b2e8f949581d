"""One redemption over HTTP: what a success says, every refusal, the code as typed, and retries."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any

import pytest

from engine.codes.formats import FORMATS
from engine.control import api_keys
from tests.support.deployment import engine_in_process, issue
from tests.support.proxy import Calls, Fate, Proxy, Way
from tests.support.redeeming import check_code_absent, check_refused, post, redeemed_codes, symbols
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from engine.control.change import ControlPlane

ID = re.compile(r"0-\d{13}-\d+")
INSTANT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


# success


async def test_a_success_says_what_the_contract_says_and_shows_four_symbols(plane: ControlPlane) -> None:
    campaign, (code, other) = await issue(plane, 2, amount=2500, currency="EUR")
    async with engine_in_process(plane) as merchant:
        answer = await post(merchant, {"code": code, "user": "ann"})
        second = await post(merchant, {"code": other, "user": "ann"})
    assert answer.status == 200
    assert answer.headers["Content-Type"].partition(";")[0] == "application/json"
    body = answer.body
    assert ID.fullmatch(body.pop("id"))
    assert INSTANT.fullmatch(body.pop("redeemed_at"))
    assert body == {
        "status": "redeemed",
        "campaign": campaign,
        "code": f"••••-••••-••••-{code[-4:]}",
        "user": "ann",
        "amount": 2500,
        "currency": "EUR",
        "order": None,
        "replayed": False,
    }
    check_code_absent(code, answer.text + str(answer.headers))
    assert second.body["id"] != answer.body["id"]


async def test_a_campaign_without_amount_answers_null(plane: ControlPlane) -> None:
    _, (code,) = await issue(plane, 1)
    async with engine_in_process(plane) as merchant:
        status, body = await merchant.redeem(code)
    assert (status, body["amount"], body["currency"]) == (200, None, None)


async def test_optional_fields_are_taken(plane: ControlPlane, redis: Redis) -> None:
    _, (code,) = await issue(plane, 1, amount=500, currency="JPY")
    async with engine_in_process(plane) as merchant:
        client = {"ip": "192.0.2.1", "device": "d-1"}
        status, body = await merchant.redeem(
            code, "Zoë 🎁", amount=500, order="order 1", client=client, metadata={"a": [1, {"b": None}]}
        )
    assert (status, body["user"], body["amount"]) == (200, "Zoë 🎁", 500)
    (event,) = await redeemed_codes(redis)
    assert (event[b"user"].decode(), event[b"order"]) == ("Zoë 🎁", b"order 1")


@pytest.mark.parametrize("name", FORMATS)
async def test_codes_of_every_format_redeem_once(plane: ControlPlane, name: str) -> None:
    _, (code, other) = await issue(plane, 2, format_name=name, prefix="LOVE-24")
    _, (plain,) = await issue(plane, 1, format_name=name)
    async with engine_in_process(plane) as merchant:
        for issued in (code, other, plain):
            answer = await post(merchant, {"code": issued, "user": "ann"})
            assert answer.status == 200
            shown = answer.body["code"]
            assert shown.replace("•", "").replace("-", "") == issued[-4:]
            assert len(symbols(shown)) == FORMATS[name].length
            check_code_absent(issued.removeprefix("LOVE-24-"), answer.text)
            check_refused(await post(merchant, {"code": issued, "user": "bob"}), 409, "already_redeemed")


def as_typed(code: str, way: str) -> str:
    ways = {
        "lower case": code.lower(),
        "no dashes": symbols(code),
        "spaces": " " + code.replace("-", "  ") + " ",
        "dots and underscores": code.replace("-", "_.", 1),
        "O for 0": code.replace("0", "O"),
        "o for 0, l for 1": code.replace("0", "o").replace("1", "l"),
        "I for 1": code.replace("1", "I"),
        "typographic dashes": code.replace("-", "\u2013"),
        "full width": "".join(chr(ord(c) + 0xFEE0) if c != "-" else c for c in code),
    }
    return ways[way]


@pytest.mark.parametrize(
    "way",
    [
        *("lower case", "no dashes", "spaces", "dots and underscores", "O for 0", "o for 0, l for 1"),
        *("I for 1", "typographic dashes", "full width"),
    ],
)
async def test_a_code_is_the_same_however_it_is_typed(plane: ControlPlane, way: str) -> None:
    _, codes = await issue(plane, 40)
    code = next(code for code in codes if "0" in code and "1" in code)
    async with engine_in_process(plane) as merchant:
        assert (await merchant.redeem(as_typed(code, way)))[0] == 200
        assert (await merchant.redeem(code))[1]["code"] == "already_redeemed"


async def test_a_vanity_prefix_belongs_to_the_code(plane: ControlPlane) -> None:
    _, (code,) = await issue(plane, 1, prefix="SUMMER")
    assert code.startswith("SUMMER-")
    async with engine_in_process(plane) as merchant:
        for wrong in (code.removeprefix("SUMMER-"), code.replace("SUMMER", "WINTER")):
            status, body = await merchant.redeem(wrong)
            assert (status, body["code"]) in {(404, "code_not_found"), (400, "code_malformed")}
        assert (await merchant.redeem(code.lower().replace("summer-", "summer ")))[0] == 200


# refusals


@pytest.mark.parametrize(
    "code", ["", "-", "ABCD", "ABCD-EFGH-JKMN-PQR", "ABCD-EFGH-JKMN-PQR!", "U" * 16, "é" * 16, "A" * 10_000]
)
async def test_what_cannot_be_a_code_is_malformed(plane: ControlPlane, code: str) -> None:
    await issue(plane, 1)
    async with engine_in_process(plane) as merchant:
        check_refused(await post(merchant, {"code": code, "user": "ann"}), 400, "code_malformed")


async def test_a_code_that_was_never_issued_is_not_found_and_touches_no_state(
    plane: ControlPlane, redis: Redis
) -> None:
    _, (code,) = await issue(plane, 1)
    changed = code[:-1] + ("0" if code[-1] != "0" else "1")
    async with engine_in_process(plane) as merchant:
        for guess in (changed, "0000-0000-0000-0000", "1" * 12, "Z" * 20, "9" * 15, "9" * 18):
            check_refused(await post(merchant, {"code": guess, "user": "ann"}), 404, "code_not_found")
        assert not [name async for name in redis.scan_iter("*state*")]
        assert (await merchant.redeem(code))[0] == 200


@pytest.mark.parametrize("amount", [0, 999, 1001, 2**53 - 1])
async def test_an_amount_that_is_not_the_face_value_is_refused(plane: ControlPlane, amount: int) -> None:
    _, (code,) = await issue(plane, 1, amount=1000, currency="EUR")
    _, (plain,) = await issue(plane, 1)
    async with engine_in_process(plane) as merchant:
        for issued in (code, plain):
            answer = await post(merchant, {"code": issued, "user": "ann", "amount": amount})
            check_refused(answer, 400, "invalid_amount")
        assert (await merchant.redeem(code, amount=1000))[0] == 200


async def test_a_code_is_redeemed_once(plane: ControlPlane, redis: Redis) -> None:
    _, (code,) = await issue(plane, 1)
    async with engine_in_process(plane) as merchant:
        assert (await merchant.redeem(code, "ann"))[0] == 200
        for user in ("ann", "bob"):
            answer = await post(merchant, {"code": code, "user": user})
            check_refused(answer, 409, "already_redeemed")
            check_code_absent(code, answer.text)
    assert len(await redeemed_codes(redis)) == 1


PAST, FUTURE = "2001-01-01T00:00:00Z", "2999-01-01T00:00:00Z"


@pytest.mark.parametrize(
    ("campaign", "code"),
    [
        ({"state": "draft"}, "campaign_inactive"),
        ({"starts_at": FUTURE}, "campaign_not_started"),
        ({"ends_at": PAST}, "campaign_ended"),
        ({"stock": 0}, "sold_out"),
        ({"state": "draft", "stock": 0, "starts_at": FUTURE}, "campaign_inactive"),
    ],
)
async def test_a_campaign_that_cannot_be_redeemed_says_why(
    plane: ControlPlane, redis: Redis, campaign: dict[str, Any], code: str
) -> None:
    _, (issued,) = await issue(plane, 1, **campaign)
    async with engine_in_process(plane) as merchant:
        check_refused(await post(merchant, {"code": issued, "user": "ann"}), 409, code)
    assert await redeemed_codes(redis) == []


async def test_a_campaign_within_its_window_redeems(plane: ControlPlane) -> None:
    _, (code,) = await issue(plane, 1, starts_at=PAST, ends_at=FUTURE)
    async with engine_in_process(plane) as merchant:
        assert (await merchant.redeem(code))[0] == 200


async def test_the_last_of_the_stock_is_the_last(plane: ControlPlane, redis: Redis) -> None:
    _, codes = await issue(plane, 4, stock=2)
    async with engine_in_process(plane) as merchant:
        answers = [await post(merchant, {"code": code, "user": "ann"}) for code in codes]
    assert [answer.status for answer in answers] == [200, 200, 409, 409]
    check_refused(answers[-1], 409, "sold_out")
    assert len(await redeemed_codes(redis)) == 2


async def test_a_user_gets_no_more_than_the_limit_and_others_still_do(plane: ControlPlane) -> None:
    _, codes = await issue(plane, 4, per_user_limit=1)
    async with engine_in_process(plane) as merchant:
        assert (await merchant.redeem(codes[0], "ann"))[0] == 200
        refused = await post(merchant, {"code": codes[1], "user": "ann"})
        check_refused(refused, 409, "customer_limit_exceeded")
        assert (await merchant.redeem(codes[1], "bob"))[0] == 200
        assert (await merchant.redeem(codes[2], "Ann"))[0] == 200


@pytest.mark.parametrize("authorization", [None, "", "Bearer", "Bearer ", "Bearer rk_0_x", "Basic YTpi", "é"])
async def test_without_a_key_nothing_happens(plane: ControlPlane, authorization: str | None) -> None:
    _, (code,) = await issue(plane, 1)
    async with engine_in_process(plane) as merchant:
        given = "nothing" if authorization == "" else authorization
        answer = await post(merchant, {"code": code, "user": "ann"}, authorization=given)
        check_refused(answer, 401, "unauthenticated")
        assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert (await merchant.redeem(code))[0] == 200


async def test_a_scheme_is_not_case_sensitive(plane: ControlPlane) -> None:
    _, (code,) = await issue(plane, 1)
    async with engine_in_process(plane) as merchant:
        answer = await post(merchant, {"code": code, "user": "a"}, authorization=f"bEARER  {merchant.key}")
        assert answer.status == 200


async def test_a_key_of_another_scope_is_forbidden(plane: ControlPlane) -> None:
    _, (code,) = await issue(plane, 1)
    async with engine_in_process(plane, scopes=("read", "events", "admin")) as merchant:
        check_refused(await post(merchant, {"code": code, "user": "ann"}), 403, "forbidden")


async def test_a_revoked_key_is_refused_from_the_next_redemption_on_by_every_worker(
    plane: ControlPlane,
) -> None:
    _, codes = await issue(plane, 6)
    made = (await api_keys.create(plane, "shop", ["redeem"])).value
    async with engine_in_process(plane) as one, engine_in_process(plane) as other:
        for worker, code in ((one, codes[0]), (other, codes[1])):
            answer = await post(worker, {"code": code, "user": "ann"}, authorization=f"Bearer {made.key}")
            assert answer.status == 200
        assert (await api_keys.revoke(plane, made.api_key.id)).published
        for worker, code in ((one, codes[2]), (other, codes[3]), (one, codes[4])):
            answer = await post(worker, {"code": code, "user": "ann"}, authorization=f"Bearer {made.key}")
            check_refused(answer, 401, "unauthenticated")
            assert (await worker.redeem(code))[0] == 200


async def test_a_key_revoked_while_the_body_arrives_redeems_nothing(
    plane: ControlPlane, redis: Redis
) -> None:
    _, (code, other) = await issue(plane, 2)
    made = (await api_keys.create(plane, "shop", ["redeem"])).value
    go_on = asyncio.Event()

    async def slowly() -> Any:  # noqa: ANN401 - an async generator
        yield b'{"code": "'
        await go_on.wait()
        yield f'{code}", "user": "ann"}}'.encode()

    async with engine_in_process(plane) as merchant:
        headers = {"Authorization": f"Bearer {made.key}", "Content-Type": "application/json"}
        slow = asyncio.create_task(
            merchant.session.post(merchant.url + "/v1/redemptions", data=slowly(), headers=headers)
        )
        assert (await merchant.redeem(other, "x"))[0] == 200
        await api_keys.revoke(plane, made.api_key.id)
        await merchant.call("GET", "/readyz")  # now the worker knows
        go_on.set()
        async with await slow as response:
            assert response.status == 401
    assert len(await redeemed_codes(redis)) == 1


async def test_a_key_made_a_moment_ago_is_good_on_every_worker(plane: ControlPlane) -> None:
    _, codes = await issue(plane, 2)
    async with engine_in_process(plane) as one, engine_in_process(plane) as other:
        made = (await api_keys.create(plane, "shop", ["redeem"])).value
        for worker, code in ((one, codes[0]), (other, codes[1])):
            answer = await post(worker, {"code": code, "user": "ann"}, authorization=f"Bearer {made.key}")
            assert answer.status == 200


async def test_a_body_over_the_limit_is_refused(plane: ControlPlane) -> None:
    _, (code,) = await issue(plane, 1)
    async with engine_in_process(plane, body_bytes_max=1000) as merchant:
        fits = b'{"code": "%s", "user": "ann"}' % code.encode()
        answer = await post(merchant, fits + b" " * (1001 - len(fits)))
        check_refused(answer, 413, "body_too_large")
        assert (await post(merchant, fits + b" " * (1000 - len(fits)))).status == 200


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "application/problem+json"]
)
async def test_only_json_is_taken(plane: ControlPlane, kind: str) -> None:
    _, (code,) = await issue(plane, 1)
    async with engine_in_process(plane) as merchant:
        answer = await post(merchant, {"code": code, "user": "ann"}, Content_Type=kind)
        check_refused(answer, 415, "unsupported_media_type")


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("PUT", "/v1/redemptions", 405, "method_not_allowed"),
        ("DELETE", "/v1/redemptions", 405, "method_not_allowed"),
        ("POST", "/healthz", 405, "method_not_allowed"),
        ("POST", "/", 404, "not_found"),
        ("POST", "/v1/redemptions/", 404, "not_found"),
        ("POST", "/v2/redemptions", 404, "not_found"),
        ("GET", "/v1/redemptions/../../etc/passwd", 404, "not_found"),
    ],
)
async def test_wrong_methods_and_paths_are_problems_too(
    plane: ControlPlane, method: str, path: str, status: int, code: str
) -> None:
    await issue(plane, 1)
    async with engine_in_process(plane) as merchant:
        answer = await post(merchant, {}, method=method, path=path)
        check_refused(answer, status, code)
        assert ("Allow" in answer.headers) == (status == 405)


async def test_past_the_queue_an_attempt_is_refused_at_once_and_not_done(
    plane: ControlPlane, redis: Redis
) -> None:
    _, codes = await issue(plane, 60)
    async with (
        Proxy(plane.settings.redis_url) as proxy,
        engine_in_process(plane, redis_url=proxy.url, queue_max=2, attempt_deadline_ms=30_000) as merchant,
    ):
        assert (await merchant.redeem(codes[0]))[0] == 200
        held = proxy.rule = Calls(Way.TO_SERVER, Fate.HOLD)
        first = asyncio.create_task(merchant.redeem(codes[1]))
        await wait_until_async(lambda: held.seen == 1)
        waiting = [asyncio.create_task(merchant.redeem(code)) for code in codes[2:]]
        answered = await wait_until_async(lambda: [task for task in waiting if task.done()][55:])
        assert answered  # 58 came, two may wait
        proxy.release()
        results = [(await task) for task in (first, *waiting)]
        assert {body["code"] for status, body in results if status != 200} == {"overloaded"}
        assert [status for status, _ in results].count(200) == 3
        assert len(await redeemed_codes(redis)) == 4
        for code, (status, _) in zip(codes[1:], results, strict=True):
            if status != 200:
                assert (await merchant.redeem(code))[0] == 200


async def test_a_refusal_for_load_says_when_to_come_back(plane: ControlPlane) -> None:
    _, codes = await issue(plane, 10)
    async with (
        Proxy(plane.settings.redis_url) as proxy,
        engine_in_process(plane, redis_url=proxy.url, queue_max=1, retry_after_s=7) as merchant,
    ):
        assert (await merchant.redeem(codes[0]))[0] == 200
        held = proxy.rule = Calls(Way.TO_SERVER, Fate.HOLD)
        tasks = [asyncio.create_task(merchant.redeem(codes[1]))]
        await wait_until_async(lambda: held.seen == 1)
        posts = []
        for code in codes[2:]:
            posts.append(asyncio.create_task(post(merchant, {"code": code, "user": "a"})))
            await merchant.call("GET", "/healthz")  # one after the other: it waits behind the call
        await wait_until_async(lambda: [task for task in posts if task.done()][len(posts) - 2 :])
        refused = next(task.result() for task in posts if task.done())
        check_refused(refused, 503, "overloaded")
        assert refused.headers["Retry-After"] == "7"
        proxy.release()
        await asyncio.gather(*tasks, *posts)


async def test_without_redis_nothing_is_done_and_the_answer_says_so(
    plane: ControlPlane, redis: Redis
) -> None:
    _, (code,) = await issue(plane, 1)
    async with (
        Proxy(plane.settings.redis_url) as proxy,
        engine_in_process(plane, redis_url=proxy.url, attempt_deadline_ms=1000) as merchant,
    ):
        await merchant.redeem("0000-0000-0000-0000")
        proxy.refusing = True
        proxy.cut()
        check_refused(await post(merchant, {"code": code, "user": "ann"}), 503, "store_unavailable")
        assert await redeemed_codes(redis) == []
        unknown = {"code": "0000-0000-0000-0000", "user": "ann"}
        check_refused(await post(merchant, unknown), 503, "store_unavailable")
        answer = await post(merchant, unknown, authorization="Bearer rk_unknown")
        check_refused(answer, 503, "store_unavailable")
        proxy.refusing = False

        async def redeems() -> bool:
            return (await merchant.redeem(code))[0] == 200

        await wait_until_async(redeems)


async def test_a_lost_reply_is_said_to_be_unknown(plane: ControlPlane) -> None:
    _, (code,) = await issue(plane, 1)
    async with (
        Proxy(plane.settings.redis_url) as proxy,
        engine_in_process(plane, redis_url=proxy.url) as merchant,
    ):
        await merchant.redeem("0000-0000-0000-0000")
        proxy.rule = Calls(Way.TO_ENGINE, Fate.CUT)
        check_refused(await post(merchant, {"code": code, "user": "ann"}), 503, "outcome_unknown")


async def test_the_answer_names_the_order_also_when_a_hold_was_confirmed(plane: ControlPlane) -> None:
    _, (one, two, three) = await issue(plane, 3)
    async with engine_in_process(plane) as merchant:
        for _ in range(2):
            assert (await merchant.redeem(one, order="o-1", key="k"))[1]["order"] == "o-1"
        assert (await merchant.redeem(two))[1]["order"] is None
        held = {"code": three, "user": "ann", "order": "o-2"}
        _, hold = await merchant.call("POST", "/v1/holds", json=held)
        for _ in range(2):
            path, headers = f"/v1/holds/{hold['id']}/confirm", {"Idempotency-Key": "c"}
            assert (await merchant.call("POST", path, headers=headers))[1]["order"] == "o-2"
