"""Finds what may be a code in a text that will be stored: no usable code may rest in clear (promise P7).

``Scanner`` is for the redeem path. It finds a code that is the whole text, in any spelling, and a code in a
longer text: in one piece, or in its groups with any characters but letters and digits between them. Letters
or digits directly before or behind hide a code only if it is in one piece: to find it would cost a decryption
for each part of every long word, such as a hash.
It looks at the shape of the text first, so an ordinary text costs a microsecond and no decryption.
``possible`` takes every part of a text that has the length of a code. It is for reasons and names.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from typing import TYPE_CHECKING, Final

from engine.codes.formats import FORMATS, all_symbols, split

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from engine.codes.formats import Format

SHORTEST_CODE: Final = min(fmt.length for fmt in FORMATS.values())
_LETTER: Final = b"x"
_OTHER: Final = b"|"
_TO_SHAPE: Final = bytes((_LETTER if bytes([at]).isalnum() else _OTHER)[0] for at in range(256))
_TWO: Final = _OTHER * 2
_SEPARATORS: Final = re.compile("[^0-9A-Za-z]+")
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
        self._pieces = [(fmt, _OTHER + _LETTER * fmt.length + _OTHER) for fmt in self._formats]
        self._groups = [(fmt, _in_groups(fmt)) for fmt in self._formats]
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
        for fmt, wanted in self._pieces:
            if wanted in shape:
                found += _parts(fmt, text, shape, wanted, slice(0, fmt.length))
        if _TWO in shape:
            text = _SEPARATORS.sub("-", text)
            shape = b"|%b|" % text.encode("ascii", "replace").translate(_TO_SHAPE)
        for fmt, wanted in self._groups:
            if wanted in shape:
                found += _parts(fmt, text, shape, wanted, slice(-1, len(wanted) - 1))
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


def _in_groups(fmt: Format) -> bytes:
    """The shape of a code in its groups."""
    return _OTHER.join([_LETTER * fmt.group] * (fmt.length // fmt.group))


def _parts(
    fmt: Format, text: str, shape: bytes, wanted: bytes, part: slice
) -> Iterator[tuple[Format, bytes]]:
    """The parts of a text that have the wanted shape. ``part``: where each is, from ``at`` on."""
    at = shape.find(wanted)
    while at >= 0:
        symbols = all_symbols(text[at + part.start : at + part.stop])
        if fmt.accepts(symbols):
            yield fmt, symbols
        at = shape.find(wanted, at + 1)
