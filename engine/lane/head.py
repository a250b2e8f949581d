"""Whether a request is one that the fast lane answers, from the bytes of its head.

In doubt it is not: aiohttp then reads the same bytes again, and decides what to say.
"""

from __future__ import annotations

import functools
import re
from types import SimpleNamespace
from typing import Final, NamedTuple

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser

LINE: Final = b"POST /v1/redemptions HTTP/1.1\r\n"
BLANK: Final = b"\r\n\r\n"
HEAD_BYTES_MAX: Final = 8190  # aiohttp's limit for one line; a whole head within it keeps that, too
# Bytes that may wait behind a request in flight: past it the client is not read from.
WAITING_BYTES_MAX: Final = 65_536
_REMEMBERED_MAX: Final = 1024
_HEADERS_MAX: Final = 64  # aiohttp takes more
_LENGTH_DIGITS_MAX: Final = 9
_JSON_TYPES: Final = frozenset(
    (b"application/json", b"application/json; charset=utf-8", b"application/json;charset=utf-8")
)
# What changes how a request is framed, read or answered; signatures, of which this lane knows nothing;
# and an idempotency key that ``_KEY`` has left: a second one, or one of other characters.
_NOT_PLAIN: Final = frozenset(
    (
        *(b"content-encoding", b"expect", b"proxy-connection", b"transfer-encoding", b"upgrade"),
        *(b"sec-websocket-key1", b"signature", b"signature-input", b"idempotency-key"),
    )
)
_KEY: Final = re.compile(rb"\r\nidempotency-key: ?([!-~](?:[\t -~]*[!-~])?)(?=\r\n)", re.IGNORECASE)


class PlainHead(NamedTuple):
    """What the head of a plain redemption says, beside its idempotency key.

    Attributes:
        authorization: the header's value.
        length: of the body, in bytes; at least 1.
        is_last: the client wants the connection closed after its answer.
    """

    authorization: str
    length: int
    is_last: bool


class Heads:
    """Reads the heads of all connections of a worker.

    But for the idempotency key, a client's heads are the same again and again: what was read once is
    remembered by its bytes, up to a bound.
    """

    def __init__(self, body_bytes_max: int) -> None:
        self._body_bytes_max = body_bytes_max
        self._remembered: dict[bytes, PlainHead] = {}

    def read(self, head: bytes) -> tuple[PlainHead, str | None] | None:
        """Read a head that begins with ``LINE``, its blank line included; the key, if it has one, beside it.

        None: it is not one for this lane.
        """
        key = None
        found = _KEY.search(head)
        if found is not None:
            key = found[1].decode()
            head = head[: found.start()] + head[found.end() :]
        plain = self._remembered.get(head)
        if plain is None:
            plain = self._parse(head)
            if plain is None:
                return None
            if len(self._remembered) >= _REMEMBERED_MAX:
                self._remembered.clear()
            self._remembered[head] = plain
        return plain, key

    def _parse(self, head: bytes) -> PlainHead | None:
        fields: dict[bytes, bytes] = {}
        ends: list[None] = []
        # The parser calls into a dictionary and a list: no Python code runs for a header.
        parser = HttpRequestParser(
            SimpleNamespace(
                on_header=fields.__setitem__, on_message_complete=functools.partial(ends.append, None)
            )
        )
        if not _feed(parser, head) or ends or len(fields) > _HEADERS_MAX:
            return None
        named = {name.lower(): value for name, value in fields.items()}
        # As many lines as headers: none is given twice, folded, or hidden behind a line end of another kind.
        if not len(named) == len(fields) == head.count(b"\n") - 2 or not _NOT_PLAIN.isdisjoint(named):
            return None
        plain = self._said(named)
        if plain is None:
            return None
        # For the parser, too, the request ends with the last byte of its body, and not before.
        if not _feed(parser, bytes(plain.length - 1)) or ends or not _feed(parser, b"\0") or not ends:
            return None
        return plain

    def _said(self, named: dict[bytes, bytes]) -> PlainHead | None:
        authorization, length = named.get(b"authorization", b""), named.get(b"content-length", b"")
        if b"host" not in named or not _is_plain(authorization):
            return None
        if not length.isdigit() or len(length) > _LENGTH_DIGITS_MAX:
            return None
        if not 0 < int(length) <= self._body_bytes_max:
            return None
        if named.get(b"content-type", b"").lower() not in _JSON_TYPES:
            return None
        connection = named.get(b"connection", b"keep-alive").lower()
        if connection not in {b"keep-alive", b"close"}:
            return None
        return PlainHead(authorization.decode(), int(length), connection == b"close")


def _feed(parser: HttpRequestParser, data: bytes) -> bool:
    try:
        parser.feed_data(data)
    except (HttpParserError, HttpParserUpgrade):
        return False
    return True


def _is_plain(value: bytes) -> bool:
    """Text that is the same to everybody who reads it."""
    return value.isascii() and value == value.strip() != b""
