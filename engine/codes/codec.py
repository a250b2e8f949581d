"""Mints codes from (batch, serial) and decodes them, one at a time or many at once.

A code is an identity times a constant, encrypted with FF1 under a mint key (`formats.Format`). No code is
stored: minting computes the codes, redeeming decrypts them. Text that does not decrypt to an identity was
never minted. Text that does is a code only if its batch and serial were issued, which the caller must check.

The tweak of FF1 is the format's name, so that formats do not share a permutation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from engine.codes.ff1 import FF1, Halves
from engine.codes.formats import BATCH_LIMIT, IDENTITY_LIMIT, SERIAL_BITS, SERIAL_LIMIT, normalise_prefix

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from engine.codes.formats import Format

CHUNK_CODES: Final = 65_536

_SCALAR_CODES_MAX: Final = 8  # up to here one at a time is faster than numpy
_NO_SYMBOL: Final = b"\xff"  # as in ``_ff1``
_PYTHON_DIGITS: Final = b"0123456789abcdefghijklmnopqrstuv"  # what int() reads
_NO_DIGIT: Final = b"!"
_ZERO: Final = np.uint8(ord("0"))

Identity = tuple[int, int]


class UnknownKeyError(LookupError):
    """A batch names a mint key that this process does not have."""


class _Coder:
    """One format under one key. Two threads must not use it at once, as with FF1."""

    def __init__(self, fmt: Format, key: bytes) -> None:
        self.fmt: Final = fmt
        self.ff1: Final = FF1(key, fmt.radix, fmt.length, fmt.name.encode())
        self.check: Final = fmt.check
        self.is_binary: Final = fmt.radix & (fmt.radix - 1) == 0
        self.half_length: Final = fmt.length - fmt.length // 2
        self.check_bits: Final = self.check.bit_length() - 1
        self.low_bits: Final = self.ff1.low_modulus.bit_length() - 1
        self.glyphs: Final = np.frombuffer(fmt.alphabet, np.uint8)

        others = bytes(set(range(256)).difference(fmt.alphabet))
        self.to_digits: Final = bytes.maketrans(
            fmt.alphabet + others, _PYTHON_DIGITS[: fmt.radix] + _NO_DIGIT * len(others)
        )
        self.weights: Final = self._weights()
        self.to_values: Final = bytes.maketrans(
            fmt.alphabet + others, bytes(range(fmt.radix)) + _NO_SYMBOL * len(others)
        )

    def _weights(self) -> Halves:
        """The weight of each symbol in the high half (column 0) and in the low half (column 1)."""
        weights = np.zeros((self.fmt.length, 2), np.uint64)
        high_length = self.fmt.length // 2
        for at in range(high_length):
            weights[at, 0] = self.fmt.radix ** (high_length - 1 - at)
        for at in range(high_length, self.fmt.length):
            weights[at, 1] = self.fmt.radix ** (self.fmt.length - 1 - at)
        return weights

    def encode(self, identity: int) -> str:
        """The symbols of one identity."""
        rest, symbols = self.ff1.encrypt_int(identity * self.check), bytearray()
        for _ in range(self.fmt.length):
            rest, symbol = divmod(rest, self.fmt.radix)
            symbols.append(self.fmt.alphabet[symbol])
        symbols.reverse()
        return symbols.decode("ascii")

    def decode(self, symbols: bytes) -> Identity | None:
        """The identity of one code; None if this is not a code."""
        if len(symbols) != self.fmt.length:
            return None
        try:
            number = int(symbols.translate(self.to_digits), self.fmt.radix)
        except ValueError:  # a symbol outside the alphabet
            return None
        identity, rest = divmod(self.ff1.decrypt_int(number), self.check)
        if rest or identity >= IDENTITY_LIMIT:
            return None
        return identity >> SERIAL_BITS, identity & (SERIAL_LIMIT - 1)

    def encode_many(self, identities: Halves) -> tuple[Halves, Halves]:
        """The halves of the codes of many identities."""
        return self.ff1.encrypt_many(*self._to_halves(identities))

    def decode_many(self, symbols: bytes) -> tuple[Halves, npt.NDArray[np.bool_]]:
        """The identities of many codes, and which of them are valid. ``symbols`` has no separators."""
        values = np.frombuffer(symbols.translate(self.to_values), np.uint8)
        halves = values.reshape(-1, self.fmt.length).astype(np.uint64) @ self.weights
        return self._to_identities(*self.ff1.decrypt_many(halves[:, 0], halves[:, 1]))

    def _to_halves(self, identities: Halves) -> tuple[Halves, Halves]:
        """The halves of `identities * check`, which itself may need more than 64 bits."""
        if not self.is_binary:
            numbers = identities * np.uint64(self.check)
            high = numbers // np.uint64(self.ff1.low_modulus)
            return high, numbers - high * np.uint64(self.ff1.low_modulus)
        low = (identities << np.uint64(self.check_bits)) & np.uint64(self.ff1.low_modulus - 1)
        if self.check_bits < self.low_bits:
            return identities >> np.uint64(self.low_bits - self.check_bits), low
        return identities << np.uint64(self.check_bits - self.low_bits), low

    def _to_identities(self, high: Halves, low: Halves) -> tuple[Halves, npt.NDArray[np.bool_]]:
        """The inverse of `_to_halves`, and which of the results are valid."""
        if not self.is_binary:
            numbers = high * np.uint64(self.ff1.low_modulus) + low
            identities = numbers // np.uint64(self.check)
            exact = identities * np.uint64(self.check) == numbers
            return identities, exact & (identities < np.uint64(IDENTITY_LIMIT))
        if self.check_bits < self.low_bits:
            identities = high << np.uint64(self.low_bits - self.check_bits)
            identities |= low >> np.uint64(self.check_bits)
        else:
            identities = high >> np.uint64(self.check_bits - self.low_bits)
        again_high, again_low = self._to_halves(identities)
        return identities, (again_high == high) & (again_low == low)

    def lines(self, head: bytes, identities: Halves) -> bytes:
        """CSV lines `code,serial` of consecutive identities. Their serials must have equally many digits."""
        code = head + self.fmt.show("0" * self.fmt.length).encode() + b","
        serials = (identities & np.uint64(SERIAL_LIMIT - 1)).astype(np.uint32)
        digits = len(str(serials[0]))
        line = np.frombuffer(code + b"0" * digits + b"\n", np.uint8)
        rows = np.empty((len(identities), len(line)), np.uint8)
        rows[:] = line

        columns = [at for at in range(len(head), len(code) - 1) if code[at] == _ZERO]
        high, low = self.encode_many(identities)
        self._write(rows, columns[: -self.half_length], high)
        self._write(rows, columns[-self.half_length :], low)
        for at in range(len(code) + digits - 1, len(code) - 1, -1):
            rest = serials // np.uint32(10)
            rows[:, at] = serials - rest * np.uint32(10) + _ZERO
            serials = rest
        return rows.tobytes()

    def _write(self, rows: npt.NDArray[np.uint8], columns: list[int], halves: Halves) -> None:
        """Write the symbols of one half into its columns, the least significant first."""
        radix = np.uint64(self.fmt.radix)
        for at in reversed(columns):
            rest = halves // radix
            rows[:, at] = self.glyphs[halves - rest * radix]
            halves = rest


class Codec:
    """Mints and decodes under named mint keys.

    `mint` may run in another thread. All other methods must be called from one thread.
    """

    def __init__(self, keys: Mapping[str, bytes]) -> None:
        self._keys: Final = dict(keys)
        self._coders: Final[dict[tuple[str, str], _Coder]] = {}

    def mint(
        self,
        key_name: str,
        fmt: Format,
        prefix: str,
        batch: int,
        *,
        start: int,
        count: int,
        chunk_codes: int = CHUNK_CODES,
    ) -> Iterator[bytes]:
        """CSV lines `code,serial` (no header) of serials `start` to `start + count - 1`, in chunks.

        `chunk_codes` bounds the memory. Minting the same serials again gives the same codes.

        Raises:
            ValueError: batch, serials, prefix or chunk are out of range. Raised by the call itself.
            UnknownKeyError: there is no such key.
        """
        if not 0 <= batch < BATCH_LIMIT:
            raise ValueError(f"batch must be between 0 and {BATCH_LIMIT - 1}, not {batch}")
        if start < 0 or count < 0 or start + count > SERIAL_LIMIT:
            raise ValueError(f"serials must be between 0 and {SERIAL_LIMIT - 1}")
        if chunk_codes < 1:
            raise ValueError(f"a chunk holds at least one code, not {chunk_codes}")
        coder = _Coder(fmt, self._key(key_name))  # a new one, because minting may run in another thread
        return _chunks(coder, _head(prefix), batch, range(start, start + count), chunk_codes)

    def code(self, key_name: str, fmt: Format, prefix: str, batch: int, serial: int) -> str:
        """Mint one code, in groups and with its prefix.

        Raises:
            ValueError: batch, serial or prefix are out of range.
            UnknownKeyError: there is no such key.
        """
        if not (0 <= batch < BATCH_LIMIT and 0 <= serial < SERIAL_LIMIT):
            raise ValueError(f"batch must be below {BATCH_LIMIT} and serial below {SERIAL_LIMIT}")
        head = _head(prefix).decode("ascii")
        return head + fmt.show(self._coder(key_name, fmt).encode(batch << SERIAL_BITS | serial))

    def decode(self, symbols: bytes, fmt: Format, key_name: str) -> Identity | None:
        """Decode normalised symbols to (batch, serial); None if they are not a code.

        Raises:
            UnknownKeyError: there is no such key.
        """
        return self._coder(key_name, fmt).decode(symbols)

    def decode_many(self, symbols: Sequence[bytes], fmt: Format, key_name: str) -> list[Identity | None]:
        """Do the same as `decode` for many codes of one format, in their order.

        Raises:
            UnknownKeyError: there is no such key.
        """
        coder = self._coder(key_name, fmt)
        if coder.ff1.decryptor is not None:
            return coder.ff1.decryptor.decode_many(
                symbols, coder.to_values, fmt.radix, fmt.length, coder.check
            )
        joined = b"".join(symbols)
        if (
            len(symbols) <= _SCALAR_CODES_MAX
            or set(map(len, symbols)) != {fmt.length}
            or joined.translate(None, fmt.alphabet)
        ):
            return [coder.decode(one) for one in symbols]
        identities, valid = coder.decode_many(joined)
        batches = (identities >> np.uint64(SERIAL_BITS)).tolist()
        serials = (identities & np.uint64(SERIAL_LIMIT - 1)).tolist()
        if valid.all():
            return list(zip(batches, serials, strict=True))
        return [
            (batch, serial) if is_valid else None
            for batch, serial, is_valid in zip(batches, serials, valid.tolist(), strict=True)
        ]

    def _key(self, name: str) -> bytes:
        try:
            return self._keys[name]
        except KeyError:
            raise UnknownKeyError(f"no mint key is named {name!r}") from None

    def _coder(self, key_name: str, fmt: Format) -> _Coder:
        coder = self._coders.get((key_name, fmt.name))
        if coder is None:
            coder = self._coders[key_name, fmt.name] = _Coder(fmt, self._key(key_name))
        return coder


def _head(prefix: str) -> bytes:
    """The text before the symbols: the prefix in upper case and a dash, or nothing."""
    if not prefix:
        return b""
    normalise_prefix(prefix)
    return prefix.upper().encode("ascii") + b"-"


def _chunks(coder: _Coder, head: bytes, batch: int, serials: range, chunk_codes: int) -> Iterator[bytes]:
    for at in range(0, len(serials), chunk_codes):
        chunk = serials[at : at + chunk_codes]
        yield b"".join(
            coder.lines(
                head, np.arange(run.start, run.stop, dtype=np.uint64) + np.uint64(batch << SERIAL_BITS)
            )
            for run in _runs(chunk)
        )


def _runs(serials: range) -> Iterator[range]:
    """Split consecutive serials where the number of decimal digits changes."""
    start = serials.start
    while start < serials.stop:
        stop = min(serials.stop, 10 ** len(str(start)))
        yield range(start, stop)
        start = stop
