"""JSON encoding of the engine, and the normal form of names."""

from __future__ import annotations

import unicodedata
from typing import Final

import orjson

JSON_TYPE: Final = "application/json"
encode = orjson.dumps


def canonical(value: object) -> bytes:
    """Encode a value so that equal JSON values give equal bytes.

    Raises:
        orjson.JSONEncodeError: the nesting is too deep, or an integer has more than 64 bits.
    """
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS)


def normal_form(name: str) -> str:
    """Return a name in NFC (UAX #15): the same letters are the same text, however they were typed."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)
