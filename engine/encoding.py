"""JSON encoding of the engine."""

from __future__ import annotations

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
