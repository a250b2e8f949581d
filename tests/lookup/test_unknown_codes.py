"""Made-up codes wait in a bound of their own: they take no place of valid ones."""

from __future__ import annotations

import asyncio
import secrets
from typing import TYPE_CHECKING

from tests.support.deployment import engine_in_process, issue
from tests.support.redeeming import post

if TYPE_CHECKING:
    from engine.control.change import ControlPlane

GUESSERS = 8


async def test_guesses_in_great_number_do_not_turn_valid_codes_away(plane: ControlPlane) -> None:
    _, codes = await issue(plane, 40)
    statuses: set[int] = set()
    async with engine_in_process(
        plane, queue_max=20, unknown_codes_max=20, attempt_deadline_ms=30_000
    ) as merchant:

        async def guess() -> None:
            while True:
                guesses = [
                    {"code": f"7777-{secrets.randbelow(10**12):012}", "user": "eve"} for _ in range(100)
                ]
                answer = await post(merchant, {"items": guesses}, path="/v1/redemptions/batch")
                statuses.update(result["status"] for result in answer.body["results"])

        guessers = [asyncio.create_task(guess()) for _ in range(GUESSERS)]
        try:
            redeemed = [await merchant.redeem(code) for code in codes]
        finally:
            for guesser in guessers:
                guesser.cancel()
            await asyncio.gather(*guessers, return_exceptions=True)
    assert [status for status, _ in redeemed] == [200] * len(codes)
    assert statuses == {404, 503}  # the guesses themselves are shed, the others refused
