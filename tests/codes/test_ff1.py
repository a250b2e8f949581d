"""FF1 against the sample vectors of SP 800-38G, and its forms against each other."""

from __future__ import annotations

import random
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.codes import ff1
from engine.codes.direct_aes import direct_aes
from engine.codes.ff1 import FF1
from engine.codes.formats import FORMATS
from tests.support.compiled_ff1 import IF_COMPILED

KEY_256 = "2B7E151628AED2A6ABF7158809CF4F3CEF4359D8D580AA4F7F036D6F04FC6A94"
KEY_192 = KEY_256[:48]
KEY_128 = KEY_256[:32]
TWEAK_10 = "39383736353433323130"
TWEAK_36 = "3737373770717273373737"
SYMBOLS = "0123456789abcdefghijklmnopqrstuvwxyz"
STRIDE_CODES = 4096


class Sample(NamedTuple):
    key: str
    radix: int
    tweak: str
    plain: str
    code: str


SAMPLES = [
    Sample(KEY_128, 10, "", "0123456789", "2433477484"),
    Sample(KEY_128, 10, TWEAK_10, "0123456789", "6124200773"),
    Sample(KEY_128, 36, TWEAK_36, "0123456789abcdefghi", "a9tv40mll9kdu509eum"),
    Sample(KEY_192, 10, "", "0123456789", "2830668132"),
    Sample(KEY_192, 10, TWEAK_10, "0123456789", "2496655549"),
    Sample(KEY_192, 36, TWEAK_36, "0123456789abcdefghi", "xbj3kv35jrawxv32ysr"),
    Sample(KEY_256, 10, "", "0123456789", "6657667009"),
    Sample(KEY_256, 10, TWEAK_10, "0123456789", "1001623463"),
    Sample(KEY_256, 36, TWEAK_36, "0123456789abcdefghi", "xs8a0azh2avyalyzuwd"),
]

# Radix and length: our formats, odd lengths, a radix that is a power of two but no format's,
# the largest halves there may be, and the smallest domain there may be.
SHAPES = [(fmt.radix, fmt.length) for fmt in FORMATS.values()] + [
    (10, 6),
    (1000, 2),
    (32, 13),
    (36, 19),
    (2, 21),
    (2, 110),
    (256, 12),
    (255, 14),
    (10, 32),
    (65536, 6),
    (65535, 6),
]


