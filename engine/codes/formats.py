"""The text form of codes: formats, normalisation, prefixes, masks, and the chance to guess a code.

This is the first step of a redemption. It turns a typed text into symbols of a known format, or refuses it as
malformed. It needs no key and no server.

Base 32 is Crockford's: it has no I, L, O, U. O is read as 0, I and L as 1. Normalisation does not change U,
because a vanity prefix may contain it. U is not a symbol of a code.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

BATCH_BITS: Final = 20
SERIAL_BITS: Final = 28
BATCH_LIMIT: Final = 2**BATCH_BITS
SERIAL_LIMIT: Final = 2**SERIAL_BITS
IDENTITY_LIMIT: Final = BATCH_LIMIT * SERIAL_LIMIT

INPUT_CHARACTERS_MAX: Final = 64
PREFIX_CHARACTERS_MAX: Final = 16
LAST_SYMBOLS: Final = 4
GUESS_CHANCE_MAX: Final = Fraction(1, 2**30)

BASE32: Final = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ"
DIGITS: Final = b"0123456789"


@dataclass(frozen=True, slots=True)
class Format:
    """The written form of a code: alphabet, number of symbols, and number of symbols in a group.

    A code is a number below `domain`, most significant symbol first. Before encryption it is the identity
    (batch << 28 | serial) times `check`. So only multiples of `check` are codes. For `base32-16` that is
    batch, serial and 32 zero bits.
    """

    name: str
    alphabet: bytes
    length: int
    group: int

    @property
    def radix(self) -> int:
        """Size of the alphabet."""
        return len(self.alphabet)

    @property
    def domain(self) -> int:
        """Number of strings of this length."""
        return int(self.radix**self.length)

    @property
    def check(self) -> int:
        """Number of strings for each identity. One of them is a code."""
        return self.domain // IDENTITY_LIMIT

    def accepts(self, symbols: bytes) -> bool:
        """Whether the text has the length of a code and only symbols of the alphabet."""
        return len(symbols) == self.length and not symbols.translate(None, self.alphabet)

    def show(self, symbols: str) -> str:
        """Put the symbols into groups, with dashes between them."""
        groups = [symbols[at : at + self.group] for at in range(0, self.length, self.group)]
        return "-".join(groups)


DEFAULT_FORMAT: Final = Format("base32-16", BASE32, 16, 4)
# Each length occurs once, so the length tells the format.
FORMATS: Final[Mapping[str, Format]] = MappingProxyType(
    {
        fmt.name: fmt
        for fmt in (
            DEFAULT_FORMAT,
            Format("base32-12", BASE32, 12, 4),
            Format("base32-20", BASE32, 20, 4),
            Format("digits-15", DIGITS, 15, 5),
            Format("digits-18", DIGITS, 18, 6),
        )
    }
)
_BY_LENGTH: Final = {fmt.length: fmt for fmt in FORMATS.values()}
# The shown symbols are all in the last group, so a mask is this text and the shown symbols.
_HIDDEN: Final = {fmt.name: fmt.show("•" * fmt.length)[:-LAST_SYMBOLS] for fmt in FORMATS.values()}

_SEPARATORS: Final = b" \t-_."
_TO_SYMBOL: Final = bytes.maketrans(b"abcdefghijklmnopqrstuvwxyzOIL", b"ABCDEFGH1JK1MN0PQRSTUVWXYZ011")
_NO_SYMBOLS: Final = bytes(character for character in range(128) if not chr(character).isalnum())
_DASHES: Final = (*range(0x2010, 0x2016), 0x2212)
# Space separators (category Zs), and characters without width that often come along when text is copied.
_SPACES: Final = (0xA0, 0x1680, *range(0x2000, 0x200C), 0x202F, 0x205F, 0x2060, 0x3000, 0xFEFF)
_FULL_WIDTH: Final = range(0xFF01, 0xFF5F)
_TO_ASCII: Final[dict[int, int | None]] = dict.fromkeys((*_DASHES, *_SPACES)) | {
    wide: wide - 0xFEE0 for wide in _FULL_WIDTH
}
IMPOSSIBLE_PREFIX: Final = b"-"
"""That of a stand-in: ``normalise_prefix`` drops dashes."""
_PREFIX: Final = re.compile(r"[A-Z0-9](?:[A-Z0-9-]*[A-Z0-9])?", re.ASCII)


def normalise(text: str, *, characters_max: int = INPUT_CHARACTERS_MAX) -> bytes | None:
    """Reduce a typed text to `[A-Z0-9]`; None if it is malformed.

    Letters become upper case. O becomes 0, I and L become 1. Spaces, tabs, `-`, `_`, `.` and Unicode's dashes
    and spaces are dropped. Full-width forms are read as the plain ones. A text is malformed if it has other
    characters, no symbols, or more than `characters_max` characters.
    """
    if len(text) > characters_max:
        return None
    if not text.isascii():
        text = text.translate(_TO_ASCII)
        if not text.isascii():
            return None
    symbols = text.encode("ascii").translate(_TO_SYMBOL, _SEPARATORS)
    return symbols if symbols.isalnum() else None


def all_symbols(text: str) -> bytes:
    """The ASCII letters and digits of a text, replaced as in ``normalise``. Other characters are dropped."""
    return text.encode("ascii", "ignore").translate(_TO_SYMBOL, _NO_SYMBOLS)


def normalise_prefix(prefix: str) -> bytes:
    """Normalise a vanity prefix for comparisons: drop dashes, replace O, I and L.

    Raises:
        ValueError: it is not 1 to 16 of `[A-Z0-9-]` (upper or lower case), or it has a dash at an end.
    """
    if len(prefix) <= PREFIX_CHARACTERS_MAX and prefix.isascii() and _PREFIX.fullmatch(prefix.upper()):
        normalised = normalise(prefix)
        if normalised is not None:
            return normalised
    raise ValueError(
        f"a prefix is 1 to {PREFIX_CHARACTERS_MAX} of A-Z, 0-9 and '-', with no '-' at either end"
    )


def split(normalised: bytes, prefixes: Collection[bytes] = ()) -> list[tuple[Format, bytes, bytes]]:
    """All ways to read normalised text, as (format, symbols, normalised prefix); first without prefix.

    `prefixes` should be a set: each format looks up one prefix in it. An empty list means that the text is
    not a minted code. It may be an imported code.
    """
    candidates = []
    plain = _BY_LENGTH.get(len(normalised))
    if plain is not None and plain.accepts(normalised):
        candidates.append((plain, normalised, b""))
    if prefixes:
        for length, fmt in _BY_LENGTH.items():
            prefix, symbols = normalised[:-length], normalised[-length:]
            if prefix and prefix in prefixes and fmt.accepts(symbols):
                candidates.append((fmt, symbols, prefix))
    return candidates


def stand_in(normalised: bytes) -> tuple[Format, bytes, bytes]:
    """What to decode in place of a text that no way of ``split`` reads, to take as long: never a code.

    It is a code of the text's length, or of the default format, under a prefix that no batch can have.
    """
    fmt = _BY_LENGTH.get(len(normalised), DEFAULT_FORMAT)
    return fmt, b"0" * fmt.length, IMPOSSIBLE_PREFIX


def mask(fmt: Format, last4: str) -> str:
    """Mask a code: dots and the last four symbols, in the format's groups.

    Raises:
        ValueError: `last4` is not four symbols. This prevents showing a whole code by mistake.
    """
    if len(last4) != LAST_SYMBOLS or not last4.isascii() or last4.encode().translate(None, fmt.alphabet):
        raise ValueError(f"a mask shows {LAST_SYMBOLS} symbols of {fmt.name}")
    return _HIDDEN[fmt.name] + last4


class GuessableError(ValueError):
    """Too many codes exist for the length of their format: guessing one would be too easy."""


def guess_chance(fmt: Format, issued: int) -> Fraction:
    """The chance that one random string of the format is one of `issued` codes."""
    return Fraction(issued, fmt.domain)


def chance_text(chance: Fraction) -> str:
    """Write a chance as `1 in 2^49.8`. It is rounded up: it never looks smaller than it is."""
    if not chance:
        return "none"
    bits = math.log2(chance.denominator) - math.log2(chance.numerator)
    return f"1 in 2^{math.floor(bits * 10) / 10:.1f}"


def refuse_guessable(fmt: Format, issued_total: int, *, limit: Fraction = GUESS_CHANCE_MAX) -> Fraction:
    """Return the chance of one guess if `issued_total` codes of this format exist, over all mint keys.

    Raises:
        GuessableError: the chance exceeds `limit`.
    """
    chance = guess_chance(fmt, issued_total)
    if chance > limit:
        raise GuessableError(
            f"with {issued_total:,} codes in {fmt.name} one guess succeeds with a chance of"
            f" {chance_text(chance)}; at most {chance_text(limit)} is allowed: choose a longer format"
        )
    return chance
