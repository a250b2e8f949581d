"""Finds what may be a code in a text that will be stored: no usable code may rest in clear (promise P7).

``Scanner`` is for the redeem path. It finds a code that is the whole text, in any spelling, and a code in a
longer text that is written as it was issued: in one piece, or in its groups with one character between them.
It looks at the shape of the text first, so an ordinary text costs a microsecond and no decryption.
``possible`` takes every part of a text that has the length of a code. It is for reasons and names.
"""

from __future__ import annotations

import sys
import unicodedata
from typing import TYPE_CHECKING, Final

from engine.codes.formats import FORMATS, all_symbols, split

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from engine.codes.formats import Format

SHORTEST_CODE: Final = min(fmt.length for fmt in FORMATS.values())
_LETTER: Final = b"x"
_OTHER: Final = b"|"
_TO_SHAPE: Final = bytes((_LETTER if bytes([at]).isalnum() else _OTHER)[0] for at in range(256))
_UUID: Final = b"|xxxxxxxx|xxxx|xxxx|xxxx|xxxxxxxxxxxx|"  # a usual key, whose groups look like a short code


class Scanner:
    """Finds codes of some formats in texts. ``prefixes``: those that codes may have, normalised.

    Attributes:
        shortest: an ASCII text with fewer characters has no code.
    """

    def __init__(self, formats: Iterable[Format], prefixes: Collection[bytes]) -> None:
        self._formats = frozenset(formats)
        self._prefixes = prefixes
        self.shortest = min((fmt.length for fmt in self._formats), default=sys.maxsize)
        self._shapes = [(fmt, shape) for fmt in self._formats for shape in _shapes(fmt)]
        lengths = {0, *map(len, prefixes)}
        self._lengths = frozenset(fmt.length + length for fmt in self._formats for length in lengths)

    def likely(self, text: str) -> list[tuple[Format, bytes]]:
        """The parts of a text that are written like a code, as (format, symbols)."""
        if not text.isascii():
            text = unicodedata.normalize("NFKC", text)
        shape = b"|%b|" % text.encode("ascii", "replace").translate(_TO_SHAPE)
        if shape == _UUID:
            return []
        found = []
        if shape.count(_LETTER) in self._lengths:
            readings = split(all_symbols(text), self._prefixes)
            found = [(fmt, symbols) for fmt, symbols, _ in readings if fmt in self._formats]
        for fmt, wanted in self._shapes:
            at = shape.find(wanted)
            while at >= 0:
                symbols = all_symbols(text[at : at + len(wanted) - 2])
                if fmt.accepts(symbols):
                    found.append((fmt, symbols))
                at = shape.find(wanted, at + 1)
        return found


def possible(text: str, formats: Iterable[Format]) -> list[tuple[Format, bytes]]:
    """Every part of a text that has the length and the symbols of one of the formats."""
    symbols = all_symbols(unicodedata.normalize("NFKC", text))
    return [
        (fmt, part)
        for fmt in formats
        for at in range(len(symbols) - fmt.length + 1)
        if fmt.accepts(part := symbols[at : at + fmt.length])
    ]


def _shapes(fmt: Format) -> tuple[bytes, bytes]:
    """The shapes of a code in one piece and in its groups, with what is not a letter or digit around it."""
    groups = [_LETTER * fmt.group] * (fmt.length // fmt.group)
    return _OTHER + _LETTER * fmt.length + _OTHER, _OTHER + _OTHER.join(groups) + _OTHER
