"""Codes in texts that will be stored are found as people write them, and other texts cost nothing."""

from __future__ import annotations

import uuid

import pytest

from engine.codes.formats import DEFAULT_FORMAT, FORMATS
from engine.codes.texts import Scanner, possible

SHOWN = "ABCD-EFGH-JKMN-PQRS"
FLAT = b"ABCDEFGH" + b"JKMNPQRS"


@pytest.mark.parametrize(
    "text",
    [
        SHOWN,
        SHOWN.lower(),
        SHOWN.replace("-", ""),
        SHOWN.replace("-", " "),
        ":".join(SHOWN),
        f"order {SHOWN}/1",
        f"#{SHOWN.replace('-', '').lower()}@shop",
        f"{SHOWN}-{SHOWN}",
        f"SUMMER-{SHOWN}",
        f"love{SHOWN}",
        f"u{SHOWN}",
        f"{SHOWN}x",
        f"user {SHOWN}{SHOWN}",
        SHOWN.replace("-", "\\-") + "!",
        "id: " + SHOWN.replace("-", " - "),
        "".join(chr(ord(letter) + 0xFEE0) for letter in SHOWN if letter != "-"),
    ],
)
def test_a_code_is_found_however_it_is_written(text: str) -> None:
    assert (DEFAULT_FORMAT, FLAT) in Scanner([DEFAULT_FORMAT], frozenset({b"10VE"})).likely(text)


@pytest.mark.parametrize(
    "text",
    [
        "ann",
        "ann.smith@example.com",
        "order-2026-000123",
        str(uuid.UUID(int=2**128 - 1)),
        "f" * 32,
        "é" * 20,
    ],
)
def test_an_ordinary_text_is_not_decrypted(text: str) -> None:
    assert Scanner([DEFAULT_FORMAT], frozenset()).likely(text) == []


def test_only_formats_in_use_are_looked_for() -> None:
    digits = FORMATS["digits-15"]
    assert Scanner([digits], frozenset()).likely(SHOWN) == []
    assert Scanner([DEFAULT_FORMAT], frozenset()).likely("12345-12345-12345") == []
    assert Scanner([digits], frozenset()).likely("no 12345-12345-12345!") == [(digits, b"123451234512345")]


def test_every_part_of_a_reason_is_looked_at() -> None:
    assert (DEFAULT_FORMAT, FLAT) in possible(f"x{SHOWN.replace('-', '')}y", [DEFAULT_FORMAT])
    assert possible("too short", [DEFAULT_FORMAT]) == []
