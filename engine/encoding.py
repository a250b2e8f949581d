"""JSON: how the engine encodes it."""

from __future__ import annotations

from typing import Final

import orjson

JSON_TYPE: Final = "application/json"
encode = orjson.dumps


def canonical(value: object) -> bytes:
    """The same bytes for the same JSON value.

    Raises:
        orjson.JSONEncodeError: nested too deep, or an integer past 64 bits.
    """
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS)
