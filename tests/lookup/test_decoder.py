"""Texts are found under every format, mint key and prefix in use, as one text alone would be."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import pytest
from redis.asyncio import Redis

from engine.codes.codec import Codec
from engine.codes.formats import FORMATS, normalise, normalise_prefix, split, stand_in
from engine.lookup.decoder import Decoder, Issued, Reading
from engine.settings import load
from engine.store.configuration import CachedBatch, ConfigurationCache

if TYPE_CHECKING:
    from engine.codes.formats import Format

KEYS: Final = {"k1": bytes(range(32)), "k2": bytes(range(32, 64))}
COUNT: Final = 50
# Numbers of batches are unique, whatever their format or mint key.
FIRST: Final = CachedBatch(1, "campaign", COUNT, "base32-16", None, "k1")
OTHERS: Final = (
    CachedBatch(2, "campaign", COUNT, "base32-16", "LOVE", "k1"),
    CachedBatch(3, "campaign", COUNT, "base32-16", None, "k2"),
    CachedBatch(4, "campaign", COUNT, "digits-18", None, "k1"),
    CachedBatch(5, "campaign", COUNT, "base32-12", "LOVE-24", "k2"),
    CachedBatch(6, "campaign", COUNT, "imported", None, "k1"),
)


def decoder_of(*batches: CachedBatch) -> tuple[Decoder, ConfigurationCache]:
    configuration = ConfigurationCache(Redis())
    configuration.version = 1
    for batch in batches:
        configuration.take_batch(batch)
    texts = ",".join(f"{name}:{key.hex()}" for name, key in KEYS.items())
    return Decoder(replace(load({}), mint_keys=texts), configuration), configuration


def found_alone(codec: Codec, configuration: ConfigurationCache, readings: list[Reading]) -> Issued | None:
    """The issued code of one text, as the definition of a code says it."""
    for (fmt, symbols, prefix), name in itertools.product(readings, KEYS):
        identity = codec.decode(symbols, fmt, name)
        batch = configuration.batches.get(identity[0]) if identity else None
        if identity is None or batch is None:
            continue
        own_prefix = normalise_prefix(batch.prefix) if batch.prefix else b""
        if (batch.format, batch.mint_key, own_prefix) == (fmt.name, name, prefix) and identity[
            1
        ] < batch.count:
            return Issued(batch, identity[1], fmt, symbols)
    return None


def texts_of(codec: Codec, rng: random.Random) -> list[str]:
    """Codes of all batches, and others: above the count, under a wrong prefix, mint key or format."""
    formats: list[Format] = list(FORMATS.values())
    prefixes = ["", "LOVE", "LOVE-24"]
    texts = [
        codec.code(name, fmt, prefix, batch, serial)
        for name, fmt, prefix, batch in itertools.product(KEYS, formats, prefixes, range(1, 8))
        for serial in (0, rng.randrange(COUNT), COUNT - 1, COUNT, COUNT + rng.randrange(99))
    ]
    texts += ["".join(rng.choices("0123456789ABCDEFGHJK", k=16)) for _ in range(50)]
    rng.shuffle(texts)
    return texts


@pytest.mark.parametrize("batches", [(FIRST,), OTHERS[:1], (FIRST, *OTHERS)], ids=["one", "prefixed", "all"])
def test_many_texts_are_found_as_each_alone(batches: tuple[CachedBatch, ...]) -> None:
    decoder, configuration = decoder_of(*batches)
    codec = Codec(KEYS)
    texts = [normalise(text) or b"" for text in texts_of(codec, random.Random(1))]
    readings = [split(text, configuration.prefixes) for text in texts]
    expected = [found_alone(codec, configuration, each) for each in readings]
    assert {code.batch for code in expected if code} == {b for b in batches if b.format != "imported"}
    assert decoder.find(readings) == expected  # all ways to read a text at once
    plain = [at for at, each in enumerate(readings) if len(each) == 1]
    assert decoder.find([readings[at] for at in plain]) == [expected[at] for at in plain]
    assert [decoder.find([each])[0] for each in readings] == expected


def test_a_stand_in_finds_nothing_whatever_it_decodes_to() -> None:
    decoder, _ = decoder_of(FIRST)
    code = normalise(Codec(KEYS).code("k1", FORMATS["base32-16"], "", 1, 0)) or b""
    fmt, _, prefix = stand_in(code)
    assert decoder.find([[(fmt, code, b"")], [(fmt, code, prefix)]])[1] is None


def test_a_batch_is_found_once_the_copy_has_a_new_version() -> None:
    decoder, configuration = decoder_of(FIRST)
    text = normalise(Codec(KEYS).code("k2", FORMATS["base32-16"], "", 3, 7)) or b""
    assert decoder.find([split(text)]) == [None]
    configuration.take_batch(OTHERS[1])
    configuration.version += 1
    assert decoder.find([split(text)]) == [Issued(OTHERS[1], 7, FORMATS["base32-16"], text)]
