"""FF1 of NIST SP 800-38G: a keyed permutation of the strings of a given radix and length.

Minting encrypts (batch, serial) with it, and the front end decrypts every code with it (see the decision in
docs/decisions/0001-computed-codes.md).
There are two forms: one number at a time in plain integers, and many numbers at once in numpy, with one AES
call per round for all of them. Where there was a C compiler, ``_ff1`` decrypts instead of both.

Two facts keep a round at one AES block. First, the CBC-MAC is AES of the XOR of the chain value and the
block. All blocks before the last one (P, and the front of Q) are the same for a given radix, length and
tweak. So their chain value is computed once. Second, radix**v < 2**56, so the varying part is at most seven
bytes long. So the first half of the last block is constant too, and S is never longer than twelve bytes: no
more AES calls are needed to extend it.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from engine.codes.direct_aes import direct_aes
from engine.compiled import find_compiled

if TYPE_CHECKING:
    from collections.abc import Callable

    from cryptography.utils import Buffer

    from engine.codes._ff1 import Decryptor
    from engine.codes.direct_aes import DirectAes

MODULE: Final = "engine.codes._ff1"
Halves: TypeAlias = npt.NDArray[np.uint64]

ROUNDS: Final = 10
DOMAIN_MIN: Final = 1_000_000  # SP 800-38G Rev. 1, section 5.1
RADIX_MIN: Final = 2
RADIX_MAX: Final = 2**16
LENGTH_MIN: Final = 2
HALF_LIMIT: Final = 2**56

_BLOCK_BYTES: Final = 16
_WORD_BITS: Final = 64
_STRIDE_CODES: Final = 4096  # codes of one step: so many that the buffers stay in the processor's cache


@dataclass(frozen=True, slots=True)
class _Round:
    """The constants of one round in numpy: the chain value to XOR, the modulus of the half that changes."""

    chain: Halves
    modulus: Halves
    mask: Halves


def _round(chain: int, modulus: int) -> _Round:
    words = (chain & (2**_WORD_BITS - 1), modulus, modulus - 1)
    return _Round(*(np.array(word, np.uint64) for word in words))


class _Block:
    """The AES input and output of one stride of codes, and views of their varying parts."""

    def __init__(self, high_word: Halves, sum_at: int) -> None:
        size = _STRIDE_CODES * _BLOCK_BYTES
        self.input: Final = memoryview(bytearray(size))
        # update_into needs a buffer that is one block minus one byte longer.
        self.output: Final = memoryview(bytearray(size + _BLOCK_BYTES))
        self.scratch: Final = np.empty(_STRIDE_CODES, np.uint64)
        _column(self.input, 0, ">u8")[:] = high_word
        self.low_words: Final[Halves] = _column(self.input, 8, ">u8")
        self.sums: Final[Halves] = _column(self.output, sum_at, ">u8")
        self.sums_end: Final[npt.NDArray[np.uint32]] = _column(self.output, 8, ">u4")


def _column(blocks: memoryview, at: int, kind: str) -> npt.NDArray[Any]:
    """The big-endian integer at byte `at` of every AES block, as a view."""
    return np.ndarray((_STRIDE_CODES,), kind, blocks, at, (_BLOCK_BYTES,))


def _decryptor(
    aes: Callable[[], DirectAes | None],
    update_into: Callable[[Buffer, Buffer], int],
    rounds: tuple[tuple[int, int], ...],
    sum_bytes: int,
    is_binary: bool,
) -> Decryptor | None:
    module = find_compiled(MODULE)
    if module is None:
        return None
    made: Decryptor = module.Decryptor(aes(), update_into, rounds, sum_bytes, is_binary)
    return made


class FF1:
    """FF1 for one key, radix, length and tweak. A string is given as an integer.

    Attributes:
        decryptor: the compiled form; None where it was not built.

    The most significant symbol comes first. An instance has buffers and an AES context, so two threads must
    not use it at once.

    Raises:
        ValueError: the key is not an AES key, radix**length is below one million, or the longer half has
            2**56 values or more.
    """

    def __init__(self, key: bytes, radix: int, length: int, tweak: bytes = b"") -> None:
        if not RADIX_MIN <= radix <= RADIX_MAX:
            raise ValueError(f"radix must be between {RADIX_MIN} and {RADIX_MAX}, not {radix}")
        if not LENGTH_MIN <= length < 2 * HALF_LIMIT.bit_length():
            raise ValueError(f"length {length} is not supported")
        high_length = length // 2
        low_length = length - high_length
        self.domain: Final[int] = radix**length
        self.high_modulus: Final[int] = radix**high_length
        self.low_modulus: Final[int] = radix**low_length
        if self.domain < DOMAIN_MIN:
            raise ValueError(f"radix**length must be at least {DOMAIN_MIN}, not {self.domain}")
        if self.low_modulus >= HALF_LIMIT:
            raise ValueError(f"half of {low_length} symbols in radix {radix} is not below 2**56")

        # AES is the block cipher FF1 is defined on, and one block of ECB is AES itself.
        encryptor = Cipher(algorithms.AES(key), modes.ECB()).encryptor()  # noqa: S305 - see above
        self._update: Final[Callable[[bytes], bytes]] = encryptor.update
        self._update_into: Final = encryptor.update_into
        half_bytes = ((self.low_modulus - 1).bit_length() + 7) // 8  # b, step 3
        sum_bytes = 4 * ((half_bytes + 3) // 4) + 4  # d, step 4: 8 or 12
        self._is_long: Final = sum_bytes > _WORD_BITS // 8
        self._is_binary: Final = radix & (radix - 1) == 0
        self._shift: Final = 8 * (_BLOCK_BYTES - sum_bytes)
        self._chunk_bits: Final = _WORD_BITS - self.low_modulus.bit_length()

        header = b"\x01\x02\x01" + radix.to_bytes(3, "big") + bytes((ROUNDS, high_length & 0xFF))
        header += length.to_bytes(4, "big") + len(tweak).to_bytes(4, "big")
        varying = half_bytes + 1
        fixed = header + tweak + bytes(-(len(tweak) + varying) % _BLOCK_BYTES)
        chain = self._chain(fixed + bytes(varying))
        self._high_word: Final = np.array(chain >> _WORD_BITS, np.uint64)
        chains = [chain ^ (i << (8 * half_bytes)) for i in range(ROUNDS)]
        moduli = [self.low_modulus if i % 2 else self.high_modulus for i in range(ROUNDS)]
        # The mask if the radix is a power of two, otherwise the modulus.
        reducers = [modulus - 1 if self._is_binary else modulus for modulus in moduli]
        self._scalar: Final = tuple(zip(chains, reducers, strict=True))
        self._scalar_reversed: Final = self._scalar[::-1]
        self._rounds: Final = tuple(map(_round, chains, moduli))
        self._rounds_reversed: Final = self._rounds[::-1]
        self._block: _Block | None = None
        self.decryptor: Final[Decryptor | None] = _decryptor(
            functools.partial(direct_aes, key, self._update),
            self._update_into,
            tuple(zip(chains, moduli, strict=True)),
            sum_bytes,
            self._is_binary,
        )

    def _chain(self, blocks: bytes) -> int:
        """The CBC-MAC state after XOR with the last block, before its encryption."""
        state = 0
        last = len(blocks) - _BLOCK_BYTES
        for at in range(0, len(blocks), _BLOCK_BYTES):
            state ^= int.from_bytes(blocks[at : at + _BLOCK_BYTES], "big")
            if at != last:
                state = int.from_bytes(self._update(state.to_bytes(_BLOCK_BYTES, "big")), "big")
        return state

    def encrypt_int(self, x: int) -> int:
        """Encrypt one number below `domain` (SP 800-38G, algorithm 7)."""
        if not 0 <= x < self.domain:
            raise ValueError("number outside the domain")
        update, from_bytes, shift = self._update, int.from_bytes, self._shift
        a, b = divmod(x, self.low_modulus)
        if self._is_binary:
            for chain, mask in self._scalar:
                a, b = b, (a + (from_bytes(update((chain ^ b).to_bytes(16))) >> shift)) & mask
        else:
            for chain, modulus in self._scalar:
                a, b = b, (a + (from_bytes(update((chain ^ b).to_bytes(16))) >> shift)) % modulus
        return a * self.low_modulus + b

    def decrypt_int(self, y: int) -> int:
        """Decrypt one number below `domain` (SP 800-38G, algorithm 8)."""
        if not 0 <= y < self.domain:
            raise ValueError("number outside the domain")
        update, from_bytes, shift = self._update, int.from_bytes, self._shift
        a, b = divmod(y, self.low_modulus)
        if self._is_binary:
            for chain, mask in self._scalar_reversed:
                a, b = (b - (from_bytes(update((chain ^ a).to_bytes(16))) >> shift)) & mask, a
        else:
            for chain, modulus in self._scalar_reversed:
                a, b = (b - (from_bytes(update((chain ^ a).to_bytes(16))) >> shift)) % modulus, a
        return a * self.low_modulus + b

    def encrypt_many(self, high: Halves, low: Halves) -> tuple[Halves, Halves]:
        """Encrypt many numbers, each given as its halves: high * low_modulus + low.

        The arrays must be one-dimensional and equally long. They are not changed. Each result equals
        `encrypt_int` of the same number.
        """
        a, b = self._checked(high, low)
        for at in range(0, len(a), _STRIDE_CODES):
            stride = slice(at, at + _STRIDE_CODES)
            self._walk(a[stride], b[stride], self._rounds, self._add)
        return a, b

    def decrypt_many(self, high: Halves, low: Halves) -> tuple[Halves, Halves]:
        """Decrypt many numbers: the inverse of `encrypt_many`."""
        a, b = self._checked(high, low)
        for at in range(0, len(a), _STRIDE_CODES):
            stride = slice(at, at + _STRIDE_CODES)
            self._walk(b[stride], a[stride], self._rounds_reversed, self._subtract)
        return a, b

    def _checked(self, high: Halves, low: Halves) -> tuple[Halves, Halves]:
        """Check the halves, and copy them, because the rounds change them in place."""
        if high.ndim != 1 or high.shape != low.shape:
            raise ValueError("halves must be one-dimensional and equally long")
        if len(high) and (high.max() >= self.high_modulus or low.max() >= self.low_modulus):
            raise ValueError("number outside the domain")
        return high.astype(np.uint64), low.astype(np.uint64)

    def _walk(
        self,
        target: Halves,
        source: Halves,
        rounds: tuple[_Round, ...],
        apply: Callable[[Halves, Halves, _Round], None],
    ) -> None:
        """Run ten rounds in place: AES of `source` changes `target`, then they swap.

        Ten is even, so each half ends in the array where it started.
        """
        block = self._block
        if block is None:
            block = self._block = _Block(self._high_word, 4 if self._is_long and self._is_binary else 0)
        count = len(target)
        scratch, low_words, sums = block.scratch[:count], block.low_words[:count], block.sums[:count]
        data, output = block.input[: count * _BLOCK_BYTES], block.output
        xor, copy, update_into = np.bitwise_xor, np.copyto, self._update_into
        for r in rounds:
            xor(source, r.chain, scratch)
            copy(low_words, scratch)
            update_into(data, output)
            copy(scratch, sums)
            if not self._is_binary:
                self._reduce(scratch, block.sums_end[:count], r.modulus)
            apply(target, scratch, r)
            source, target = target, source

    def _reduce(self, sums: Halves, ends: npt.NDArray[np.uint32], modulus: Halves) -> None:
        """Replace the first 64 bits of S by S modulo `modulus`, in chunks that fit 64 bits."""
        _remainder(sums, modulus)
        left_bits = 32 if self._is_long else 0
        tail = ends.astype(np.uint64) if self._is_long else sums
        while left_bits:
            chunk_bits = min(self._chunk_bits, left_bits)
            left_bits -= chunk_bits
            chunk = (tail >> np.uint64(left_bits)) & np.uint64(2**chunk_bits - 1)
            np.left_shift(sums, np.uint64(chunk_bits), sums)
            np.bitwise_or(sums, chunk, sums)
            _remainder(sums, modulus)

    def _add(self, target: Halves, sums: Halves, r: _Round) -> None:
        np.add(target, sums, target)
        if self._is_binary:
            np.bitwise_and(target, r.mask, target)
        else:  # below the modulus, the subtraction wraps to a larger number, so the minimum is right
            np.minimum(target, target - r.modulus, out=target)

    def _subtract(self, target: Halves, sums: Halves, r: _Round) -> None:
        np.subtract(target, sums, target)
        if self._is_binary:
            np.bitwise_and(target, r.mask, target)
        else:  # after a wrap below zero, adding the modulus gives a smaller number, so the minimum is right
            np.minimum(target, target + r.modulus, out=target)


def _remainder(values: Halves, modulus: Halves) -> None:
    """Reduce `values` modulo `modulus` in place. In numpy, `//` by a constant is faster than `%`."""
    quotients = values // modulus
    np.multiply(quotients, modulus, quotients)
    np.subtract(values, quotients, values)
