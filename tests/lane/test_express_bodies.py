"""What the express lane reads by itself, msgspec and the checks of the other lanes read the same.

Bodies are mutated at random: where the express lane reads one, the other lanes must accept it, with the same
fields. It need not read everything, but it reads what is plain.
"""

from __future__ import annotations

import importlib
import random
import uuid
from typing import Any, Final

import pytest

from engine.api.bodies import parse_redeem_request
from engine.codes.formats import FORMATS
from engine.codes.texts import _TO_SHAPE, _UUID, Scanner
from engine.lane.choice import MODULE, is_built
from engine.redemption.core import _repeats_code
from engine.settings import Settings

pytestmark = pytest.mark.skipif(not is_built(), reason="the express lane was not built")

SETTINGS: Final = Settings(user_length_max=20, order_length_max=20)
PLAIN: Final = (
    b'{"code": "ABCD-1234-EFGH-5678", "user": "ann"}',
    b'{"user":"ann","code":"0123456789ABCDEF","order":"o-1","amount":500}',
    b' {\t"amount" : "up_to_balance" ,"code":"a","user":"b"\r\n} \n',
    b'{"code":"a","user":"b","amount":null,"order":null,"currency":null,"campaign":null}',
    b'{"code":"a","user":"a b","currency":"EUR","campaign":"cmp_1","amount":0}',
    b'{"code":"","user":"0123456789012345678~","amount":999999999999999}',
)
FOR_OTHERS: Final = (
    b'{"code":"a","user":"b","client":{"ip":"::1"},"metadata":{"a":[1]}}',
    b'{"code":"a","user":"\\u0061nn","order":"\xc3\xa9"}',
    b'{"code":"a","user":"b","amount":-1}',
    b'{"code":"a","user":"b","amount":1.5,"amount":1e3}',
    b'{"code":"a","code":"b","user":"c"}',
    b"[]",
)
PIECES: Final = (
    *(b'"', b"\\", b"{", b"}", b":", b",", b" ", b"\n", b"\0", b"\x7f", b"\xc3\xa9", b"0", b"9", b"-", b"."),
    *(b"null", b"true", b'"up_to_balance"', b'"code"', b'"user"', b'"amount"', b'"order"', b'"x"', b'""'),
    *(b'"order":"a",', b'"amount":007,', b'"currency":"eur",', b'"campaign":"",', b'"user":" a",', b"[1]"),
)  # fmt: skip


def by_express(body: bytes) -> tuple[Any, ...] | None:
    found: tuple[Any, ...] | None = importlib.import_module(MODULE).parse(body, SETTINGS)
    return found


def by_msgspec(body: bytes) -> tuple[Any, ...]:
    read = parse_redeem_request(body, SETTINGS)
    assert read.client is None
    assert read.metadata is None
    return read.code, read.user, read.amount, read.order, read.currency, read.campaign


def mutated(chance: random.Random) -> bytes:
    body = chance.choice(PLAIN * 2 + FOR_OTHERS)
    for _ in range(chance.randint(1, 2)):
        at, length = chance.randrange(len(body) + 1), chance.randrange(4)
        kind = chance.randrange(3)
        if kind == 0:
            body = body[:at] + chance.choice(PIECES) + body[at:]
        elif kind == 1:
            body = body[:at] + body[at + length :]
        else:
            body = body[:at] + chance.randbytes(1) + body[at + 1 :]
    return body


def compare(number: int) -> None:
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    read = 0
    for _ in range(number):
        body = mutated(chance)
        found = by_express(body)
        if found is not None:
            read += 1
            assert found == by_msgspec(body), (seed, body)
    assert number / 50 < read < number, seed


@pytest.mark.parametrize("body", PLAIN)
def test_plain_bodies_are_read_by_the_express_lane(body: bytes) -> None:
    assert by_express(body) == by_msgspec(body)


@pytest.mark.parametrize("body", [*FOR_OTHERS, b"", b"{}", b'{"code":"a"}', b'{"code":"a","user":null}'])
def test_other_bodies_are_left_to_the_other_lanes(body: bytes) -> None:
    assert by_express(body) is None


@pytest.mark.parametrize("user", ["", " a", "a ", "a" * 21, "a\\n", "\u00e9", "a\x7f"], ids=ascii)
def test_users_that_need_a_check_are_left_to_the_other_lanes(user: str) -> None:
    assert by_express(f'{{"code":"a","user":"{user}"}}'.encode()) is None


def test_mutated_bodies_are_read_alike_or_not_at_all() -> None:
    compare(30_000)


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_a_million_mutated_bodies_are_read_alike_or_not_at_all() -> None:
    compare(1_000_000)


def test_a_code_in_another_field_is_found_alike() -> None:
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    repeats = importlib.import_module(MODULE).repeats
    found = 0
    for _ in range(20_000):
        code = bytes(chance.choices(b"0123456789ABCDEFGHJKMNPQRSTVWXYZ", k=chance.choice((12, 16, 20))))
        part = code[chance.choice((0, 0, len(code) - 12, len(code) - 11)) :]
        text = bytearray(chance.choice((b"", b"for ", b"x" * 300)) + part + chance.choice((b"", b"!")))
        for _ in range(chance.choice((0, 0, 3))):
            text.insert(chance.randrange(len(text) + 1), chance.choice(b"-_. ,;~a"))
        if chance.random() < 0.5:
            text = bytearray(text.lower().replace(b"0", b"o").replace(b"1", b"l"))
        expected = _repeats_code(code, text.decode())
        assert repeats(code, bytes(text)) is expected, (seed, code, text)
        found += expected
    assert found > 1000, seed


def test_a_uuid_is_a_key_without_a_code() -> None:
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    has_shape = importlib.import_module(MODULE).has_shape_of_uuid
    scanner = Scanner(FORMATS.values(), ())
    found = 0
    for _ in range(5_000):
        letters = list(str(uuid.UUID(int=chance.getrandbits(128))))
        for _ in range(chance.choice((0, 0, 1, 2))):
            letters[chance.randrange(len(letters))] = chance.choice("-_ z9A~/:@[`{")
        text = "".join(letters[chance.choice((0, 0, 0, 1)) :]).encode()
        expected = b"|%b|" % text.translate(_TO_SHAPE) == _UUID
        assert has_shape(text) is expected, (seed, text)
        assert not (expected and scanner.likely(text.decode())), (seed, text)
        found += expected
    assert 1000 < found < 5000, seed
