"""Made-up codes, and customers who try them."""

from __future__ import annotations

import random
import zlib
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


def alike_in_crc32(count: int, seed: int) -> list[str]:
    """Return made-up codes that all have the same CRC-32, as a guesser finds them without a single try.

    CRC-32 is affine, and any three low bits make a digit from 0 to 7: of the 48 bits of such a code at
    least 16 can be chosen freely.
    """
    chance, length = random.Random(seed), FORMATS["base32-16"].length
    none = zlib.crc32(bytes(length))
    pivots: dict[int, tuple[int, int]] = {}
    free = []
    for bit in (8 * at + low for at in range(length) for low in range(3)):
        mask = 1 << bit
        left = zlib.crc32(mask.to_bytes(length)) ^ none
        while left and left.bit_length() in pivots:
            other, other_mask = pivots[left.bit_length()]
            left, mask = left ^ other, mask ^ other_mask
        if left:
            pivots[left.bit_length()] = left, mask
        else:
            free.append(mask)
    code = int.from_bytes("".join(chance.choices("01234567", k=length)).encode())
    found: set[str] = set()
    while len(found) < count:
        code ^= chance.choice(free)
        found.add(code.to_bytes(length).decode())
    return sorted(found, key=lambda _: chance.random())


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