def many(cipher: FF1, numbers: list[int], *, decrypt: bool = False) -> list[int]:
    high = np.array([number // cipher.low_modulus for number in numbers], np.uint64)
    low = np.array([number % cipher.low_modulus for number in numbers], np.uint64)
    high, low = cipher.decrypt_many(high, low) if decrypt else cipher.encrypt_many(high, low)
    return [a * cipher.low_modulus + b for a, b in zip(high.tolist(), low.tolist(), strict=True)]


def compiled(cipher: FF1, numbers: list[int]) -> list[int]:
    """Decrypt by the compiled form."""
    assert cipher.decryptor is not None
    return cipher.decryptor.decrypt_many(numbers)


def written(number: int, radix: int, length: int) -> str:
    symbols = ""
    for _ in range(length):
        number, symbol = divmod(number, radix)
        symbols = SYMBOLS[symbol] + symbols
    return symbols


@pytest.mark.parametrize("sample", SAMPLES)
def test_nist_sample_vectors(sample: Sample) -> None:
    length = len(sample.plain)
    cipher = FF1(bytes.fromhex(sample.key), sample.radix, length, bytes.fromhex(sample.tweak))
    plain, code = int(sample.plain, sample.radix), int(sample.code, sample.radix)
    assert written(cipher.encrypt_int(plain), sample.radix, length) == sample.code
    assert written(cipher.decrypt_int(code), sample.radix, length) == sample.plain
    assert many(cipher, [plain, plain]) == [code, code]
    assert many(cipher, [code, code], decrypt=True) == [plain, plain]


@pytest.mark.parametrize(("radix", "length"), SHAPES)
@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_many_equals_one_and_decrypting_undoes_it(data: st.DataObject, radix: int, length: int) -> None:
    key = data.draw(st.binary(min_size=32, max_size=32))
    # Tweaks around one block, where the varying part moves into a block of its own.
    cipher = FF1(key, radix, length, data.draw(st.binary(max_size=40)))
    edges = st.sampled_from(
        [0, 1, cipher.low_modulus - 1, cipher.low_modulus, cipher.domain - 2, cipher.domain - 1]
    )
    numbers = data.draw(st.lists(edges | st.integers(0, cipher.domain - 1), min_size=1, max_size=20))
    codes = [cipher.encrypt_int(number) for number in numbers]
    assert all(0 <= code < cipher.domain for code in codes)
    assert many(cipher, numbers) == codes
    assert [cipher.decrypt_int(code) for code in codes] == numbers
    assert many(cipher, codes, decrypt=True) == numbers


@pytest.mark.parametrize(
    "count", [0, 1, STRIDE_CODES - 1, STRIDE_CODES, STRIDE_CODES + 1, 3 * STRIDE_CODES + 5]
)
@pytest.mark.parametrize(("radix", "length"), [(32, 16), (10, 15)])
def test_no_code_is_lost_where_strides_meet(radix: int, length: int, count: int) -> None:
    cipher = FF1(bytes(32), radix, length)
    source = random.Random(count)
    numbers = [source.randrange(cipher.domain) for _ in range(count)]
    codes = many(cipher, numbers)
    assert many(cipher, codes, decrypt=True) == numbers
    for at in {0, STRIDE_CODES - 1, STRIDE_CODES, count - 1} & set(range(count)):
        assert codes[at] == cipher.encrypt_int(numbers[at])


@pytest.fixture(params=[direct_aes, None], ids=["direct", "cryptography"])
def aes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the compiled form calls OpenSSL itself, or through cryptography."""
    monkeypatch.setattr(ff1, "direct_aes", request.param or (lambda _key, _update: None))


@IF_COMPILED
@pytest.mark.usefixtures("aes")
@pytest.mark.parametrize("sample", SAMPLES)
def test_nist_sample_vectors_by_the_compiled_form(sample: Sample) -> None:
    cipher = FF1(bytes.fromhex(sample.key), sample.radix, len(sample.plain), bytes.fromhex(sample.tweak))
    plain, code = int(sample.plain, sample.radix), int(sample.code, sample.radix)
    assert compiled(cipher, [code, code]) == [plain, plain]


@IF_COMPILED
@pytest.mark.parametrize("count", [0, 1, 2, 3 * STRIDE_CODES + 5])
@pytest.mark.parametrize(("radix", "length"), SHAPES)
@settings(deadline=None, max_examples=10)
@given(data=st.data())
def test_the_compiled_form_decrypts_as_the_reference(
    data: st.DataObject, radix: int, length: int, count: int
) -> None:
    cipher = FF1(
        data.draw(st.binary(min_size=32, max_size=32)), radix, length, data.draw(st.binary(max_size=40))
    )
    source = random.Random(data.draw(st.integers(0, 2**32)))
    edges = [0, 1, cipher.low_modulus - 1, cipher.low_modulus, cipher.domain - 2, cipher.domain - 1]
    codes = [source.randrange(cipher.domain) for _ in range(count)] + edges
    assert compiled(cipher, codes) == many(cipher, codes, decrypt=True)


def test_a_whole_domain_is_permuted() -> None:
    cipher = FF1(bytes(range(16)), 10, 6, b"tweak")
    numbers = list(range(cipher.domain))
    codes = many(cipher, numbers)
    assert sorted(codes) == numbers
    assert codes != numbers


def test_arguments_are_not_changed() -> None:
    cipher = FF1(bytes(32), 32, 16)
    high, low = np.arange(100, dtype=np.uint64), np.arange(100, dtype=np.uint64)
    cipher.encrypt_many(high, low)
    cipher.decrypt_many(high, low)
    assert high.tolist() == low.tolist() == list(range(100))


def test_a_view_with_strides_is_read_as_what_it_shows() -> None:
    cipher = FF1(bytes(32), 32, 16)
    halves = np.arange(200, dtype=np.uint64).reshape(100, 2)
    apart = [a * cipher.low_modulus + b for a, b in halves.tolist()]
    high, low = cipher.encrypt_many(halves[:, 0], halves[:, 1])
    assert int(high[7]) * cipher.low_modulus + int(low[7]) == cipher.encrypt_int(apart[7])


def test_key_and_tweak_both_matter() -> None:
    codes = {
        FF1(key, 32, 16, tweak).encrypt_int(7)
        for key in (bytes(32), bytes(31) + b"\x01")
        for tweak in (b"", b"\x00", b"base32-16")
    }
    assert len(codes) == 6


@pytest.mark.parametrize(
    ("key_bytes", "radix", "length"),
    [
        (32, 10, 5),  # a domain below one million
        (32, 999, 2),
        (32, 1, 16),
        (32, 0, 16),
        (32, 2**16 + 1, 4),
        (32, 32, 1),
        (32, 32, 0),
        (32, 32, -16),
        (32, 32, 23),  # 60 bits in a half
        (32, 256, 14),  # exactly 2**56
        (32, 2, 10**9),
        (31, 32, 16),
        (0, 32, 16),
    ],
)
def test_unsupported_parameters_are_refused(key_bytes: int, radix: int, length: int) -> None:
    with pytest.raises(ValueError, match=r".+"):
        FF1(bytes(key_bytes), radix, length)


def test_numbers_outside_the_domain_are_refused() -> None:
    cipher = FF1(bytes(32), 10, 15)
    for number in (-1, cipher.domain):
        with pytest.raises(ValueError, match="domain"):
            cipher.encrypt_int(number)
        with pytest.raises(ValueError, match="domain"):
            cipher.decrypt_int(number)
    zero = np.zeros(1, np.uint64)
    for high, low in ((cipher.high_modulus, 0), (0, cipher.low_modulus)):
        with pytest.raises(ValueError, match="domain"):
            cipher.encrypt_many(zero + np.uint64(high), zero + np.uint64(low))
    with pytest.raises(ValueError, match="equally long"):
        cipher.encrypt_many(zero, np.zeros(2, np.uint64))
    with pytest.raises(ValueError, match="one-dimensional"):
        cipher.decrypt_many(zero.reshape(1, 1), zero.reshape(1, 1))
