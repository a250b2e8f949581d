"""Which clients each scenario has, and how their number changes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from loadtest.guessers import Bot, Buyer, Guesser, PageBuyer
from loadtest.shapes import Day, Opening, Steady, Waves
from loadtest.users import Impatient, Shopper, Visitor

if TYPE_CHECKING:
    from loadtest.shapes import Shape
    from loadtest.users import LoadClient


class Crowd(NamedTuple):
    """The clients of a scenario, and the shape of their number."""

    shape: type[Shape]
    clients: tuple[type[LoadClient], ...]


CROWDS: Final[dict[str, Crowd]] = {
    "unique-codes": Crowd(Steady, (Shopper,)),
    "flash-sale": Crowd(Opening, (Shopper,)),
    "hot-code": Crowd(Steady, (Shopper,)),
    "retry-storm": Crowd(Waves, (Impatient,)),
    "guessers": Crowd(Steady, (Buyer, Guesser)),
    "botnet": Crowd(Steady, (PageBuyer, Bot)),
    "mixed-day": Crowd(Day, (Visitor,)),
    "soak": Crowd(Steady, (Visitor,)),
}
