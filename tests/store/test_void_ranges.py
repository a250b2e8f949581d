from __future__ import annotations

from typing import Final

from hypothesis import given
from hypothesis import strategies as st

from engine.store.void_ranges import VoidRanges

SERIALS: Final = 12
serial = st.integers(0, SERIALS - 1)
marks = st.lists(st.tuples(serial, serial, st.booleans()).map(lambda mark: (*sorted(mark[:2]), mark[2])))


@given(marks, st.integers(0))
def test_of_each_serial_the_last_mark_counts(sequence: list[tuple[int, int, bool]], repeated: int) -> None:
    ranges, expected = VoidRanges(), [False] * SERIALS
    for first, last, void in sequence:
        ranges.mark(first, last, void=void)
        expected[first : last + 1] = [void] * (last + 1 - first)
    for _ in range(2):
        assert [number in ranges for number in range(SERIALS)] == expected
        edges = [edge for pair in ranges for edge in pair]
        assert edges == sorted(edges)
        assert all(later > earlier + 1 for earlier, later in zip(edges[1::2], edges[2::2], strict=False))
        assert len(ranges) == len(edges) // 2
        for first, last, void in sequence[repeated % (len(sequence) + 1) :]:  # the end of it comes twice
            ranges.mark(first, last, void=void)


def test_ten_million_codes_are_one_range() -> None:
    ranges = VoidRanges()
    ranges.mark(0, 9_999_999, void=True)
    assert (0 in ranges, 9_999_999 in ranges, 10_000_000 in ranges, len(ranges)) == (True, True, False, 1)
    ranges.mark(5, 5, void=False)
    assert list(ranges) == [(0, 4), (6, 9_999_999)]
