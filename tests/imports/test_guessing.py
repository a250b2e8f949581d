"""How easily codes of an import are guessed."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from engine.imports.guessing import CodeSpaces
from tests.support.importing import BrokenOff, a_campaign, bring, lines_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from engine.control.change import ControlPlane

DIGITS = "0123456789"
SYMBOLS = "0123456789ABCDEFGHJKMNPQRSTUVWXYZ"


def codes(alphabet: str, length: int, count: int, prefix: str = "") -> list[str]:
    chance = random.Random(f"{alphabet} {length} {count}")
    return sorted({prefix + "".join(chance.choices(alphabet, k=length)) for _ in range(count)})


def are_guessable(some: Iterable[str], bits: int = 30) -> bool:
    spaces = CodeSpaces()
    for code in some:
        spaces.take([code.encode()])
    return spaces.are_guessable(bits)


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (codes(DIGITS, 12, 1000), True),  # 10^12 / 1000 is just below 2^30
        (codes(DIGITS, 12, 900), False),
        (codes(DIGITS, 13, 1000), False),
        (codes(SYMBOLS, 6, 10), True),
        (codes(SYMBOLS, 8, 1000), False),
        (codes(SYMBOLS, 8, 3000), True),
        (codes(SYMBOLS, 16, 5000), False),
        (codes(DIGITS, 4, 50, prefix="SPRINGSALE2026X"), True),  # what all have in common does not count
        (codes("0123456789ABCDEF", 9, 200), True),  # the alphabet is what occurs: 16^9 / 200
        (codes(SYMBOLS, 9, 200), False),
        ([*codes(SYMBOLS, 16, 1000), "7C7C"], True),  # one short code is enough
        (["SUMMERSALE"], False),  # of one code nobody can tell what is fixed
        (["SA1ES"], True),
        ([], False),
    ],
)
def test_how_many_guesses_it_takes(made: list[str], expected: bool) -> None:
    assert are_guessable(made) is expected


def test_the_bits_are_a_setting_and_0_turns_it_off() -> None:
    made = codes(DIGITS, 6, 100)
    assert [are_guessable(made, bits) for bits in (0, 13, 14, 30)] == [False, False, True, True]


async def test_it_is_said_at_import_and_stays_after_an_interruption(plane: ControlPlane) -> None:
    campaign = await a_campaign(plane)
    weak, strong = codes(DIGITS, 8, 2000), codes(SYMBOLS, 16, 2000)
    assert (await bring(plane, campaign, lines_of(strong))).document()["guessable"] is False
    with pytest.raises(BrokenOff):
        await bring(plane, campaign, lines_of([*weak, *strong]), broken_at=len(lines_of(weak)) + 900)
    outcome = await bring(plane, campaign, lines_of([*weak, *strong]))
    assert outcome.document()["guessable"] is True
