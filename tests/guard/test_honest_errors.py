"""The score blocks honest people rarely, guessers surely; ``make guard-plot`` draws what lies between."""

from __future__ import annotations

import pytest

from tests.support.honest_errors import KINDS, Kind, blocked

CARD, MANY, SHOP = KINDS


@pytest.mark.parametrize(
    ("kind", "sources"), [(CARD, 10_000), (MANY, 500), (SHOP, 10)], ids=["card", "many", "shop"]
)
def test_nobody_who_mistypes_one_of_five_is_blocked(kind: Kind, sources: int) -> None:
    assert blocked(kind, 0.2, sources, seed=1) == 0


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_who_is_always_wrong_is_blocked(kind: Kind) -> None:
    assert blocked(kind, 1.0, 20, seed=2) == 20


def test_more_errors_block_more() -> None:
    shares = [blocked(MANY, percent / 100, 200, seed=3) for percent in (20, 50, 70, 95)]
    assert shares == sorted(shares)
    assert shares[0] == 0
    assert shares[-1] > 180
