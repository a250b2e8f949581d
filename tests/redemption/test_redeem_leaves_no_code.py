"""A code stays where it belongs: in no field that is stored, and nowhere in Redis."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.deployment import engine_in_process, issue
from tests.support.dumps import dump_of_redis
from tests.support.redeeming import check_code_absent, check_refused, post, redeemed_codes, symbols

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from engine.control.change import ControlPlane


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
