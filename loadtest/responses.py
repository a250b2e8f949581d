"""Reads responses of HTTP/1.1 from the bytes of a connection: only the status, and a body with a length."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)
_BLANK: Final = b"\r\n\r\n"


class WholeResponse(NamedTuple):
    """A response, and the bytes behind it."""

    status: int
    body: bytes
    rest: bytes


def take_response(received: bytes) -> WholeResponse | None:
    """Return the first response; None while it is not whole."""
    head, blank, rest = received.partition(_BLANK)
    if not blank:
        return None
    found = _LENGTH.search(head + b"\r\n")
    length = int(found[1]) if found else 0
    return WholeResponse(int(head[9:12]), rest[:length], rest[length:]) if len(rest) >= length else None
