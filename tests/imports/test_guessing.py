"""How easily codes of an import are guessed."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from engine.imports.guessing import CodeSpaces
from engine.queries import queries
from tests.support.browsers import page_of
from tests.support.deployment import engine_in_process
from tests.support.importing import BrokenOff, a_campaign, age_imports, bring, counts, lines_of
from tests.support.solving import EASY
from tests.support.waiting import wait_until_async

if TYPE_CHECKING:
    from collections.abc import Iterable

    from engine.control.change import ControlPlane

DIGITS = "0123456789"
DOCTOR = queries("engine.cli", "doctor")
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


async def are_measured(plane: ControlPlane) -> dict[int, tuple[bool, bool]]:
    """Say of each batch whether it is guessable, and whether doctor names it as not measured."""
    async with plane.database.connection() as connection:
        unmeasured = {row["id"] for row in await connection.fetch(DOCTOR["unmeasured_imports"])}
        rows = await connection.fetch(
            "SELECT i.id, i.batch, i.guessable, b.guessable AS of_batch "
            "FROM imports AS i JOIN batches AS b ON b.id = i.batch ORDER BY i.id"
        )
    assert all(row["guessable"] == row["of_batch"] for row in rows)
    return {row["batch"]: (row["guessable"], f"imp_{row['id']}" in unmeasured) for row in rows}


async def test_the_same_file_sent_again_measures_an_import_of_an_earlier_version(
    plane: ControlPlane,
) -> None:
    campaign = await a_campaign(plane)
    weak, strong = codes(DIGITS, 8, 2000), codes(SYMBOLS, 16, 2000)
    batches = [(await bring(plane, campaign, lines_of(some))).imported.batch for some in (weak, strong)]
    await age_imports(plane)
    assert list((await are_measured(plane)).values()) == [(False, True), (False, True)]
    await bring(plane, campaign, lines_of(weak[:1999]))  # not all of it
    assert list((await are_measured(plane)).values()) == [(False, True), (False, True)]
    for some in (weak, strong):
        assert counts(await bring(plane, campaign, lines_of(some))) == (2000, 0, 2000, 0)
    assert await are_measured(plane) == dict(zip(batches, [(True, False), (False, False)], strict=True))


@pytest.mark.parametrize("again", ["in the same chunk", "in a later chunk"])
async def test_a_code_that_is_repeated_counts_once(plane: ControlPlane, again: str) -> None:
    """Half of an earlier import, sent twice, is not all of it; and its codes are not twice as many."""
    campaign = await a_campaign(plane)
    some = codes(DIGITS, 12, 600)  # 10^12 / 600 is more than 2^30, 10^12 / 1200 is not
    batch = (await bring(plane, campaign, lines_of(some))).imported.batch
    assert batch is not None
    await age_imports(plane)
    lines = 200 if again == "in a later chunk" else 10_000
    chunked = replace(plane, settings=replace(plane.settings, import_chunk_lines=lines))
    await bring(chunked, campaign, lines_of([*some[:300], *some[:300]]))
    assert (await are_measured(plane))[batch] == (False, True)
    await bring(chunked, campaign, lines_of([*some, *some]))
    assert (await are_measured(plane))[batch] == (False, False)
    more = codes(DIGITS, 12, 700)
    assert (await bring(chunked, campaign, lines_of([*more, *more]))).document()["guessable"] is False


async def test_pages_are_asked_as_soon_as_an_earlier_import_is_measured(plane: ControlPlane) -> None:
    campaign = await a_campaign(plane)
    some = lines_of(codes(DIGITS, 8, 200))
    await bring(plane, campaign, some)
    await age_imports(plane)
    async with engine_in_process(plane, **EASY) as merchant:
        page = await page_of(plane, merchant, campaign)
        assert (await page.redeem("00000000")).code == "code_not_found"
        await bring(plane, campaign, some)

        async def is_asked() -> bool:
            return (await page.redeem("00000000")).code == "challenge_required"

        await wait_until_async(is_asked)
