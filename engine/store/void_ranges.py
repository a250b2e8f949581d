"""Which serials of a batch are void: a few ranges, whatever the size of the batch.

A leaked batch of ten million codes is one range. Every worker holds these (``configuration``), and
asks them for each attempt.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class VoidRanges:
    """Sorted ranges that neither overlap nor touch.

    Kept as the places where void begins and ends, in turn: a serial is void where an odd number of
    them lies at it or before it.
    """

    __slots__ = ("_bounds",)

    def __init__(self) -> None:
        self._bounds: list[int] = []

    def __len__(self) -> int:
        return len(self._bounds) // 2

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Each range as its first and its last serial."""
        for at in range(0, len(self._bounds), 2):
            yield self._bounds[at], self._bounds[at + 1] - 1

    def __contains__(self, serial: int) -> bool:
        return bisect_right(self._bounds, serial) % 2 == 1

    def mark(self, first: int, last: int, *, void: bool) -> None:
        """Make the serials from ``first`` to ``last`` void, or good again.

        To repeat a sequence of marks, or the end of one, changes nothing.
        """
        begin, end = first, last + 1
        low, high = bisect_left(self._bounds, begin), bisect_right(self._bounds, end)
        # What lies between is one state now; a bound stays at an edge where the state changes there.
        kept = [begin] if low % 2 != void else []
        if high % 2 != void:
            kept.append(end)
        self._bounds[low:high] = kept
