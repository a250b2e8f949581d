"""Measures how many guesses it takes to find a code of an import: codes made elsewhere may be short."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

_DIGITS: Final = frozenset(b"0123456789")
_SYMBOLS: Final = 33  # digits and letters but for O, I and L (``formats.normalise``)
_FIXED_CODES_MIN: Final = 8  # with fewer codes, the same symbol in one place may be chance
_SEEN_MIN: Final = 1000  # symbols; among so many, each one of the alphabet occurs


class _OfLength:
    """The codes of one length: how many there are, and the symbols that occur in each place."""

    def __init__(self, length: int) -> None:
        self.count = 0
        self._seen: list[set[int]] = [set() for _ in range(length)]

    def take(self, codes: list[bytes]) -> None:
        self.count += len(codes)
        for seen, column in zip(self._seen, zip(*codes, strict=True), strict=True):
            seen.update(column)

    def space(self) -> int:
        """Return how many codes of this form there could be. What is the same in all codes does not count."""
        open_places = [seen for seen in self._seen if self.count < _FIXED_CODES_MIN or len(seen) > 1]
        alphabet = set[int]().union(*open_places)
        if self.count * len(open_places) >= _SEEN_MIN:
            size = len(alphabet)
        else:
            size = len(_DIGITS) if alphabet <= _DIGITS else _SYMBOLS
        return int(size ** len(open_places))


class CodeSpaces:
    """The codes of an import that one call has read, by length. In memory only: it knows parts of codes.

    An import that was interrupted is measured from there on, and what was found before stays. So a measure is
    at most a few times too low, and codes that count up, or are sorted, look as guessable as they are.
    """

    def __init__(self) -> None:
        self._by_length: dict[int, _OfLength] = {}

    def take(self, codes: Iterable[bytes]) -> None:
        """Take normalised codes."""
        by_length: dict[int, list[bytes]] = {}
        for code in codes:
            by_length.setdefault(len(code), []).append(code)
        for length, some in by_length.items():
            self._by_length.setdefault(length, _OfLength(length)).take(some)

    def are_guessable(self, bits: int) -> bool:
        """Whether one guess finds a code with a chance of more than 2^-bits. With 0 bits, never."""
        return bits > 0 and any(one.count << bits > one.space() for one in self._by_length.values())
