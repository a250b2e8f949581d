"""A code stays where it belongs: in no field that is stored, and nowhere in Redis."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.support.deployment import engine_in_process, issue
from tests.support.dumps import dump_of_database, dump_of_redis
from tests.support.redeeming import check_code_absent, check_refused, post, redeemed_codes, symbols

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from engine.control.change import ControlPlane
    from tests.support.deployment import Merchant


HIDDEN_IN = [
    "{code}",
    "{flat}",
    "{lower}",
    "order {code}/1",
    "#{flat}@shop",
    "x{flat}y",
    "{wide}",
    "{spread}",
]


@pytest.mark.parametrize("field", ["user", "order", "Idempotency-Key"])
@pytest.mark.parametrize("hidden", HIDDEN_IN)
async def test_a_field_that_is_kept_may_not_contain_the_code(
    plane: ControlPlane, redis: Redis, field: str, hidden: str
) -> None:
    _, (code,) = await issue(plane, 1)
    flat = symbols(code)
    text = hidden.format(
        code=code,
        flat=flat,
        lower=code.lower(),
        wide="".join(chr(ord(c) + 0xFEE0) for c in flat),
        spread=":".join(flat),
    )
    async with engine_in_process(plane) as merchant:
        body = {"code": code, "user": "ann"}
        if field == "Idempotency-Key":
            answer = await post(merchant, body, Idempotency_Key=text)
        else:
            answer = await post(merchant, body | {field: text})
        check_refused(answer, 400, "malformed_request")
        check_code_absent(code, answer.text)
        assert await redeemed_codes(redis) == []
        assert (await merchant.redeem(code, "ann", order=flat[:-1]))[0] == 200


async def test_no_redemption_leaves_its_code_in_redis(plane: ControlPlane, redis: Redis) -> None:
    _, codes = await issue(plane, 3, per_user_limit=2, prefix="LOVE")
    async with engine_in_process(plane) as merchant:
        for code in codes:
            user = "ann" if code != codes[2] else "bob"
            answer = await merchant.redeem(code, user, key="k-" + code[-4:], metadata={"m": code})
            assert answer[0] == 200
    everything = await dump_of_redis(redis)
    for code in codes:
        assert code[-4:] in everything  # it is that redemption which is looked at
        for form in (code, symbols(code), symbols(code).removeprefix("LOVE")):
            assert form not in everything
            assert form.lower() not in everything


@pytest.mark.parametrize("field", ["user", "order", "Idempotency-Key"])
@pytest.mark.parametrize(
    "hidden",
    ["{code}", "{flat}", "order {lower}/1", "#{flat}@shop", "{wide}", "{spread}", "u{code}", "{escaped}!"],
)
async def test_a_field_that_is_kept_may_not_contain_another_code_either(
    plane: ControlPlane, redis: Redis, field: str, hidden: str
) -> None:
    if hidden == "{wide}" and field == "Idempotency-Key":
        pytest.skip("a header is ASCII")
    _, (code, other) = await issue(plane, 2)
    flat = symbols(other)
    wide = "".join(chr(ord(c) + 0xFEE0) for c in flat)
    text = hidden.format(
        code=other, flat=flat, lower=other.lower(), wide=wide, spread=":".join(flat),
        escaped=other.replace("-", "\\-"),
    )  # fmt: skip
    body = {"code": code, "user": "ann"}
    async with engine_in_process(plane) as merchant:
        for path in ("/v1/redemptions", "/v1/holds"):
            sent = body | ({"order": "o-1"} if path == "/v1/holds" else {})
            if field == "Idempotency-Key":
                answer = await post(merchant, sent, path=path, Idempotency_Key=text)
            else:
                answer = await post(merchant, sent | {field: text}, path=path)
            check_refused(answer, 400, "malformed_request")
            check_code_absent(other, answer.text)
        item = body | {"idempotency_key" if field == "Idempotency-Key" else field: text}
        answer = await post(merchant, {"items": [item, body | {"code": other}]}, path="/v1/redemptions/batch")
        assert [result["status"] for result in answer.body["results"]] == [400, 200]
        together = {"codes": [{"code": code}], "user": "ann", "order": "o-1"}
        if field == "Idempotency-Key":
            answer = await post(merchant, together, path="/v1/redemptions/combined", Idempotency_Key=text)
        else:
            answer = await post(merchant, together | {field: text}, path="/v1/redemptions/combined")
        check_refused(answer, 400, "malformed_request")
        assert not _is_in(other, await dump_of_redis(redis))
        assert (await merchant.redeem(code, "ann", order=flat[:-1]))[0] == 200


async def test_a_code_that_was_not_issued_is_an_ordinary_text(plane: ControlPlane) -> None:
    _, (code,) = await issue(plane, 1)
    async with engine_in_process(plane) as merchant:
        assert (await merchant.redeem(code, "0123-4567-89AB-CDEF", order="A" * 16))[0] == 200


async def test_reasons_and_names_that_are_kept_may_not_contain_a_code(
    plane: ControlPlane, merchant: Merchant
) -> None:
    campaign, (code, spent) = await issue(plane, 2, kind="balance", amount=500, currency="EUR")
    _, redeemed = await merchant.redeem(spent, amount=100)
    text = f"he says x{symbols(code).lower()}y is broken"
    calls: list[tuple[str, str, dict[str, object]]] = [
        ("POST", "/v1/campaigns", {"name": text}),
        ("PATCH", f"/v1/campaigns/{campaign}", {"name": text}),
        ("POST", "/v1/keys", {"name": text, "scopes": ["read"]}),
        ("POST", "/v1/codes/void", {"batch": 0, "reason": text}),
        ("POST", "/v1/codes/void", {"code": spent, "reason": text}),
        ("POST", "/v1/codes/adjust", {"code": spent, "amount": 1, "reason": text}),
        ("POST", f"/v1/redemptions/{redeemed['id']}/rollback", {"reason": text}),
        ("POST", "/v1/users/ann/erasure", {"reason": text}),
        ("POST", "/v1/webhooks", {"url": "https://shop.example/hook", "description": text}),
        ("POST", "/v1/webhooks", {"url": f"https://shop.example/{symbols(code)}"}),
    ]
    for method, path, body in calls:
        status, answer = await merchant.call(method, path, json=body)
        assert (path, status, answer["code"]) == (path, 400, "malformed_request")
        check_code_absent(code, str(answer))
    assert not _is_in(code, await dump_of_database(plane))


def _is_in(code: str, text: str) -> bool:
    return symbols(code) in re.sub(r"[^0-9A-Za-z]", "", text).upper()
