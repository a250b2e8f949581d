"""Stores which serials of a batch are void, as ranges.

A leaked batch of ten million codes is one range. Every worker has these ranges in its configuration cache,
and checks them for each attempt.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class VoidRanges:
    """Sorted ranges that neither overlap nor touch.

    The list holds the serials where void begins and ends, in turn. A serial is void if the number of entries
    at or below it is odd.
    """

    __slots__ = ("_bounds",)

    def __init__(self) -> None:
        self._bounds: list[int] = []

    def __len__(self) -> int:
        return len(self._bounds) // 2

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Yield the first and the last serial of each range."""
        for at in range(0, len(self._bounds), 2):
            yield self._bounds[at], self._bounds[at + 1] - 1

    def __contains__(self, serial: int) -> bool:
        return bisect_right(self._bounds, serial) % 2 == 1

    def mark(self, first: int, last: int, *, void: bool) -> None:
        """Make the serials from ``first`` to ``last`` void, or valid again.

        Repeating a sequence of marks, or the end of a sequence, changes nothing.
        """
        begin, end = first, last + 1
        low, high = bisect_left(self._bounds, begin), bisect_right(self._bounds, end)
        # The range now has one state, so its inner bounds go. An edge is a bound if the state changes there.
        edges = [begin] if low % 2 != void else []
        if high % 2 != void:
            edges.append(end)
        self._bounds[low:high] = edges
