"""How often the score blocks honest people, by how often they mistype: ``make guard-plot`` draws it.

Seeded simulations through the guard's own labels and scores, with the default settings and invented time.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from engine.api.checks import Client
from engine.codes.formats import BASE32
from engine.guard.labels import Labeller
from engine.guard.rules import SCORE
from engine.guard.suspects import Suspects
from engine.settings import Settings
from loadtest.plots import Axes, Series, drawing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PICTURE: Final = Path(__file__).parents[2] / "docs" / "images" / "guard-errors.svg"
PERCENTS: Final = (0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 100)
BETWEEN_S: Final = 8.0  # tries of one person
TRIES_MAX: Final = 40  # then a person gives up
SYMBOLS: Final = 16
SHOP: Final = 200  # customers who stand behind one address, one after the other
_KEY: Final = "key_page"

Try = tuple[bytes, bool]
"""A typed code, and whether it is right."""


class Kind(NamedTuple):
    """A kind of honest source. ``tries`` makes what one does, from chance and the share of errors."""

    name: str
    tries: Callable[[random.Random, float], Iterator[Try]]


def code(chance: random.Random) -> bytes:
    return bytes(chance.choices(BASE32, k=SYMBOLS))


def mistyped(right: bytes, chance: random.Random) -> bytes:
    """Return a code with one or two other symbols."""
    typed = bytearray(right)
    for at in chance.sample(range(SYMBOLS), chance.choice((1, 1, 2))):
        typed[at] = chance.choice([symbol for symbol in BASE32 if symbol != typed[at]])
    return bytes(typed)


def who_mistypes(chance: random.Random, errors: float) -> Iterator[Try]:
    """Yield the tries of somebody with one card, until it works."""
    right = code(chance)
    for _ in range(TRIES_MAX):
        is_right = chance.random() >= errors
        yield (right if is_right else mistyped(right, chance)), is_right
        if is_right:
            return


def who_has_wrong_codes(chance: random.Random, errors: float) -> Iterator[Try]:
    """Yield the tries of somebody with many cards, of which some are another shop's."""
    for _ in range(TRIES_MAX):
        yield code(chance), chance.random() >= errors


def who_share_an_address(chance: random.Random, errors: float) -> Iterator[Try]:
    """Yield the tries of the customers of a shop."""
    for _ in range(SHOP):
        yield from who_mistypes(chance, errors)


KINDS: Final = (
    Kind("one card, mistyped", who_mistypes),
    Kind("many cards, some of another shop", who_has_wrong_codes),
    Kind("200 customers behind one address", who_share_an_address),
)


def blocked(kind: Kind, errors: float, sources: int, seed: int) -> int:
    """Return how many of so many sources the score would block, each an address of a browser key."""
    chance, settings = random.Random(seed), Settings()
    labeller, suspects = Labeller(settings), Suspects(settings)
    count, now_s = 0, 1_000_000.0
    for number in range(sources):
        client = Client(ip=f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
        was_blocked = False
        for typed, is_right in kind.tries(chance, errors):
            now_s += BETWEEN_S
            labeller.forget(now_s)
            note = (_KEY, "", client, "redeemed" if is_right else "code_not_found", typed)
            for tried in labeller.label([note], suspects, now_s).tried:
                was_blocked |= any(
                    found.rule == SCORE and found.blocks for found in suspects.hear(tried, now_s)
                )
        count += was_blocked
    return count


def main() -> None:
    """Draw the picture, and print its figures."""
    sources = {KINDS[0].name: 5000, KINDS[1].name: 2000, KINDS[2].name: 50}
    series = []
    for kind in KINDS:
        shares = [
            (
                percent,
                100 * blocked(kind, percent / 100, sources[kind.name], seed=percent) / sources[kind.name],
            )
            for percent in PERCENTS
        ]
        print(kind.name, shares)  # noqa: T201 - what the target says
        series.append(Series(kind.name, list(shares)))
    axes = Axes("errors among a source's tries, in percent", "sources blocked, in percent")
    PICTURE.write_text(drawing(series, axes), encoding="utf-8")


if __name__ == "__main__":
    main()
