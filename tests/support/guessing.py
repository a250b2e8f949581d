"""Made-up codes, and customers who try them."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from engine.codes.formats import FORMATS

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.deployment import Merchant

SYMBOLS = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def made_up(chance: random.Random | int) -> str:
    """Return a code that looks real; it was never issued, but for a chance of one in a quadrillion."""
    if isinstance(chance, int):
        chance = random.Random(chance)
    return "".join(chance.choices(SYMBOLS, k=FORMATS["base32-16"].length))


async def guesses(
    merchant: Merchant,
    count: int,
    *,
    seed: int,
    user: Callable[[int], str] = lambda _: "eve",
    client: dict[str, str] | None = None,
    headers: dict[str, str] | None = None,
) -> list[str]:
    """Try made-up codes one after the other; return the problem codes of the answers."""
    chance = random.Random(seed)
    answers = []
    for number in range(count):
        body: dict[str, object] = {"code": made_up(chance), "user": user(number)}
        if client is not None:
            body["client"] = client
        _, answer = await merchant.call("POST", "/v1/redemptions", json=body, headers=headers)
        answers.append(str(answer["code"]))
    return answers
